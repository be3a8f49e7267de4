/**
 * How fast and how large `ir` is, as ratios to what it is measured against in the same run: `npm run bench`, as root. Everything runs
 * in network namespaces of its own. Exit code 0, goals met or not; 1 when something could not be measured.
 */
import fs from 'node:fs'
import os from 'node:os'
import { openNamespace } from '../helpers/namespace.js'
import { type Figure, figuresTable, say } from './figures.js'
import { isolation } from './isolation.js'
import { response } from './response.js'
import { sockets } from './sockets.js'
import { startUp } from './start-up.js'

/** Nothing is started after LAST_START (measure.ts), and everything has its own limit; this is for what hangs all the same. */
const LIMIT = 235_000

// Not /tmp, which may lie in memory: what is said to be on disk shall be (file-hierarchy(7)).
const directory = fs.mkdtempSync('/var/tmp/ir-bench-')
const figures: Figure[] = []
const failures: string[] = []

process.once('exit', () => fs.rmSync(directory, { recursive: true, force: true, maxRetries: 5 }))
setTimeout(() => {
  say(`not everything was measured: stopped after ${LIMIT / 1000} s`)
  // Whatever still runs in a namespace is ended by the first process of it.
  process.exit(1)
}, LIMIT).unref()

say(`Node ${process.version}, Linux ${os.release()}, ${os.cpus().length} CPUs, load ${os.loadavg()[0]?.toFixed(1)}; median (least..most)`)
await section('start', async () => {
  await using namespace = await openNamespace()
  return await startUp(namespace)
})
await section('cut', async () => {
  await using namespace = await openNamespace()
  return await isolation(namespace, directory)
})
await section('sockets', () => sockets(directory))
await section('respond', () => response(directory))

say('')
for (const line of figuresTable(figures)) say(line)
for (const failure of failures) say(failure)
process.exit(failures.length === 0 ? 0 : 1)

/** A part that cannot be measured costs the others nothing. */
async function section(name: string, measured: () => Promise<Figure[]>): Promise<void> {
  try {
    figures.push(...(await measured()))
  } catch (error) {
    failures.push(`not measured: ${name}: ${error instanceof Error ? error.message : String(error)}`)
  }
}
