/**
 * The LiME format, version 1: records of a 32-byte header and the bytes of one range of physical memory, back to back, nothing
 * before, between or behind. github.com/504ensicsLabs/LiME, doc/README.md, and Volatility 3's layers/lime.py, which refuses
 * the whole image for any stray byte.
 */
import type { AddressRange } from './address-range.js'
import { hex } from './address-range.js'

/** On disk the bytes 'EMiL'. */
const MAGIC = 0x4c694d45
const VERSION = 1

/** Bytes of a record's header. */
export const LIME_HEADER = 32

/** A reader gives up behind so many records: a range of its own for each 64 KiB of 64 GiB. */
const MAX_RECORDS = 1_000_000

/** The header of a record; the addresses in it are those of the first and the last byte. */
export function limeHeader(range: AddressRange): Buffer {
  if (range.end <= range.start) throw new RangeError(`no bytes between ${hex(range.start)} and ${hex(range.end)}`)
  const header = Buffer.alloc(LIME_HEADER)
  header.writeUInt32LE(MAGIC, 0)
  header.writeUInt32LE(VERSION, 4)
  header.writeBigUInt64LE(range.start, 8)
  header.writeBigUInt64LE(range.end - 1n, 16)
  return header
}

/** Bytes of an image of these ranges, one record each. */
export function limeBytes(ranges: readonly AddressRange[]): number {
  return ranges.reduce((sum, range) => sum + LIME_HEADER + Number(range.end - range.start), 0)
}

/** A record of an image: what it says it holds, and where that starts in the file. */
export interface LimeRecord extends AddressRange {
  readonly at: number
}

export interface LimeDamage {
  /** 'cut': the last record is shorter than its header says; Volatility opens the image and fails where it ends. 'format': refused. */
  readonly kind: 'cut' | 'format'
  /** Byte of the file. */
  readonly at: number
  readonly what: string
}

export interface LimeImage {
  /** Up to the damage, if there is one; a record that is cut short is the last of them. */
  readonly records: readonly LimeRecord[]
  readonly damage?: LimeDamage
}

/**
 * Walks the headers of an image of `fileBytes` bytes. `read` fills the buffer from a position and tells how many bytes it got.
 * Never throws for what stands in the file; damage is told.
 */
export function readLime(read: (into: Buffer, at: number) => number, fileBytes: number): LimeImage {
  const records: LimeRecord[] = []
  const damaged = (kind: LimeDamage['kind'], at: number, what: string): LimeImage => ({ records, damage: { kind, at, what } })
  if (fileBytes === 0) return damaged('format', 0, 'the file is empty')
  const header = Buffer.alloc(LIME_HEADER)
  let at = 0
  let before = -1n
  while (at < fileBytes) {
    if (records.length === MAX_RECORDS) return damaged('format', at, `more than ${MAX_RECORDS} records`)
    const got = read(header, at)
    if (got < LIME_HEADER) return damaged('format', at, `${fileBytes - at} bytes behind the last record are no header`)
    const wrong = headerFault(header, before)
    if (wrong !== undefined) return damaged('format', at, wrong)
    const start = header.readBigUInt64LE(8)
    const last = header.readBigUInt64LE(16)
    const bytes = last - start + 1n
    const data = at + LIME_HEADER
    records.push({ start, end: last + 1n, at: data })
    if (bytes > BigInt(fileBytes - data)) {
      return damaged('cut', fileBytes, `the record of ${hex(start)}-${hex(last)} lacks ${bytes - BigInt(fileBytes - data)} bytes`)
    }
    before = last
    at = data + Number(bytes)
  }
  return { records }
}

function headerFault(header: Buffer, before: bigint): string | undefined {
  const magic = header.readUInt32LE(0)
  if (magic !== MAGIC) return `magic ${hex(BigInt(magic))} instead of ${hex(BigInt(MAGIC))}`
  const version = header.readUInt32LE(4)
  if (version !== VERSION) return `version ${version} instead of ${VERSION}`
  const start = header.readBigUInt64LE(8)
  const last = header.readBigUInt64LE(16)
  if (last < start) return `the record ends at ${hex(last)}, before it starts at ${hex(start)}`
  if (start <= before) return `the record of ${hex(start)} does not lie behind the one before it, which ends at ${hex(before)}`
  if (header.readBigUInt64LE(24) !== 0n) return 'the reserved bytes are not zero'
  return undefined
}
