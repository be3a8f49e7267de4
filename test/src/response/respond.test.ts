/** The engine with small steps of its own: real programs, a real case, every way in which an action can end. */
import fs from 'node:fs'
import path from 'node:path'
import { afterAll, beforeEach, describe, expect, it } from 'vitest'
import { RefusedError } from '../../../src/errors.js'
import { verify } from '../../../src/evidence/verify.js'
import { openHost } from '../../../src/host.js'
import { planResponse, planText } from '../../../src/response/plan.js'
import { precheck } from '../../../src/response/precheck.js'
import { plainProgress } from '../../../src/response/progress.js'
import { type ResponseResult, respond } from '../../../src/response/respond.js'
import { type Action, type AnyStep, type Change, defineStep, type Plan, type Running } from '../../../src/step.js'
import { custodyOf, outputDirectory, removeDirectories } from '../../helpers/ir.js'

afterAll(removeDirectories)

let output: string
let said: string[]
beforeEach(() => {
  output = outputDirectory()
  said = []
})

const clock = (): Date => new Date('2026-06-11T14:22:33.000Z')
const host = openHost({ hostname: 'Web 1!', clock })

function stepOf(id: string, plan: Plan | readonly Action[], more: Partial<AnyStep> = {}): AnyStep {
  const planned = Array.isArray(plan) ? { actions: plan } : (plan as Plan)
  return defineStep({ id, summary: id, description: id, references: [], options: {}, plan: async () => planned, ...more })
}

const shell = (script: string, more: Partial<Running> = {}): Running => ({
  title: 'Run',
  argv: ['/bin/sh', '-c', script],
  limit: 20,
  ...more,
})
const observe = (script: string, stdout?: string, limit = 20): Action => ({
  kind: 'observe',
  ...shell(script, { limit }),
  ...(stdout ? { stdout } : {}),
})

const change = (over: Partial<Change> = {}): Change => ({
  kind: 'change',
  ...shell(`touch ${output}/changed`),
  effect: 'makes a file',
  verify: [shell(`test -e ${output}/changed`)],
  undo: [shell(`rm ${output}/changed`)],
  lasts: 'step',
  ...over,
})

const changed = (): boolean => fs.existsSync(path.join(output, 'changed'))

async function run(steps: AnyStep[], more: { throughout?: AnyStep[]; budget?: number; stop?: AbortSignal } = {}): Promise<ResponseResult> {
  const playbook = { id: 'test', summary: 'test', throughout: more.throughout ?? [], steps }
  const plan = await planResponse({ playbook, host, output, budget: more.budget ?? 1800, optionsOf: () => ({}) })
  return respond({
    plan,
    host,
    steps: [...playbook.throughout, ...steps],
    stop: more.stop ?? new AbortController().signal,
    events: plainProgress(plan, line => said.push(line)),
    consent: '--yes',
    tool: 'ir-toolkit test',
  })
}

const outcomes = (result: ResponseResult) => Object.fromEntries(result.steps.map(step => [step.id, step.outcome]))

describe('a plan', () => {
  it('is the value that a real run executes and keeps: equal byte for byte under a fixed clock', async () => {
    const steps = [stepOf('one', [observe('echo a', 'a.txt')])]
    const playbook = { id: 'test', summary: 'test', throughout: [], steps }
    const dry = await planResponse({ playbook, host, output, budget: 1800, optionsOf: () => ({}) })
    const result = await run(steps)
    expect(fs.readFileSync(path.join(result.directory, 'plan.json'), 'utf8')).toBe(planText(dry))
    expect(dry.case).toBe('ir-web-1--20260611T142233Z')
  })

  it('on a network mount is refused unless forced', async () => {
    const mounted = outputDirectory()
    const root = path.join(outputDirectory(), 'root')
    fs.mkdirSync(path.join(root, 'proc/self'), { recursive: true })
    fs.mkdirSync(path.join(root, mounted), { recursive: true })
    fs.writeFileSync(
      path.join(root, 'proc/self/mountinfo'),
      `22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:9 / ${mounted} rw - nfs4 192.0.2.5:/cases rw\n`,
    )
    const view = openHost({ root })
    const plan = await planResponse({
      playbook: { id: 't', summary: 't', throughout: [], steps: [] },
      host: view,
      output: mounted,
      budget: 60,
      optionsOf: () => ({}),
    })
    expect(precheck(plan, view, { force: false, root: false }).filter(check => !check.ok)).toMatchObject([
      { detail: expect.stringContaining('nfs4') },
    ])
    expect(precheck(plan, view, { force: true, root: false }).filter(check => !check.ok)).toEqual([])
  })
})

describe('an action', () => {
  it('that fails costs no other, and makes the response incomplete', async () => {
    const result = await run([
      stepOf('fails', [observe('echo half; echo why >&2; exit 4', 'half.txt'), observe('echo after', 'after.txt')]),
      stepOf('works', [observe('echo whole', 'whole.txt')]),
    ])
    expect(outcomes(result)).toEqual({ fails: 'failed', works: 'collected' })
    expect(result.exitCode).toBe(3)
    expect(result.steps[0]?.reason).toContain('why')
    expect(fs.readFileSync(path.join(result.directory, 'data/fails/half.txt'), 'utf8')).toBe('half\n')
    expect(fs.readFileSync(path.join(result.directory, 'data/fails/after.txt'), 'utf8')).toBe('after\n')
    expect((await verify(result.sealed.archive)).intact).toBe(true)
  })

  it('that outlives its limit is ended and told', async () => {
    const result = await run([stepOf('slow', [observe('echo early; sleep 600', 'slow.txt', 0.5)])])
    expect(outcomes(result)).toEqual({ slow: 'timed-out' })
    expect(result.exitCode).toBe(3)
    expect(fs.readFileSync(path.join(result.directory, 'data/slow/slow.txt'), 'utf8')).toBe('early\n')
  })

  it('without output is empty, which is complete', async () => {
    const result = await run([stepOf('quiet', [observe('true', 'quiet.txt')])])
    expect(outcomes(result)).toEqual({ quiet: 'empty' })
    expect(result.exitCode).toBe(0)
  })

  it('whose program vanished is unavailable', async () => {
    const result = await run([stepOf('gone', [{ kind: 'observe', title: 'Run', argv: ['/nonexistent'], limit: 5, stdout: 'x.txt' }])])
    expect(outcomes(result)).toEqual({ gone: 'unavailable' })
    expect(result.exitCode).toBe(3)
  })

  it('copies a file as it is, bounded, with its times; a missing one, a FIFO and a directory are told apart', async () => {
    const source = path.join(output, 'source')
    fs.writeFileSync(source, 'x'.repeat(3000))
    fs.utimesSync(source, 1_000_000_000, 1_100_000_000)
    const copy = (from: string, to: string, more = {}): Action => ({ kind: 'copy', title: 'Copy', from, to, limit: 10, ...more })
    const result = await run([
      stepOf('copies', [
        copy(source, 'whole'),
        copy(source, 'cut', { maxBytes: 1000 }),
        copy('/proc/self/status', 'status'),
        copy('/dev/null', 'device'),
        copy('/etc', 'directory'),
        copy('/nonexistent', 'missing'),
      ]),
    ])
    expect(result.steps[0]?.actions.map(action => action.outcome)).toEqual([
      'collected',
      'collected',
      'collected',
      'failed',
      'failed',
      'unavailable',
    ])
    expect(fs.statSync(path.join(result.directory, 'data/copies/cut')).size).toBe(1000)
    const entries = fs
      .readFileSync(path.join(result.directory, 'artifacts.jsonl'), 'utf8')
      .trimEnd()
      .split('\n')
      .map(line => JSON.parse(line))
    const cut = entries.find(entry => entry.path === 'data/copies/cut')
    expect(JSON.stringify(cut)).toContain('cut at 1000 bytes')
    expect(JSON.stringify(cut)).toContain('2004-11-09T11:33:20')
  })
})

describe('a change', () => {
  it('of a step is announced with its undo, made, verified, and undone when the step ends', async () => {
    const result = await run([
      stepOf('one', [change(), observe(`ls ${output}`, 'during.txt')]),
      stepOf('two', [observe(`ls ${output}`, 'after.txt')]),
    ])
    expect(result.exitCode).toBe(0)
    expect(fs.readFileSync(path.join(result.directory, 'data/one/during.txt'), 'utf8')).toContain('changed')
    expect(fs.readFileSync(path.join(result.directory, 'data/two/after.txt'), 'utf8')).not.toContain('changed')
    expect(said.join('\n')).toContain(`undo: /bin/sh -c 'rm ${output}/changed'`)
    const events = custodyOf(result.directory).map(line => `${line.event} ${line.action ?? line.step ?? ''}`.trim())
    expect(events).toEqual([
      'open',
      'plan',
      'consent',
      'start one/1',
      'change one/1',
      'finish one/1',
      'start one/2',
      'finish one/2',
      'undo one/1',
      'step one',
      'start two/1',
      'finish two/1',
      'step two',
      'seal',
    ])
    expect(fs.readFileSync(path.join(result.directory, 'undo.sh'), 'utf8')).toContain('rm ')
  })

  it('of a case stands when all is done', async () => {
    const result = await run([stepOf('one', [change({ lasts: 'case' })])])
    expect(changed()).toBe(true)
    expect(result.standing.map(one => one.id)).toEqual(['one/1'])
    expect(result.exitCode).toBe(0)
  })

  it('that does not verify is undone at once', async () => {
    const result = await run([stepOf('one', [change({ verify: [shell('echo doubt >&2; exit 1')], lasts: 'case' })])])
    expect(changed()).toBe(false)
    expect(outcomes(result)).toEqual({ one: 'failed' })
    expect(result.steps[0]?.reason).toContain('doubt')
    expect(result.exitCode).toBe(3)
  })

  it('whose undo fails leaves the host changed: exit 6 with the command', async () => {
    const result = await run([stepOf('one', [change({ undo: [shell('exit 9')] })])])
    expect(changed()).toBe(true)
    expect(result.exitCode).toBe(6)
    expect(result.leftChanged[0]?.argv).toEqual(['/bin/sh', '-c', 'exit 9'])
  })

  it('that is refused is tried the other way', async () => {
    const made = `touch ${output}/changed`
    const result = await run([
      stepOf('one', [change({ argv: ['/bin/sh', '-c', 'exit 1'], fallback: [shell('exit 2'), shell(made)], lasts: 'case' })]),
    ])
    expect(changed()).toBe(true)
    expect(result.exitCode).toBe(0)
  })

  it('that hangs is ended, and undone because nobody knows how far it came', async () => {
    const result = await run([
      stepOf('one', [change({ argv: ['/bin/sh', '-c', `touch ${output}/changed; sleep 600`], limit: 0.5, lasts: 'case' })]),
    ])
    expect(changed()).toBe(false)
    expect(outcomes(result)).toEqual({ one: 'timed-out' })
  })

  it('is finished before Ctrl-C counts', async () => {
    const stop = new AbortController()
    const slow = change({ argv: ['/bin/sh', '-c', `sleep 1; touch ${output}/changed`], lasts: 'case' })
    setTimeout(() => stop.abort(), 300)
    const result = await run(
      [stepOf('one', [slow, observe('echo never', 'never.txt')]), stepOf('two', [observe('echo never', 'never.txt')])],
      { stop: stop.signal },
    )
    expect(changed()).toBe(true)
    expect(outcomes(result)).toEqual({ one: 'interrupted', two: 'interrupted' })
    expect(result.exitCode).toBe(130)
    expect((await verify(result.sealed.archive)).intact).toBe(true)
  })
})

describe('a response', () => {
  it('that a step refuses touches nothing', async () => {
    await expect(run([stepOf('one', [change()]), stepOf('no', { refused: 'it would harm', remedy: 'do that' })])).rejects.toThrow(
      RefusedError,
    )
    expect(fs.readdirSync(output)).toEqual([])
  })

  it('starts nothing more when the budget is used up, and says so', async () => {
    const result = await run([stepOf('one', [observe('sleep 1.2; echo a', 'a.txt')]), stepOf('two', [observe('echo b', 'b.txt')])], {
      budget: 1,
    })
    expect(outcomes(result)).toEqual({ one: 'collected', two: 'skipped' })
    expect(result.exitCode).toBe(3)
  })

  it('names what a step wanted and could not have', async () => {
    const result = await run([
      stepOf('part', {
        actions: [observe('echo a', 'a.txt')],
        missing: [{ what: 'conntrack', why: 'not installed', remedy: 'install it' }],
      }),
      stepOf('none', { unavailable: 'no such thing', remedy: 'get it' }),
    ])
    expect(outcomes(result)).toEqual({ part: 'unavailable', none: 'unavailable' })
    expect(result.steps.map(step => step.reason)).toEqual(['in part, conntrack: not installed; install it', 'no such thing; get it'])
    expect(result.exitCode).toBe(3)
  })

  it('interprets every step that ended, with those before it, and keeps going when an interpreter fails', async () => {
    const seen: unknown[] = []
    const result = await run([
      stepOf('one', [observe('echo first', 'first.txt')]),
      stepOf('two', [observe('exit 1', 'x.txt')], {
        interpret: async collected => {
          seen.push(
            collected.outcome,
            collected.of('one')?.text('first.txt'),
            [...(collected.of('one')?.lines('first.txt') ?? [])],
            collected.of('three'),
          )
          return [{ rule: 'r', clear: 'measured' }]
        },
      }),
      stepOf('three', [observe('echo x', 'x.txt')], { interpret: () => Promise.reject(new Error('bad parser')) }),
    ])
    expect(seen).toEqual(['failed', 'first\n', ['first'], undefined])
    expect(result.verdicts).toMatchObject([{ clear: 'measured' }, { notAssessed: expect.stringContaining('bad parser') }])
    expect(JSON.parse(fs.readFileSync(path.join(result.directory, 'findings.json'), 'utf8')).clear).toHaveLength(1)
  })

  it('has a chain head after every step, the last one in the result', async () => {
    const result = await run([stepOf('one', [observe('echo a', 'a.txt')])])
    expect(said.some(line => /one {2}collected .* head [0-9a-f]{16}/.test(line))).toBe(true)
    expect((await verify(result.sealed.archive)).head).toBe(result.sealed.head)
  })
})
