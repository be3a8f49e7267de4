/** As much of ELF files, elf(5), as planning needs: where a core file holds memory, and what a kernel module says of itself. */
import type { HostView } from '../src/step.js'

/** A PT_LOAD program header. */
export interface LoadSegment {
  readonly offset: bigint
  readonly virtual: bigint
  readonly physical: bigint
  readonly bytes: bigint
}

const ELF_MAGIC = 0x7f454c46
const ET_REL = 1
const PT_LOAD = 1
/** Headers of a kcore with thousands of memory blocks, or of a module with thousands of sections, are below. */
const MAX_TABLE = 1 << 20

interface Header {
  readonly type: number
  /** Program headers and section headers: where, bytes of each, how many. */
  readonly segments: Table
  readonly sections: Table
  readonly names: number
}

interface Table {
  readonly at: bigint
  readonly each: number
  readonly count: number
}

/** Undefined when it is no 64-bit little-endian ELF file. Throws a LookError where the host refuses. */
function header(host: HostView, path: string): Header | undefined {
  const view = viewOf(host.peek(path, 0n, 64))
  if (view.byteLength < 64 || view.getUint32(0) !== ELF_MAGIC || view.getUint8(4) !== 2 || view.getUint8(5) !== 1) return undefined
  return {
    type: view.getUint16(16, true),
    segments: { at: view.getBigUint64(32, true), each: view.getUint16(54, true), count: view.getUint16(56, true) },
    sections: { at: view.getBigUint64(40, true), each: view.getUint16(58, true), count: view.getUint16(60, true) },
    names: view.getUint16(62, true),
  }
}

function* entries(host: HostView, path: string, table: Table, needed: number): Iterable<DataView> {
  const bytes = table.each * table.count
  if (table.each < needed || bytes > MAX_TABLE) return
  const view = viewOf(host.peek(path, table.at, bytes))
  for (let at = 0; at + table.each <= view.byteLength; at += table.each) yield new DataView(view.buffer, view.byteOffset + at, table.each)
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

/** The loadable segments of a core file; undefined when it is none that we can read. Throws a LookError where the host refuses. */
export function loadSegments(host: HostView, path: string): readonly LoadSegment[] | undefined {
  const found = header(host, path)
  if (found === undefined) return undefined
  return [...entries(host, path, found.segments, 56)]
    .filter(view => view.getUint32(0, true) === PT_LOAD)
    .map(view => ({
      offset: view.getBigUint64(8, true),
      virtual: view.getBigUint64(16, true),
      physical: view.getBigUint64(24, true),
      bytes: view.getBigUint64(40, true),
    }))
}

/** What a kernel module says of itself: the strings of its section .modinfo (include/linux/moduleinfo.h), several for 'parm'. */
export function moduleInfo(host: HostView, path: string): ReadonlyMap<string, readonly string[]> | undefined {
  const found = header(host, path)
  if (found === undefined || found.type !== ET_REL) return undefined
  const sections = [...entries(host, path, found.sections, 64)]
  const named = sections[found.names]
  if (named === undefined) return undefined
  const names = contents(host, path, named)
  const section = sections.find(view => stringAt(names, view.getUint32(0, true)) === '.modinfo')
  if (section === undefined) return undefined
  const info = new Map<string, string[]>()
  for (const text of new TextDecoder('latin1').decode(contents(host, path, section)).split('\0')) {
    const equals = text.indexOf('=')
    if (equals < 1) continue
    const key = text.slice(0, equals)
    info.set(key, [...(info.get(key) ?? []), text.slice(equals + 1)])
  }
  return info
}

function contents(host: HostView, path: string, section: DataView): Uint8Array {
  const bytes = section.getBigUint64(32, true)
  return bytes > BigInt(MAX_TABLE) ? new Uint8Array() : host.peek(path, section.getBigUint64(24, true), Number(bytes))
}

function stringAt(table: Uint8Array, at: number): string {
  const end = table.indexOf(0, at)
  return at >= table.length || end < 0 ? '' : new TextDecoder('latin1').decode(table.subarray(at, end))
}
