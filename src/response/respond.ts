/** The life of a response after consent: case directory -> execute -> findings -> seal -> exit code. Nothing flows back. */
import { createHash } from 'node:crypto'
import { EvidenceError, HostLeftChangedError, RefusedError } from '../errors.js'
import { type Case, createCase } from '../evidence/case.js'
import { type Sealed, sealCase } from '../evidence/seal.js'
import type { Host } from '../host.js'
import type { AnyStep, Change, Running, Seconds, Verdict } from '../step.js'
import { iso } from '../time.js'
import { type ExecuteRequest, type Execution, execute, type ResponseEvents, type StepResult } from './execute.js'
import { planText, type ResponsePlan } from './plan.js'
import { typed, undoScript } from './undo.js'

export interface ResponseRequest {
  readonly plan: ResponsePlan
  readonly steps: readonly AnyStep[]
  readonly host: Host
  /** First Ctrl-C: stop collecting, then seal. */
  readonly stop: AbortSignal
  readonly events: ResponseEvents
  /** How the engineer agreed: 'typed yes', '--yes'. */
  readonly consent: string
  /** Name and version of the tool. */
  readonly tool: string
  readonly examiner?: string
  readonly authority?: string
  /** Who gets the case in the end: the user behind sudo. */
  readonly owner?: { readonly uid: number; readonly gid: number }
}

export interface ResponseResult {
  readonly plan: ResponsePlan
  /** Absolute path of the case directory. */
  readonly directory: string
  readonly sealed: Sealed
  readonly steps: readonly StepResult[]
  readonly verdicts: readonly Verdict[]
  readonly standing: readonly (Change & { readonly id: string })[]
  readonly leftChanged: readonly Running[]
  readonly interrupted: boolean
  readonly seconds: Seconds
  /** 0, 3, 5, 6 or 130. */
  readonly exitCode: number
}

/**
 * Executes a plan into a new case and seals it.
 * @throws RefusedError when a step refuses or the case cannot be made: nothing was touched.
 * @throws EvidenceError when evidence cannot be written any more; what was collected stays in the case directory.
 */
export async function respond(request: ResponseRequest): Promise<ResponseResult> {
  const { plan, host, events } = request
  const refused = plan.steps.find(step => step.refused !== undefined)
  if (refused) throw new RefusedError(`${refused.id}: ${refused.refused}; ${refused.remedy}`)
  const started = host.monotonic()
  const caze = openNewCase(request)
  const announced: Change[] = []
  const execution = await execute(withUndoScript(request, caze, announced))
  if (execution.broken) throw brokenOff(execution, execution.broken, caze)
  events.sealing()
  const verdicts = execution.steps.flatMap(step => step.verdicts)
  caze.tag('findings.json', findingsText(verdicts))
  const sealed = await seal(request, caze)
  return {
    plan,
    directory: caze.directory,
    sealed,
    ...execution,
    verdicts,
    interrupted: request.stop.aborted,
    seconds: (host.monotonic() - started) / 1000,
    exitCode: exitCodeOf(execution, sealed, request.stop.aborted),
  }
}

/** Evidence cannot be written any more: where the rest lies, and what is still in force on the host with the line that lifts it. */
function brokenOff({ standing, leftChanged }: Execution, broken: EvidenceError, caze: Case): Error {
  const lines = [
    `${broken.message}; what was collected lies in ${caze.directory}`,
    ...leftChanged.map(running => `left changed, an undo failed: ${typed(running)}`),
    ...standing.map(change => `still in force: ${change.effect} Undo: ${change.undo.map(typed).join('; ')}`),
  ]
  const message = lines.join('; ')
  return leftChanged.length > 0 ? new HostLeftChangedError(message) : new EvidenceError(message)
}

function openNewCase({ plan, host, consent, tool }: ResponseRequest): Case {
  let caze: Case
  try {
    caze = createCase({ output: plan.output, id: plan.case, host })
  } catch (error) {
    if (error instanceof EvidenceError) throw new RefusedError(`${error.message}: give another directory with --output`)
    throw error
  }
  const text = planText(plan)
  caze.record('open', { case: plan.case, host: plan.host, tool })
  caze.tag('plan.json', text)
  caze.record('plan', { sha256: createHash('sha256').update(text).digest('hex') })
  caze.record('consent', { how: consent })
  return caze
}

/** Every announced change goes into undo.sh before it is made, so that the way back is on disk whatever happens to us. */
function withUndoScript(request: ResponseRequest, caze: Case, announced: Change[]): ExecuteRequest {
  const { plan, host, stop, events } = request
  return {
    plan,
    host,
    stop,
    case: caze,
    steps: new Map(request.steps.map(step => [step.id, step])),
    events: {
      ...events,
      announce(step, change) {
        announced.push(change)
        caze.tag('undo.sh', undoScript(announced))
        events.announce(step, change)
      },
    },
  }
}

function seal(request: ResponseRequest, caze: Case): Promise<Sealed> {
  const { plan, tool, examiner, authority, owner } = request
  return sealCase(caze, {
    host: plan.host,
    tool,
    timeZone: Intl.DateTimeFormat().resolvedOptions().timeZone,
    started: plan.planned,
    ...(plan.label === undefined ? {} : { label: plan.label }),
    ...(examiner === undefined ? {} : { examiner }),
    ...(authority === undefined ? {} : { authority }),
    ...(owner === undefined ? {} : { owner }),
  })
}

function findingsText(verdicts: readonly Verdict[]): string {
  const findings = verdicts.filter(verdict => 'severity' in verdict)
  const clear = verdicts.filter(verdict => 'clear' in verdict)
  const notAssessed = verdicts.filter(verdict => 'notAssessed' in verdict)
  return `${JSON.stringify({ format: 'ir-findings/1', written: iso(new Date()), findings, clear, notAssessed }, null, 2)}\n`
}

/** Precedence 6, 5, 130, 3. Evidence that cannot be written at all is an EvidenceError, 5 as well. */
function exitCodeOf({ steps, leftChanged }: Execution, sealed: Sealed, interrupted: boolean): number {
  if (leftChanged.length > 0) return 6
  if (sealed.damaged.length > 0) return 5
  if (interrupted) return 130
  return steps.every(step => step.outcome === 'collected' || step.outcome === 'empty') ? 0 : 3
}
