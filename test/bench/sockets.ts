/** The first socket snapshot against `ss -tunap`, with no socket and with a thousand. */
import fs from 'node:fs'
import path from 'node:path'
import { caseIn, custodyOf, IR } from '../helpers/ir.js'
import { type Namespace, openNamespace } from '../helpers/namespace.js'
import { type Figure, say } from './figures.js'
import { MS, measure, program, ratios, shown, spread } from './measure.js'

const PAIRS = 5

/** Both ends of 500 connections over the loopback of the namespace. */
const CONNECTIONS = 500
const CONNECT = `const net = require('node:net')
const server = net.createServer(() => {}).listen(0, '127.0.0.1', 511, async () => {
  for (let made = 0; made < ${CONNECTIONS}; made++) {
    await new Promise(resolve => net.connect(server.address().port, '127.0.0.1', resolve))
  }
  console.log('up')
})`

export async function sockets(directory: string): Promise<Figure[]> {
  await using namespace = await openNamespace()
  const none = await snapshots(namespace, directory, 0)
  const talking = namespace.start([process.execPath, '-e', CONNECT])
  await new Promise<void>((resolve, reject) => {
    talking.stdout?.once('data', () => resolve())
    talking.once('exit', () => reject(new Error('the sockets could not be opened')))
  })
  return [...none, ...(await snapshots(namespace, directory, 2 * CONNECTIONS))]
}

async function snapshots(namespace: Namespace, directory: string, count: number): Promise<Figure[]> {
  const ss = program('ss')
  const there = (await namespace.must([ss, '-tunaH'])).split('\n').filter(line => line.includes('ESTAB')).length
  if (there !== count) throw new Error(`${there} connected sockets in the namespace instead of ${count}`)
  const rounds: { readonly ss: number; readonly collector: number; readonly command: number }[] = []
  for (let round = 0; round <= PAIRS; round++) {
    const output = path.join(directory, `sockets-${count}-${round}`)
    fs.mkdirSync(output)
    const plain = await measure(namespace, [ss, '-tunap'])
    // 3: something the host lacks, conntrack perhaps; the sockets are what counts here.
    const command = await measure(namespace, [IR, 'snapshot-connections', '--output', output], { accept: [0, 3] })
    if (round > 0) rounds.push({ ss: plain.wall, collector: collectorSeconds(output), command: command.wall })
  }
  const [plain, collector, command] = (['ss', 'collector', 'command'] as const).map(part => spread(rounds.map(round => round[part])))
  if (!plain || !collector || !command) throw new Error('nothing was measured')
  const of = `${count} sockets: `
  say(
    `${of}collector ${shown(collector, 'ms', MS)}, ss -tunap ${shown(plain, 'ms', MS)}, ir snapshot-connections ${shown(command, 'ms', MS)}`,
  )
  return [
    { what: `${count} sockets: collector / ss -tunap`, spread: ratios(rounds.map(round => [round.collector, round.ss])), unit: '' },
    {
      what: `${count} sockets: ir snapshot-connections / ss -tunap`,
      spread: ratios(rounds.map(round => [round.command, round.ss])),
      unit: '',
    },
  ]
}

/** From the start of the reading until sockets.jsonl is on disk, by the custody log. */
function collectorSeconds(output: string): number {
  const line = custodyOf(caseIn(output)).find(({ event, action }) => event === 'finish' && action === 'snapshot-connections/1')
  const seconds = line?.seconds
  if (line?.outcome !== 'collected' || typeof seconds !== 'number')
    throw new Error(`the sockets are ${line?.outcome ?? 'not in the custody log'}`)
  return seconds
}
