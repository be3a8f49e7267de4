/** Performs one action of a plan: custody start, run, hash, custody finish. What goes wrong here is an outcome, never an exception. */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import fs from 'node:fs'
import { setImmediate as breathe, setTimeout as sleep } from 'node:timers/promises'
import type { CollectorContext, Progress } from '../collectors/collector.js'
import { COLLECTORS } from '../collectors/index.js'
import { EvidenceError } from '../errors.js'
import type { Artifact, Case } from '../evidence/case.js'
import { errnoOf, fileStatus, type Host } from '../host.js'
import { complaint, type Exit, runProgram } from '../programs.js'
import type { Action, ActionResult, Change, Collect, Copy, JsonObject, Outcome, Running, Seconds } from '../step.js'

export type PlannedAction = Action & { readonly id: string }

export interface ActionContext {
  readonly host: Host
  readonly case: Case
  readonly step: string
  /** Stops collecting: Ctrl-C, or the end of the steps that this one runs beside. */
  readonly signal: AbortSignal
  progress(figures: Progress): void
  onChange: CollectorContext['onChange']
  /** Tells every collector beside us that the host is about to be changed, and has been. */
  changing(action: string, phase: 'before' | 'after'): void
  /** Shows and stores the way back before a change is made. */
  announce(change: Change & { readonly id: string }): void
}

export interface PerformedAction extends ActionResult {
  readonly seconds: Seconds
  readonly artifacts: readonly Artifact[]
  /** The change was made and stands. */
  readonly changed?: Change & { readonly id: string }
  /** An undo failed: what to type by hand. */
  readonly leftChanged?: readonly Running[]
}

type Ended = Omit<PerformedAction, 'id' | 'seconds'>

/** A program's output above this ends the program: a replaced tool must not fill the disk. */
const OUTPUT_LIMIT = 512 * 1024 ** 2
const COPY_LIMIT = 64 * 1024 ** 2
const COPY_CHUNK = 65_536

/** How long a collector may take to close its files after it was told to stop. */
const STOP_GRACE: Seconds = 10

export async function perform(action: PlannedAction, context: ActionContext): Promise<PerformedAction> {
  const started = context.host.monotonic()
  context.case.record('start', { action: action.id, kind: action.kind, title: action.title, ...described(action, context.host) })
  let ended: Ended
  try {
    ended = await attempt(action, context)
  } catch (error) {
    // The disk of the case is gone or full: there is no point in going on. Everything else is this action's own failure.
    if (error instanceof EvidenceError) throw error
    ended = { outcome: 'failed', reason: error instanceof Error ? error.message : String(error), artifacts: [] }
  }
  const seconds = (context.host.monotonic() - started) / 1000
  const { outcome, reason, exit, facts, artifacts } = ended
  context.case.record('finish', {
    action: action.id,
    outcome,
    ...(reason === undefined ? {} : { reason }),
    ...(exit === undefined ? {} : { exit }),
    seconds: Math.round(seconds * 1000) / 1000,
    ...(facts === undefined ? {} : { facts }),
    artifacts: artifacts.map(({ path, bytes, sha256 }) => ({ path, bytes, sha256 })),
  })
  return { id: action.id, seconds, ...ended }
}

function attempt(action: PlannedAction, context: ActionContext): Promise<Ended> {
  switch (action.kind) {
    case 'observe':
      return observe(action, action.id, context)
    case 'copy':
      return copy(action, context)
    case 'collect':
      return collect(action, context)
    case 'change':
      return change(action, context)
  }
}

/** Programs with their hashes, as they are now: the examiner must be able to tell whether they were the distribution's. */
function described(action: Action, host: Host): JsonObject {
  if (action.kind === 'copy') return { from: action.from }
  if (action.kind === 'collect') {
    const programs = [...(action.source ?? []), ...(action.sink ?? [])]
    return {
      collector: action.collector,
      ...(programs.length === 0 ? {} : { programs: programs.map(running => hashed(running, host)) }),
    }
  }
  return hashed(action, host)
}

function hashed({ argv }: Running, host: Host): JsonObject {
  // A wrapper such as setpriv starts the program that counts: both are named.
  const programs = argv.filter((word, index) => index === 0 || (word.startsWith('/') && isProgram(host.at(word))))
  return { argv, sha256: Object.fromEntries(programs.map(program => [program, programHash(program, host)])) }
}

const hashes = new Map<string, string>()

function programHash(program: string, host: Host): string {
  const known = hashes.get(program)
  if (known !== undefined) return known
  let hash: string
  try {
    hash = createHash('sha256')
      .update(fs.readFileSync(host.at(program)))
      .digest('hex')
  } catch (error) {
    hash = `unreadable (${errnoOf(error)})`
  }
  hashes.set(program, hash)
  return hash
}

function isProgram(path: string): boolean {
  try {
    fs.accessSync(path, fs.constants.X_OK)
    return fs.statSync(path).isFile()
  } catch {
    return false
  }
}

async function observe(running: Running, id: string, context: ActionContext): Promise<Ended> {
  const { exit, artifacts } = await runIntoCase(running, id, context, context.signal)
  return { ...judge(running, exit, artifacts), artifacts }
}

/** Runs a program with its standard output straight into an evidence file, so that no pipe can hold us. */
async function runIntoCase(running: Running, id: string, context: ActionContext, signal?: AbortSignal) {
  const origin = { action: id, how: 'program' } as const
  const { case: caze, step } = context
  let fd: number | undefined
  if (running.stdout !== undefined) {
    const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = fs.constants
    fd = openEvidence(caze.pathOf(step, running.stdout), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW)
  }
  // The folder, for a program that makes its file itself.
  for (const name of running.writes ?? []) caze.pathOf(step, name)
  let exit: Exit
  try {
    exit = await runProgram(running, {
      ...(fd === undefined ? {} : { stdout: fd, maxBytes: OUTPUT_LIMIT }),
      ...(signal === undefined ? {} : { signal }),
    })
  } finally {
    if (fd !== undefined) fs.closeSync(fd)
  }
  const artifacts: Artifact[] = []
  if (running.stdout !== undefined) artifacts.push(await caze.adopt(step, running.stdout, origin))
  for (const name of running.writes ?? []) {
    if (fs.existsSync(caze.pathOf(step, name))) artifacts.push(await caze.adopt(step, name, origin))
  }
  return { exit, artifacts }
}

function openEvidence(path: string, flags: number): number {
  try {
    return fs.openSync(path, flags, 0o600)
  } catch (error) {
    throw new EvidenceError(`${path} cannot be written (${errnoOf(error)})`)
  }
}

function judge(running: Running, exit: Exit, artifacts: readonly Artifact[]): { outcome: Outcome; reason?: string; exit?: number } {
  const code = exit.code === undefined ? {} : { exit: exit.code }
  const reason = complaint(running, exit)
  if (reason !== undefined) {
    const outcome = exit.timedOut ? 'timed-out' : exit.interrupted ? 'interrupted' : exit.notStarted ? 'unavailable' : 'failed'
    return { outcome, reason, ...code }
  }
  const wanted = running.stdout !== undefined || (running.writes ?? []).length > 0
  if (wanted && artifacts.every(artifact => artifact.bytes === 0)) return { outcome: 'empty', ...code }
  return { outcome: 'collected', ...code }
}

async function copy(action: Copy & { id: string }, context: ActionContext): Promise<Ended> {
  const { host } = context
  const { O_RDONLY, O_NONBLOCK, O_NOCTTY, O_NOATIME } = fs.constants
  let fd: number
  try {
    fd = openForCopy(host.at(action.from), O_RDONLY | O_NONBLOCK | O_NOCTTY, O_NOATIME)
  } catch (error) {
    const code = errnoOf(error)
    return { outcome: code === 'ENOENT' ? 'unavailable' : 'failed', reason: `${action.from}: ${code}`, artifacts: [] }
  }
  try {
    const before = fs.fstatSync(fd, { bigint: true })
    if (!before.isFile()) return { outcome: 'failed', reason: `${action.from} is no regular file`, artifacts: [] }
    const file = context.case.open(context.step, action.to)
    const limit = action.maxBytes ?? COPY_LIMIT
    const until = host.monotonic() + action.limit * 1000
    const buffer = Buffer.allocUnsafe(COPY_CHUNK)
    const notes: string[] = []
    let outcome: Outcome = 'collected'
    let reason: string | undefined
    while (true) {
      if (context.signal.aborted) [outcome, reason] = ['interrupted', 'interrupted']
      else if (host.monotonic() > until) [outcome, reason] = ['timed-out', `not read whole within ${action.limit} s`]
      if (outcome !== 'collected') break
      const room = Math.min(buffer.length, limit - file.bytes)
      if (room === 0) {
        notes.push(`cut at ${limit} bytes`)
        break
      }
      const got = fs.readSync(fd, buffer, 0, room, null)
      if (got === 0) break
      file.write(buffer.subarray(0, got))
      await breathe()
    }
    const after = fs.fstatSync(fd, { bigint: true })
    if (after.mtimeNs !== before.mtimeNs || after.size !== before.size) notes.push('changed during copy')
    if (reason !== undefined) notes.push(reason)
    const origin = { action: action.id, how: 'copy', path: action.from, status: fileStatus(before), notes } as const
    const artifact = file.close(origin)
    if (outcome === 'collected' && artifact.bytes === 0) outcome = 'empty'
    return { outcome, ...(reason === undefined ? {} : { reason }), artifacts: [artifact] }
  } finally {
    fs.closeSync(fd)
  }
}

/** Without touching the access time where we may (O_NOATIME is refused to others than the owner and CAP_FOWNER, open(2)). */
function openForCopy(path: string, flags: number, noAccessTime: number): number {
  try {
    return fs.openSync(path, flags | noAccessTime)
  } catch (error) {
    if (errnoOf(error) !== 'EPERM') throw error
    return fs.openSync(path, flags)
  }
}

async function collect(action: Collect & { id: string }, context: ActionContext): Promise<Ended> {
  const before = context.case.artifacts.length
  const deadline = AbortSignal.timeout(action.limit * 1000)
  const signal = AbortSignal.any([context.signal, deadline])
  const running = COLLECTORS[action.collector]({
    host: context.host,
    options: action.options,
    source: action.source ?? [],
    sink: action.sink ?? [],
    case: context.case,
    step: context.step,
    action: action.id,
    signal,
    progress: context.progress,
    onChange: context.onChange,
  }).catch((error: unknown) => {
    if (error instanceof EvidenceError) throw error
    return { outcome: 'failed' as const, reason: error instanceof Error ? error.message : String(error) }
  })
  const done = new AbortController()
  const result = await Promise.race([running, overdue(signal, done.signal)])
  done.abort()
  const artifacts = context.case.artifacts.slice(before).filter(artifact => artifact.path.startsWith(`data/${context.step}/`))
  if (result === undefined) {
    return { outcome: 'timed-out', reason: `the collector did not stop within ${STOP_GRACE} s of being told to`, artifacts }
  }
  if (deadline.aborted && result.outcome === 'interrupted') {
    return { ...result, outcome: 'timed-out', reason: `ended after ${action.limit} s`, artifacts }
  }
  return { ...result, artifacts }
}

/** Resolves to undefined when a collector that was told to stop has had its grace, or is done. */
async function overdue(stop: AbortSignal, done: AbortSignal): Promise<undefined> {
  if (!stop.aborted) await Promise.race([once(stop, 'abort', { signal: done }), once(done, 'abort')]).catch(() => {})
  await sleep(STOP_GRACE * 1000, undefined, { signal: done }).catch(() => {})
}

/**
 * Makes a change: the way back is shown and stored first, then the change, then its verification; what does not verify is undone at once.
 * Never interrupted half-way: Ctrl-C waits for it (each run has its own limit).
 */
async function change(action: Change & { id: string }, context: ActionContext): Promise<Ended> {
  context.case.record('change', { action: action.id, effect: action.effect, lasts: action.lasts, undo: action.undo.map(written) })
  context.announce(action)
  context.changing(action.id, 'before')
  const artifacts: Artifact[] = []
  let refusal: Omit<Ended, 'artifacts'> = { outcome: 'failed' }
  for (const running of [action, ...(action.fallback ?? [])]) {
    const run = await runIntoCase(running, action.id, context)
    artifacts.push(...run.artifacts)
    refusal = judge(running, run.exit, run.artifacts)
    if (complaint(running, run.exit) === undefined) {
      const doubt = await verifyChange(action, context)
      if (doubt === undefined) {
        context.changing(action.id, 'after')
        return { ...refusal, outcome: 'collected', artifacts, changed: action }
      }
      return { outcome: 'failed', reason: doubt, artifacts, ...(await undoChange(action, context)) }
    }
    // Ended by us in the middle: nobody knows what it has done, so the way back is taken.
    if (run.exit.code === undefined && run.exit.notStarted === undefined) {
      return { ...refusal, artifacts, ...(await undoChange(action, context)) }
    }
  }
  return { ...refusal, artifacts }
}

async function verifyChange(action: Change & { id: string }, context: ActionContext): Promise<string | undefined> {
  for (const check of action.verify ?? []) {
    const { exit } = await runIntoCase(check, action.id, context)
    const reason = complaint(check, exit)
    if (reason !== undefined) return `made, but not verified, so undone: ${reason}`
  }
  return undefined
}

/** Takes a change back. `leftChanged` tells what to type by hand where that failed. */
export async function undoChange(action: Change & { id: string }, context: ActionContext): Promise<Pick<PerformedAction, 'leftChanged'>> {
  const done: { running: Running; reason: string | undefined }[] = []
  for (const running of action.undo) {
    const { exit } = await runIntoCase(running, action.id, context)
    const reason = complaint(running, exit)
    done.push({ running, reason })
    if (reason !== undefined) break
  }
  // Logged when all is undone: a disk that refuses the log must not keep the host changed.
  for (const { running, reason } of done) {
    const how = reason === undefined ? { done: true } : { done: false, reason }
    context.case.record('undo', { action: action.id, ...written(running), ...how })
  }
  return done.every(({ reason }) => reason === undefined) ? {} : { leftChanged: action.undo }
}

function written(running: Running): JsonObject {
  return { argv: running.argv, ...(running.stdin === undefined ? {} : { stdin: running.stdin }) }
}
