/** Takes one program's time, CPU and memory inside a namespace; medians of many. */
import path from 'node:path'
import { openHost } from '../../src/host.js'
import type { Namespace } from '../helpers/namespace.js'

/** Milliseconds since the start of this process: nothing more is begun, so that a slow machine has an end as well. */
const LAST_START = 150_000

const MEASURE = path.join(import.meta.dirname, 'measure.py')

/** What one run took; see measure.py. Seconds and bytes. */
export interface Taken {
  /** On the clock of process.hrtime(): CLOCK_MONOTONIC. */
  readonly started: number
  /** Seconds since the epoch, for comparing with the custody log. */
  readonly at: number
  readonly wall: number
  readonly cpu: number
  /** Of its largest process. */
  readonly peak: number
  /** Of all its processes at once, where `tree` was asked for. */
  readonly family: number | null
  readonly code: number
  readonly stderr: string
}

export interface MeasureOptions {
  readonly stdin?: string
  readonly tree?: boolean
  /** Exit codes that count as done, [0] when absent. */
  readonly accept?: readonly number[]
  /** Seconds until it is killed, 30 when absent. */
  readonly limit?: number
}

/** Runs a program, by absolute path, in a namespace. @throws when it did not do its work: then there is nothing to measure. */
export async function measure(namespace: Namespace, argv: readonly string[], options: MeasureOptions = {}): Promise<Taken> {
  const { accept = [0], limit = 30, ...rest } = options
  if (performance.now() > LAST_START)
    throw new Error(`this machine is too slow: not begun within ${LAST_START / 1000} s: ${argv.join(' ')}`)
  const request = JSON.stringify({ argv, limit, ...rest })
  const taken: Taken = JSON.parse(await namespace.must([program('python3'), MEASURE, request], { timeout: (limit + 10) * 1000 }))
  if (!accept.includes(taken.code)) throw new Error(`${argv.join(' ')} ended with ${taken.code}: ${taken.stderr.trim()}`)
  return taken
}

/** Absolute path of a program of this machine. @throws when there is none. */
export function program(name: string): string {
  const found = openHost().which(name)
  if (found === undefined) throw new Error(`${name} is not installed: run bin/setup --dev`)
  return found
}

/** Middle, extremes and number of some values. */
export interface Spread {
  readonly median: number
  readonly least: number
  readonly most: number
  readonly n: number
}

/** @throws when there are no values. */
export function spread(values: readonly number[]): Spread {
  const sorted = values.toSorted((left, right) => left - right)
  const [least, most, low, high] = [0, sorted.length - 1, (sorted.length - 1) >> 1, sorted.length >> 1].map(index => sorted[index])
  if (least === undefined || most === undefined || low === undefined || high === undefined) throw new Error('nothing was measured')
  return { median: (low + high) / 2, least, most, n: sorted.length }
}

/** The quotients of pairs that were measured one right after the other. */
export function ratios(pairs: readonly (readonly [above: number, below: number])[]): Spread {
  return spread(pairs.map(([above, below]) => above / below))
}

/** '95.2 (90.1..110.0) ms': median, least and most. `each` is what one unit is in the values' own, 0.001 for ms of seconds. */
export function shown({ median, least, most }: Spread, unit: string, each = 1, digits = 1): string {
  const [middle, low, high] = [median, least, most].map(value => (value / each).toFixed(digits))
  return `${middle} (${low}..${high})${unit === '' ? '' : ` ${unit}`}`
}

export const MS = 0.001
export const MB = 1_000_000
