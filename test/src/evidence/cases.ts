/** Cases for the tests of the evidence room: real ones, in a directory of their own that goes away with the test. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { onTestFinished } from 'vitest'
import { type Case, createCase, type Origin } from '../../../src/evidence/case.js'
import { type Sealed, type SealInfo, sealCase } from '../../../src/evidence/seal.js'
import { type Host, openHost } from '../../../src/host.js'

export const ID = 'ir-web1-20260611T142233Z'

export const ORIGIN: Origin = { action: 'triage/1', how: 'collector' }

export const INFO: SealInfo = {
  host: 'web1',
  tool: 'ir-toolkit 0.1.0',
  timeZone: 'UTC',
  started: '2026-06-11T14:22:33.000Z',
  examiner: 'A. Examiner',
  authority: 'ticket 4711',
}

/** Removed when the test ends. */
export function scratch(below = os.tmpdir()): string {
  const directory = fs.mkdtempSync(path.join(below, 'ir-evidence-'))
  onTestFinished(() => fs.rmSync(directory, { recursive: true, force: true }))
  return directory
}

/** Clocks that stand still: the same case twice is the same bytes twice. */
export function stillHost(): Host {
  return { ...openHost({ clock: () => new Date('2026-06-11T14:22:33.120Z') }), monotonic: () => 1000 }
}

export function put(caze: Case, step: string, name: string, content: string | Uint8Array): void {
  const file = caze.open(step, name)
  file.write(content)
  const artifact = file.close({ action: `${step}/1`, how: 'program' })
  caze.record('finish', { step, outcome: 'collected', artifacts: [{ ...artifact }] })
}

/** A small case with an artifact of each kind: text, compressed already, empty, with a hole, in a folder, and beside the archive. */
export function fill(caze: Case): void {
  caze.record('open', { case: caze.id })
  caze.tag('plan.json', '{"steps":[]}\n')
  put(caze, 'snapshot-connections', 'ss_-tunap.txt', 'tcp ESTAB 192.0.2.10:22 198.51.100.7:50122 sshd\n'.repeat(200))
  put(caze, 'snapshot-connections', 'empty.txt', '')
  put(caze, 'capture-mem', 'memory.isf.json.gz', pseudorandom(7, 5000))
  put(caze, 'snapshot-processes', `executables/${'ab'.repeat(32)}`, pseudorandom(8, 3000))
  const memory = caze.open('capture-mem', 'memory.lime')
  memory.write('EMiL')
  memory.hole(2 << 20)
  memory.write('end')
  memory.close({ action: 'capture-mem/1', how: 'collector' })
  caze.tag('findings.json', '{"findings":[]}\n')
}

export const BESIDE = 'data/capture-mem/memory.lime'

/** `fill`ed and sealed, memory.lime beside the archive. */
export async function sealedCase(output: string, info: Partial<SealInfo> = {}): Promise<{ sealed: Sealed; directory: string }> {
  const caze = createCase({ output, id: ID, host: stillHost() })
  fill(caze)
  const sealed = await sealCase(caze, { ...INFO, inlineLimit: 1 << 20, ...info })
  return { sealed, directory: caze.directory }
}

/** Bytes that do not compress, the same for the same seed. */
export function pseudorandom(seed: number, bytes: number): Buffer {
  const next = dice(seed)
  return Buffer.from(Array.from({ length: bytes }, () => next(256)))
}

/** mulberry32: whole numbers below a limit, the same for the same seed. */
export function dice(seed: number): (below: number) => number {
  let state = seed
  return below => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below
  }
}

/** Runs a program of the system; throws where it is missing, because then nothing was tested. */
export function run(argv: readonly [string, ...string[]], options: { cwd?: string; input?: string } = {}) {
  const { status, stdout, stderr, error } = spawnSync(argv[0], argv.slice(1), { encoding: 'utf8', maxBuffer: 64 << 20, ...options })
  if (error) throw error
  return { status, stdout, stderr }
}
