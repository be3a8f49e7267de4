/**
 * A strict reader for the archives that ir writes (APPNOTE.TXT 6.3.10, PKWARE). Lenient readers show different contents
 * for the same file: they differ in which of two directories they believe and in what they skip. This one accepts one
 * layout: entry behind entry from the first byte on, each with a local header that says what the central directory says,
 * then the directory, then the end with the comment, then nothing.
 */
import fs from 'node:fs'
import { pipeline, Readable } from 'node:stream'
import zlib from 'node:zlib'
import { EvidenceError, UsageError } from '../errors.js'
import { COMMENT_LENGTH } from './archive.js'
import { closeQuietly, pieces, readFully } from './disk.js'
import { isCaseId, isSafePart } from './names.js'

const LOCAL = 0x04034b50
const DESCRIPTOR = 0x08074b50
const CENTRAL = 0x02014b50
const END = 0x06054b50
const END64 = 0x06064b50
const LOCATOR64 = 0x07064b50

/** Fixed parts of the records, APPNOTE 4.3. */
const LOCAL_BYTES = 30
const CENTRAL_BYTES = 46
const END_BYTES = 22
const END64_BYTES = 56
const LOCATOR64_BYTES = 20

/** A field of this value has its real one in the zip64 extra, APPNOTE 4.5.3. */
const MAX16 = 0xffff
const MAX32 = 0xffffffff

/** Sizes and CRC stand behind the data, APPNOTE 4.4.4 bit 3. */
const HAS_DESCRIPTOR = 1 << 3

const STORED = 0
const DEFLATED = 8

/** No deflate stream says more per byte: zlib.net/zlib_tech.html, 'Maximum Compression Factor'. */
const DEFLATE_FACTOR = 1032

/** A directory of more than a million entries is none of ours; it is read into memory. */
const LARGEST_DIRECTORY = 256 << 20

/** How far from the end an end record is looked for, to tell how much was appended. */
const SEARCH_BACK = 1 << 20

/** Entries up to this size are read and unpacked at once. */
const AT_ONCE = 1 << 20

const READ_LIMIT = 64 << 20

export interface ZipEntry {
  /** '<case>/data/<step>/<name>' */
  readonly name: string
  readonly method: typeof STORED | typeof DEFLATED
  readonly crc: number
  readonly compressed: number
  readonly bytes: number
  /** Where its data begins in the file. */
  readonly data: number
}

/** Something about an archive that is not as ir wrote it; `path` is the entry's name, '' for the archive as such. */
export interface Fault {
  readonly path: string
  readonly what: string
}

export interface ZipStructure {
  /** Those that could be found, in the order of the file. */
  readonly entries: readonly ZipEntry[]
  readonly faults: readonly Fault[]
  /** The hash in the comment; undefined when there is none. */
  readonly sha256: string | undefined
  /** Bytes before the comment. */
  readonly hashed: number
}

interface CentralEntry extends Omit<ZipEntry, 'data'> {
  readonly version: number
  readonly flags: number
  readonly time: number
  readonly offset: number
  readonly zip64: boolean
}

/** Reads the structure; never throws for what the file holds, only for what the disk does. */
export function readStructure(fd: number, size: number): ZipStructure {
  const faults: Fault[] = []
  const blame = (path: string, what: string): void => void faults.push({ path, what })
  const end = findEnd(fd, size)
  if (end === undefined) {
    blame('', `its end record is missing or damaged: truncated, extended or changed (${size} bytes)`)
    return { entries: [], faults, sha256: undefined, hashed: size }
  }
  const ends = end.at + END_BYTES + COMMENT_LENGTH
  if (ends !== size) blame('', `${size - ends} bytes were appended`)
  const sha256 = /^sha256:([0-9a-f]{64})$/.exec(end.comment)?.[1]
  if (sha256 === undefined) blame('', 'its comment is not the hash of the archive')
  const found = { sha256, hashed: end.at + END_BYTES }

  const directory = locateDirectory(fd, end, blame)
  if (directory === undefined) return { entries: [], faults, ...found }
  const central = readDirectory(directory.bytes, directory.count, blame)
  return { entries: walkEntries(fd, central, directory, blame), faults, ...found }
}

interface End {
  readonly at: number
  readonly record: Buffer
  readonly comment: string
}

/** Where it belongs; or, when bytes were appended, further up. */
function findEnd(fd: number, size: number): End | undefined {
  const length = END_BYTES + COMMENT_LENGTH
  const from = Math.max(0, size - SEARCH_BACK)
  const tail = bytesAt(fd, from, size - from)
  for (let at = tail.length - length; at >= 0; at -= 1) {
    if (tail.readUInt32LE(at) !== END || tail.readUInt16LE(at + 20) !== COMMENT_LENGTH) continue
    const comment = tail.toString('latin1', at + END_BYTES, at + length)
    // Further up only with a comment like ours: the signature alone may be somebody's data.
    if (from + at + length === size || comment.startsWith('sha256:')) {
      return { at: from + at, record: tail.subarray(at, at + END_BYTES), comment }
    }
  }
  return undefined
}

interface Directory {
  readonly bytes: Buffer
  readonly count: number
  /** Where it really begins. */
  readonly at: number
  /** Bytes by which it lies further back than the end record says. */
  readonly shift: number
}

type Blame = (path: string, what: string) => void

function locateDirectory(fd: number, end: End, blame: Blame): Directory | undefined {
  const { record } = end
  if (record.readUInt32LE(4) !== 0) blame('', 'its end record speaks of several disks')
  let count: number = record.readUInt16LE(10)
  if (record.readUInt16LE(8) !== count) blame('', 'its end record has two numbers of entries')
  let bytes: number = record.readUInt32LE(12)
  let offset: number = record.readUInt32LE(16)
  let stop = end.at
  const locator = bytesAt(fd, end.at - LOCATOR64_BYTES, LOCATOR64_BYTES)
  if (locator.length === LOCATOR64_BYTES && locator.readUInt32LE(0) === LOCATOR64) {
    if (count !== MAX16 || bytes !== MAX32 || offset !== MAX32) blame('', 'its end record and its zip64 end record differ')
    stop = end.at - LOCATOR64_BYTES - END64_BYTES
    const record64 = bytesAt(fd, stop, END64_BYTES)
    if (record64.length < END64_BYTES || record64.readUInt32LE(0) !== END64 || record64.readBigUInt64LE(4) !== 44n) {
      blame('', 'its zip64 end record is damaged')
      return undefined
    }
    if (record64.readUInt32LE(12) !== 0x002d002d) blame('', 'its zip64 end record has another version than ir writes')
    if (locator.readUInt32LE(4) !== 0 || locator.readUInt32LE(16) !== 1 || record64.readBigUInt64LE(16) !== 0n) {
      blame('', 'its zip64 end record speaks of several disks')
    }
    count = Number(record64.readBigUInt64LE(32))
    if (Number(record64.readBigUInt64LE(24)) !== count) blame('', 'its zip64 end record has two numbers of entries')
    bytes = Number(record64.readBigUInt64LE(40))
    offset = Number(record64.readBigUInt64LE(48))
    if (Number(locator.readBigUInt64LE(8)) !== offset + bytes) blame('', 'its zip64 locator points elsewhere')
  }
  if (bytes > LARGEST_DIRECTORY) {
    blame('', `its directory claims ${bytes} bytes`)
    return undefined
  }
  if (bytes === 0 && count === 0 && stop === offset) return { bytes: Buffer.alloc(0), count, at: stop, shift: 0 }
  // Size and offset say the same twice; when they disagree, the one that leads to a directory is believed, and the other blamed.
  for (const at of new Set([stop - bytes, offset])) {
    if (at < 0 || at > stop) continue
    const found = bytesAt(fd, at, stop - at)
    if (found.length < 4 || found.readUInt32LE(0) !== CENTRAL) continue
    const shift = stop - bytes - offset
    if (shift > 0) blame('', `${shift} bytes too many before its directory`)
    if (shift < 0) blame('', `${-shift} bytes missing before its directory`)
    return { bytes: found, count, at, shift: at === offset ? 0 : shift }
  }
  blame('', 'its directory is not where the end record says')
  return undefined
}

function readDirectory(bytes: Buffer, count: number, blame: Blame): CentralEntry[] {
  const entries: CentralEntry[] = []
  const names = new Set<string>()
  let at = 0
  while (at < bytes.length) {
    const next = readCentral(bytes, at)
    if (next === undefined) {
      blame('', `its directory is damaged behind entry ${entries.length}`)
      return entries
    }
    const { entry, length, faults } = next
    for (const fault of faults) blame(entry.name, fault)
    if (names.has(entry.name)) blame(entry.name, 'is in the archive twice')
    names.add(entry.name)
    entries.push(entry)
    at += length
  }
  if (entries.length !== count) blame('', `it holds ${entries.length} entries where its end record says ${count}`)
  return entries
}

function readCentral(bytes: Buffer, at: number): { entry: CentralEntry; length: number; faults: string[] } | undefined {
  if (bytes.length < at + CENTRAL_BYTES || bytes.readUInt32LE(at) !== CENTRAL) return undefined
  const [nameLength, extraLength, commentLength] = [28, 30, 32].map(field => bytes.readUInt16LE(at + field)) as [number, number, number]
  const length = CENTRAL_BYTES + nameLength + extraLength + commentLength
  if (bytes.length < at + length) return undefined
  const faults: string[] = []
  const name = bytes.toString('latin1', at + CENTRAL_BYTES, at + CENTRAL_BYTES + nameLength)
  const method = bytes.readUInt16LE(at + 10)
  const flags = bytes.readUInt16LE(at + 8)
  let compressed: number = bytes.readUInt32LE(at + 20)
  let size: number = bytes.readUInt32LE(at + 24)
  let offset: number = bytes.readUInt32LE(at + 42)
  const extra = bytes.subarray(at + CENTRAL_BYTES + nameLength, at + length - commentLength)
  // archiver puts all three values there when one does not fit.
  const zip64 = extra.length === 28 && extra.readUInt16LE(0) === 1 && extra.readUInt16LE(2) === 24
  if (zip64) {
    if (size !== MAX32 || compressed !== MAX32 || offset !== MAX32) faults.push('has sizes of 32 bits besides those of 64')
    size = Number(extra.readBigUInt64LE(4))
    compressed = Number(extra.readBigUInt64LE(12))
    offset = Number(extra.readBigUInt64LE(20))
  } else if (extra.length > 0) {
    faults.push('has an extra field that ir does not write')
  }
  if (!isEntryName(name)) faults.push('has an unsafe name')
  if ((flags & ~HAS_DESCRIPTOR) !== 0) faults.push('is encrypted, or has flags that ir does not set')
  if (method !== STORED && method !== DEFLATED) faults.push(`has the unknown method ${method}`)
  if (commentLength !== 0 || bytes.readUInt16LE(at + 34) !== 0 || bytes.readUInt16LE(at + 36) !== 0) {
    faults.push('has fields in the directory that ir does not write')
  }
  // 0100600 in the upper half, the archive bit of DOS in the lower: archiver's mode 0600.
  if (bytes.readUInt32LE(at + 38) !== 0x81800020 || bytes.readUInt16LE(at + 4) !== 0x032d) faults.push('has another mode than ir gives')
  if (method === STORED && size !== compressed) faults.push('is stored with two sizes')
  if (method === DEFLATED && size > compressed * DEFLATE_FACTOR) faults.push('claims more than its data can hold')
  const entry: CentralEntry = {
    name,
    method: method === STORED ? STORED : DEFLATED,
    crc: bytes.readUInt32LE(at + 16),
    compressed,
    bytes: size,
    version: bytes.readUInt16LE(at + 6),
    flags,
    time: bytes.readUInt32LE(at + 12),
    offset,
    zip64,
  }
  return { entry, length, faults }
}

/** A case, and a file in it: never up, never absolute, nothing that a terminal or another system would read otherwise. */
function isEntryName(name: string): boolean {
  const [id, ...parts] = name.split('/')
  return isCaseId(id ?? '') && parts.length > 0 && parts.length <= 12 && parts.every(isSafePart)
}

/** Follows the entries from the first byte to the directory. */
function walkEntries(fd: number, central: readonly CentralEntry[], directory: Directory, blame: Blame): ZipEntry[] {
  const entries: ZipEntry[] = []
  let expected = 0
  let shift = 0
  let before = ''
  for (const entry of central) {
    let data = dataOf(fd, entry, entry.offset + shift, directory.at)
    // Bytes came in or got lost somewhere: from the first entry that lies further back on, all do.
    if (data === undefined && shift === 0 && directory.shift !== 0) {
      data = dataOf(fd, entry, entry.offset + directory.shift, directory.at)
      if (data !== undefined) shift = directory.shift
    }
    if (data === undefined) {
      blame(entry.name, 'has no local header where the directory says')
      expected = -1
      continue
    }
    if (expected !== -1 && entry.offset + shift !== expected) {
      const gap = entry.offset + shift - expected
      blame(before, gap > 0 ? `has ${gap} bytes too many, or behind it` : `has ${-gap} bytes too few`)
    }
    for (const fault of compareLocal(fd, entry, entry.offset + shift, data)) blame(entry.name, fault)
    expected = data + entry.compressed + descriptorBytes(entry)
    before = entry.name
    if (data + entry.compressed <= directory.at) {
      entries.push({ name: entry.name, method: entry.method, crc: entry.crc, compressed: entry.compressed, bytes: entry.bytes, data })
    } else {
      blame(entry.name, 'reaches into the directory')
    }
  }
  if (expected !== -1 && expected !== directory.at) {
    const gap = directory.at - expected
    blame(before, gap > 0 ? `has ${gap} bytes too many, or behind it` : `has ${-gap} bytes too few`)
  }
  return entries
}

/** Where an entry's data begins; undefined when no local header of its name is there. */
function dataOf(fd: number, entry: CentralEntry, at: number, limit: number): number | undefined {
  const data = at + LOCAL_BYTES + entry.name.length
  if (at < 0 || data > limit) return undefined
  const header = bytesAt(fd, at, LOCAL_BYTES + entry.name.length)
  // One of the two may have been changed; both together are no header of this entry.
  const named = header.toString('latin1', LOCAL_BYTES) === entry.name
  return header.readUInt32LE(0) === LOCAL || named ? data : undefined
}

function compareLocal(fd: number, entry: CentralEntry, at: number, data: number): string[] {
  const header = bytesAt(fd, at, data - at)
  const faults: string[] = []
  const compare = (what: string, local: number, expected: number): void => {
    if (local !== expected) faults.push(`has a local header with another ${what}`)
  }
  const later = (entry.flags & HAS_DESCRIPTOR) !== 0
  compare('signature', header.readUInt32LE(0), LOCAL)
  // archiver learns that an entry needs zip64 (4.5) when its local header is written already.
  if (!entry.zip64) compare('version', header.readUInt16LE(4), entry.version)
  else if (header.readUInt16LE(4) > entry.version) faults.push('has a local header with another version')
  compare('flag', header.readUInt16LE(6), entry.flags)
  compare('method', header.readUInt16LE(8), entry.method)
  compare('time', header.readUInt32LE(10), entry.time)
  compare('CRC', header.readUInt32LE(14), later ? 0 : entry.crc)
  compare('compressed size', header.readUInt32LE(18), later ? 0 : entry.compressed)
  compare('size', header.readUInt32LE(22), later ? 0 : entry.bytes)
  compare('name', header.readUInt16LE(26), entry.name.length)
  compare('extra field', header.readUInt16LE(28), 0)
  if (header.toString('latin1', LOCAL_BYTES) !== entry.name) faults.push('has a local header with another name')
  if (later) {
    const descriptor = bytesAt(fd, data + entry.compressed, descriptorBytes(entry))
    if (descriptor.length === 0 || !descriptor.equals(descriptorOf(entry)))
      faults.push('has another data descriptor than the directory says')
  }
  return faults
}

function descriptorBytes(entry: CentralEntry): number {
  if ((entry.flags & HAS_DESCRIPTOR) === 0) return 0
  return wide(entry) ? 24 : 16
}

/** archiver writes 64 bits where a size needs them; an offset that needs them does not count here. */
function wide(entry: CentralEntry): boolean {
  return entry.bytes > MAX32 || entry.compressed > MAX32
}

function descriptorOf(entry: CentralEntry): Buffer {
  const descriptor = Buffer.alloc(descriptorBytes(entry))
  descriptor.writeUInt32LE(DESCRIPTOR, 0)
  descriptor.writeUInt32LE(entry.crc, 4)
  if (wide(entry)) {
    descriptor.writeBigUInt64LE(BigInt(entry.compressed), 8)
    descriptor.writeBigUInt64LE(BigInt(entry.bytes), 16)
  } else {
    descriptor.writeUInt32LE(entry.compressed, 8)
    descriptor.writeUInt32LE(entry.bytes, 12)
  }
  return descriptor
}

/** Fewer bytes than asked for where the file has no more. */
function bytesAt(fd: number, at: number, length: number): Buffer {
  if (at < 0 || length <= 0) return Buffer.alloc(0)
  const buffer = Buffer.alloc(length)
  return buffer.subarray(0, readFully(fd, buffer, at))
}

/** The content of an entry does not match what its headers say. */
export class EntryDamaged extends Error {}

/**
 * The content of an entry, piece by piece, never more than it claims.
 * @throws EntryDamaged when data, size or CRC do not fit together; the pieces given before are then worthless.
 */
export async function* entryChunks(fd: number, entry: ZipEntry): AsyncGenerator<Buffer> {
  if (Math.max(entry.compressed, entry.bytes) <= AT_ONCE) {
    yield entryContent(fd, entry)
    return
  }
  const packed = pieces(fd, entry.data, entry.compressed)
  const inflate = entry.method === DEFLATED ? zlib.createInflateRaw({ chunkSize: 256 << 10 }) : undefined
  // Errors of either reach the loop below through the last stream.
  const content: AsyncIterable<Buffer> = inflate === undefined ? packed : pipeline(Readable.from(packed), inflate, () => {})
  let crc = 0
  let bytes = 0
  try {
    for await (const chunk of content) {
      bytes += chunk.length
      if (bytes > entry.bytes) throw new EntryDamaged('holds more than it claims')
      crc = zlib.crc32(chunk, crc)
      yield chunk
    }
  } catch (error) {
    throw error instanceof EntryDamaged ? error : new EntryDamaged('cannot be unpacked', { cause: error })
  } finally {
    inflate?.destroy()
  }
  if (inflate !== undefined && inflate.bytesWritten !== entry.compressed) throw new EntryDamaged('has bytes behind its content')
  assertWhole(entry, bytes, crc)
}

/** All of an entry at once. */
function entryContent(fd: number, entry: ZipEntry): Buffer {
  const packed = bytesAt(fd, entry.data, entry.compressed)
  if (packed.length !== entry.compressed) throw new EntryDamaged('is cut')
  let content = packed
  if (entry.method === DEFLATED) {
    try {
      // One byte more than it claims, so that a longer one is an error and not cut.
      const { buffer, engine } = inflateInfo(packed, entry.bytes + 1)
      if (engine.bytesWritten !== entry.compressed) throw new EntryDamaged('has bytes behind its content')
      content = buffer
    } catch (error) {
      throw error instanceof EntryDamaged ? error : new EntryDamaged('cannot be unpacked', { cause: error })
    }
  }
  assertWhole(entry, content.length, zlib.crc32(content))
  return content
}

/** @types/node does not know the result of the `info` option. */
function inflateInfo(packed: Buffer, maxOutputLength: number): { buffer: Buffer; engine: zlib.InflateRaw } {
  return zlib.inflateRawSync(packed, { maxOutputLength, info: true }) as unknown as { buffer: Buffer; engine: zlib.InflateRaw }
}

function assertWhole(entry: ZipEntry, bytes: number, crc: number): void {
  if (bytes !== entry.bytes) throw new EntryDamaged('holds less than it claims')
  if (crc !== entry.crc) throw new EntryDamaged('does not match its CRC')
}

/** A sealed archive, opened for reading. */
export interface Archive {
  /** Of the case in it. */
  readonly id: string
  /** Paths in the case, 'data/<step>/<name>', in the order of the archive. */
  names(): string[]
  has(name: string): boolean
  /** Size in bytes, undefined when there is no such file. */
  size(name: string): number | undefined
  /**
   * The whole of a file.
   * @throws EvidenceError when there is none, it is larger than `maxBytes` (64 MiB when absent), or damaged.
   */
  read(name: string, maxBytes?: number): Buffer
  /** A file piece by piece. Throws EvidenceError as `read` does. */
  chunks(name: string): AsyncGenerator<Buffer>
  close(): void
}

/**
 * Opens an archive that ir wrote. Checks its structure and, on reading, each content against its CRC; whether it is what
 * was sealed is what `verify` tells.
 * @throws UsageError when there is no file at `path`.
 * @throws EvidenceError when its structure is not one that ir writes.
 */
export function openArchive(path: string): Archive {
  let fd: number
  try {
    fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)
  } catch (error) {
    throw new UsageError(`cannot open ${path}`, { cause: error })
  }
  const status = fs.fstatSync(fd)
  if (!status.isFile()) {
    closeQuietly(fd)
    throw new UsageError(`${path} is no archive`)
  }
  const { entries, faults } = readStructure(fd, status.size)
  const id = entries[0]?.name.split('/', 1)[0]
  const [fault] = faults
  if (fault !== undefined || id === undefined || entries.some(entry => !entry.name.startsWith(`${id}/`))) {
    closeQuietly(fd)
    const what = fault === undefined ? 'it holds no case, or several' : fault.path === '' ? fault.what : `${fault.path} ${fault.what}`
    throw new EvidenceError(`${path} is damaged: ${what}`)
  }
  const files = new Map(entries.map(entry => [entry.name.slice(id.length + 1), entry]))
  const find = (name: string): ZipEntry => {
    const entry = files.get(name)
    if (entry === undefined) throw new EvidenceError(`${path} holds no ${name}`)
    return entry
  }
  const damaged = (name: string, error: unknown): unknown =>
    error instanceof EntryDamaged ? new EvidenceError(`${path} is damaged: ${name} ${error.message}`, { cause: error }) : error
  return {
    id,
    names: () => [...files.keys()],
    has: name => files.has(name),
    size: name => files.get(name)?.bytes,
    read(name, maxBytes = READ_LIMIT) {
      const entry = find(name)
      if (entry.bytes > maxBytes)
        throw new EvidenceError(`${name} has ${entry.bytes} bytes, more than the ${maxBytes} that are read at once`)
      try {
        return entryContent(fd, entry)
      } catch (error) {
        throw damaged(name, error)
      }
    },
    async *chunks(name) {
      try {
        yield* entryChunks(fd, find(name))
      } catch (error) {
        throw damaged(name, error)
      }
    },
    close: () => closeQuietly(fd),
  }
}
