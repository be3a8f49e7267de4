/** The headers of an ELF core file, elf(5), as gdb, readelf and the kernel's own dumps (fs/binfmt_elf.c) have them. */
import type { AddressRange } from './address-range.js'

export interface CoreSegment extends AddressRange {
  readonly readable: boolean
  readonly writable: boolean
  readonly executable: boolean
  /** The file behind it, and where in it the segment starts; absent for anonymous memory. */
  readonly file?: { readonly path: string; readonly offset: bigint }
}

export interface CoreImage {
  readonly machine: 'x86-64' | 'arm64'
  /** In the order in which their contents follow the headers. */
  readonly segments: readonly CoreSegment[]
  /** /proc/PID/auxv as it is: the debugger finds the loader's list of libraries by it. */
  readonly auxiliaryVector: Uint8Array
}

/** linux/elf.h, linux/elf-em.h, and include/uapi/linux/elf.h for the notes. */
const ET_CORE = 4
const EM = { 'x86-64': 62, arm64: 183 } as const
const PT_LOAD = 1
const PT_NOTE = 4
const PF = { executable: 1, writable: 2, readable: 4 } as const
const NT_AUXV = 6
const NT_FILE = 0x46494c45

const EHDR_BYTES = 64
const PHDR_BYTES = 56
const ALIGN = 4096

/** e_phnum has 16 bits, its last value means something else, and one entry is the notes. */
export const MAX_SEGMENTS = 0xfffe - 1

/**
 * Everything before the first byte of memory; the contents of the segments follow back to back.
 * Without registers: those of a process that goes on running would be wrong by the next instruction.
 * @throws RangeError with more than MAX_SEGMENTS segments.
 */
export function coreHeaders(image: CoreImage): Buffer {
  const { segments } = image
  if (segments.length > MAX_SEGMENTS) throw new RangeError(`${segments.length} segments do not fit into an ELF file`)
  const notes = Buffer.concat([note(NT_AUXV, Buffer.from(image.auxiliaryVector)), note(NT_FILE, mappedFiles(segments))])
  const table = EHDR_BYTES
  const notesAt = table + (segments.length + 1) * PHDR_BYTES
  const dataAt = Math.ceil((notesAt + notes.length) / ALIGN) * ALIGN
  const headers = Buffer.alloc(dataAt)
  writeElfHeader(headers, EM[image.machine], segments.length + 1)
  writeProgramHeader(headers, table, {
    type: PT_NOTE,
    flags: 0,
    offset: BigInt(notesAt),
    address: 0n,
    fileBytes: BigInt(notes.length),
    align: 4n,
  })
  let offset = BigInt(dataAt)
  for (const [index, segment] of segments.entries()) {
    const bytes = segment.end - segment.start
    const flags = (['readable', 'writable', 'executable'] as const).reduce((sum, flag) => sum + (segment[flag] ? PF[flag] : 0), 0)
    const at = table + (index + 1) * PHDR_BYTES
    writeProgramHeader(headers, at, { type: PT_LOAD, flags, offset, address: segment.start, fileBytes: bytes, align: BigInt(ALIGN) })
    offset += bytes
  }
  notes.copy(headers, notesAt)
  return headers
}

function writeElfHeader(into: Buffer, machine: number, programHeaders: number): void {
  into.writeUInt32BE(0x7f454c46, 0)
  // 64 bit, little endian, version 1.
  into.set([2, 1, 1], 4)
  into.writeUInt16LE(ET_CORE, 16)
  into.writeUInt16LE(machine, 18)
  into.writeUInt32LE(1, 20)
  into.writeBigUInt64LE(BigInt(EHDR_BYTES), 32)
  into.writeUInt16LE(EHDR_BYTES, 52)
  into.writeUInt16LE(PHDR_BYTES, 54)
  into.writeUInt16LE(programHeaders, 56)
}

interface ProgramHeader {
  readonly type: number
  readonly flags: number
  readonly offset: bigint
  readonly address: bigint
  readonly fileBytes: bigint
  readonly align: bigint
}

function writeProgramHeader(into: Buffer, at: number, header: ProgramHeader): void {
  into.writeUInt32LE(header.type, at)
  into.writeUInt32LE(header.flags, at + 4)
  into.writeBigUInt64LE(header.offset, at + 8)
  into.writeBigUInt64LE(header.address, at + 16)
  into.writeBigUInt64LE(header.fileBytes, at + 32)
  into.writeBigUInt64LE(header.type === PT_LOAD ? header.fileBytes : 0n, at + 40)
  into.writeBigUInt64LE(header.align, at + 48)
}

function note(type: number, content: Buffer): Buffer {
  const name = Buffer.from('CORE\0\0\0\0')
  const head = Buffer.alloc(12)
  // The size of the name counts its NUL, not its padding.
  head.writeUInt32LE(5, 0)
  head.writeUInt32LE(content.length, 4)
  head.writeUInt32LE(type, 8)
  return Buffer.concat([head, name, content, Buffer.alloc(-content.length & 3)])
}

/** NT_FILE: count and page size, then start, end and offset in pages of each, then the names in the same order. */
function mappedFiles(segments: readonly CoreSegment[]): Buffer {
  const mapped = segments.filter(segment => segment.file !== undefined)
  const words = Buffer.alloc(16 + mapped.length * 24)
  words.writeBigUInt64LE(BigInt(mapped.length), 0)
  words.writeBigUInt64LE(BigInt(ALIGN), 8)
  for (const [index, segment] of mapped.entries()) {
    const at = 16 + index * 24
    words.writeBigUInt64LE(segment.start, at)
    words.writeBigUInt64LE(segment.end, at + 8)
    words.writeBigUInt64LE((segment.file?.offset ?? 0n) / BigInt(ALIGN), at + 16)
  }
  const names = mapped.map(segment => `${segment.file?.path ?? ''}\0`).join('')
  return Buffer.concat([words, Buffer.from(names, 'latin1')])
}
