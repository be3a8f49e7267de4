/** From parsed flags to a finished response: what `respond`, every step command and `release` share. */
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { RefusedError, UsageError } from '../src/errors.js'
import { type Host, openHost } from '../src/host.js'
import { changeLines, planLines, summaryLines } from '../src/print.js'
import { planResponse, type ResponsePlan } from '../src/response/plan.js'
import { type Precheck, precheck } from '../src/response/precheck.js'
import { type ProgressView, plainProgress, terminalProgress } from '../src/response/progress.js'
import { type ResponseResult, respond } from '../src/response/respond.js'
import type { AnyStep, Change, JsonObject, Playbook, Seconds } from '../src/step.js'
import { ask, isInteractive, type stopSignal } from './base.js'
import { optionValues } from './options.js'

export interface ResponseFlags {
  readonly output: string
  readonly case?: string | undefined
  readonly examiner?: string | undefined
  readonly authority?: string | undefined
  readonly yes: boolean
  readonly 'dry-run': boolean
  readonly force: boolean
}

export interface ResponseCall {
  readonly playbook: Playbook
  readonly budget: Seconds
  readonly flags: ResponseFlags & Readonly<Record<string, unknown>>
  /** `--json`: one document on stdout, everything else on stderr. */
  readonly json: boolean
  readonly tool: string
  readonly stop: typeof stopSignal
  /** Replaces the real host, in tests. */
  readonly host?: Host
  /** Asked before every change; what it throws keeps the change from being made. */
  readonly guard?: () => void
}

/** What `--json` prints. */
export type ResponseDocument = JsonObject | ResponsePlan

/** Plans, prints or asks, executes, seals, and says how it ended. The exit code is in the result. */
export async function runResponse(call: ResponseCall): Promise<{ document: ResponseDocument; exitCode: number; archive?: string }> {
  const { flags, json } = call
  const host = call.host ?? openHost()
  const steps = [...call.playbook.throughout, ...call.playbook.steps]
  const options = new Map(steps.map(step => [step.id, optionValues(step, flags)]))
  let plan = await makePlan(call, host, options)
  for (let tries = 0; tries < 5 && !flags['dry-run'] && isTaken(plan); tries++) {
    // The name of a case has seconds: the next one is ours.
    await sleep(1000)
    plan = await makePlan(call, host, options)
  }
  let checks = precheck(plan, host, { force: flags.force, root: true })
  const stdout = (line: string): void => void process.stdout.write(`${line}\n`)
  const stderr = (line: string): void => void process.stderr.write(`${line}\n`)
  if (flags['dry-run']) {
    const failed = checks.filter(check => !check.ok)
    if (json) for (const check of failed) stderr(`${check.what}: ${check.detail}`)
    else for (const line of planLines(plan, checks)) stdout(line)
    return { document: plan, exitCode: 0 }
  }
  const asked = await askWhatIsMissing(call, plan, options)
  if (asked) {
    plan = await makePlan(call, host, options)
    checks = precheck(plan, host, { force: flags.force, root: true })
  }
  const failed = checks.find(check => !check.ok)
  if (failed) throw new RefusedError(`${failed.detail}`)
  const consent = await agree(plan, checks, flags.yes, stderr)
  // Node ends with 0 when nothing is left to wait for: a response that was not done by then must not look complete.
  process.exitCode = 1
  const drawn = !json && isDrawable(process.stderr)
  const view = drawn ? terminalProgress(plan, process.stderr) : plainProgress(plan, stderr)
  const stop = call.stop({
    stopping: () => view.stopping(),
    aborting() {
      const left = path.join(plan.output, plan.case)
      const error = `aborted, nothing is sealed: ir seal ${left}`
      if (json) fs.writeSync(1, `${JSON.stringify({ error, exit: 130 }, null, 2)}\n`)
      else stderr(`ir: ${error}`)
    },
  })
  let result: ResponseResult
  try {
    result = await respond({
      plan,
      steps,
      host,
      stop,
      events: guarded(view, call.guard),
      consent,
      tool: call.tool,
      ...(flags.examiner === undefined ? {} : { examiner: flags.examiner }),
      ...(flags.authority === undefined ? {} : { authority: flags.authority }),
      ...ownerBehindSudo(),
    })
  } finally {
    await view.close()
  }
  for (const line of summaryLines(result, { steps: !drawn, confined: call.guard !== undefined })) (json ? stderr : stdout)(line)
  return { document: documentOf(result), exitCode: result.exitCode, archive: result.sealed.archive }
}

/** A terminal that tells no width, or hardly has any, gets plain lines. */
function isDrawable(stream: NodeJS.WriteStream): boolean {
  return stream.isTTY === true && stream.columns >= NARROWEST
}

const NARROWEST = 40

function guarded(view: ProgressView, guard: (() => void) | undefined): ProgressView {
  if (guard === undefined) return view
  return {
    ...view,
    announce(step, change) {
      guard()
      view.announce(step, change)
    },
  }
}

function isTaken(plan: ResponsePlan): boolean {
  const directory = path.join(plan.output, plan.case)
  return fs.existsSync(directory) || fs.existsSync(`${directory}.zip`)
}

function makePlan(call: ResponseCall, host: Host, options: ReadonlyMap<string, JsonObject>): Promise<ResponsePlan> {
  const { flags, playbook, budget } = call
  return planResponse({
    playbook,
    host,
    budget,
    output: path.resolve(flags.output),
    ...(flags.case === undefined ? {} : { label: flags.case }),
    optionsOf: step => options.get(step.id) ?? {},
  })
}

/** Asks at the terminal for an option without which a step refuses; tells whether one was given. */
async function askWhatIsMissing(call: ResponseCall, plan: ResponsePlan, options: Map<string, JsonObject>): Promise<boolean> {
  if (call.flags.yes || !isInteractive()) return false
  let given = false
  for (const step of plan.steps) {
    if (step.refused === undefined || step.ask === undefined) continue
    process.stderr.write(`${step.refused}\n`)
    const answer = await ask(`${step.ask.question} `)
    if (answer === '') continue
    const known = options.get(step.id) ?? {}
    options.set(step.id, { ...known, [step.ask.option]: answer.split(',').map(item => item.trim()) })
    given = true
  }
  return given
}

/** How the engineer agreed to the changes of a plan; a plan without changes needs no consent. */
async function agree(plan: ResponsePlan, checks: readonly Precheck[], yes: boolean, say: (line: string) => void): Promise<string> {
  const changes = plan.steps.flatMap(step => step.actions).filter((action): action is Change & { id: string } => action.kind === 'change')
  if (changes.length === 0) return 'no change planned'
  if (yes) return '--yes'
  if (!isInteractive()) throw new RefusedError('this changes the host and nobody is here to agree: add --yes, or --dry-run to see the plan')
  say('This will change the host:')
  for (const change of changes) for (const line of changeLines(change)) say(`  ${line}`)
  for (const check of checks) if (check.what === 'space') say(`  evidence: ${check.detail}; it overwrites as much recoverable free space`)
  const answer = await ask("Type 'yes' to go on: ")
  if (answer !== 'yes') throw new RefusedError('not agreed to: nothing was touched')
  return 'typed yes'
}

/** sudo tells who called it (sudo(8)); the case is given to them in the end. */
export function ownerBehindSudo(): { owner?: { uid: number; gid: number } } {
  const [uid, gid] = [process.env.SUDO_UID, process.env.SUDO_GID].map(text => (/^\d{1,10}$/.test(text ?? '') ? Number(text) : undefined))
  return uid === undefined || gid === undefined ? {} : { owner: { uid, gid } }
}

function documentOf(result: ResponseResult): JsonObject {
  const { plan, directory, sealed, steps, standing, leftChanged, interrupted, seconds, exitCode } = result
  const findings = result.verdicts.filter(verdict => 'severity' in verdict).length
  return {
    case: plan.case,
    directory,
    archive: sealed.archive,
    bytes: sealed.bytes,
    sha256: sealed.sha256,
    head: sealed.head,
    beside: sealed.beside,
    steps: steps.map(({ id, outcome, reason, seconds: took, bytes }) => ({
      id,
      outcome,
      ...(reason === undefined ? {} : { reason }),
      seconds: took,
      bytes,
    })),
    findings,
    standing: standing.map(change => change.effect),
    leftChanged: leftChanged.map(running => running.argv),
    interrupted,
    seconds,
    exit: exitCode,
  }
}

/**
 * The steps of a playbook that `--only` and `--skip` leave.
 * @throws UsageError for a name that is none of its steps, with the nearest.
 */
export function selectSteps(
  playbook: Playbook,
  only: readonly string[],
  skip: readonly string[],
  near: (typed: string, names: string[]) => string | undefined,
): Playbook {
  const all: AnyStep[] = [...playbook.throughout, ...playbook.steps]
  const names = all.map(step => step.id)
  for (const name of [...only, ...skip]) {
    if (names.includes(name)) continue
    const meant = near(name, names)
    throw new UsageError(
      `there is no step '${name}'${meant === undefined ? '' : `: did you mean '${meant}'?`} (steps: ${names.join(', ')})`,
    )
  }
  const wanted = (step: AnyStep): boolean => (only.length === 0 || only.includes(step.id)) && !skip.includes(step.id)
  const left = { ...playbook, throughout: playbook.throughout.filter(wanted), steps: playbook.steps.filter(wanted) }
  if (left.throughout.length + left.steps.length === 0) throw new UsageError('--only and --skip leave no step')
  return left
}
