/** Executes a plan, step by step, and keeps the custody log of it. A step that fails is an outcome and never costs the others. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Progress } from '../collectors/collector.js'
import { EvidenceError } from '../errors.js'
import type { Case } from '../evidence/case.js'
import type { Host } from '../host.js'
import type { AnyStep, Change, Outcome, Running, Seconds, Verdict } from '../step.js'
import { type ActionContext, type PerformedAction, perform, undoChange } from './action.js'
import { collectedOf, type EndedStep } from './collected.js'
import type { PlannedStep, ResponsePlan } from './plan.js'

/** What the engineer sees while it runs. */
export interface ResponseEvents {
  stepStarted(step: PlannedStep): void
  progress(step: PlannedStep, figures: Progress): void
  /** The way back, before the change is made. */
  announce(step: PlannedStep, change: Change & { readonly id: string }): void
  stepEnded(step: PlannedStep, result: StepResult, head: string): void
  sealing(): void
}

export interface StepResult extends EndedStep {
  readonly reason?: string
  readonly seconds: Seconds
  readonly bytes: number
  readonly verdicts: readonly Verdict[]
}

export interface Execution {
  readonly steps: readonly StepResult[]
  /** Changes that outlast the response, with their way back. */
  readonly standing: readonly (Change & { readonly id: string })[]
  /** Undo commands that failed: to be typed by hand. */
  readonly leftChanged: readonly Running[]
  /** Evidence could not be written any more: the response ended there. */
  readonly broken?: EvidenceError
}

export interface ExecuteRequest {
  readonly plan: ResponsePlan
  /** The steps by id, for their interpreters. */
  readonly steps: ReadonlyMap<string, AnyStep>
  readonly host: Host
  readonly case: Case
  /** First Ctrl-C: stop collecting. */
  readonly stop: AbortSignal
  readonly events: ResponseEvents
}

/** How long the first step waits for those that run throughout to be listening. */
const READY_LIMIT: Seconds = 3

/** What runs throughout has the host as it was to itself for so long: the last live traffic before the cut. */
const LEAD: Seconds = 1

/** Kept back from the budget for report and seal, and the share of a short budget. */
const SEAL_RESERVE: Seconds = 60
const SEAL_SHARE = 0.1

export async function execute(request: ExecuteRequest): Promise<Execution> {
  return new Executor(request).run()
}

class Executor {
  private readonly request: ExecuteRequest
  private readonly results = new Map<string, StepResult>()
  private readonly standing: (Change & { readonly id: string })[] = []
  private readonly leftChanged: Running[] = []
  private readonly watchers: ((change: { action: string; phase: 'before' | 'after' }) => void)[] = []
  private readonly hung = new Set<string>()
  private readonly started: number

  constructor(request: ExecuteRequest) {
    this.request = request
    this.started = request.host.monotonic()
  }

  async run(): Promise<Execution> {
    const { plan, stop } = this.request
    const finished = new AbortController()
    const besideSignal = AbortSignal.any([stop, finished.signal])
    const beside = plan.steps.filter(step => step.throughout).map(step => this.begin(step, besideSignal))
    await listening(beside.map(one => one.ready))
    const capturing = [...this.results.values()].length < beside.length
    if (capturing && !stop.aborted) await sleep(LEAD * 1000)
    let broken: EvidenceError | undefined
    try {
      for (const step of plan.steps) if (!step.throughout) await this.runStep(step, stop)
    } catch (error) {
      if (!(error instanceof EvidenceError)) throw error
      broken = error
    } finally {
      finished.abort()
    }
    for (const { status, reason } of (await Promise.allSettled(beside.map(one => one.ended))) as PromiseRejectedResult[]) {
      if (status !== 'rejected') continue
      if (!(reason instanceof EvidenceError)) throw reason
      broken ??= reason
    }
    const { standing, leftChanged } = this
    return { steps: [...this.results.values()], standing, leftChanged, ...(broken === undefined ? {} : { broken }) }
  }

  /** Starts a step beside the others; it is ready with its first figures. */
  private begin(step: PlannedStep, signal: AbortSignal): { ready: Promise<void>; ended: Promise<void> } {
    let isReady: () => void = () => {}
    const figures = new Promise<void>(resolve => {
      isReady = resolve
    })
    const ended = this.runStep(step, signal, isReady)
    return { ready: Promise.race([figures, ended.catch(() => {})]), ended }
  }

  private async runStep(step: PlannedStep, signal: AbortSignal, firstFigures: () => void = () => {}): Promise<void> {
    const { host, events } = this.request
    const started = host.monotonic()
    const before = this.notStarted(step)
    if (before !== undefined) return this.end(step, { ...before, actions: [], seconds: 0, bytes: 0 })
    events.stepStarted(step)
    const context = this.contextFor(step, signal, firstFigures)
    const actions: PerformedAction[] = []
    const changes: (Change & { readonly id: string })[] = []
    try {
      for (const action of step.actions) {
        if (signal.aborted) {
          actions.push({ id: action.id, outcome: 'interrupted', reason: 'not started', seconds: 0, artifacts: [] })
          continue
        }
        const performed = await perform(action, context)
        actions.push(performed)
        if (performed.leftChanged) this.leftChanged.push(...performed.leftChanged)
        if (performed.changed) changes.push(performed.changed)
      }
    } finally {
      await this.settle(changes, context)
    }
    const bytes = actions.flatMap(action => action.artifacts).reduce((sum, artifact) => sum + artifact.bytes, 0)
    const seconds = (host.monotonic() - started) / 1000
    return this.end(step, { ...stepOutcome(step, actions), actions, seconds, bytes })
  }

  /** Why a step is not even begun. */
  private notStarted(step: PlannedStep): { outcome: Outcome; reason: string } | undefined {
    const { plan, host, stop } = this.request
    if (step.unavailable !== undefined)
      return { outcome: 'unavailable', reason: `${step.unavailable}${step.remedy ? `; ${step.remedy}` : ''}` }
    if (stop.aborted) return { outcome: 'interrupted', reason: 'not started' }
    const reserve = Math.min(SEAL_RESERVE, plan.budget * SEAL_SHARE)
    const spent = (host.monotonic() - this.started) / 1000
    if (spent > plan.budget - reserve) return { outcome: 'skipped', reason: `the budget of ${plan.budget} s was used up` }
    return undefined
  }

  private contextFor(step: PlannedStep, signal: AbortSignal, firstFigures: () => void): ActionContext {
    const { host, case: caze, events } = this.request
    return {
      host,
      case: caze,
      step: step.id,
      signal,
      hung: this.hung,
      progress: figures => {
        firstFigures()
        events.progress(step, figures)
      },
      onChange: callback => this.watchers.push(callback),
      changing: (action, phase) => {
        for (const watcher of this.watchers) watcher({ action, phase })
      },
      announce: change => events.announce(step, change),
    }
  }

  /** Step-scoped changes are undone, the last one first; the others stand. */
  private async settle(changes: readonly (Change & { readonly id: string })[], context: ActionContext): Promise<void> {
    for (const change of changes.toReversed()) {
      // A change without a way back leaves nothing in force that could be lifted.
      if (change.lasts === 'case') this.standing.push(...(change.undo.length > 0 ? [change] : []))
      else this.leftChanged.push(...((await undoChange(change, context)).leftChanged ?? []))
    }
  }

  private async end(step: PlannedStep, result: Omit<StepResult, 'id' | 'verdicts'>): Promise<void> {
    const { case: caze, events, steps } = this.request
    const ended = { id: step.id, ...result }
    this.results.set(step.id, { ...ended, verdicts: [] })
    const verdicts = await interpret(steps.get(step.id), caze, ended, this.results)
    const complete = { ...ended, verdicts }
    this.results.set(step.id, complete)
    caze.record('step', {
      step: step.id,
      outcome: result.outcome,
      ...(result.reason === undefined ? {} : { reason: result.reason }),
      seconds: Math.round(result.seconds * 1000) / 1000,
      bytes: result.bytes,
      findings: verdicts.filter(verdict => 'severity' in verdict).length,
    })
    events.stepEnded(step, complete, caze.head)
  }
}

async function interpret(
  step: AnyStep | undefined,
  caze: Case,
  ended: EndedStep,
  others: ReadonlyMap<string, EndedStep>,
): Promise<readonly Verdict[]> {
  if (step?.interpret === undefined) return []
  try {
    return await step.interpret(collectedOf(caze, ended, others))
  } catch (error) {
    if (error instanceof EvidenceError) throw error
    const why = error instanceof Error ? error.message : String(error)
    return [{ rule: step.id, notAssessed: `its artifacts could not be interpreted: ${why}`, remedy: 'read the artifacts themselves' }]
  }
}

/** From worst to best: the worst action names the outcome of its step. */
const WORST_FIRST: readonly Outcome[] = ['interrupted', 'timed-out', 'failed', 'unavailable']

function stepOutcome(step: PlannedStep, actions: readonly PerformedAction[]): { outcome: Outcome; reason?: string } {
  for (const outcome of WORST_FIRST) {
    const worst = actions.find(action => action.outcome === outcome)
    if (worst) return { outcome, ...(worst.reason === undefined ? {} : { reason: worst.reason }) }
  }
  const lacking = step.missing[0]
  if (lacking) return { outcome: 'unavailable', reason: `in part, ${lacking.what}: ${lacking.why}; ${lacking.remedy}` }
  return { outcome: actions.some(action => action.outcome === 'collected') ? 'collected' : 'empty' }
}

/** Waits for all of them, for so long at most. The timer holds the process: with nothing else to do, Node would simply end. */
async function listening(ready: readonly Promise<void>[]): Promise<void> {
  const late = new AbortController()
  const limit = sleep(READY_LIMIT * 1000, undefined, { signal: late.signal }).catch(() => {})
  await Promise.race([Promise.all(ready), limit])
  late.abort()
}
