/**
 * How long until the host is cut off: from the start of `ir isolate` until the kernel has the rules, against `nft -f` of the same
 * rules. When it has them, the kernel says itself: `nft monitor` prints each new generation of rules as it is committed.
 */
import fs from 'node:fs'
import path from 'node:path'
import { caseIn, custodyOf, IR } from '../helpers/ir.js'
import type { Namespace } from '../helpers/namespace.js'
import { type Figure, say } from './figures.js'
import { MS, measure, program, ratios, shown, spread, type Taken } from './measure.js'

const PAIRS = 7
const WAIT = 5000
const ALLOW = ['--allow', '198.51.100.7']

export async function isolation(namespace: Namespace, directory: string): Promise<Figure[]> {
  const nft = program('nft')
  const rules = await plannedRules(namespace, directory)
  const generations = await watchGenerations(namespace, nft)
  const release = async (): Promise<void> => {
    const next = generations()
    await namespace.must([nft, 'delete', 'table', 'inet', 'ir_isolate'])
    await next
  }
  /** Seconds from the start of the program to the kernel's word. */
  const timed = async (run: Promise<Taken>): Promise<{ readonly loaded: number; readonly taken: Taken }> => {
    const [loaded, taken] = await Promise.all([generations(), run])
    return { loaded: loaded - taken.started, taken }
  }
  const [ours, plain, verified]: number[][] = [[], [], []]
  for (let round = 0; round <= PAIRS; round++) {
    const output = path.join(directory, `isolate-${round}`)
    fs.mkdirSync(output)
    const ir = await timed(measure(namespace, [IR, 'isolate', '--yes', ...ALLOW, '--output', output]))
    await release()
    const bare = await timed(measure(namespace, [nft, '-f', '-'], { stdin: rules }))
    await release()
    if (round === 0) continue
    ours?.push(ir.loaded)
    plain?.push(bare.loaded)
    verified?.push(finishedAt(output) - ir.taken.at)
  }
  if (!ours || !plain || !verified) throw new Error('nothing was measured')
  say(
    `cut: rules in force ${shown(spread(ours), 'ms', MS)} after the start of ir isolate, ${shown(spread(plain), 'ms', MS)} after that of nft`,
  )
  say(`cut: verified and in the custody log ${shown(spread(verified), 'ms', MS)} after the start of ir isolate`)
  return [
    { what: 'start of ir isolate until the rules are in force', spread: spread(ours), unit: 'ms', each: MS },
    { what: 'the same / nft -f of the same rules', spread: ratios(ours.map((value, index) => [value, plain[index] as number])), unit: '' },
  ]
}

/** The rules that a dry run plans to load. */
async function plannedRules(namespace: Namespace, directory: string): Promise<string> {
  const plan = JSON.parse(await namespace.must([IR, 'isolate', '--dry-run', '--json', ...ALLOW, '--output', directory]))
  const rules: unknown = plan.steps[0]?.actions.find((action: { kind: string }) => action.kind === 'change')?.stdin
  if (typeof rules !== 'string') throw new Error('the plan of ir isolate has no rules')
  return rules
}

/** Gives a function that resolves when the kernel commits the next rules: to that time, in seconds of CLOCK_MONOTONIC. */
async function watchGenerations(namespace: Namespace, nft: string): Promise<() => Promise<number>> {
  let tell: (at: number) => void = () => {}
  const monitor = namespace.start([nft, 'monitor'])
  monitor.stdout?.on('data', chunk => {
    if (String(chunk).includes('new generation')) tell(Number(process.hrtime.bigint()) / 1e9)
  })
  const next = (): Promise<number> =>
    new Promise((resolve, reject) => {
      tell = resolve
      setTimeout(() => reject(new Error('nft monitor told of no new rules')), WAIT).unref()
    })
  // It listens when it has told of a table; the first ones may come before that.
  for (let tries = 0; tries < 50; tries++) {
    const told = next()
    await namespace.must([nft, 'add', 'table', 'inet', 'ir_bench'])
    const heard = await Promise.race([told.catch(() => {}), new Promise<void>(resolve => setTimeout(resolve, 200))])
    await namespace.must([nft, 'delete', 'table', 'inet', 'ir_bench'])
    if (heard !== undefined) {
      await new Promise(resolve => setTimeout(resolve, 200))
      return next
    }
  }
  throw new Error('nft monitor tells of nothing')
}

/** When the custody log has isolate/1 as finished: loaded, listed again and recorded. Seconds since the epoch. */
function finishedAt(output: string): number {
  const line = custodyOf(caseIn(output)).find(({ event, action }) => event === 'finish' && action === 'isolate/1')
  if (line?.outcome !== 'collected') throw new Error(`isolate/1 is ${line?.outcome ?? 'not in the custody log'}`)
  return Date.parse(String(line.at)) / 1000
}
