/**
 * Plans a step and performs it where it runs: to be called inside a namespace (`namespace.call`), for steps of programs only.
 * The engine does more (case, custody, limits); this is what a step itself promises: its plan, its artifacts, its verdicts.
 */
import { openHost } from '../../src/host.js'
import { captureProgram, complaint, runProgram } from '../../src/programs.js'
import type { ActionResult, AnyStep, Change, Collected, Plan, Verdict } from '../../src/step.js'

export interface Asked {
  /** File in playbooks/steps/ without its ending, and the export. */
  readonly step: string
  readonly name: string
  readonly options?: Readonly<Record<string, string | number | readonly string[]>>
  /** Nothing is performed. */
  readonly planOnly?: boolean
  /** The changes are performed by their n-th fallback. */
  readonly fallback?: number
  /** Afterwards everything is undone. */
  readonly undo?: boolean
}

export interface Performed {
  readonly plan: Plan
  readonly results: readonly ActionResult[]
  readonly artifacts: Readonly<Record<string, string>>
  readonly verdicts: readonly Verdict[]
}

export default async function performStep(asked: Asked): Promise<Performed> {
  const module = (await import(`../../playbooks/steps/${asked.step}.js`)) as Record<string, AnyStep>
  const step = module[asked.name] as AnyStep
  const plan = await step.plan({
    host: openHost(),
    options: { ...asked.options },
    directory: `/evidence/ir-host-20260101T000000Z/data/${step.id}`,
    throughout: false,
  })
  if (!('actions' in plan) || asked.planOnly) return { plan, results: [], artifacts: {}, verdicts: [] }
  const results: ActionResult[] = []
  const artifacts: Record<string, string> = {}
  for (const [index, action] of plan.actions.entries()) {
    const id = `${step.id}/${index + 1}`
    if (action.kind === 'change') results.push({ id, ...(await change(action, asked)) })
    else if (action.kind === 'observe') {
      const { exit, stdout } = await captureProgram(action)
      if (action.stdout !== undefined) artifacts[action.stdout] = stdout.toString('utf8')
      const reason = complaint(action, exit)
      const outcome = reason !== undefined ? 'failed' : stdout.length === 0 ? 'empty' : 'collected'
      results.push({ id, outcome, ...(reason === undefined ? {} : { reason }) })
    } else throw new Error(`${action.kind} is not performed here`)
  }
  const verdicts = (await step.interpret?.(collected(results, artifacts))) ?? []
  return { plan, results, artifacts, verdicts }
}

async function change(action: Change, asked: Asked): Promise<Omit<ActionResult, 'id'>> {
  const running = asked.fallback === undefined ? action : action.fallback?.[asked.fallback]
  if (running === undefined) throw new Error('there is no such fallback')
  for (const run of [running, ...(action.verify ?? []), ...(asked.undo ? action.undo : [])]) {
    const reason = complaint(run, await runProgram(run))
    if (reason !== undefined) return { outcome: 'failed', reason }
  }
  return { outcome: 'collected' }
}

/** The artifacts of a step as its interpreter sees them. */
export function collected(actions: readonly ActionResult[], artifacts: Readonly<Record<string, string>>): Collected {
  return {
    outcome: 'collected',
    actions,
    names: Object.keys(artifacts),
    has: name => name in artifacts,
    text: name => artifacts[name] ?? '',
    lines: name => (artifacts[name] ?? '').replace(/\n$/, '').split('\n'),
    of: () => undefined,
  }
}
