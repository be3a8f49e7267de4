/** Core files as /proc/kcore has them, made for tests: as bytes behind a read function, or as sparse files with offsets near 2^62. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { higher, lower } from '../../src/collectors/memory/address-range.js'
import type { ReadAt } from '../../src/collectors/memory/kcore.js'

export interface MadeSegment {
  readonly offset: bigint
  readonly virtual: bigint
  /** Absent: none, as vmalloc has it. */
  readonly physical?: bigint
  readonly bytes: bigint
}

export const NO_PHYSICAL = 0xffff_ffff_ffff_ffffn

/** ELF64 header, a PT_NOTE with VMCOREINFO, and a PT_LOAD for each segment. */
export function kcoreHeaders(segments: readonly MadeSegment[], options: { machine?: number; vmcoreinfo?: string } = {}): Buffer {
  const info = Buffer.from(options.vmcoreinfo ?? 'OSRELEASE=6.1.0-test\nPAGESIZE=4096\n')
  const note = Buffer.alloc(12 + 12 + Math.ceil(info.length / 4) * 4)
  note.writeUInt32LE(11, 0)
  note.writeUInt32LE(info.length, 4)
  note.write('VMCOREINFO', 12)
  info.copy(note, 24)
  const notesAt = 64 + 56 * (segments.length + 1)
  const headers = Buffer.alloc(notesAt + note.length)
  headers.write('7f454c46020101', 'hex')
  headers.writeUInt16LE(4, 16)
  headers.writeUInt16LE(options.machine ?? 62, 18)
  headers.writeBigUInt64LE(64n, 32)
  headers.writeUInt16LE(64, 52)
  headers.writeUInt16LE(56, 54)
  headers.writeUInt16LE(segments.length + 1, 56)
  headers.writeUInt32LE(4, 64)
  headers.writeBigUInt64LE(BigInt(notesAt), 72)
  headers.writeBigUInt64LE(BigInt(note.length), 96)
  for (const [index, segment] of segments.entries()) {
    const at = 64 + 56 * (index + 1)
    headers.writeUInt32LE(1, at)
    headers.writeUInt32LE(7, at + 4)
    headers.writeBigUInt64LE(segment.offset, at + 8)
    headers.writeBigUInt64LE(segment.virtual, at + 16)
    headers.writeBigUInt64LE(segment.physical ?? NO_PHYSICAL, at + 24)
    headers.writeBigUInt64LE(segment.bytes, at + 32)
    headers.writeBigUInt64LE(segment.bytes, at + 40)
    headers.writeBigUInt64LE(4096n, at + 48)
  }
  note.copy(headers, notesAt)
  return headers
}

/** Parts of a file by their position; what lies between reads as zeros up to 2^63, as in a sparse file. */
export function readParts(parts: readonly { readonly at: bigint; readonly content: Buffer }[]): ReadAt {
  return (into, at) => {
    into.fill(0)
    for (const part of parts) {
      const from = higher(at, part.at)
      const to = lower(at + BigInt(into.length), part.at + BigInt(part.content.length))
      if (from < to) into.set(part.content.subarray(Number(from - part.at), Number(to - part.at)), Number(from - at))
    }
    return into.length
  }
}

/** A read function of these bytes and no more. */
export function readBytes(content: Buffer): ReadAt {
  return (into, at) => {
    if (at >= BigInt(content.length)) return 0
    return content.copy(into, 0, Number(at))
  }
}

/** A directory on tmpfs, the only file system whose files reach 2^62. */
export function tmpfsDirectory(): string {
  return fs.mkdtempSync(path.join('/dev/shm', 'ir-test-'))
}

/** Writes parts into a sparse file. By dd, because Node's own writes ignore a position that is a bigint. */
export function writeParts(file: string, parts: readonly { readonly at: bigint; readonly content: Buffer }[]): void {
  fs.closeSync(fs.openSync(file, 'a'))
  for (const { at, content } of parts) {
    const seek = [`seek=${at}`, 'oflag=seek_bytes', 'conv=notrunc', 'bs=1M', 'status=none']
    execFileSync('dd', [`of=${file}`, ...seek], { input: content })
  }
}

/** A recorded host of test/fixtures/capture-mem as a tree, with the sparse /proc/kcore that it had. The caller removes it. */
export function recordedHost(name: string): string {
  const fixture = path.resolve(import.meta.dirname, '../fixtures/capture-mem', name)
  const root = tmpfsDirectory()
  for (const part of ['proc', 'sys']) fs.cpSync(path.join(fixture, part), path.join(root, part), { recursive: true })
  const headers = path.join(fixture, 'kcore-headers')
  if (fs.existsSync(headers)) {
    const kcore = path.join(root, 'proc/kcore')
    fs.copyFileSync(headers, kcore)
    const size = BigInt(fs.readFileSync(path.join(fixture, 'kcore-size'), 'utf8').trim())
    writeParts(kcore, [{ at: size - 1n, content: Buffer.alloc(1) }])
  }
  return root
}

/** A new directory for a case. */
export function temporaryDirectory(): string {
  return fs.mkdtempSync(path.join(os.tmpdir(), 'ir-test-'))
}
