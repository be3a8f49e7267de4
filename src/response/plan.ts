/** Playbook + view of the host -> plain data. What this returns is printed by a dry run, executed by a real one, and kept as plan.json. */
import path from 'node:path'
import { z } from 'zod'
import type { Action, AnyStep, HostView, JsonObject, Playbook, Rejected, Seconds } from '../step.js'
import { iso, stamp } from '../time.js'

export interface PlannedStep {
  readonly id: string
  readonly summary: string
  /** Runs beside the others, from before the first to after the last. */
  readonly throughout: boolean
  readonly options: JsonObject
  /** Each with its id, '<step>/<n>', that joins plan and custody log. */
  readonly actions: readonly (Action & { readonly id: string })[]
  /** Ways that were looked at and not taken. */
  readonly rejected: readonly Rejected[]
  /** Wanted and not to be had here. */
  readonly missing: readonly Rejected[]
  /** Why nothing of it can be done here. */
  readonly unavailable?: string
  /** Why the response must not start. */
  readonly refused?: string
  /** What helps against either. */
  readonly remedy?: string
  readonly ask?: { readonly option: string; readonly question: string }
}

export interface ResponsePlan {
  readonly format: 'ir-plan/1'
  readonly playbook: string
  readonly host: string
  /** UTC. */
  readonly planned: string
  /** Name of the case directory. */
  readonly case: string
  /** Where it will be made. */
  readonly output: string
  /** What the engineer calls the case; absent when nothing was given. */
  readonly label?: string
  readonly budget: Seconds
  readonly steps: readonly PlannedStep[]
}

export interface PlanRequest {
  readonly playbook: Playbook
  readonly host: HostView
  /** Absolute path of an existing directory. */
  readonly output: string
  readonly label?: string
  readonly budget: Seconds
  /** Values for every option of a step. */
  optionsOf(step: AnyStep): JsonObject
}

/** Plans every step of a playbook. Starts nothing, writes nothing. */
export async function planResponse(request: PlanRequest): Promise<ResponsePlan> {
  const { playbook, host, output, label, budget } = request
  const now = host.now()
  const id = `ir-${plainHostName(host.hostname)}-${stamp(now)}`
  const steps: PlannedStep[] = []
  for (const [throughout, list] of [
    [true, playbook.throughout],
    [false, playbook.steps],
  ] as const) {
    for (const step of list) steps.push(await planStep(step, throughout, request, path.join(output, id)))
  }
  return {
    format: 'ir-plan/1',
    playbook: playbook.id,
    host: host.hostname,
    planned: iso(now),
    case: id,
    output,
    ...(label === undefined ? {} : { label }),
    budget,
    steps,
  }
}

async function planStep(step: AnyStep, throughout: boolean, request: PlanRequest, caseDirectory: string): Promise<PlannedStep> {
  const options = request.optionsOf(step)
  const directory = path.join(caseDirectory, 'data', step.id)
  const plan = await step.plan({ host: request.host, options: options as never, directory, throughout })
  const known = { id: step.id, summary: step.summary, throughout, options }
  if ('refused' in plan) {
    const ask = plan.ask === undefined ? {} : { ask: plan.ask }
    return { ...known, actions: [], rejected: [], missing: [], refused: plan.refused, remedy: plan.remedy, ...ask }
  }
  const rejected = plan.rejected ?? []
  if ('unavailable' in plan) return { ...known, actions: [], rejected, missing: [], unavailable: plan.unavailable, remedy: plan.remedy }
  const actions = plan.actions.map((action, index) => ({ id: `${step.id}/${index + 1}`, ...action }))
  return { ...known, actions, rejected, missing: plan.missing ?? [] }
}

/** The one form in which a plan is printed and stored: equal plans are equal byte for byte. */
export function planText(plan: ResponsePlan): string {
  return `${JSON.stringify(plan, null, 2)}\n`
}

const KeptPlanFile = z.object({
  host: z.string(),
  planned: z.iso.datetime(),
  label: z.string().optional(),
  steps: z.array(z.object({ id: z.string() })),
})

export type KeptPlan = z.infer<typeof KeptPlanFile>

/** Of a plan.json what a seal needs; undefined when it is none. */
export function keptPlan(text: string): KeptPlan | undefined {
  try {
    return KeptPlanFile.safeParse(JSON.parse(text)).data
  } catch {
    return undefined
  }
}

/** A host name is data: in names of ours only what RFC 952/1123 allow in one, at most 63 characters. */
function plainHostName(name: string): string {
  const plain = name.toLowerCase().replaceAll(/[^a-z0-9-]+/g, '-')
  return plain.replace(/^-+/, '').slice(0, 63) || 'host'
}
