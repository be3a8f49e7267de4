/** Ctrl-C, SIGTERM and a dead terminal, sent while each step runs. */
import { type ChildProcess, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest'
import { golden30 } from '../../playbooks/golden-30.js'
import { caseIn, checkWithStandardTools, custodyOf, IR, ir, outputDirectory, removeDirectories } from '../helpers/ir.js'
import { type Namespace, openNamespace } from '../helpers/namespace.js'

let host: Namespace
let output: string
beforeEach(async () => {
  host = await openNamespace()
  output = outputDirectory()
})
afterEach(() => host.close())
afterAll(removeDirectories)

const steps = [...golden30.throughout, ...golden30.steps].map(step => step.id)

/** A whole response in which `step` is running: its first action has begun. */
async function respondUntil(step: string): Promise<ChildProcess> {
  const memory = ['--source', 'process', '--pid', String(host.pid)]
  const child = host.start([IR, 'respond', '--yes', '--allow', '198.51.100.7', '--output', output, '--path', '/usr/bin', ...memory])
  child.stdout?.resume()
  child.stderr?.resume()
  for (let tries = 0; tries < 6000 && child.exitCode === null; tries++) {
    await new Promise(resolve => setTimeout(resolve, 5))
    if (began(step)) return child
  }
  throw new Error(`${step} did not begin (exit ${child.exitCode})`)
}

function began(step: string): boolean {
  const found = fs.readdirSync(output).find(name => name.endsWith('Z'))
  const log = found === undefined ? '' : path.join(output, found, 'custody.jsonl')
  return log !== '' && fs.existsSync(log) && fs.readFileSync(log, 'utf8').includes(`"event":"start","action":"${step}/`)
}

const ended = (child: ChildProcess): Promise<number | null> =>
  child.exitCode === null ? new Promise(resolve => child.once('exit', code => resolve(code))) : Promise.resolve(child.exitCode)

const programsOf = (child: ChildProcess): string => spawnSync('ps', ['-o', 'pid=,args=', '--ppid', String(child.pid)]).stdout.toString()

describe.each(steps)('while %s runs', step => {
  it('Ctrl-C stops, seals and exits 130; the cut stays', async () => {
    const child = await respondUntil(step)
    child.kill('SIGINT')
    expect(await ended(child)).toBe(130)
    const directory = caseIn(output)
    checkWithStandardTools(`${directory}.zip`)
    expect((await ir(['verify', directory])).code).toBe(0)
    const custody = custodyOf(directory)
    expect(custody.at(-1)?.event).toBe('seal')
    const outcomes = custody.filter(line => line.event === 'step')
    expect(outcomes.map(line => line.step).toSorted()).toEqual(steps.toSorted())
    expect(outcomes.some(line => line.outcome === 'interrupted')).toBe(true)
    const cut = custody.some(line => line.event === 'finish' && line.action === 'isolate/1' && line.outcome === 'collected')
    const tables = await host.must(['nft', 'list', 'tables'])
    expect(tables.includes('ir_isolate')).toBe(cut)
  })
})

it('SIGTERM does the same as Ctrl-C', async () => {
  const child = await respondUntil('audit-attrs')
  child.kill('SIGTERM')
  expect(await ended(child)).toBe(130)
  expect((await ir(['verify', `${caseIn(output)}.zip`])).code).toBe(0)
})

it('a dead terminal ends nothing: the response goes on and seals', async () => {
  const child = await respondUntil('isolate')
  child.stdout?.destroy()
  child.stderr?.destroy()
  child.kill('SIGHUP')
  expect(await ended(child)).toBe(0)
  expect((await ir(['verify', `${caseIn(output)}.zip`])).code).toBe(0)
})

it('the second Ctrl-C aborts at once; what is there can be sealed later', async () => {
  const child = await respondUntil('audit-attrs')
  child.kill('SIGINT')
  child.kill('SIGTERM')
  expect(await ended(child)).toBe(130)
  expect(programsOf(child)).toBe('')
  const directory = caseIn(output)
  if (!fs.existsSync(`${directory}.zip`)) {
    const sealed = await ir(['seal', directory])
    expect(sealed.code, sealed.stderr).toBe(3)
    expect(sealed.stdout).toMatch(/^missing audit-attrs: /m)
  }
  checkWithStandardTools(`${directory}.zip`)
  expect((await ir(['verify', `${directory}.zip`])).code).toBe(0)
  expect((await ir(['seal', directory])).code).toBe(4)
})

it('kill -9 leaves no program behind, on a silent network too', async () => {
  const child = await respondUntil('audit-attrs')
  const capture = programsOf(child)
    .split('\n')
    .find(line => line.includes('tcpdump'))
  const pid = Number(capture?.trim().split(' ', 1)[0])
  expect(pid).toBeGreaterThan(0)
  child.kill('SIGKILL')
  await ended(child)
  for (let tries = 0; tries < 250 && fs.existsSync(`/proc/${pid}`); tries++) await new Promise(resolve => setTimeout(resolve, 20))
  expect(fs.existsSync(`/proc/${pid}`)).toBe(false)
})

it('kill -9 in the middle: the case can be sealed and verifies', async () => {
  const child = await respondUntil('audit-attrs')
  child.kill('SIGKILL')
  await ended(child)
  const directory = caseIn(output)
  const sealed = await ir(['seal', directory])
  expect(sealed.code, sealed.stderr).toBe(3)
  expect(sealed.stdout).toMatch(/^missing audit-attrs: not done$/m)
  const verified = await ir(['verify', `${directory}.zip`])
  expect(verified.code, verified.stdout).toBe(0)
})
