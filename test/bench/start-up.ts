/** What it costs to start: `ir --help` against an empty Node. */
import { IR } from '../helpers/ir.js'
import type { Namespace } from '../helpers/namespace.js'
import { type Figure, say } from './figures.js'
import { MS, measure, ratios, shown, spread } from './measure.js'

const PAIRS = 15

/** Processor time, user and system, of the launcher and the Node that it becomes. */
export async function startUp(namespace: Namespace): Promise<Figure[]> {
  const cpu = async (...argv: string[]): Promise<number> => (await measure(namespace, argv)).cpu
  const pairs: [number, number][] = []
  // The first pair only brings the files into the page cache.
  for (let round = 0; round <= PAIRS; round++) {
    const pair: [number, number] = [await cpu(IR, '--help'), await cpu(process.execPath, '-e', '0')]
    if (round > 0) pairs.push(pair)
  }
  const [ours, bare] = [0, 1].map(side => spread(pairs.map(pair => pair[side] as number)))
  if (ours && bare) say(`start: ir --help ${shown(ours, 'ms', MS)} of CPU, node -e 0 ${shown(bare, 'ms', MS)}`)
  return [{ what: 'ir --help / node -e 0, CPU', spread: ratios(pairs), unit: '', goal: 3 }]
}
