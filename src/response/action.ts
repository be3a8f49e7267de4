/** Performs one action of a plan: custody start, run, hash, custody finish. What goes wrong here is an outcome, never an exception. */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import fs from 'node:fs'
import { setImmediate as breathe, setTimeout as sleep } from 'node:timers/promises'
import type { CollectorContext, Progress } from '../collectors/collector.js'
import { COLLECTORS } from '../collectors/index.js'
import { EvidenceError } from '../errors.js'
import type { Artifact, Case, EvidenceFile } from '../evidence/case.js'
import { errnoOf, fileStatus, type Host } from '../host.js'
import { captureProgram, complaint, type Exit, runProgram, startProgram } from '../programs.js'
import type { Action, ActionResult, Change, Collect, Copy, JsonObject, Outcome, Running, Seconds } from '../step.js'

export type PlannedAction = Action & { readonly id: string }

export interface ActionContext {
  readonly host: Host
  readonly case: Case
  readonly step: string
  /** Stops collecting: Ctrl-C, or the end of the steps that this one runs beside. */
  readonly signal: AbortSignal
  /** Programs that had to be ended: a replaced one that hangs must not cost its limit again and again. */
  readonly hung: Set<string>
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

/** A program's output above this ends the program, whatever room there is. */
const OUTPUT_LIMIT = 256 * 1024 ** 2
/** And this much it may write even where there is hardly room. */
const OUTPUT_LEAST = 1024 ** 2
const OUTPUT_RESERVE = 32 * 1024 ** 2
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
  const program = running.argv[0]
  if (context.hung.has(program))
    return { outcome: 'timed-out', reason: `${program} did not end before and was not started again`, artifacts: [] }
  const { exit, artifacts } = await runIntoCase(running, id, context, context.signal)
  if (exit.timedOut) context.hung.add(program)
  return { ...judge(running, exit, artifacts), artifacts }
}

/**
 * Runs a program and keeps its standard output as an evidence file, up to a bound that leaves room for the rest of the case:
 * a replaced tool that floods must cost neither the other steps nor the seal.
 */
async function runIntoCase(running: Running, id: string, context: ActionContext, signal?: AbortSignal) {
  const origin = { action: id, how: 'program' } as const
  const { case: caze, step } = context
  // The folder, for a program that makes its file itself.
  for (const name of running.writes ?? []) caze.pathOf(step, name)
  const artifacts: Artifact[] = []
  let exit: Exit
  if (running.stdout === undefined) exit = await runProgram(running, signal === undefined ? {} : { signal })
  else {
    const file = caze.open(step, running.stdout)
    const kept = await keepOutput(running, file, outputLimit(context), signal)
    exit = kept.exit
    artifacts.push(file.close(kept.exit.flooded ? { ...origin, notes: [`cut at ${file.bytes} bytes`] } : origin))
  }
  for (const name of running.writes ?? []) {
    if (fs.existsSync(caze.pathOf(step, name))) artifacts.push(await caze.adopt(step, name, origin))
  }
  return { exit, artifacts }
}

/** Never more than a quarter of what is free beyond the reserve for log and seal. */
function outputLimit({ host, case: caze }: ActionContext): number {
  const room = (host.statfs(caze.directory).freeBytes - OUTPUT_RESERVE) / 4
  return Math.max(OUTPUT_LEAST, Math.min(OUTPUT_LIMIT, Math.floor(room)))
}

async function keepOutput(running: Running, file: EvidenceFile, limit: number, signal?: AbortSignal): Promise<{ exit: Exit }> {
  const program = startProgram(running, { stdout: 'pipe', ...(signal === undefined ? {} : { signal }) })
  let refused: unknown
  let flooded = false
  program.stdout?.on('data', (chunk: Buffer) => {
    if (refused !== undefined || flooded) return
    try {
      file.write(chunk.subarray(0, limit - file.bytes))
    } catch (error) {
      refused = error
    }
    flooded = file.bytes >= limit
    if (flooded || refused !== undefined) program.stop()
  })
  const exit = await program.exit
  if (refused !== undefined) throw refused
  return { exit: flooded ? { ...exit, flooded, interrupted: false } : exit }
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
  const stood = action.already !== undefined && complaint(action.already, (await captureProgram(action.already)).exit) === undefined
  // What was in force before us is not ours to lift, not even in doubt.
  const back = (): Promise<Pick<PerformedAction, 'leftChanged'>> => (stood ? Promise.resolve({}) : undoChange(action, context))
  const facts = action.already === undefined ? {} : { facts: { alreadyInForce: stood } }
  let refusal: Omit<Ended, 'artifacts'> = { outcome: 'failed' }
  for (const running of [action, ...(action.fallback ?? [])]) {
    const run = await runIntoCase(running, action.id, context)
    artifacts.push(...run.artifacts)
    refusal = judge(running, run.exit, run.artifacts)
    if (complaint(running, run.exit) === undefined) {
      const doubt = await verifyChange(action)
      if (doubt === undefined) {
        context.changing(action.id, 'after')
        return { ...refusal, ...facts, outcome: 'collected', artifacts, changed: action }
      }
      const reason = stood
        ? `made, but not verified: ${doubt}; the one before was in force, so nothing was undone`
        : `made, but not verified, so undone: ${doubt}`
      return { outcome: 'failed', reason, ...facts, artifacts, ...(await back()) }
    }
    // Ended by us in the middle: nobody knows what it has done, so the way back is taken.
    if (run.exit.code === undefined && run.exit.notStarted === undefined) {
      return { ...refusal, ...facts, artifacts, ...(await back()) }
    }
  }
  return { ...refusal, ...facts, artifacts }
}

/** Why a change is doubted; undefined when every check passed, by exit code and by what it printed. */
async function verifyChange(action: Change): Promise<string | undefined> {
  for (const check of action.verify ?? []) {
    const { exit, stdout } = await captureProgram(check)
    const reason = complaint(check, exit)
    if (reason !== undefined) return reason
    if (check.matches !== undefined && !new RegExp(check.matches).test(stdout.toString('utf8'))) {
      return `${check.argv.join(' ')} shows something else than was asked for`
    }
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
