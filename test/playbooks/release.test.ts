import fs from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { compareRulesets, lasting, ruleCounts, splitRuleset } from '../../playbooks/ruleset.js'
import { release as step } from '../../playbooks/steps/release.js'
import { openHost } from '../../src/host.js'
import type { ActionResult, Finding, Verdict } from '../../src/step.js'
import { type Namespace, openNamespace } from '../helpers/namespace.js'
import { type Asked, collected, type Performed } from '../helpers/perform-step.js'

const PERFORM = new URL('../helpers/perform-step.ts', import.meta.url)
const FIREWALL = new URL('../fixtures/isolate/firewall.nft', import.meta.url)
const BEFORE = 'before.nft_-s_list_ruleset.txt'
const AFTER = 'after.nft_-s_list_ruleset.txt'
const COUNTS = 'nft_list_table_inet_ir_isolate.txt'

const textOf = (name: string): string => fs.readFileSync(new URL(`../fixtures/release/debian-12/${name}`, import.meta.url), 'utf8')
const recorded = { [BEFORE]: textOf(BEFORE), [AFTER]: textOf(AFTER), [COUNTS]: textOf(COUNTS) }
const DONE: readonly ActionResult[] = [1, 2, 3, 4].map(number => ({ id: `release/${number}`, outcome: 'collected' }))

async function tell(artifacts: Readonly<Record<string, string>>, actions = DONE): Promise<Verdict> {
  const [verdict] = (await step.interpret?.(collected(actions, { ...recorded, ...artifacts }))) ?? []
  if (verdict === undefined) throw new Error('it tells nothing')
  return verdict
}

const why = (verdict: Verdict): readonly string[] => (verdict as Finding).why

describe('what release tells', () => {
  it('is that nothing else changed, and what was dropped', async () => {
    expect(await tell({})).toEqual({
      rule: 'release-exact',
      clear:
        'The isolation has ended, and nothing else changed (packets while isolated: 6 dropped arriving, 0 dropped forwarded, 1 dropped leaving): ' +
        '50 other lines of rules are as before, but for live counters and elements that expire',
    })
  })

  it('is that there was no isolation', async () => {
    const verdict = await tell({ [BEFORE]: recorded[AFTER] as string, [COUNTS]: '' })
    expect(verdict).toMatchObject({ clear: expect.stringMatching(/^There was no isolation to release; nothing changed/) })
    const empty: readonly ActionResult[] = DONE.map(action => ({ ...action, outcome: action.id === 'release/3' ? 'collected' : 'empty' }))
    expect(await tell({ [BEFORE]: '', [AFTER]: '', [COUNTS]: '' }, empty)).toMatchObject({ clear: expect.stringContaining('no isolation') })
  })

  it('names the lines that differ, with where they stand', async () => {
    const changed = (recorded[AFTER] as string).replace('\t\ttcp dport vmap @ports\n', '').replace('10/minute', '11/minute')
    expect(why(await tell({ [AFTER]: changed }))).toEqual([
      'gone: table inet filter / chain input: tcp dport vmap @ports',
      'gone: table inet filter / chain input: limit rate 10/minute log prefix "input: "',
      'new: table inet filter / chain input: limit rate 11/minute log prefix "input: "',
    ])
    const table = await tell({
      [AFTER]: `${recorded[AFTER]}table ip evil {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n\t}\n}\n`,
    })
    expect(why(table)).toContain('new: table ip evil: table ip evil {')
    const many = `table ip evil {\n${'\tset a {\n\t}\n'.repeat(50)}}\n`
    expect(why(await tell({ [AFTER]: recorded[AFTER] + many })).at(-1)).toBe('and 82 lines more')
  })

  it('notices rules that stand in another order', async () => {
    const [first, second] = [
      '\t\tct state established,related counter accept\n',
      '\t\tip saddr @banned counter drop comment "} elements = {"\n',
    ]
    const swapped = (recorded[AFTER] as string).replace(first + second, second + first)
    expect(why(await tell({ [AFTER]: swapped }))).toEqual(['the same rules stand in another order'])
  })

  it('leaves out what changes by itself, and nothing else', async () => {
    const after = recorded[AFTER] as string
    const moved = after
      .replace('203.0.113.9, 203.0.113.10 timeout 2h,\n\t\t\t     203.0.113.11, 203.0.113.12,', '203.0.113.10 timeout 2h expires 1h59m,')
      .replaceAll(' counter ', ' counter packets 5 bytes 300 ')
    const counted = (recorded[BEFORE] as string).replaceAll(' counter ', ' counter packets 4 bytes 240 ')
    expect(await tell({ [BEFORE]: counted, [AFTER]: moved })).toHaveProperty('clear')
    const trusted = after.replace('203.0.113.128/28', '203.0.113.0/24')
    expect(why(await tell({ [AFTER]: trusted }))).toHaveLength(2)
  })

  it('is never that nothing changed where that was not seen', async () => {
    const failing = (id: string, outcome: ActionResult['outcome']): readonly ActionResult[] =>
      DONE.map(action => (action.id === id ? { id, outcome, reason: 'nft exited with 1' } : action))
    expect(await tell({}, failing('release/3', 'failed'))).toMatchObject({
      notAssessed: 'the isolation was not released: nft exited with 1',
    })
    expect(await tell({}, failing('release/1', 'timed-out'))).toMatchObject({ notAssessed: expect.stringContaining('could not be listed') })
    expect(await tell({}, failing('release/4', 'failed'))).toMatchObject({ notAssessed: expect.stringContaining('could not be listed') })
    expect(await tell({ [AFTER]: recorded[BEFORE] as string })).toMatchObject({ notAssessed: expect.stringContaining('our table is back') })
    expect(await tell({}, [])).toMatchObject({ notAssessed: expect.stringContaining('nothing was done') })
  })
})

describe('a ruleset', () => {
  it('falls apart into our table and the others, whatever comments say', () => {
    const parts = splitRuleset((recorded[BEFORE] as string).split('\n'), 'inet ir_isolate')
    expect(parts?.own[0]).toBe('table inet ir_isolate {')
    expect(parts?.own.at(-1)).toBe('}')
    expect(parts?.others.some(line => line.text.includes('ir_isolate'))).toBe(false)
    expect(parts?.others.at(-1)).toEqual({ within: 'table ip nat', text: '}' })
    expect(splitRuleset(Array(500_001).fill('\t\taccept'), 'inet ir_isolate')).toBeUndefined()
  })

  it('is the same as itself, and counts what its rules counted', () => {
    const lines = lasting(splitRuleset((recorded[BEFORE] as string).split('\n'), 'none')?.others ?? [])
    expect(compareRulesets(lines, lines)).toEqual({ gone: [], added: [], reordered: false })
    expect(ruleCounts((recorded[COUNTS] as string).split('\n')).map(count => [count.comment, count.packets])).toEqual([
      ['responder', 0],
      ['responder', 0],
      ['dropped arriving', 6],
      ['dropped forwarded', 0],
      ['responder', 0],
      ['responder', 0],
      ['dropped leaving', 1],
    ])
  })
})

describe('the plan of release', () => {
  it('needs nft, and says that there is no way back', async () => {
    const context = { options: {}, directory: '/evidence/x/data/release', throughout: false }
    const without = { ...openHost(), which: () => undefined }
    expect(await step.plan({ host: without, ...context })).toMatchObject({ unavailable: 'nft is not installed' })
    const plan = await step.plan({ host: openHost(), ...context })
    expect('actions' in plan && plan.actions[2]).toMatchObject({ kind: 'change', undo: [], effect: expect.stringContaining('No undo') })
  })
})

describe('release', () => {
  let host: Namespace
  const perform = (name: 'isolate' | 'release', options: Asked['options'] = {}): Promise<Performed> =>
    host.call<Performed>(PERFORM, { step: name, name, options })

  beforeAll(async () => {
    host = await openNamespace()
  })

  afterAll(() => host?.close())

  it('works where there is nothing, and says so', async () => {
    const { results, verdicts, artifacts } = await perform('release')
    expect(results.map(result => result.outcome)).toEqual(['empty', 'empty', 'collected', 'empty'])
    expect(verdicts).toEqual([{ rule: 'release-exact', clear: expect.stringContaining('There was no isolation to release') }])
    expect(artifacts[COUNTS]).toBe('')
  })

  it('leaves the rules of the host exactly as they were, byte for byte but for counters and timers', async () => {
    await host.must(['nft', '-f', FIREWALL.pathname])
    const before = await host.must(['nft', '-s', '-a', 'list', 'ruleset'])
    await perform('isolate', { allow: ['192.0.2.7'] })
    await perform('isolate', { allow: ['none'] })
    expect((await host.must(['nft', 'list', 'tables'])).match(/ir_isolate/g)).toHaveLength(1)
    const { verdicts } = await perform('release')
    expect(verdicts).toEqual([{ rule: 'release-exact', clear: expect.stringContaining('nothing else changed') }])
    expect(await host.must(['nft', '-s', '-a', 'list', 'ruleset'])).toBe(before)
  })

  it('finds what somebody changed meanwhile', async () => {
    const plan = await perform('release')
    const list = plan.artifacts[AFTER] as string
    await host.must(['nft', 'add', 'rule', 'inet', 'filter', 'input', 'tcp', 'dport', '31337', 'accept'])
    const { artifacts } = await perform('release')
    expect(why(await tell({ [BEFORE]: list, [AFTER]: artifacts[AFTER] as string }))).toEqual([
      'new: table inet filter / chain input: tcp dport 31337 accept',
    ])
  })
})
