/** Writes artifacts into a new case, one open all the time, until it is killed: `node endless-writer.ts OUTPUT CASE`. */
import { createCase } from '../../../src/evidence/case.js'
import { openHost } from '../../../src/host.js'

const [output, id] = process.argv.slice(2) as [string, string]
const caze = createCase({ output, id, host: openHost() })
const capture = caze.open('capture-net', 'capture-0001.pcap')
for (let n = 0; ; n += 1) {
  capture.write(`packet ${n}\n`)
  const file = caze.open('triage', `${n}.txt`)
  file.write('x'.repeat(n % 5000))
  const artifact = file.close({ action: 'triage/1', how: 'collector' })
  caze.record('finish', { step: 'triage', artifacts: [{ ...artifact }] })
  if (n === 20) process.stdout.write('writing\n')
}
