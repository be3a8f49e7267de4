/**
 * /proc/kcore: the kernel's memory as an ELF core file, elf(5), fs/proc/kcore.c. Its file offsets exceed 2^53 with 5-level paging,
 * so every position is a bigint.
 */
import { errnoOf } from '../../host.js'
import { type AddressRange, hex, intersectRanges, lower, mergeRanges, subtractRanges, wholePages } from './address-range.js'

/** Fills the buffer from a position of the file; gives the bytes it got, 0 at the end. Throws an errno error where the kernel refuses. */
export type ReadAt = (into: Uint8Array, at: bigint) => number | Promise<number>

/** A loadable part of kcore. */
export interface KcoreSegment {
  readonly virtual: bigint
  /** Undefined where the kernel gives none: vmalloc, modules, vmemmap. */
  readonly physical: bigint | undefined
  readonly bytes: bigint
  /** Where it starts in the file. */
  readonly offset: bigint
}

export interface KcoreLayout {
  readonly machine: 'x86-64' | 'arm64'
  readonly segments: readonly KcoreSegment[]
  /** The kernel's note on itself: OSRELEASE, PAGESIZE, KERNELOFFSET ...; empty before Linux 4.19. */
  readonly vmcoreinfo: ReadonlyMap<string, string>
}

/** A run of physical memory and where it stands in the source. */
export interface Piece extends AddressRange {
  readonly offset: bigint
}

export interface MemoryPlan {
  /** Ascending, without overlap. */
  readonly pieces: readonly Piece[]
  /** RAM of /proc/iomem that the source does not hold. */
  readonly gaps: readonly AddressRange[]
  /** Those of the gaps that are whole pages of RAM. The rest are the partial pages at the borders of resources, which the kernel never gives. */
  readonly missingPages: readonly AddressRange[]
}

/** Of linux/elf.h and linux/elf-em.h. */
const EM_X86_64 = 62
const EM_AARCH64 = 183
const PT_LOAD = 1
const PT_NOTE = 4
/** In e_phnum: the number stands elsewhere. The kernel's list of segments never gets there. */
const PN_XNUM = 0xffff

const EHDR_BYTES = 64
const PHDR_BYTES = 56
/** prstatus, prpsinfo, the task and 4 KiB of VMCOREINFO are far below. */
const MAX_NOTE_BYTES = 1 << 20

/** fs/proc/kcore.c: 'invalid physical address', since Linux 4.11 (464920104bf7). */
const NO_PHYSICAL = 0xffff_ffff_ffff_ffffn
/** The last position a file can have (loff_t). */
const MAX_OFFSET = 0x7fff_ffff_ffff_ffffn

/**
 * Reads the headers.
 * @throws Error when it is no 64-bit little-endian core of x86-64 or arm64, or gives no physical addresses: a kernel before 4.11
 * writes 0 for all, and an image made from that would hold wrong data.
 */
export async function readKcore(read: ReadAt): Promise<KcoreLayout> {
  const { machine, headers } = await programHeaders(read)
  const segments: KcoreSegment[] = []
  let vmcoreinfo: ReadonlyMap<string, string> = new Map()
  for (const header of headers) {
    const type = header.readUInt32LE(0)
    if (type === PT_NOTE) {
      const text = await readVmcoreinfo(read, header)
      vmcoreinfo = text === undefined ? vmcoreinfo : keyValues(text.toString('latin1'))
    }
    if (type === PT_LOAD) segments.push(...loadSegment(header, header.readBigUInt64LE(8), header.readBigUInt64LE(32)))
  }
  if (segments.length === 0) throw new Error('it has no memory segments')
  if (segments.every(segment => segment.physical === 0n)) {
    throw new Error('it gives no physical addresses (kernel before 4.11), so nobody can tell which page is which')
  }
  return { machine, segments, vmcoreinfo }
}

/**
 * The kernel's note on itself as it stands in kcore, lines of KEY=value; undefined before Linux 4.19.
 * @throws Error when it is no 64-bit little-endian core of x86-64 or arm64.
 */
export async function vmcoreinfoOf(read: ReadAt): Promise<Buffer | undefined> {
  const { headers } = await programHeaders(read)
  for (const header of headers) {
    const text = header.readUInt32LE(0) === PT_NOTE ? await readVmcoreinfo(read, header) : undefined
    if (text !== undefined) return text
  }
  return undefined
}

async function programHeaders(read: ReadAt): Promise<{ machine: KcoreLayout['machine']; headers: readonly Buffer[] }> {
  const ehdr = await readWhole(read, EHDR_BYTES, 0n, 'ELF header')
  if (ehdr.readUInt32BE(0) !== 0x7f454c46) throw new Error('it is no ELF file')
  if (ehdr[4] !== 2 || ehdr[5] !== 1) throw new Error('it is no 64-bit little-endian ELF file')
  const machine = machineOf(ehdr.readUInt16LE(18))
  const count = ehdr.readUInt16LE(56)
  const entry = ehdr.readUInt16LE(54)
  if (count === 0 || count === PN_XNUM || entry < PHDR_BYTES)
    throw new Error(`its program headers cannot be read (${count} of ${entry} bytes)`)
  const table = await readWhole(read, count * entry, ehdr.readBigUInt64LE(32), 'program headers')
  return { machine, headers: Array.from({ length: count }, (_, i) => table.subarray(i * entry, (i + 1) * entry)) }
}

async function readVmcoreinfo(read: ReadAt, header: Buffer): Promise<Buffer | undefined> {
  const bytes = header.readBigUInt64LE(32)
  if (bytes > BigInt(MAX_NOTE_BYTES)) return undefined
  return elfNote(await readWhole(read, Number(bytes), header.readBigUInt64LE(8), 'notes'), 'VMCOREINFO')
}

function machineOf(number: number): KcoreLayout['machine'] {
  if (number === EM_X86_64) return 'x86-64'
  if (number === EM_AARCH64) return 'arm64'
  throw new Error(`its machine is ${number}; only x86-64 and arm64 are supported`)
}

function loadSegment(header: Buffer, offset: bigint, fileBytes: bigint): KcoreSegment[] {
  const memoryBytes = header.readBigUInt64LE(40)
  const physical = header.readBigUInt64LE(24)
  const bytes = lower(fileBytes, memoryBytes)
  if (bytes === 0n || offset + bytes > MAX_OFFSET) return []
  const known = physical !== NO_PHYSICAL && physical + bytes <= NO_PHYSICAL
  return [{ virtual: header.readBigUInt64LE(16), physical: known ? physical : undefined, bytes, offset }]
}

async function readWhole(read: ReadAt, bytes: number, at: bigint, what: string): Promise<Buffer> {
  const buffer = Buffer.alloc(bytes)
  let filled = 0
  while (filled < bytes) {
    const got = await read(buffer.subarray(filled), at + BigInt(filled))
    if (got === 0) throw new Error(`its ${what} end after ${filled} of ${bytes} bytes`)
    filled += got
  }
  return buffer
}

/** The content of the first note of a name and, if given, a type: names and contents are padded to 4 bytes, elf(5). */
export function elfNote(notes: Buffer, wanted: string, type?: number): Buffer | undefined {
  let at = 0
  while (at + 12 <= notes.length) {
    const nameBytes = notes.readUInt32LE(at)
    const contentBytes = notes.readUInt32LE(at + 4)
    const name = at + 12
    const content = name + padded(nameBytes)
    const found = notes.toString('latin1', name, name + Math.max(0, nameBytes - 1))
    if (found === wanted && (type === undefined || notes.readUInt32LE(at + 8) === type)) {
      return notes.subarray(content, content + contentBytes)
    }
    at = content + padded(contentBytes)
  }
  return undefined
}

function padded(bytes: number): number {
  return Math.ceil(bytes / 4) * 4
}

/** Lines of KEY=value, as VMCOREINFO has them. */
export function keyValues(text: string): ReadonlyMap<string, string> {
  const found = new Map<string, string>()
  for (const line of text.split('\n')) {
    const equals = line.indexOf('=')
    if (equals > 0) found.set(line.slice(0, equals), line.slice(equals + 1).replaceAll('\0', ''))
  }
  return found
}

/** Bytes of a page: what the kernel's note says, else the usual of the machine (arm64 may also have 16 and 64 KiB). */
export function pageSizeOf(layout: KcoreLayout): number {
  const said = Number(layout.vmcoreinfo.get('PAGESIZE') ?? 4096)
  return Number.isSafeInteger(said) && said >= 4096 && said <= 65_536 ? said : 4096
}

/**
 * Where each byte of RAM stands in kcore. The segments of the direct map come first, which all lie at one distance from their
 * physical addresses; the kernel's text is there a second time at another distance, and is taken only where nothing else is.
 * `ram` is what systemRam gives; adjacent resources are made one before anything is cut.
 */
export function planKcore(layout: KcoreLayout, ram: readonly AddressRange[]): MemoryPlan {
  const whole = mergeRanges(ram)
  const pieces: Piece[] = []
  let left = whole
  for (const segment of preferred(layout.segments, whole)) {
    const covered = [{ start: segment.physical, end: segment.physical + segment.bytes }]
    for (const { start, end } of intersectRanges(left, covered)) {
      pieces.push({ start, end, offset: segment.offset + (start - segment.physical) })
    }
    left = subtractRanges(left, covered)
  }
  pieces.sort((a, b) => (a.start < b.start ? -1 : 1))
  // Each resource by itself: a page that two of them share is in neither of the kernel's segments.
  const pages = mergeRanges(wholePages(ram, BigInt(pageSizeOf(layout))))
  return { pieces, gaps: left, missingPages: intersectRanges(left, pages) }
}

type PhysicalSegment = KcoreSegment & { readonly physical: bigint }

/** Segments with a physical address, those at the commonest distance (by bytes of RAM) first, the longer before the shorter. */
function preferred(segments: readonly KcoreSegment[], ram: readonly AddressRange[]): PhysicalSegment[] {
  const known = segments.filter((segment): segment is PhysicalSegment => segment.physical !== undefined)
  const covered = new Map<bigint, bigint>()
  for (const segment of known) {
    const common = intersectRanges(ram, [{ start: segment.physical, end: segment.physical + segment.bytes }])
    const bytes = common.reduce((sum, range) => sum + (range.end - range.start), 0n)
    covered.set(distance(segment), (covered.get(distance(segment)) ?? 0n) + bytes)
  }
  const rank = (segment: PhysicalSegment): bigint => covered.get(distance(segment)) ?? 0n
  return known.toSorted((a, b) => {
    if (rank(a) !== rank(b)) return rank(a) > rank(b) ? -1 : 1
    return a.bytes > b.bytes ? -1 : a.bytes < b.bytes ? 1 : 0
  })
}

/** From physical to virtual, modulo 2^64. */
function distance(segment: PhysicalSegment): bigint {
  return BigInt.asUintN(64, segment.virtual - segment.physical)
}

/** Reads of one page that is mapped twice; text may be patched (jump labels, ftrace) between the two, so a difference is looked at again. */
const COMPARE_TRIES = 3

/**
 * Reads a page of the kernel's text through both of its mappings: when they differ, the physical addresses of kcore cannot be
 * believed. Gives the complaint, or undefined when they agree or nothing is mapped twice.
 */
export async function contradiction(read: ReadAt, layout: KcoreLayout, plan: MemoryPlan): Promise<string | undefined> {
  const page = pageSizeOf(layout)
  for (const segment of layout.segments) {
    const { physical } = segment
    if (physical === undefined) continue
    const piece = plan.pieces.find(({ start, end }) => start <= physical && physical + BigInt(page) <= end)
    if (piece === undefined || segment.bytes < BigInt(page)) continue
    const other = piece.offset + (physical - piece.start)
    if (other === segment.offset) continue
    if (await differ(read, segment.offset, other, page)) {
      return `the page at ${hex(physical)} reads differently at ${hex(segment.offset)} and ${hex(other)} of the file`
    }
  }
  return undefined
}

async function differ(read: ReadAt, one: bigint, other: bigint, bytes: number): Promise<boolean> {
  for (let tries = 0; tries < COMPARE_TRIES; tries++) {
    const a = await readPage(read, one, bytes)
    const b = await readPage(read, other, bytes)
    // A page that reads as zeros may be one that the kernel would not copy: that proves nothing.
    if (a === undefined || b === undefined || isZero(a) || isZero(b) || a.equals(b)) return false
  }
  return true
}

async function readPage(read: ReadAt, at: bigint, bytes: number): Promise<Buffer | undefined> {
  try {
    return await readWhole(read, bytes, at, 'page')
  } catch (error) {
    if (errnoOf(error) === '') throw error
    // What cannot be read proves nothing either; the copy will meet it again and note it.
    return undefined
  }
}

function isZero(buffer: Buffer): boolean {
  return buffer.every(byte => byte === 0)
}
