/**
 * What an analyst needs beside an image of memory to read it: the kernel's types and symbols as a file that Volatility 3 opens, and
 * what the kernel says of itself. Everything comes from the running kernel; no debug package, no network.
 */
import fs from 'node:fs'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createGzip } from 'node:zlib'
import { z } from 'zod'
import { errnoOf, readFile } from '../../host.js'
import type { JsonObject } from '../../step.js'
import type { Collector, CollectorContext, CollectorResult } from '../collector.js'
import { jsonLines } from '../json-lines.js'
import { pacer } from '../pace.js'
import { hex } from './address-range.js'
import { BtfError, parseBtf } from './btf.js'
import { type IsfCounts, isfText } from './isf.js'
import { Kallsyms } from './kallsyms.js'
import { elfNote, keyValues, vmcoreinfoOf } from './kcore.js'
import { kernelPackage } from './kernel-package.js'
import { openMemory } from './physical-memory.js'

const Options = z.strictObject({
  /** Name of the symbol file. */
  to: z.string(),
  /** uname -r */
  release: z.string(),
  /** What holds full debug information of this kernel, by the naming of its distribution. */
  debugPackage: z.string(),
})

const KCORE = '/proc/kcore'
const BTF = '/sys/kernel/btf'
const KALLSYMS = '/proc/kallsyms'

/** The kernel's is 5 to 10 MB, a module's below one. */
const MAX_BTF = 64 << 20
const MAX_MODULE_BTF = 256 << 20
/** 200,000 symbols are 10 MB. */
const MAX_KALLSYMS = 128 << 20
/** 14 MB of JSON are usual. */
const MAX_ISF = 256 << 20
const MAX_MODULES = 5000
const PIECE = 64 * 1024

/** Sections that a debugger has to be told of, as `add-symbol-file` of gdb takes them. */
const SECTIONS = ['.text', '.init.text', '.exit.text', '.rodata', '.data', '.bss', '.gnu.linkonce.this_module']

/** linux/elf.h, NT_GNU_BUILD_ID. */
const BUILD_ID = 3

/** __START_KERNEL_map and CONFIG_PHYSICAL_START as it is everywhere: where _text of x86-64 lies without randomisation (page_types.h). */
const X86_TEXT = 0xffff_ffff_8100_0000n

/** Writes the symbol file, VMCOREINFO, the modules with their sections and the types of the modules. */
export const kernelSymbols: Collector = async context => {
  const options = Options.parse(context.options)
  const facts: Record<string, JsonObject[string]> = { release: options.release, debugPackage: options.debugPackage }
  const vmcoreinfo = await keepVmcoreinfo(context, facts)
  Object.assign(facts, kernelFacts(context, vmcoreinfo))
  const named = await kernelPackage(context.host, options.release, context.signal)
  facts.package = named === undefined ? null : { ...named }
  facts.modules = await keepModules(context)
  facts.moduleTypes = await keepModuleTypes(context)
  if (context.signal.aborted) return { outcome: 'interrupted', reason: 'interrupted', facts }
  const made = await symbolFile(context, options.to, vmcoreinfo)
  if ('missing' in made) return { outcome: 'collected', facts: { ...facts, noSymbols: made.missing } }
  if ('outcome' in made) return { ...made, facts }
  return { outcome: 'collected', facts: { ...facts, symbols: made.facts } }
}

/** From kcore alone: the file of that name in /sys tells only where the note lies. */
async function keepVmcoreinfo(context: CollectorContext, facts: Record<string, JsonObject[string]>): Promise<ReadonlyMap<string, string>> {
  let text: Buffer | undefined
  try {
    const source = await openMemory(context.host.at(KCORE), 'kcore')
    try {
      text = await vmcoreinfoOf(source.read)
    } finally {
      await source.close()
    }
    facts.vmcoreinfo = text === undefined ? 'none in kcore' : 'vmcoreinfo.txt'
  } catch (error) {
    facts.vmcoreinfo = `kcore cannot be read: ${errnoOf(error) || messageOf(error)}`
  }
  if (text === undefined) return new Map()
  const file = context.case.open(context.step, 'vmcoreinfo.txt')
  file.write(text)
  file.close({ action: context.action, how: 'collector', path: KCORE, notes: ['the VMCOREINFO note of its PT_NOTE segment'] })
  return keyValues(text.toString('latin1'))
}

function kernelFacts({ host }: CollectorContext, vmcoreinfo: ReadonlyMap<string, string>): JsonObject {
  const facts: Record<string, string | boolean> = {}
  const levels = vmcoreinfo.get('NUMBER(pgtable_l5_enabled)')
  if (levels !== undefined) facts.fiveLevelPaging = levels !== '0'
  const offset = vmcoreinfo.get('KERNELOFFSET')
  if (offset !== undefined) facts.offset = offset.slice(0, 16)
  const id = buildId(host.at('/sys/kernel/notes'))
  if (id !== undefined) facts.buildId = id
  return facts
}

function buildId(realPath: string): string | undefined {
  try {
    return elfNote(readFile(realPath, PIECE), 'GNU', BUILD_ID)?.toString('hex')
  } catch (error) {
    if (errnoOf(error) === '' && !(error instanceof RangeError)) throw error
    return undefined
  }
}

/** modules.jsonl: every module of /proc/modules or /sys/module, which may differ, with where its sections lie. */
async function keepModules(context: CollectorContext): Promise<JsonObject> {
  const { host } = context
  const listed = new Set((textOf(context, '/proc/modules', 4 << 20) ?? '').split('\n').flatMap(line => line.split(' ', 1)[0] || []))
  const withSections = namesIn(context, '/sys/module').filter(name => isThere(context, `/sys/module/${name}/sections`))
  const names = [...new Set([...listed, ...withSections])].filter(name => /^\w{1,64}$/.test(name)).sort()
  if (names.length === 0) return { count: 0 }
  const file = context.case.open(context.step, 'modules.jsonl')
  const lines = jsonLines(file)
  const pace = pacer()
  for (const name of names.slice(0, MAX_MODULES)) {
    if (context.signal.aborted) break
    const folder = `/sys/module/${name}`
    const sections: Record<string, string> = {}
    for (const section of SECTIONS) {
      const address = textOf(context, `${folder}/sections/${section}`, 64)?.trim()
      if (address !== undefined && /^0x[0-9a-f]{1,16}$/.test(address)) sections[section] = address
    }
    const id = buildId(host.at(`${folder}/notes/.note.gnu.build-id`))
    const taint = textOf(context, `${folder}/taint`, 64)?.trim() ?? ''
    const inSysfs = withSections.includes(name)
    lines.add({ name, listed: listed.has(name), inSysfs, sections, ...(id === undefined ? {} : { buildId: id }), taint })
    await pace()
  }
  lines.flush()
  file.close({ action: context.action, how: 'collector', path: '/sys/module' })
  return { count: lines.count, ...(names.length > MAX_MODULES ? { leftOut: names.length - MAX_MODULES } : {}) }
}

/** Their own types, without which structures that only a module has cannot be read. */
async function keepModuleTypes(context: CollectorContext): Promise<JsonObject> {
  const names = namesIn(context, BTF).filter(name => name !== 'vmlinux' && /^\w{1,64}$/.test(name))
  const pace = pacer()
  let bytes = 0
  let count = 0
  const failed: string[] = []
  for (const name of names.slice(0, MAX_MODULES)) {
    if (context.signal.aborted || bytes >= MAX_MODULE_BTF) break
    try {
      const content = readFile(context.host.at(`${BTF}/${name}`), Math.min(MAX_BTF, MAX_MODULE_BTF - bytes))
      const file = context.case.open(context.step, `btf/${name}`)
      file.write(content)
      file.close({ action: context.action, how: 'collector', path: `${BTF}/${name}` })
      bytes += content.length
      count++
    } catch (error) {
      if (errnoOf(error) === '') throw error
      // Unloaded meanwhile, mostly.
      failed.push(`${name}: ${errnoOf(error)}`)
    }
    await pace()
  }
  const left = names.length - count - failed.length
  return { count, bytes, ...(failed.length === 0 ? {} : { failed: failed.slice(0, 100) }), ...(left > 0 ? { leftOut: left } : {}) }
}

type Made = { readonly facts: JsonObject } | { readonly missing: string } | Pick<CollectorResult & { reason: string }, 'outcome' | 'reason'>

async function symbolFile(context: CollectorContext, to: string, vmcoreinfo: ReadonlyMap<string, string>): Promise<Made> {
  let bytes: Buffer
  try {
    bytes = readFile(context.host.at(`${BTF}/vmlinux`), MAX_BTF)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return { missing: `this kernel has no ${BTF}/vmlinux (built without CONFIG_DEBUG_INFO_BTF)` }
    return { outcome: 'failed', reason: `${BTF}/vmlinux cannot be read (${errnoOf(error)})` }
  }
  try {
    const btf = parseBtf(bytes)
    const kallsyms = await readKallsyms(context)
    if (kallsyms.hidden) return { missing: `${KALLSYMS} shows no addresses (kernel.kptr_restrict, or no CAP_SYSLOG)` }
    if (!kallsyms.addresses.has('init_task')) {
      return { missing: `${KALLSYMS} does not list the kernel's data (built without CONFIG_KALLSYMS_ALL)` }
    }
    const banner = readFile(context.host.at('/proc/version'), PIECE)
    const counts: IsfCounts = { types: 0, enums: 0, symbols: 0, typed: [] }
    const { offset, from } = kernelOffset(vmcoreinfo, kallsyms.text)
    const symbols = linked(kallsyms, offset)
    const producer = { name: 'ir', version: '1' }
    await writeZipped(context, to, isfText({ btf, symbols, banner: endingWithLine(banner), producer }, counts))
    return {
      facts: { file: to, ...counts, typed: counts.typed.length, offset: hex(offset), offsetFrom: from, ofModules: kallsyms.ofModules },
    }
  } catch (error) {
    if (context.signal.aborted) return { outcome: 'interrupted', reason: 'interrupted' }
    if (error instanceof BtfError) return { outcome: 'failed', reason: `${BTF}/vmlinux: ${error.message}` }
    if (errnoOf(error) === '') throw error
    return { outcome: 'failed', reason: `the kernel's symbols cannot be read (${errnoOf(error)})` }
  }
}

async function readKallsyms({ host, signal }: CollectorContext): Promise<Kallsyms> {
  const kallsyms = new Kallsyms()
  const pace = pacer()
  const fd = fs.openSync(host.at(KALLSYMS), fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)
  try {
    const chunk = Buffer.allocUnsafe(PIECE)
    for (let total = 0; total < MAX_KALLSYMS && !signal.aborted; ) {
      const got = fs.readSync(fd, chunk, 0, chunk.length, null)
      if (got === 0) break
      kallsyms.add(chunk.subarray(0, got))
      total += got
      await pace()
    }
  } finally {
    fs.closeSync(fd)
  }
  kallsyms.end()
  return kallsyms
}

/** How far randomisation moved the kernel. */
function kernelOffset(vmcoreinfo: ReadonlyMap<string, string>, text: bigint | undefined): { offset: bigint; from: string } {
  const said = vmcoreinfo.get('KERNELOFFSET') ?? ''
  if (/^[0-9a-f]{1,16}$/.test(said)) return { offset: BigInt(`0x${said}`), from: 'VMCOREINFO' }
  if (text !== undefined && text >= X86_TEXT) return { offset: text - X86_TEXT, from: '_text, by where x86-64 links it' }
  return { offset: 0n, from: 'not known: addresses are those in memory' }
}

/** Symbols below the text are offsets of per-cpu data, which nothing moves. */
function* linked({ addresses, text = 0n }: Kallsyms, offset: bigint): Generator<readonly [string, bigint]> {
  for (const [name, address] of addresses) yield [name, address >= text ? BigInt.asUintN(64, address - offset) : address]
}

function endingWithLine(banner: Buffer): Buffer {
  return banner.at(-1) === 0x0a ? banner : Buffer.concat([banner, Buffer.from('\n')])
}

async function writeZipped(context: CollectorContext, name: string, text: Iterable<string>): Promise<void> {
  const file = context.case.open(context.step, name)
  try {
    const write = async (chunks: AsyncIterable<Uint8Array>): Promise<void> => {
      for await (const chunk of chunks) file.write(chunk)
    }
    await pipeline(Readable.from(batched(text), { objectMode: false }), createGzip(), write, { signal: context.signal })
  } catch (error) {
    file.discard()
    throw error
  }
  file.close({ action: context.action, how: 'collector', path: `${BTF}/vmlinux`, notes: [`also from ${KALLSYMS} and /proc/version`] })
}

/** Pieces of a size that gzip likes, with turns of the event loop between them. */
async function* batched(text: Iterable<string>): AsyncGenerator<Buffer> {
  const pace = pacer()
  let held: string[] = []
  let length = 0
  let total = 0
  for (const piece of text) {
    held.push(piece)
    length += piece.length
    if (length < PIECE) continue
    total += length
    if (total > MAX_ISF) throw new BtfError(`its types fill more than ${MAX_ISF} bytes`)
    yield Buffer.from(held.join(''))
    held = []
    length = 0
    await pace()
  }
  if (length > 0) yield Buffer.from(held.join(''))
}

function namesIn({ host }: CollectorContext, folder: string): readonly string[] {
  try {
    return host.list(folder)
  } catch (error) {
    if (errnoOf(error) === '') throw error
    return []
  }
}

function isThere({ host }: CollectorContext, path: string): boolean {
  try {
    host.lstat(path)
    return true
  } catch (error) {
    if (errnoOf(error) === '') throw error
    return false
  }
}

function textOf({ host }: CollectorContext, path: string, maxBytes: number): string | undefined {
  try {
    return host.read(path, maxBytes)
  } catch (error) {
    if (errnoOf(error) === '') throw error
    return undefined
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
