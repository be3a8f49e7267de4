/**
 * Fills a tmpfs of its own, to be run in a private mount namespace: `unshare -m node fill-disk.ts DIRECTORY`. Prints what
 * was refused and what came of the case, as JSON.
 */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { EvidenceError } from '../../../src/errors.js'
import { type Case, createCase, isSealed, openCase } from '../../../src/evidence/case.js'
import { readCustody } from '../../../src/evidence/custody.js'
import { bundleCase, type SealInfo, sealCase } from '../../../src/evidence/seal.js'
import { verify } from '../../../src/evidence/verify.js'
import { openHost } from '../../../src/host.js'

const INFO: SealInfo = { host: 'web1', tool: 'ir-toolkit 0.1.0', timeZone: 'UTC', started: '2026-06-11T14:22:33.000Z' }
const [output] = process.argv.slice(2) as [string]
const mount = (...args: string[]): void => {
  const { status, stderr } = spawnSync('mount', args, { encoding: 'utf8' })
  if (status !== 0) throw new Error(stderr)
}
mount('--make-rprivate', '/')
mount('-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', output)

const host = openHost()
const ballast = path.join(output, 'ballast')
const refusals: Record<string, { evidence: boolean; message: string }> = {}

async function refused(what: string, act: () => unknown): Promise<void> {
  try {
    await act()
    refusals[what] = { evidence: false, message: 'was not refused' }
  } catch (error) {
    refusals[what] = { evidence: error instanceof EvidenceError, message: (error as Error).message }
  }
}

function fillUp(): void {
  const fd = fs.openSync(ballast, 'a')
  try {
    while (fs.writeSync(fd, Buffer.alloc(4096)) > 0);
  } catch {
    // Full.
  }
  fs.closeSync(fd)
}

function put(caze: Case, name: string, content: Uint8Array): void {
  const file = caze.open('triage', name)
  file.write(content)
  file.close({ action: 'triage/1', how: 'collector' })
}

const caze = createCase({ output, id: 'full', host })
put(caze, 'before.txt', Buffer.from('before'))
const large = caze.open('capture-mem', 'memory.lime')
await refused('write', () => {
  while (true) large.write(Buffer.alloc(100_000, 'm'))
})
// What fits is evidence, and its hash is that of what fits.
const partial = large.close({ action: 'capture-mem/1', how: 'collector', notes: ['the disk is full'] })
fillUp()
await refused('custody', () => {
  while (true) caze.record('step', { text: 'x'.repeat(3000) })
})
await refused('tag', () => caze.tag('plan.json', 'x'.repeat(100_000)))
await refused('seal', () => sealCase(caze, INFO))
const sealedInFull = isSealed(caze.directory)

// Room for the tags, none for the archive.
fs.truncateSync(ballast, 0)
const noise = Buffer.from(Array.from({ length: 120_000 }, () => Math.floor(Math.random() * 256)))
fs.rmSync(path.join(caze.directory, partial.path))
put(caze, 'noise.bin', noise)
const free = fs.statfsSync(output)
fs.writeFileSync(ballast, Buffer.alloc(Number(free.bavail) * Number(free.bsize) - 60_000))
await refused('archive', () => sealCase(caze, INFO))
const left = fs.readdirSync(output).sort()
const sealedWithout = isSealed(caze.directory)
const custody = readCustody(fs.readFileSync(path.join(caze.directory, 'custody.jsonl')))

fs.rmSync(ballast)
const bundled = await bundleCase(caze.directory, { date: host.now() })
const verified = await verify(bundled.archive)

// A case that could not even be sealed is opened again.
const again = createCase({ output, id: 'again', host })
put(again, 'a.txt', Buffer.from('a'))
fillUp()
await refused('sealAgain', () => sealCase(again, INFO))
fs.rmSync(ballast)
const sealedAgain = await sealCase(openCase(again.directory, host), INFO)
const verifiedAgain = await verify(sealedAgain.archive)

mount('-t', 'tmpfs', '-o', 'ro', 'tmpfs', output)
await refused('readOnly', () => createCase({ output, id: 'third', host }))

process.stdout.write(
  JSON.stringify({
    refusals,
    partial: partial.bytes,
    sealedInFull,
    left,
    sealedWithout,
    custodyProblems: custody.problems,
    custodyTorn: custody.torn.length,
    differences: verified.differences,
    again: verifiedAgain,
  }),
)
