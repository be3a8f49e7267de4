/** Evidence of one JSON document a line, as our own collectors write it. */
import type { ActionResult, StepArtifacts } from '../src/step.js'

export interface NumberedRecord<T> {
  /** From 1, for the evidence of a finding. */
  readonly line: number
  readonly record: T
}

/**
 * The records of an artifact, one at a time. `T` is what its collector documents; a line that is no JSON object (the last one
 * of a run that was killed) is passed over.
 */
export function* records<T extends object>(collected: StepArtifacts, name: string): Iterable<NumberedRecord<T>> {
  let line = 0
  for (const text of collected.lines(name)) {
    line += 1
    const record = parsed(text)
    if (record !== undefined) yield { line, record: record as T }
  }
}

function parsed(text: string): object | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? value : undefined
  } catch {
    return undefined
  }
}

/** The action that made an artifact; undefined where that is not known. */
function actionOf(collected: StepArtifacts, name: string): ActionResult | undefined {
  return collected.actions.find(action => action.artifacts?.some(artifact => artifact.path.endsWith(`/${name}`)))
}

/** Why an artifact cannot be taken for the whole of what it should hold; undefined when it can. */
export function incomplete(collected: StepArtifacts, name: string): string | undefined {
  if (!collected.has(name)) return `there is no ${name}`
  const action = actionOf(collected, name)
  if (action === undefined || action.outcome === 'collected' || action.outcome === 'empty') return undefined
  return `${name} is not whole: ${action.reason ?? action.outcome}`
}
