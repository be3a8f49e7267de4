/** Physical memory into one LiME image, from /proc/kcore, /dev/crash or /dev/mem; and the check of an image that LiME's own module wrote. */
import fs from 'node:fs'
import { open } from 'node:fs/promises'
import { z } from 'zod'
import type { EvidenceFile } from '../../evidence/case.js'
import { errnoOf, type Host, readFile } from '../../host.js'
import type { JsonObject } from '../../step.js'
import { formatBytes, iso } from '../../time.js'
import type { Collector, CollectorContext, CollectorResult } from '../collector.js'
import { type AddressRange, hex, mergeRanges, rangeFacts, subtractRanges, totalBytes, wholePages } from './address-range.js'
import { diskRoom, TargetError, targetOf, writeFailure } from './disk-room.js'
import { systemRam } from './iomem.js'
import { contradiction, type KcoreLayout, type MemoryPlan, pageSizeOf, planKcore, type ReadAt, readKcore } from './kcore.js'
import { LIME_HEADER, limeBytes, limeHeader, readLime } from './lime.js'
import {
  copyPiece,
  INTERRUPTED,
  InterruptedRead,
  interruptible,
  PAGE,
  type PageCopy,
  pageAligned,
  STAGE_BYTES,
  type Stop,
  UnreadablePages,
  watched,
} from './page-copy.js'

const Options = z.discriminatedUnion('source', [
  z.strictObject({
    source: z.enum(['kcore', 'crash', 'mem']),
    /** /proc/kcore, /dev/crash or /dev/mem, as a path of the host. */
    from: z.string(),
    iomem: z.string(),
    /** Name of the image. */
    to: z.string(),
    /** Bytes of the disk that stay free. */
    reserve: z.int().nonnegative(),
  }),
  z.strictObject({ source: z.literal('lime'), iomem: z.string(), /** Name of the image that the module wrote. */ image: z.string() }),
])

type CaptureOptions = Extract<z.infer<typeof Options>, { to: string }>
type CheckOptions = Extract<z.infer<typeof Options>, { image: string }>

/** An open source of memory. */
export interface MemorySource {
  readonly read: ReadAt
  close(): Promise<void>
}

/** /proc/iomem of a machine with thousands of resources is below 1 MiB. */
const IOMEM_LIMIT = 16 << 20

/** Between two figures for the engineer. */
const PROGRESS_MS = 250

/** A read of 4 MiB takes a few milliseconds, in an emulated machine a hundred. */
const PATIENCE_MS = 60_000

/** A single bad page is the machine's; above this share of the image something else is wrong and it must not count as complete. */
const UNREADABLE_SHARE = 0.01

/** So many ranges are listed in the facts; all are in the image itself. */
const MAX_LISTED = 1000

/** Zeros are ambiguous, and an examiner must know it. */
const ZEROS_NOTE =
  'a page of zeros may also be one that the kernel does not give: memfd_secret, offline or poisoned pages, pages given back to the hypervisor'

/** What no image of a running machine is, and what this one holds beside evidence. */
const IMAGE_NOTES = [
  ZEROS_NOTE,
  'swap and zram devices are not in it; of memfd_secret there are zeros only',
  'the machine ran on while it was read: parts of it are as old as their range says, and do not agree with each other',
  'it holds personal data, passwords and keys of whoever used this machine',
]

/** makedev(1, 1), Documentation/admin-guide/devices.txt: physical memory. */
const MEM_DEVICE = 0x101n

/**
 * Reads with positions beyond 2^53, in a thread of its own, so that a read that hangs does not stop anything else.
 * @throws errno errors of open(2), and an Error when something else stands in the place of a device.
 */
export async function openMemory(realPath: string, source: CaptureOptions['source']): Promise<MemorySource> {
  const handle = await open(realPath, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK | fs.constants.O_NOCTTY)
  const status = await handle.stat({ bigint: true })
  if (source === 'mem' && !(status.isCharacterDevice() && status.rdev === MEM_DEVICE)) {
    await handle.close()
    throw new Error('it is not the device of physical memory')
  }
  if (source === 'crash' && !status.isCharacterDevice()) {
    await handle.close()
    throw new Error('it is no device')
  }
  const read: ReadAt = async (into, at) => (await handle.read(into, 0, into.length, at)).bytesRead
  return {
    read: source === 'crash' ? pageByPage(read) : read,
    close: () => handle.close(),
  }
}

/** The driver of /dev/crash refuses a read across the end of a page (EINVAL): drivers/char/crash.c of Red Hat's kernels. */
export function pageByPage(read: ReadAt): ReadAt {
  return (into, at) => read(into.subarray(0, Math.min(into.length, PAGE - Number(at % BigInt(PAGE)))), at)
}

/** Copies /proc/kcore, /dev/crash or /dev/mem, or checks LiME's image, as the options of the plan say. */
export const physicalMemory: Collector = physicalMemoryFrom(openMemory)

/** The same with another way to open the source, and another patience with its reads, in milliseconds. */
export function physicalMemoryFrom(openSource: typeof openMemory, patience = PATIENCE_MS): Collector {
  return async context => {
    const options = Options.parse(context.options)
    const ram = systemRam(readFile(context.host.at(options.iomem), IOMEM_LIMIT).toString('latin1'))
    return options.source === 'lime' ? checkImage(options, ram, context) : capture(options, ram, context, openSource, patience)
  }
}

async function capture(
  options: CaptureOptions,
  ram: readonly AddressRange[],
  context: CollectorContext,
  openSource: typeof openMemory,
  patience: number,
): Promise<CollectorResult> {
  const unusable = (error: unknown): CollectorResult => ({
    outcome: 'failed',
    reason: `${options.from} cannot be used: ${messageOf(error)}`,
  })
  let source: MemorySource
  try {
    source = await openSource(context.host.at(options.from), options.source)
  } catch (error) {
    const outcome = errnoOf(error) === 'ENOENT' ? 'unavailable' : 'failed'
    return { outcome, reason: `${options.from} cannot be opened: ${errnoOf(error) || messageOf(error)}` }
  }
  const watch = watched(source.read, patience)
  const read = interruptible(watch.read, context.signal)
  try {
    let plan: MemoryPlan
    let layout: KcoreLayout | undefined
    try {
      if (options.source === 'kcore') {
        layout = await readKcore(read)
        plan = planKcore(layout, ram)
        const wrong = await contradiction(read, layout, plan)
        if (wrong !== undefined) return unusable(new Error(`its physical addresses cannot be believed: ${wrong}`))
      } else plan = options.source === 'crash' ? planPages(ram) : planMem(ram)
    } catch (error) {
      if (error instanceof InterruptedRead) return { ...INTERRUPTED }
      return unusable(error)
    }
    if (plan.pieces.length === 0) return unusable(new Error('it holds none of the RAM that /proc/iomem names'))
    return await new Capture(options, plan, layout, { read, stalls: watch.stalls }, context).run()
  } finally {
    // A read that hangs holds its descriptor: closing would wait for it.
    const closed = source.close().catch(() => {})
    if (!context.signal.aborted && watch.stalls() === 0) await closed
  }
}

/** /dev/mem holds every byte of RAM at its own address. */
function planMem(ram: readonly AddressRange[]): MemoryPlan {
  return { pieces: mergeRanges(ram).map(({ start, end }) => ({ start, end, offset: start })), gaps: [], missingPages: [] }
}

/** /dev/crash holds every page of RAM at its own address, and only whole ones. */
function planPages(ram: readonly AddressRange[]): MemoryPlan {
  const whole = mergeRanges(ram)
  const pages = mergeRanges(wholePages(whole, BigInt(PAGE)))
  return { pieces: planMem(pages).pieces, gaps: subtractRanges(whole, pages), missingPages: [] }
}

/** One image, from its first header to its facts. */
class Capture {
  private readonly options: CaptureOptions
  private readonly plan: MemoryPlan
  private readonly layout: KcoreLayout | undefined
  private readonly source: Pick<PageCopy, 'read' | 'stalls'>
  private readonly context: CollectorContext
  private readonly unreadable = new UnreadablePages()
  private readonly planned: number
  private readonly ranges: JsonObject[] = []
  private bytes = 0n
  private zeroBytes = 0
  /** Last physical address that the image holds. */
  private completeTo: bigint | undefined
  private reported = Number.NEGATIVE_INFINITY

  constructor(
    options: CaptureOptions,
    plan: MemoryPlan,
    layout: KcoreLayout | undefined,
    source: Pick<PageCopy, 'read' | 'stalls'>,
    context: CollectorContext,
  ) {
    this.options = options
    this.plan = plan
    this.layout = layout
    this.source = source
    this.context = context
    this.planned = Number(totalBytes(plan.pieces))
  }

  async run(): Promise<CollectorResult> {
    const { context, options } = this
    const started = context.host.monotonic()
    const before = freeMemory(context.host)
    const file = context.case.open(context.step, options.to)
    const stopped = await this.copyAll(file)
    const shortfall = stopped ?? this.shortfall(file)
    const seconds = Math.round(context.host.monotonic() - started) / 1000
    const facts = { ...this.facts(), seconds, footprint: footprint(before, freeMemory(context.host)), notes: IMAGE_NOTES }
    if (this.bytes === 0n) {
      file.discard()
      return { outcome: shortfall?.outcome ?? 'failed', reason: shortfall?.reason ?? 'nothing was read', facts }
    }
    const notes = shortfall === undefined ? IMAGE_NOTES : [`incomplete: ${shortfall.reason}`, ...IMAGE_NOTES]
    const artifact = file.close({ action: context.action, how: 'collector', path: options.from, notes })
    const kept = { ...facts, image: options.to, fileBytes: artifact.bytes }
    if (shortfall === undefined) return { outcome: 'collected', facts: kept }
    return { outcome: shortfall.outcome, reason: `${shortfall.reason}; the image is incomplete`, facts: kept }
  }

  private async copyAll(file: EvidenceFile): Promise<Stop | undefined> {
    const { context } = this
    const room = diskRoom(context.case.directory, this.options.reserve)
    const sink = targetOf(file)
    const copy: PageCopy = {
      ...this.source,
      sink,
      stage: pageAligned(STAGE_BYTES),
      unreadable: this.unreadable,
      room,
      copied: (bytes, upTo, zero) => {
        this.bytes += BigInt(bytes)
        if (zero) this.zeroBytes += bytes
        this.completeTo = upTo - 1n
        this.progress(false)
      },
    }
    this.progress(true)
    try {
      for (const piece of this.plan.pieces) {
        const full = room(LIME_HEADER)
        if (full !== undefined) return full
        const began = moment(context.host)
        sink.write(limeHeader(piece))
        const { stopped } = await copyPiece(piece, copy)
        if (this.ranges.length < MAX_LISTED) {
          this.ranges.push({ ...rangeFacts(piece), began, ended: moment(context.host) })
        }
        if (stopped !== undefined) return stopped
      }
    } catch (error) {
      if (error instanceof TargetError) return writeFailure(error)
      if (errnoOf(error) === '') throw error
      return { outcome: 'failed', reason: `${this.options.from} cannot be read behind ${this.reached()} (${errnoOf(error)})` }
    } finally {
      this.progress(true)
    }
    return undefined
  }

  /** Why an image that came to its end is not the memory of this machine. */
  private shortfall(file: EvidenceFile): Stop | undefined {
    const { plan, unreadable, planned } = this
    const failed = (reason: string): Stop => ({ outcome: 'failed', reason })
    const expected = limeBytes(plan.pieces)
    if (file.bytes !== expected) return failed(`the image has ${file.bytes} bytes instead of ${expected}`)
    const missing = Number(totalBytes(plan.missingPages))
    if (missing > 0) return failed(`${this.options.from} does not hold ${formatBytes(missing)} of the RAM that /proc/iomem names`)
    if (Number(unreadable.bytes) > planned * UNREADABLE_SHARE) {
      return failed(`${formatBytes(Number(unreadable.bytes))} of ${formatBytes(planned)} could not be read`)
    }
    return undefined
  }

  private reached(): string {
    return this.completeTo === undefined ? 'its first byte' : hex(this.completeTo)
  }

  private facts(): JsonObject {
    const { plan, layout } = this
    return {
      source: this.options.source,
      from: this.options.from,
      bytes: Number(this.bytes),
      plannedBytes: this.planned,
      ...(this.completeTo === undefined ? {} : { completeTo: hex(this.completeTo) }),
      rangeCount: plan.pieces.length,
      ranges: this.ranges,
      gapBytes: Number(totalBytes(plan.gaps)),
      gaps: plan.gaps.slice(0, MAX_LISTED).map(rangeFacts),
      unreadable: this.unreadable.facts(),
      zeroBytes: this.zeroBytes,
      ...(layout === undefined ? {} : { kernel: kernelFacts(layout) }),
    }
  }

  private progress(always: boolean): void {
    const now = this.context.host.monotonic()
    if (!always && now - this.reported < PROGRESS_MS) return
    this.reported = now
    this.context.progress({ bytes: Number(this.bytes), totalBytes: this.planned })
  }
}

/** By the wall clock, and in the milliseconds of the custody log's `mono`: the wall clock may step, or be wrong. */
function moment(host: Host): JsonObject {
  return { at: iso(host.now()), mono: Math.round(host.monotonic() * 1000) / 1000 }
}

/** Bytes that MemFree, MemAvailable and Dirty of proc_meminfo(5) tell, as far as they do. */
function freeMemory(host: Host): JsonObject {
  let text: string
  try {
    text = host.read('/proc/meminfo')
  } catch (error) {
    if (errnoOf(error) === '') throw error
    return {}
  }
  const found = [...text.matchAll(/^(MemFree|MemAvailable|Dirty|SwapTotal|SwapFree): +(\d{1,15}) kB$/gm)]
  return Object.fromEntries(found.map(([, name, kibibytes]) => [name as string, Number(kibibytes) * 1024]))
}

/** What the capture itself did to the memory that it copied. */
function footprint(before: JsonObject, after: JsonObject): JsonObject {
  // ru_maxrss is in KiB, getrusage(2).
  return { pid: process.pid, rssBytes: process.memoryUsage.rss(), largestRssBytes: process.resourceUsage().maxRSS * 1024, before, after }
}

/** What tells an examiner which kernel this was and where it lay; absent in kernels before 4.19. */
function kernelFacts(layout: KcoreLayout): JsonObject {
  const facts: Record<string, string | number> = { machine: layout.machine, pageSize: pageSizeOf(layout) }
  for (const [fact, key] of [
    ['release', 'OSRELEASE'],
    ['offset', 'KERNELOFFSET'],
    ['fiveLevelPaging', 'NUMBER(pgtable_l5_enabled)'],
  ] as const) {
    const value = layout.vmcoreinfo.get(key)
    if (value !== undefined) facts[fact] = value.slice(0, 200)
  }
  return facts
}

/** LiME reports success also when its writes failed: what counts is that the file holds all the RAM that /proc/iomem names, and nothing else. */
function checkImage(options: CheckOptions, ram: readonly AddressRange[], context: CollectorContext): CollectorResult {
  const wanted = mergeRanges(ram)
  const known = { source: 'lime', image: options.image, plannedBytes: Number(totalBytes(wanted)) }
  let fd: number
  try {
    fd = fs.openSync(context.case.pathOf(context.step, options.image), fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW)
  } catch (error) {
    return { outcome: 'failed', reason: `the LiME module wrote no ${options.image} (${errnoOf(error)})`, facts: known }
  }
  try {
    const fileBytes = fs.fstatSync(fd).size
    const image = readLime((into, at) => fs.readSync(fd, into, 0, into.length, at), fileBytes)
    const missing = subtractRanges(wanted, mergeRanges(image.records))
    const held = Number(totalBytes(image.records))
    const facts = {
      ...known,
      fileBytes,
      bytes: Math.min(held, fileBytes - image.records.length * LIME_HEADER),
      rangeCount: image.records.length,
      ranges: image.records.slice(0, MAX_LISTED).map(rangeFacts),
      gapBytes: Number(totalBytes(missing)),
      gaps: missing.slice(0, MAX_LISTED).map(rangeFacts),
      ...(image.damage === undefined ? {} : { damage: { ...image.damage } }),
    }
    if (image.damage !== undefined) {
      return { outcome: 'failed', reason: `${options.image} is damaged at byte ${image.damage.at}: ${image.damage.what}`, facts }
    }
    if (missing.length > 0) {
      return { outcome: 'failed', reason: `${options.image} lacks ${formatBytes(facts.gapBytes)} of the RAM that /proc/iomem names`, facts }
    }
    return { outcome: 'collected', facts }
  } finally {
    fs.closeSync(fd)
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
