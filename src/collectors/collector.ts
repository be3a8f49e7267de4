/** What every reader of ours gets and gives. The engine hands it over; a collector knows no step, no plan and no terminal. */
import type { Case } from '../evidence/case.js'
import type { Host } from '../host.js'
import type { JsonObject, Outcome, Running } from '../step.js'

/** Live figures for the engineer; whatever is known. */
export interface Progress {
  readonly bytes?: number
  readonly totalBytes?: number
  readonly packets?: number
  readonly items?: number
  readonly totalItems?: number
}

export interface CollectorContext {
  readonly host: Host
  /** From the plan; a collector checks it with zod. */
  readonly options: JsonObject
  /** Programs of the plan that it may start, with startProgram or captureProgram. */
  readonly source: readonly Running[]
  readonly sink: readonly Running[]
  readonly case: Case
  /** Evidence directory: the step's id. Files are made with `case.open(step, name)`. */
  readonly step: string
  /** Id of the action, for the origin of artifacts: 'capture-net/2'. */
  readonly action: string
  /** Aborted by Ctrl-C, by the deadline, and for a `throughout` step when the last other step has ended. */
  readonly signal: AbortSignal
  progress(figures: Progress): void
  /** Calls back when a change that outlasts its step (the cut) begins and has been made, from a step beside this one. */
  onChange(callback: (change: { readonly action: string; readonly phase: 'before' | 'after' }) => void): void
}

export interface CollectorResult {
  readonly outcome: Outcome
  /** Why, when the outcome is not 'collected'. */
  readonly reason?: string
  /** What was counted and measured: goes to the custody log and to `interpret`. */
  readonly facts?: JsonObject
}

/** Writes its evidence through the case. An exception counts as 'failed' with its message; what was closed is kept. */
export type Collector = (context: CollectorContext) => Promise<CollectorResult>
