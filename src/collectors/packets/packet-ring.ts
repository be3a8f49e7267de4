/**
 * Keeps the last packets in files of its own, from what tcpdump writes to its standard output. tcpdump cannot do it by itself: with
 * `-G -W` it writes one file over and over or stops, rotates only when a packet comes, and goes on silently when the disk is full.
 *
 * Each file (segment) is a complete pcap and holds whole records only. Files are kept open until the end, so that the case
 * enters only those that stay. The files that span the cut are never given up.
 */
import { z } from 'zod'
import { EvidenceError } from '../../errors.js'
import type { EvidenceFile } from '../../evidence/case.js'
import { complaint, type Exit, startProgram } from '../../programs.js'
import type { JsonObject, Running } from '../../step.js'
import { formatBytes, formatDuration, iso } from '../../time.js'
import type { Collector, CollectorContext, CollectorResult } from '../collector.js'
import { linkTypeName, type PcapRecord, PcapSplitter } from './pcap.js'

const Options = z.object({
  /** A segment is closed so many seconds after its first packet, also when no further one comes. */
  rotateSeconds: z.number().positive(),
  /** So many segments are kept, beside those that span the cut. */
  files: z.int().min(1),
  /** A segment is closed before it grows beyond this. */
  segmentBytes: z.int().min(1),
  /** Until it ends by itself; until it is told to when absent. */
  seconds: z.number().positive().optional(),
})
type Options = z.infer<typeof Options>

/** How often time, free space and the engineer's figures are looked at. */
const TICK_MS = 250

/** Below either the capture stops: a full disk would cost the rest of the evidence, and the host its services. */
const FLOOR_BYTES = 512 * 1024 ** 2
const FLOOR_SHARE = 0.05

/** Free space is asked again after so many bytes, between two ticks. */
const SPACE_CHECK_BYTES = 32 * 1024 ** 2

/** A change that takes long on a busy link must not pin segment after segment. */
const PINNED_MOST = 4

/** Options (see the step capture-net), one source: a tcpdump that writes to its standard output. */
export const packetRing: Collector = async context => {
  const options = Options.parse(context.options)
  const [source] = context.source
  if (source === undefined) return { outcome: 'failed', reason: 'the plan names no program that captures' }
  const ring = new Ring(context, options)
  const short = ring.shortOfSpace()
  if (short !== undefined) return { outcome: 'failed', reason: `not started: ${short}` }
  context.onChange(({ phase }) => ring.changing(phase))
  const { exit, stopped } = await capture(source, ring, context, options)
  if (ring.error instanceof EvidenceError) throw ring.error
  return result(source, ring.end(), exit, stopped, ring)
}

/** Why it ended: because it was asked to, or what happened instead. */
type Stopped = 'asked' | 'duration' | { readonly because: string }

async function capture(
  source: Running,
  ring: Ring,
  context: CollectorContext,
  options: Options,
): Promise<{ exit: Exit; stopped: Stopped | undefined }> {
  const program = startProgram(source, { stdout: 'pipe' })
  let stopped: Stopped | undefined
  const stop = (why: Stopped): void => {
    stopped ??= why
    program.stop()
  }
  program.stdout?.on('data', (piece: Buffer) => {
    ring.take(piece)
    if (ring.error !== undefined) stop({ because: ring.error.message })
  })
  const asked = (): void => stop('asked')
  if (context.signal.aborted) asked()
  context.signal.addEventListener('abort', asked, { once: true })
  const started = context.host.monotonic()
  const tick = setInterval(() => {
    ring.tick()
    if (ring.error !== undefined) stop({ because: ring.error.message })
    if (options.seconds !== undefined && context.host.monotonic() - started >= options.seconds * 1000) stop('duration')
  }, TICK_MS)
  const exit = await program.exit
  clearInterval(tick)
  context.signal.removeEventListener('abort', asked)
  return { exit, stopped: stopped ?? (exit.timedOut ? 'duration' : undefined) }
}

function result(source: Running, kept: readonly Segment[], exit: Exit, stopped: Stopped | undefined, ring: Ring): CollectorResult {
  const facts = { ...ring.facts(kept), ...kernelCounts(exit.stderr), seconds: Math.round(exit.seconds * 10) / 10 }
  const rest = kept.length === 0 ? 'nothing was captured until then' : `kept what was captured until then, ${ring.packets} packets`
  if (typeof stopped === 'object') return { outcome: 'failed', reason: `stopped: ${stopped.because}; ${rest}`, facts }
  if (stopped === undefined) return { outcome: 'failed', reason: `${ended(source, exit)}; ${rest}`, facts }
  if (exit.abandoned) return { outcome: 'failed', reason: `${source.argv[0]} would not die; ${rest}`, facts }
  if (ring.header === undefined) return { outcome: 'failed', reason: `${source.argv[0]} had not begun to capture`, facts }
  if (ring.packets === 0) return { outcome: 'empty', reason: `no packet within ${formatDuration(exit.seconds)}`, facts }
  return { outcome: 'collected', facts }
}

/** What tcpdump says about itself on every run, which explains nothing. */
const CHATTER = /^(tcpdump: )?(data link type |verbose output suppressed|listening on |dropped privs to |\d+ packets? )/

/** It ended before it was told to: in its own words where it has any. */
function ended(source: Running, exit: Exit): string {
  const words = exit.stderr.split('\n').filter(line => line !== '' && !CHATTER.test(line))
  const how = complaint(source, { ...exit, stderr: words.join(' ').slice(0, 300) }) ?? `${source.argv[0]} exited with 0`
  return exit.notStarted === undefined ? `${how} (after ${formatDuration(exit.seconds)}, without being told to)` : how
}

/** What tcpdump counted, from its last words: tcpdump(8), 'When tcpdump finishes capturing packets'. */
function kernelCounts(said: string): JsonObject {
  const counts = {
    received: /^(\d+) packets? received by filter/m,
    dropped: /^(\d+) packets? dropped by kernel/m,
    lostByInterface: /^(\d+) packets? dropped by interface/m,
  }
  const found: Record<string, number> = {}
  for (const [name, pattern] of Object.entries(counts)) {
    const number = pattern.exec(said)?.[1]
    if (number !== undefined) found[name] = Number(number)
  }
  return Object.keys(found).length === 0 ? {} : { kernel: found }
}

interface Segment {
  readonly name: string
  readonly file: EvidenceFile
  /** Monotonic milliseconds of the first packet's arrival here. */
  readonly opened: number
  packets: number
  first: number
  last: number
  pinned: boolean
}

class Ring {
  packets = 0
  /** What stopped it from inside: the disk, or a stream that is no pcap. */
  error: Error | undefined
  private readonly context: CollectorContext
  private readonly options: Options
  private readonly splitter = new PcapSplitter()
  /** The oldest first; the last may still be open. */
  private readonly segments: Segment[] = []
  private open: Segment | undefined
  private opened = 0
  private bytes = 0
  private pinned = 0
  /** Between the announcement of a change and the news that it was made, and until the next segment after it. */
  private changingNow = false
  private pinNext = false
  /** Wall clock when the last change had been made: tcpdump hands on packets from before it up to a second late. */
  private changedAt = 0
  private uncheckedBytes = 0
  private readonly evicted = { segments: 0, packets: 0, bytes: 0, first: 0, last: 0 }

  constructor(context: CollectorContext, options: Options) {
    this.context = context
    this.options = options
  }

  get header() {
    return this.splitter.header
  }

  /** Takes a piece of the stream. Never throws: see `error`. */
  take(piece: Buffer): void {
    if (this.error !== undefined) return
    const begun = this.header !== undefined
    try {
      // Records that go to one segment are written with one write.
      let run: PcapRecord | undefined
      const flush = (): void => {
        if (run !== undefined) this.write(run.buffer.subarray(run.start, run.end))
        run = undefined
      }
      try {
        this.splitter.push(piece, record => {
          if (this.mustRotate((run === undefined ? 0 : run.end - run.start) + record.end - record.start)) {
            flush()
            this.finish()
          }
          const segment = this.open ?? this.begin(record)
          this.packets += 1
          segment.packets += 1
          segment.first = Math.min(segment.first, record.time)
          segment.last = Math.max(segment.last, record.time)
          run = run === undefined ? record : { ...record, start: run.start }
        })
      } finally {
        flush()
      }
    } catch (error) {
      this.error = error instanceof Error ? error : new Error(String(error))
    }
    // The first figures tell that the capture listens: whoever waits for it may cut the host off now.
    if (!begun && this.header !== undefined) this.context.progress({ packets: 0, bytes: 0 })
  }

  /** Looks at time and free space; tells the engineer. */
  tick(): void {
    if (this.error !== undefined) return
    if (this.mustRotate(0)) this.finish()
    this.checkSpace()
    if (this.header !== undefined) this.context.progress({ packets: this.packets, bytes: this.bytes })
  }

  /** A change to the host is about to be made, or has been: what was captured around it stays. */
  changing(phase: 'before' | 'after'): void {
    this.changingNow = phase === 'before'
    if (phase === 'after') this.changedAt = this.context.host.now().getTime()
    const around = this.open ?? (phase === 'before' ? this.segments.at(-1) : undefined)
    if (around !== undefined) this.pin(around)
    // Nothing open: the next packets are the first after it.
    this.pinNext = phase === 'after' && this.open === undefined
  }

  /** Closes what is kept and enters it in the case. */
  end(): readonly Segment[] {
    this.finish()
    for (const { file, pinned } of this.segments) {
      const notes = pinned ? ['spans a change of this host: never given up for newer packets'] : []
      file.close({ action: this.context.action, how: 'collector', ...(notes.length === 0 ? {} : { notes }) })
    }
    return this.segments
  }

  /** Why it may not write here any more; undefined while it may. */
  shortOfSpace(): string | undefined {
    const { host, case: caze } = this.context
    const { freeBytes, totalBytes } = host.statfs(caze.directory)
    const floor = Math.max(FLOOR_BYTES, totalBytes * FLOOR_SHARE)
    if (freeBytes >= floor) return undefined
    return `only ${formatBytes(freeBytes)} are free on the disk of the evidence, below the floor of ${formatBytes(floor)}`
  }

  facts(kept: readonly Segment[]): JsonObject {
    const { header, evicted } = this
    return {
      packets: this.packets,
      bytes: this.bytes,
      ...(header === undefined ? {} : { linkType: linkTypeName(header.linkType), snapshotLength: header.snapshotLength }),
      kept: kept.map(({ name, packets, first, last, pinned, file }) => ({
        name,
        packets,
        bytes: file.bytes,
        ...between(first, last),
        pinned,
      })),
      ...(evicted.segments === 0 ? {} : { evicted: { ...evicted, ...between(evicted.first, evicted.last) } }),
      ...(this.splitter.pending === 0 ? {} : { incompleteBytes: this.splitter.pending }),
    }
  }

  private mustRotate(bytesToCome: number): boolean {
    if (this.open === undefined) return false
    const age = this.context.host.monotonic() - this.open.opened
    return age >= this.options.rotateSeconds * 1000 || this.open.file.bytes + bytesToCome > this.options.segmentBytes
  }

  /** A segment begins with a packet: a quiet link makes no empty files, and pushes none out. */
  private begin(record: PcapRecord): Segment {
    this.opened += 1
    const name = `capture-${String(this.opened).padStart(4, '0')}.pcap`
    const file = this.context.case.open(this.context.step, name)
    const opened = this.context.host.monotonic()
    const segment: Segment = {
      name,
      file,
      opened,
      packets: 0,
      first: record.time,
      last: record.time,
      pinned: false,
    }
    this.segments.push(segment)
    this.open = segment
    if (this.header !== undefined) this.write(this.header.bytes)
    if (this.changingNow || this.pinNext || record.time <= this.changedAt) this.pin(segment)
    this.pinNext = false
    this.evict()
    return segment
  }

  private pin(segment: Segment): void {
    if (segment.pinned || this.pinned >= PINNED_MOST) return
    segment.pinned = true
    this.pinned += 1
  }

  private write(bytes: Uint8Array): void {
    this.open?.file.write(bytes)
    this.bytes += bytes.length
    this.uncheckedBytes += bytes.length
    if (this.uncheckedBytes >= SPACE_CHECK_BYTES) this.checkSpace()
  }

  private checkSpace(): void {
    this.uncheckedBytes = 0
    const short = this.shortOfSpace()
    if (short !== undefined) this.error ??= new Error(short)
  }

  /** Nothing more goes into the open segment. */
  private finish(): void {
    this.open = undefined
  }

  private evict(): void {
    const loose = this.segments.filter(segment => !segment.pinned)
    for (const segment of loose.slice(0, Math.max(0, loose.length - this.options.files))) {
      this.segments.splice(this.segments.indexOf(segment), 1)
      const { evicted } = this
      evicted.first = evicted.segments === 0 ? segment.first : Math.min(evicted.first, segment.first)
      evicted.last = Math.max(evicted.last, segment.last)
      evicted.segments += 1
      evicted.packets += segment.packets
      evicted.bytes += segment.file.bytes
      segment.file.discard()
    }
  }
}

function between(first: number, last: number): { first: string; last: string } {
  return { first: iso(new Date(first)), last: iso(new Date(last)) }
}
