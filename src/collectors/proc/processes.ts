/**
 * Every process in one pass over /proc, with the executables that exist only in memory. No program of the host has a part in
 * it. A record of `processes.jsonl` is a ProcessRecord; processes without an executable on disk come first, the others
 * follow by their ids, and those that appeared meanwhile at the end.
 */
import fs from 'node:fs'
import type { Host } from '../../host.js'
import type { JsonObject, Seconds } from '../../step.js'
import type { Collector, CollectorContext, CollectorResult } from '../collector.js'
import { type JsonLines, jsonLines } from '../json-lines.js'
import { ahead, pacer } from '../pace.js'
import { entries, openReader, type Reader, type Seen } from '../reader.js'
import { EXECUTABLE_BOUNDS, type ExecutableRecord, Executables } from './executables.js'
import { type BootClock, bootClock, linkedInode, type ProcessStat, parseStat, processIds } from './proc.js'
import { type Part, type Parts, partsOf, processLooks, processRecord, recordLine } from './process-record.js'

/** Requests ahead of the one that is awaited: keeps the reading child busy while we write. */
const AHEAD = 4
/** Links of executables asked for in one request. */
const BATCH = 256
/** Bytes of all records that are too long for a line. */
const MOST_FULL = 256 << 20
/** After so many processes that held the reader up, `patience` each, only what is at hand is read of the others. */
const MOST_HELD_UP = 10
/** Lists in the facts go into the custody log: no more than so many entries. */
const LISTED = 32

export const processes: Collector = async context => {
  const reader = openReader()
  try {
    return await new ProcessSnapshot(context, reader).take()
  } finally {
    reader.close()
  }
}

/** What was seen of one process. */
interface Look {
  readonly parts: Parts
  readonly heldUp: boolean
  /** Thread in place of the first, which has ended. */
  readonly through?: number
}

class ProcessSnapshot {
  private readonly context: CollectorContext
  private readonly host: Host
  private readonly reader: Reader
  private readonly clock: BootClock
  private readonly executables: Executables
  private readonly pace = pacer()
  private readonly denied: Record<string, number> = {}
  private readonly heldUp: number[] = []
  private readonly cut: string[] = []
  private kernelThreads = 0
  private vanished = 0
  private unreadable = 0
  private notUnderstood = 0
  private fullBytes = 0
  private appeared = 0

  constructor(context: CollectorContext, reader: Reader) {
    this.context = context
    this.host = context.host
    this.reader = reader
    this.clock = bootClock(context.host)
    const { step, action } = context
    this.executables = new Executables(context.host, reader, EXECUTABLE_BOUNDS.parse(context.options), { case: context.case, step, action })
  }

  async take(): Promise<CollectorResult> {
    const { host, context } = this
    const started = host.monotonic()
    const since = (): Seconds => Math.round(host.monotonic() - started) / 1000
    const first = processIds(host)
    const order = await this.inOrder(first)
    const file = context.case.open(context.step, 'processes.jsonl')
    const lines = jsonLines(file)
    await this.readAll(order, lines)
    // Something that starts itself again and again has a new id by now.
    const seen = new Set(first)
    const late = processIds(host).filter(pid => !seen.has(pid) && !this.reader.pids.includes(pid))
    this.appeared = late.length
    await this.readAll(late, lines)
    lines.flush()
    const stopped = context.signal.aborted ? ['interrupted: processes are missing'] : []
    file.close({ action: context.action, how: 'collector', notes: [...this.cut, ...stopped] })
    const facts = this.facts(lines.count, first.length, since())
    if (context.signal.aborted) {
      return { outcome: 'interrupted', reason: `stopped after ${lines.count} of ${first.length + late.length} processes`, facts }
    }
    if (lines.count === 0) return { outcome: 'failed', reason: 'no process of /proc could be read', facts }
    return { outcome: 'collected', facts }
  }

  private facts(recorded: number, listed: number, seconds: Seconds): JsonObject {
    return {
      processes: recorded,
      listed,
      appeared: this.appeared,
      kernelThreads: this.kernelThreads,
      vanished: this.vanished,
      unreadable: this.unreadable,
      notUnderstood: this.notUnderstood,
      denied: this.denied,
      heldUp: { count: this.heldUp.length, first: this.heldUp.slice(0, LISTED) },
      bounds: this.cut,
      executables: this.executables.facts,
      self: [process.pid, ...this.reader.pids],
      readApart: this.reader.apart,
      clockTicks: this.clock.ticks,
      seconds,
    }
  }

  /** What has no executable on disk first: it is lost with its process, and has the first claim to time and space. */
  private async inOrder(pids: readonly number[]): Promise<number[]> {
    const batches = Array.from({ length: Math.ceil(pids.length / BATCH) }, (_, index) => pids.slice(index * BATCH, (index + 1) * BATCH))
    const suspects: number[] = []
    const others: number[] = []
    for (const batch of batches) {
      const looks = batch.map(pid => ({ op: 'link', path: this.host.at(`/proc/${pid}/exe`) }) as const)
      const seen = await this.reader.look(looks).catch(() => [])
      for (const [index, pid] of batch.entries()) {
        const suspect = seen[index]?.bytes.toString('latin1').endsWith(' (deleted)')
        if (suspect) suspects.push(pid)
        else others.push(pid)
      }
    }
    return [...suspects, ...others]
  }

  private async readAll(pids: readonly number[], lines: JsonLines): Promise<void> {
    let done = 0
    for await (const [pid, seen] of ahead(pids, AHEAD, pid => this.look(pid))) {
      if (this.context.signal.aborted) break
      await this.enter(pid, seen, lines)
      done += 1
      this.context.progress({ items: done, totalItems: pids.length })
      await this.pace()
    }
  }

  /** Undefined when even what the kernel has at hand did not come. */
  private async look(pid: number): Promise<Look | undefined> {
    const door = this.host.at(`/proc/${pid}`)
    const look = await this.askCarefully(door)
    const stat = look === undefined ? undefined : statOf(look.parts)
    if (look === undefined || stat?.state !== 'Z' || stat.threads < 2) return look
    return (await this.lookThroughThread(pid, look.parts)) ?? look
  }

  /** The first thread has ended, the others live on: only they still show memory and files (a cheap way to hide from most tools). */
  private async lookThroughThread(pid: number, leader: Parts): Promise<Look | undefined> {
    for (const through of this.threadsOf(pid)) {
      const look = await this.askCarefully(this.host.at(`/proc/${pid}/task/${through}`))
      const stat = look === undefined ? undefined : statOf(look.parts)
      if (look === undefined || stat === undefined || stat.state === 'Z') continue
      return { ...look, parts: { ...look.parts, stat: leader.stat as Seen, status: leader.status as Seen }, through }
    }
    return undefined
  }

  private threadsOf(pid: number): number[] {
    try {
      return fs
        .readdirSync(this.host.at(`/proc/${pid}/task`))
        .map(Number)
        .filter(thread => thread !== pid)
        .slice(0, LISTED)
    } catch {
      return []
    }
  }

  /** Everything; without what can hold us up where it does, and where too many have done so. */
  private async askCarefully(door: string): Promise<Look | undefined> {
    const whole = this.heldUp.length < MOST_HELD_UP ? await this.ask(door, false) : undefined
    if (whole !== undefined) return { parts: whole, heldUp: false }
    const careful = await this.ask(door, true)
    return careful === undefined ? undefined : { parts: careful, heldUp: true }
  }

  private async ask(door: string, careful: boolean): Promise<Parts | undefined> {
    try {
      return partsOf(await this.reader.look(processLooks(door, careful)))
    } catch {
      return undefined
    }
  }

  private async enter(pid: number, seen: Look | undefined, lines: JsonLines): Promise<void> {
    if (seen === undefined) {
      this.unreadable += 1
      return
    }
    const { parts, heldUp, through } = seen
    const error = parts.stat?.error
    if (error === 'ENOENT' || error === 'ESRCH') {
      this.vanished += 1
      return
    }
    const stat = statOf(parts)
    if (stat === undefined) {
      if (error === undefined) this.notUnderstood += 1
      else this.deny('stat')
      return
    }
    const own = pid === process.pid || this.reader.pids.includes(pid)
    const exe = await this.executableOf(pid, parts, through)
    const record = processRecord(stat, parts, { exe, clock: this.clock, heldUp, own, ...(through === undefined ? {} : { through }) })
    if (record.kernelThread) this.kernelThreads += 1
    if (heldUp) this.heldUp.push(pid)
    if (this.heldUp.length === MOST_HELD_UP)
      this.bound(`${MOST_HELD_UP} processes did not let their memory be read: of later ones it was not tried`)
    for (const part of record.denied ?? []) this.deny(part)
    for (const part of record.cut ?? []) this.bound(`${part} of process ${pid} was longer than what is read of it`)
    const { line, full } = recordLine(record, `large/${pid}.json`)
    lines.add(full === undefined || this.keepFull(pid, full) ? line : withoutFull(line))
  }

  private async executableOf(pid: number, parts: Parts, through: number | undefined): Promise<ExecutableRecord | null> {
    const { exe, ns } = parts
    if (exe === undefined || exe.error !== undefined) return null
    const door = through === undefined ? `/proc/${pid}` : `/proc/${pid}/task/${through}`
    return this.executables.examine({ pid, door, mountNamespace: mountNamespaceOf(ns) }, exe.bytes)
  }

  /** A record too long for a line goes into a file of its own. */
  private keepFull(pid: number, full: string): boolean {
    const bytes = Buffer.byteLength(full)
    if (this.fullBytes + bytes > MOST_FULL) {
      this.bound(`long records were kept up to ${MOST_FULL} bytes: the maps, environment and files of process ${pid} are missing`)
      return false
    }
    const { case: caze, step, action } = this.context
    const file = caze.open(step, `large/${pid}.json`)
    file.write(full)
    file.close({ action, how: 'collector' })
    this.fullBytes += bytes
    return true
  }

  private deny(part: string): void {
    this.denied[part] = (this.denied[part] ?? 0) + 1
  }

  private bound(sentence: string): void {
    if (this.cut.length < LISTED && !this.cut.includes(sentence)) this.cut.push(sentence)
  }
}

function statOf(parts: Pick<Parts, Extract<Part, 'stat'>>): ProcessStat | undefined {
  return parts.stat === undefined ? undefined : parseStat(parts.stat.bytes)
}

function mountNamespaceOf(seen: Seen | undefined): number | undefined {
  if (seen === undefined) return undefined
  for (const [name, target] of entries(seen)) if (name === 'mnt') return linkedInode(target.toString('latin1'))
  return undefined
}

function withoutFull(line: string): string {
  const { full: _, ...kept } = JSON.parse(line)
  return JSON.stringify(kept)
}
