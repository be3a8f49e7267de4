/** How a reader of ours keeps signals, timers and the display alive while it reads. */
import { setImmediate as breathe } from 'node:timers/promises'

/** Longest stretch without a turn of the event loop, in milliseconds: short of what a person at a terminal notices. */
const STRETCH = 20

/** A function to call between small pieces of work: it gives the event loop a turn when the last one is long enough ago. */
export function pacer(): () => Promise<void> {
  let last = performance.now()
  return async () => {
    if (performance.now() - last < STRETCH) return
    await breathe()
    last = performance.now()
  }
}

/**
 * Starts up to `width` of the items before the first of them is done, and yields the results in order of the items.
 * `start` must not reject: what was started behind an item at which the caller stops would go unheard.
 */
export async function* ahead<T, R>(items: Iterable<T>, width: number, start: (item: T) => Promise<R>): AsyncGenerator<readonly [T, R]> {
  const started: { item: T; result: Promise<R> }[] = []
  const take = async (): Promise<readonly [T, R]> => {
    const { item, result } = started.shift() as { item: T; result: Promise<R> }
    return [item, await result]
  }
  for (const item of items) {
    started.push({ item, result: start(item) })
    if (started.length >= width) yield await take()
  }
  while (started.length > 0) yield await take()
}
