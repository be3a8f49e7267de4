/** What a case that was interrupted lacks, out of its plan and its custody log. */
import { z } from 'zod'
import { readCustody } from '../evidence/custody.js'
import type { KeptPlan } from './plan.js'

const StepLine = z.object({ event: z.literal('step'), detail: z.object({ step: z.string(), outcome: z.string() }) })

/** One line for each step that the plan wanted and the log does not show as done: 'audit-attrs: not done', 'capture-mem: unavailable'. */
export function missingSteps(custody: Buffer, plan: KeptPlan | undefined): string[] {
  if (plan === undefined) return ['the plan: the interruption came before it was written']
  const outcomes = new Map<string, string>()
  for (const line of readCustody(custody).lines) {
    const found = StepLine.safeParse(line)
    if (found.success) outcomes.set(found.data.detail.step, found.data.detail.outcome)
  }
  return plan.steps
    .map(step => ({ id: step.id, outcome: outcomes.get(step.id) ?? 'not done' }))
    .filter(({ outcome }) => outcome !== 'collected' && outcome !== 'empty')
    .map(({ id, outcome }) => `${id}: ${outcome}`)
}
