/**
 * Attributes (chattr(1)) of files and directories: our own walk finds the names, lsattr(1) reads their attributes many at a
 * time, and access(2) is asked beside it, because a kernel that refuses to write an immutable file is not talked out of it by
 * a replaced lsattr. No name is lost without a word.
 */
import { isUtf8 } from 'node:buffer'
import fs from 'node:fs'
import { z } from 'zod'
import type { EvidenceFile } from '../evidence/case.js'
import { errnoOf, fileStatus } from '../host.js'
import type { JsonObject } from '../step.js'
import { iso } from '../time.js'
import type { Collector, CollectorContext, CollectorResult } from './collector.js'
import { inRuns, type Lsattr, readNames, readOddNames } from './lsattr.js'
import type { Reading } from './lsattr-output.js'
import { escapeName, plainJson } from './names.js'
import { type Entry, type Omitted, startWalk, type Walk, type WalkRoot } from './walk.js'

const OPTIONS = z.object({
  /** Absolute paths. */
  paths: z.array(z.string().startsWith('/')).min(1).max(1000),
  /** Directory entries to look at, over all paths. */
  maxEntries: z.number().int().positive(),
  /** Until the walk stops. */
  maxSeconds: z.number().positive(),
})

/** Every entry, for people: attributes or why there are none, and the name, escaped. */
const LISTING = 'lsattr_-d.txt'

/** The entries with something to say, one JSON object a line. See docs/formats.md. */
const RECORDS = 'attributes.jsonl'

/** Places of the attributes in the listing: those of e2fsprogs 1.47. */
const COLUMN = 22

/** Of the mounts and directories left out, so many are named in the facts. */
const NAMED = 20

/** Names in one directory that cannot be arguments, over all directories: remembered until the walk is done. */
const ODD_NAMES = 100_000

interface Counts {
  listed: number
  immutable: number
  appendOnly: number
  /** The kernel refuses to write them as if immutable, and lsattr does not say so. */
  hidden: number
  notSupported: number
  gone: number
  failed: number
  unclear: number
}

/**
 * Needs two sources: `lsattr -d` and `lsattr -a`. Writes `lsattr_-d.txt` and `attributes.jsonl`.
 * @throws Error when the list of mounts cannot be read, or lsattr cannot be started.
 */
export const attributes: Collector = async context => {
  const options = OPTIONS.parse(context.options)
  const [names, directories] = context.source
  if (names === undefined || directories === undefined) throw new Error('needs two programs: lsattr -d and lsattr -a')
  const started = context.host.monotonic()
  const walk = startWalk(context.host, options.paths, {
    entries: options.maxEntries,
    seconds: options.maxSeconds,
    signal: context.signal,
  })
  const lsattr: Lsattr = { names, directories, signal: context.signal, runs: { all: 0, repeated: 0 } }
  const register = new Register(context, walk.roots.length)
  try {
    for await (const { entries, readings } of readAll(walk, lsattr)) {
      register.enter(entries, readings, await crossCheck(entries, readings, lsattr))
      context.progress({ items: walk.seen })
    }
  } finally {
    register.close()
  }
  const facts = {
    seconds: Math.round(context.host.monotonic() - started) / 1000,
    runs: lsattr.runs.all,
    repeated: lsattr.runs.repeated,
    crossChecked: register.asked,
    ...told(walk, register.counts),
  }
  return { ...ended(context, walk, total(register.counts)), facts }
}

interface Read {
  readonly entries: readonly Entry[]
  readonly readings: Reading[]
}

/** The whole walk with what lsattr says; names that cannot be arguments come last. */
async function* readAll(walk: Walk, lsattr: Lsattr): AsyncGenerator<Read> {
  const odd = new OddEntries()
  const pathBytes = (entry: Entry): number => entry.path.length
  for (const entries of inRuns(odd.sift(walk.entries), pathBytes)) {
    const paths = entries.map(entry => entry.path)
    yield { entries, readings: await readNames(lsattr, paths) }
  }
  yield* readOddNames(lsattr, odd.byDirectory(), entry => entry.path)
  for (const entries of inRuns(odd.tooMany, pathBytes)) {
    yield { entries, readings: entries.map(() => ({ state: 'failed', reason: `more than ${ODD_NAMES} names that are not UTF-8` })) }
  }
}

/** Keeps back what Node cannot hand to a program: it passes arguments as UTF-8, and would change other bytes without a word. */
class OddEntries {
  readonly tooMany: Entry[] = []
  readonly #byDirectory = new Map<string, { readonly directory: Buffer; readonly entries: Entry[] }>()
  #count = 0

  byDirectory(): Iterable<{ readonly directory: Buffer; readonly entries: readonly Entry[] }> {
    return this.#byDirectory.values()
  }

  *sift(entries: Iterable<Entry>): Generator<Entry> {
    for (const entry of entries) {
      if (isUtf8(entry.path)) yield entry
      else if (this.#count >= ODD_NAMES) this.tooMany.push(entry)
      else this.#keep(entry)
    }
  }

  #keep(entry: Entry): void {
    this.#count++
    const key = entry.parent.toString('latin1')
    const there = this.#byDirectory.get(key) ?? { directory: alone(entry.parent), entries: [] }
    there.entries.push({ ...entry, path: alone(entry.path), parent: there.directory })
    this.#byDirectory.set(key, there)
  }
}

/** A copy that keeps nothing else alive: Node cuts small Buffers from common slabs. */
function alone(bytes: Buffer): Buffer {
  return Buffer.from(Uint8Array.from(bytes).buffer)
}

/** What the kernel says about entries that lsattr does not call immutable. */
interface Kernel {
  /** Indexes of those that it refuses to write as if they were. */
  readonly refused: ReadonlySet<number>
  /** About how many both gave an answer. */
  readonly asked: number
}

/** lsattr is asked once more about those that the kernel refuses to write, and the kernel after it: the attribute may be new. */
async function crossCheck(entries: readonly Entry[], readings: Reading[], lsattr: Lsattr): Promise<Kernel> {
  const quiet = [...entries.keys()].filter(index => !saysImmutable(readings[index] as Reading))
  const answers = new Map(quiet.map(index => [index, writing(pathAt(entries, index))]))
  const doubtful = quiet.filter(index => answers.get(index) === 'refused')
  const again = doubtful.filter(index => isUtf8(pathAt(entries, index)))
  for (const indexes of inRuns(again, index => pathAt(entries, index).length)) {
    const paths = indexes.map(index => pathAt(entries, index))
    for (const [position, reading] of (await readNames(lsattr, paths)).entries()) readings[indexes[position] as number] = reading
  }
  const still = doubtful.filter(index => !saysImmutable(readings[index] as Reading) && writing(pathAt(entries, index)) === 'refused')
  const asked = quiet.filter(index => readings[index]?.state === 'listed' && answers.get(index) !== 'unknown')
  return { refused: new Set(still), asked: asked.length }
}

function saysImmutable(reading: Reading): boolean {
  return reading.state === 'listed' && reading.attributes.includes('i')
}

function pathAt(entries: readonly Entry[], index: number): Buffer {
  return (entries[index] as Entry).path
}

/**
 * Whether the kernel refuses to write it because it is immutable: access(2), EPERM, "Write permission was requested to a file
 * whose immutable flag is set". That comes before permissions (EACCES) and behind a file system that is read-only (EROFS).
 * Asking changes nothing, not even a time.
 */
function writing(path: Buffer): 'refused' | 'allowed' | 'unknown' {
  try {
    fs.accessSync(path, fs.constants.W_OK)
    return 'allowed'
  } catch (error) {
    const code = errnoOf(error)
    if (code === 'EPERM') return 'refused'
    return code === 'EACCES' ? 'allowed' : 'unknown'
  }
}

/** Writes down what was read, and counts it by root. */
class Register {
  readonly counts: readonly Counts[]
  /** About how many both lsattr and the kernel gave an answer. */
  asked = 0
  readonly #context: CollectorContext
  readonly #listing: EvidenceFile
  readonly #records: EvidenceFile
  #line = 0

  constructor(context: CollectorContext, roots: number) {
    this.#context = context
    this.counts = Array.from({ length: roots }, noCounts)
    this.#listing = context.case.open(context.step, LISTING)
    this.#records = context.case.open(context.step, RECORDS)
  }

  enter(entries: readonly Entry[], readings: readonly Reading[], kernel: Kernel): void {
    this.asked += kernel.asked
    let lines = ''
    let records = ''
    for (const [index, entry] of entries.entries()) {
      const reading = readings[index] as Reading
      const record = recordOf(entry, reading, kernel.refused.has(index), ++this.#line)
      count(this.counts[entry.root] as Counts, record)
      lines += `${listed(reading).padEnd(COLUMN)} ${record.shown ?? record.path}\n`
      if (isNotable(record)) records += `${plainJson({ ...record, ...statusOf(entry.path) })}\n`
    }
    this.#listing.write(lines)
    if (records !== '') this.#records.write(records)
  }

  close(): void {
    const origin = { action: this.#context.action, how: 'collector' } as const
    this.#listing.close(origin)
    this.#records.close(origin)
  }
}

/** One line of `attributes.jsonl`. */
interface AttributeRecord {
  /** Line of the listing, from 1. */
  readonly line: number
  /** Exact, unless `base64` is there. */
  readonly path: string
  /** As in the listing, where that differs from `path`. */
  readonly shown?: string
  /** The bytes of a path that is not UTF-8. */
  readonly base64?: string
  readonly kind: Entry['kind']
  readonly state: Reading['state']
  /** As lsattr printed them. */
  readonly attributes?: string
  /** Why there are none. */
  readonly reason?: string
  readonly immutable: boolean
  readonly appendOnly: boolean
  /** lsattr lists it without `i`, and the kernel refuses to write it as if it had one. */
  readonly hidden: boolean
}

function recordOf(entry: Entry, reading: Reading, refused: boolean, line: number): AttributeRecord {
  const path = entry.path.toString('utf8')
  const shown = escapeName(entry.path)
  const attributes = reading.state === 'listed' ? reading.attributes : ''
  return {
    line,
    path,
    ...(shown === path ? {} : { shown }),
    ...(isUtf8(entry.path) ? {} : { base64: entry.path.toString('base64') }),
    kind: entry.kind,
    state: reading.state,
    ...(reading.state === 'listed' ? { attributes } : { reason: reading.reason }),
    // Where lsattr has no answer the kernel's is enough.
    immutable: attributes.includes('i') || (refused && reading.state !== 'listed'),
    appendOnly: attributes.includes('a'),
    hidden: refused && reading.state === 'listed',
  }
}

/** Beside the attributes themselves: what could not be read, and names that the listing shows only escaped. */
function isNotable(record: AttributeRecord): boolean {
  const { immutable, appendOnly, hidden, state, base64 } = record
  return immutable || appendOnly || hidden || state === 'failed' || state === 'unclear' || base64 !== undefined
}

/** What lstat(2) tells now; nothing where it is gone. */
function statusOf(path: Buffer): JsonObject {
  try {
    const status = fileStatus(fs.lstatSync(path, { bigint: true }))
    return {
      mode: status.mode.toString(8).padStart(4, '0'),
      uid: status.uid,
      gid: status.gid,
      size: String(status.size),
      inode: String(status.inode),
      links: status.links,
      modified: iso(new Date(status.modified)),
      changed: iso(new Date(status.changed)),
      ...(status.born === 0 ? {} : { born: iso(new Date(status.born)) }),
    }
  } catch {
    return {}
  }
}

/** First column of the listing; what stands in brackets is not from lsattr. */
function listed(reading: Reading): string {
  return reading.state === 'listed' ? reading.attributes : `[${reading.state}]`
}

function noCounts(): Counts {
  return { listed: 0, immutable: 0, appendOnly: 0, hidden: 0, notSupported: 0, gone: 0, failed: 0, unclear: 0 }
}

function count(counts: Counts, record: AttributeRecord): void {
  if (record.state === 'not-supported') counts.notSupported++
  else counts[record.state]++
  if (record.immutable) counts.immutable++
  if (record.appendOnly) counts.appendOnly++
  if (record.hidden) counts.hidden++
}

function total(all: readonly Counts[]): Counts {
  const sum = noCounts()
  for (const counts of all) {
    for (const key of Object.keys(sum) as (keyof Counts)[]) sum[key] += counts[key]
  }
  return sum
}

function ended(context: CollectorContext, walk: Walk, sum: Counts): CollectorResult {
  if (context.signal.aborted) return { outcome: 'interrupted', reason: `stopped after ${walk.seen} directory entries` }
  if (sum.listed > 0) return { outcome: 'collected' }
  if (walk.roots.every(root => root.state === 'missing')) return { outcome: 'empty', reason: 'none of the paths exists' }
  if (sum.failed + sum.unclear > 0 || sum.notSupported === 0) {
    return { outcome: 'failed', reason: 'no attributes could be read; the listing and the facts tell why' }
  }
  return { outcome: 'unavailable', reason: 'the file systems below these paths keep no attributes' }
}

/** The walk and the counts as facts, paths escaped. */
function told(walk: Walk, counts: readonly Counts[]): JsonObject {
  return {
    seen: walk.seen,
    bounds: [...walk.hit],
    ...total(counts),
    roots: walk.roots.map((root, index) => rootTold(root, counts[index] as Counts)),
    mountsLeftOut: walk.mounts.length,
    mounts: named(walk.mounts),
    directoriesUnread: walk.roots.reduce((sum, root) => sum + root.unread, 0),
    unread: named(walk.unread),
  }
}

function rootTold(root: WalkRoot, counts: Counts): JsonObject {
  const { asked, path, state, reason, files, directories, others, unread, notReached } = root
  return {
    asked: escapeName(Buffer.from(asked)),
    path: escapeName(Buffer.from(path)),
    state,
    ...(reason === undefined ? {} : { reason }),
    ...{ files, directories, others, unread, notReached },
    ...counts,
  }
}

function named(omitted: readonly Omitted[]): JsonObject[] {
  return omitted.slice(0, NAMED).map(({ path, why }) => ({ path: escapeName(path), why }))
}
