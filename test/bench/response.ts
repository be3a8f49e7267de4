/**
 * A whole `ir respond` but for memory, on a host with 300 more processes: when what vanishes first is on disk, and how much
 * memory it takes. Times are those of the custody log, whose every line is written through to the disk behind the evidence it names.
 */
import fs from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { type CustodyLine, caseIn, custodyOf, IR } from '../helpers/ir.js'
import { joinNamespaces, type Namespace, openNamespace } from '../helpers/namespace.js'
import { type Figure, say } from './figures.js'
import { MB, measure, shown, spread } from './measure.js'

const CROWD = 300
const RUNS = 3
/** The audit of attributes walks what this machine has; for so long. */
const AUDIT = '25s'
/** A second or two for the last lsattr and the seal, on a slow machine more. */
const LIMIT = 60

interface Run {
  /** Seconds from the start of the program. */
  readonly onDisk: number
  readonly snapshot: number
  readonly processes: number
  readonly entries: number
  /** Bytes. */
  readonly peak: number
  readonly family: number
}

export async function response(directory: string): Promise<Figure[]> {
  await using namespace = await openNamespace()
  await using peer = await openNamespace()
  await joinNamespaces(namespace, ['192.0.2.10/24'], peer, ['198.51.100.7/32', '192.0.2.1/24'])
  const crowd = namespace.start([process.execPath, path.join(import.meta.dirname, 'crowd.ts'), String(CROWD), directory])
  const deleted: string = await new Promise((resolve, reject) => {
    createInterface({ input: crowd.stdout as NodeJS.ReadableStream }).once('line', resolve)
    crowd.once('exit', () => reject(new Error('the crowd of processes could not be started')))
  })
  const runs: Run[] = []
  for (let round = 0; round < RUNS; round++) runs.push(await run(namespace, path.join(directory, `respond-${round}`), deleted))
  crowd.stdin?.end()
  const [onDisk, snapshot, peak, family] = (['onDisk', 'snapshot', 'peak', 'family'] as const).map(part =>
    spread(runs.map(one => one[part])),
  )
  if (!onDisk || !snapshot || !peak || !family) throw new Error('nothing was measured')
  const [processes, entries] = (['processes', 'entries'] as const).map(part => spread(runs.map(one => one[part])).median)
  say(`respond: ${processes} processes; sockets, processes and the deleted executable on disk after ${shown(onDisk, 's')}`)
  say(`respond: ${shown(peak, 'MB', MB)} in its largest process, all together ${shown(family, 'MB', MB)} (PSS); ${entries} files audited`)
  return [
    { what: 'sockets, processes, deleted executables on disk', spread: onDisk, unit: 's', goal: 10 },
    { what: `snapshot-processes, ${CROWD} processes and more`, spread: snapshot, unit: 's', goal: 3 },
    { what: 'ir respond without memory: peak RSS, largest process', spread: peak, unit: 'MB', each: MB, goal: 120 },
    { what: 'the same, all its processes at once, PSS', spread: family, unit: 'MB', each: MB },
  ]
}

async function run(namespace: Namespace, output: string, deleted: string): Promise<Run> {
  fs.mkdirSync(output)
  const argv = [IR, 'respond', '--yes', '--allow', '198.51.100.7', '--skip', 'capture-mem', '--max-time', AUDIT, '--output', output]
  // 3: the audit has met its bound, or the host lacks conntrack.
  const taken = await measure(namespace, argv, { accept: [0, 3], limit: LIMIT, tree: true })
  const custody = custodyOf(caseIn(output))
  const sockets = finished(custody, 'snapshot-connections/1')
  const processes = finished(custody, 'snapshot-processes/1')
  const saved = JSON.stringify(processes.artifacts)
  if (!saved.includes(`executables/${deleted}`)) throw new Error('the deleted executable was not saved')
  const counted = Number((processes.facts as { processes?: unknown }).processes)
  if (!(counted >= CROWD)) throw new Error(`only ${counted} processes were recorded`)
  const listed = custody.find(line => line.event === 'finish' && line.action === 'audit-attrs/1')
  return {
    onDisk: Math.max(...[sockets, processes].map(line => Date.parse(String(line.at)) / 1000)) - taken.at,
    snapshot: Number(processes.seconds),
    processes: counted,
    entries: Number((listed?.facts as { listed?: unknown } | undefined)?.listed ?? 0),
    peak: taken.peak,
    family: taken.family ?? 0,
  }
}

function finished(custody: readonly CustodyLine[], action: string): CustodyLine {
  const line = custody.find(one => one.event === 'finish' && one.action === action)
  if (line?.outcome !== 'collected') throw new Error(`${action} is ${line?.outcome ?? 'not in the custody log'}`)
  return line
}
