/**
 * The memory of chosen processes, each as an ELF core file. It is not physical memory: nothing of the kernel, nothing of
 * processes that hide from /proc, and the process goes on running while it is read.
 */
import fs from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { z } from 'zod'
import { errnoOf } from '../../host.js'
import type { JsonObject, Outcome } from '../../step.js'
import { formatBytes } from '../../time.js'
import type { Collector, CollectorContext } from '../collector.js'
import { type Mapping, parseMaps, parseStat } from '../proc/proc.js'
import { HungError, openReader, type Reader } from '../reader.js'
import { hex, rangeFacts } from './address-range.js'
import { diskRoom, TargetError, targetOf, writeFailure } from './disk-room.js'
import { type CoreSegment, coreHeaders, MAX_SEGMENTS } from './elf-core.js'
import { copyPiece, interruptible, PAGE, pageAligned, type Run, type Stop, UnreadablePages } from './page-copy.js'

const Options = z.strictObject({
  pids: z.array(z.int().positive()).min(1).max(10_000),
  /** Why each of them was chosen. */
  why: z.record(z.string(), z.string()).optional(),
  /** Bytes of memory of one process. */
  maxBytes: z.int().positive(),
  /** Bytes of the disk that stay free. */
  reserve: z.int().nonnegative(),
})

type ProcessOptions = z.infer<typeof Options>

/** Residency is looked up for so much at once; the holes of a process are smaller than those of a machine. */
const STAGE_BYTES = 1 << 20

/** A million mappings, the largest that distributions allow (vm.max_map_count), at 100 bytes a line. */
const MAX_MAPS = 100 << 20
const MAX_AUXV = 65_536
const MAX_STAT = 4096

/** So many regions that were left out are listed; the maps file shows them all. */
const MAX_LISTED = 200

const PROGRESS_MS = 250

/** Written by no process of its own: the kernel's clock and calls, proc_pid_maps(5), vdso(7). */
const KERNEL_PAGES = /^\[(vvar|vvar_vclock|vsyscall|uprobes)\]$/

/** Reading a device can change its state. Below /dev also lie ordinary shared memory and huge pages. */
const DEVICE = /^\/dev\/(?!shm\/|zero\b|hugepages\/|mqueue\/)|^anon_inode:/

/** Memory that lives in no file of a disk, whatever its path says. */
const SHARED_MEMORY = /^(\/memfd:|\/dev\/(shm\/|zero\b)|\/SYSV)/

const NOTE =
  'not physical memory: only what these processes see; pages that a process does not have in memory or swap are zeros, the file behind them holds them'

/** Writes `process-<pid>.core` and `process-<pid>.maps.txt` for each process of the plan. */
export const processMemory: Collector = async context => {
  const options = Options.parse(context.options)
  const reader = openReader()
  try {
    const ended: ProcessResult[] = []
    const figures = { bytes: 0, reported: Number.NEGATIVE_INFINITY }
    for (const [index, pid] of options.pids.entries()) {
      if (context.signal.aborted) {
        ended.push({ pid, outcome: 'interrupted', reason: 'not started', facts: {} })
        continue
      }
      ended.push(await new ProcessImage(pid, options, context, reader, figures).run())
      context.progress({ bytes: figures.bytes, items: index + 1, totalItems: options.pids.length })
    }
    const facts = { source: 'process', note: NOTE, bytes: figures.bytes, processes: ended.map(one => factsOf(one, options.why?.[one.pid])) }
    const worst = WORST_FIRST.map(outcome => ended.find(one => one.outcome === outcome)).find(one => one !== undefined)
    if (worst !== undefined) return { outcome: worst.outcome, reason: reasons(ended), facts }
    return { outcome: 'collected', facts }
  } finally {
    reader.close()
  }
}

const WORST_FIRST: readonly Outcome[] = ['interrupted', 'failed', 'unavailable', 'empty']

interface ProcessResult {
  readonly pid: number
  readonly outcome: Outcome
  readonly reason?: string
  readonly facts: JsonObject
}

function factsOf({ pid, outcome, reason, facts }: ProcessResult, why: string | undefined): JsonObject {
  return { pid, ...(why === undefined ? {} : { why }), outcome, ...(reason === undefined ? {} : { reason }), ...facts }
}

function reasons(ended: readonly ProcessResult[]): string {
  const wanting = ended.filter(one => one.reason !== undefined).map(({ pid, reason }) => `process ${pid}: ${reason}`)
  return wanting.length > 3 ? `${wanting.slice(0, 3).join('; ')}; and ${wanting.length - 3} more` : wanting.join('; ')
}

/** Why this process gives nothing, or not all. */
class Wanting extends Error {
  readonly outcome: Outcome

  constructor(outcome: Outcome, reason: string) {
    super(reason)
    this.outcome = outcome
  }
}

interface Region extends CoreSegment {
  readonly mapping: Mapping
}

interface LeftOut {
  readonly mapping: Mapping
  readonly why: string
}

class ProcessImage {
  private readonly pid: number
  private readonly options: ProcessOptions
  private readonly context: CollectorContext
  private readonly reader: Reader
  private readonly figures: { bytes: number; reported: number }
  private readonly unreadable = new UnreadablePages()
  private readonly leftOut: LeftOut[] = []
  private absentBytes = 0
  private copiedBytes = 0

  constructor(
    pid: number,
    options: ProcessOptions,
    context: CollectorContext,
    reader: Reader,
    figures: { bytes: number; reported: number },
  ) {
    this.pid = pid
    this.options = options
    this.context = context
    this.reader = reader
    this.figures = figures
  }

  async run(): Promise<ProcessResult> {
    const { pid } = this
    try {
      if (pid === process.pid) throw new Wanting('unavailable', 'that is this program itself')
      const facts = await this.capture()
      return { pid, outcome: 'collected', facts }
    } catch (error) {
      if (error instanceof Wanting) return { pid, outcome: error.outcome, reason: error.message, facts: this.facts() }
      if (error instanceof HungError)
        return { pid, outcome: 'failed', reason: `it holds readers up: ${error.message}`, facts: this.facts() }
      throw error
    }
  }

  private async capture(): Promise<JsonObject> {
    const memory = await this.openMemory()
    const pagemap = await open(this.at('pagemap'), fs.constants.O_RDONLY).catch(() => undefined)
    try {
      const { startTicks, maps, auxiliaryVector } = await this.look()
      const mappings = [...parseMaps(maps.toString('latin1'))]
      if (mappings.length === 0) throw new Wanting('empty', 'it has no memory of its own: a thread of the kernel, or a zombie')
      this.keepMaps(maps)
      const regions = this.choose(mappings)
      await this.write(memory, pagemap, regions, auxiliaryVector)
      const over = this.leftOut.filter(({ why }) => why.startsWith('above'))
      if (over.length > 0) {
        const bytes = over.reduce((sum, { mapping }) => sum + Number(mapping.end - mapping.start), 0)
        throw new Wanting('failed', `${over.length} regions (${formatBytes(bytes)}) ${over[0]?.why}`)
      }
      return { ...this.facts(), startTicks, regions: regions.length, residency: pagemap !== undefined }
    } finally {
      // A read that hangs holds the descriptors: closing would wait for it.
      const closed = Promise.all([memory.close(), pagemap?.close()]).catch(() => {})
      if (!this.context.signal.aborted) await closed
    }
  }

  private at(name: string): string {
    return this.context.host.at(`/proc/${this.pid}/${name}`)
  }

  private async openMemory(): Promise<FileHandle> {
    try {
      return await open(this.at('mem'), fs.constants.O_RDONLY)
    } catch (error) {
      const code = errnoOf(error)
      if (code === 'ENOENT' || code === 'ESRCH') throw new Wanting('unavailable', 'there is no such process any more')
      throw new Wanting('failed', `its memory cannot be opened (${code})`)
    }
  }

  /** Everything about the process but its memory. It must be the same process before and after, and so also the one whose memory is open. */
  private async look() {
    const stat = { op: 'file', path: this.at('stat'), max: MAX_STAT } as const
    const [before, maps, auxv, after] = await this.reader.look([
      stat,
      { op: 'file', path: this.at('maps'), max: MAX_MAPS },
      { op: 'file', path: this.at('auxv'), max: MAX_AUXV },
      stat,
    ])
    const error = before?.error ?? maps?.error ?? after?.error
    if (error !== undefined) throw new Wanting('failed', `it cannot be looked at (${error})`)
    const first = before && parseStat(before.bytes)
    const last = after && parseStat(after.bytes)
    if (first === undefined || maps === undefined || auxv === undefined || first.startTicks !== last?.startTicks) {
      throw new Wanting('failed', 'its id went to another process meanwhile')
    }
    if (maps.cut) throw new Wanting('failed', `its list of mappings is above ${formatBytes(MAX_MAPS)}`)
    return { startTicks: first.startTicks, maps: maps.bytes, auxiliaryVector: auxv.bytes }
  }

  private keepMaps(maps: Buffer): void {
    const { context } = this
    const file = context.case.open(context.step, `process-${this.pid}.maps.txt`)
    file.write(maps)
    file.close({ action: context.action, how: 'collector', path: `/proc/${this.pid}/maps` })
  }

  /** What fits, what lives in memory alone before what a file still holds; in the order of the addresses. */
  private choose(mappings: readonly Mapping[]): Region[] {
    const candidates: Region[] = []
    for (const mapping of mappings) {
      const why = exclusion(mapping)
      if (why === undefined) candidates.push(regionOf(mapping))
      else this.leftOut.push({ mapping, why })
    }
    const chosen: Region[] = []
    let room = this.options.maxBytes
    for (const region of candidates.toSorted((a, b) => urgency(a.mapping) - urgency(b.mapping))) {
      const bytes = Number(region.end - region.start)
      if (bytes <= room && chosen.length < MAX_SEGMENTS) {
        chosen.push(region)
        room -= bytes
      } else {
        const bound = bytes > room ? `the limit of ${formatBytes(this.options.maxBytes)}` : `${MAX_SEGMENTS} regions`
        this.leftOut.push({ mapping: region.mapping, why: `above ${bound}` })
      }
    }
    return chosen.toSorted((a, b) => (a.start < b.start ? -1 : 1))
  }

  private async write(
    memory: FileHandle,
    pagemap: FileHandle | undefined,
    regions: readonly Region[],
    auxiliaryVector: Buffer,
  ): Promise<void> {
    const { context, pid } = this
    const room = diskRoom(context.case.directory, this.options.reserve)
    const file = context.case.open(context.step, `process-${pid}.core`)
    const sink = targetOf(file)
    let stopped: Stop | undefined
    try {
      const machine = process.arch === 'arm64' ? 'arm64' : 'x86-64'
      const headers = coreHeaders({ machine, segments: regions, auxiliaryVector })
      stopped = room(headers.length)
      if (stopped === undefined) sink.write(headers)
      const stage = pageAligned(STAGE_BYTES)
      for (const region of regions) {
        if (stopped !== undefined) break
        const resident = pagemap === undefined ? {} : { runs: this.residency(pagemap) }
        const piece = { start: region.start, end: region.end, offset: region.start }
        const copied = await copyPiece(piece, {
          read: interruptible((into, at) => readProcess(memory, into, at), context.signal),
          sink,
          stage,
          unreadable: this.unreadable,
          room,
          copied: bytes => this.count(bytes),
          ...resident,
        })
        stopped = copied.stopped
      }
    } catch (error) {
      if (error instanceof TargetError) stopped = writeFailure(error)
      else if (errnoOf(error) === '') throw error
      else
        stopped = {
          outcome: 'failed',
          reason: errnoOf(error) === GONE ? 'it ended while it was read' : `reading failed (${errnoOf(error)})`,
        }
    }
    if (this.copiedBytes === 0) file.discard()
    else {
      const notes = stopped === undefined ? [NOTE] : [`incomplete: ${stopped.reason}`, NOTE]
      file.close({ action: context.action, how: 'collector', path: `/proc/${pid}/mem`, notes })
    }
    if (stopped !== undefined) throw new Wanting(stopped.outcome, stopped.reason)
    if (this.copiedBytes === 0) throw new Wanting('failed', 'none of its regions could be copied')
  }

  /**
   * Only pages that the process has in memory or in swap are read. Reading another would make the kernel fetch it, from a mount
   * that may hang or from a handler (userfaultfd(2)) that the process itself may hold up, and of shared memory would allocate it.
   */
  private residency(pagemap: FileHandle): (address: bigint, bytes: number) => Promise<readonly Run[]> {
    return async (address, bytes) => {
      const words = Buffer.alloc((bytes / PAGE) * PAGEMAP_ENTRY)
      const at = (address / BigInt(PAGE)) * BigInt(PAGEMAP_ENTRY)
      const { bytesRead } = await pagemap.read(words, 0, words.length, at)
      const runs: { bytes: number; absent: boolean }[] = []
      for (let i = 0; i < words.length; i += PAGEMAP_ENTRY) {
        // What the pagemap does not tell is read.
        const absent = i + PAGEMAP_ENTRY <= bytesRead && ((words[i + 7] as number) & PAGEMAP_HELD) === 0
        const last = runs.at(-1)
        if (last?.absent === absent) last.bytes += PAGE
        else runs.push({ bytes: PAGE, absent })
        if (absent) this.absentBytes += PAGE
      }
      return runs
    }
  }

  private count(bytes: number): void {
    this.copiedBytes += bytes
    this.figures.bytes += bytes
    const now = this.context.host.monotonic()
    if (now - this.figures.reported < PROGRESS_MS) return
    this.figures.reported = now
    this.context.progress({ bytes: this.figures.bytes })
  }

  private facts(): JsonObject {
    return {
      bytes: this.copiedBytes,
      absentBytes: this.absentBytes,
      unreadable: this.unreadable.facts(),
      leftOutCount: this.leftOut.length,
      leftOut: this.leftOut
        .slice(0, MAX_LISTED)
        .map(({ mapping, why }) => ({ ...rangeFacts(mapping), permissions: mapping.permissions, path: mapping.path.slice(0, 1000), why })),
    }
  }
}

/** Documentation/admin-guide/mm/pagemap.rst: 64 bit a page; bit 63 present, bit 62 in swap: the two highest of the last byte. */
const PAGEMAP_ENTRY = 8
const PAGEMAP_HELD = 0xc0

/** read(2) of /proc/PID/mem gives 0 bytes only when the process is gone (fs/proc/base.c, mem_rw). */
const GONE = 'ESRCH'

async function readProcess(memory: FileHandle, into: Uint8Array, at: bigint): Promise<number> {
  const { bytesRead } = await memory.read(into, 0, into.length, at)
  if (bytesRead === 0) throw Object.assign(new Error(`no process behind ${hex(at)}`), { code: GONE })
  return bytesRead
}

/** Why a mapping is not read; undefined when it is. */
function exclusion(mapping: Mapping): string | undefined {
  if (!mapping.permissions.startsWith('r')) return 'not readable'
  if (KERNEL_PAGES.test(mapping.path)) return 'pages of the kernel'
  if (DEVICE.test(mapping.path)) return 'a device'
  return undefined
}

/** 0: nothing else holds it. 1: a file held it once. 2: a file holds it. */
function urgency(mapping: Mapping): number {
  if (mapping.inode === 0n || SHARED_MEMORY.test(mapping.path) || mapping.path.endsWith(' (deleted)')) return 0
  return mapping.permissions[1] === 'w' ? 1 : 2
}

function regionOf(mapping: Mapping): Region {
  const { start, end, permissions, path, offset } = mapping
  return {
    start,
    end,
    readable: true,
    writable: permissions[1] === 'w',
    executable: permissions[2] === 'x',
    ...(mapping.inode === 0n ? {} : { file: { path, offset } }),
    mapping,
  }
}
