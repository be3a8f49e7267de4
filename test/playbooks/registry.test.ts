/** Every step is well formed: what the engine, the command line and the evidence rely on. */
import { describe, expect, it } from 'vitest'
import { COMMANDS } from '../../commands/index.js'
import { golden30 } from '../../playbooks/golden-30.js'
import { release } from '../../playbooks/steps/release.js'
import { TOOLS } from '../../playbooks/tools.js'
import { COLLECTORS } from '../../src/collectors/index.js'
import { openHost } from '../../src/host.js'
import type { Action, AnyStep, Option, Running } from '../../src/step.js'

const steps: AnyStep[] = [...golden30.throughout, ...golden30.steps, release]
const host = openHost()

/** Options with which every step has something to plan on any host. */
const given: Record<string, Record<string, unknown>> = {
  isolate: { allow: ['198.51.100.7', '2001:db8:7::7'] },
  'capture-mem': { source: 'process', pid: [String(process.pid)] },
}

function values(step: AnyStep): Record<string, unknown> {
  const defaults = Object.entries(step.options as Record<string, Option>).map(([name, option]) => [
    name,
    option.type === 'switch' ? false : option.default,
  ])
  return { ...Object.fromEntries(defaults), ...given[step.id] }
}

async function actionsOf(step: AnyStep): Promise<readonly Action[]> {
  const plan = await step.plan({ host, options: values(step) as never, directory: `/nonexistent/${step.id}`, throughout: false })
  expect(plan, JSON.stringify(plan)).toHaveProperty('actions')
  return 'actions' in plan ? plan.actions : []
}

const runs = (action: Action): Running[] => {
  if (action.kind === 'copy') return []
  if (action.kind === 'collect') return [...(action.source ?? []), ...(action.sink ?? [])]
  if (action.kind === 'observe') return [action]
  return [action, ...(action.verify ?? []), ...action.undo, ...(action.fallback ?? [])]
}

const names = (action: Action): string[] => {
  if (action.kind === 'copy') return [action.to]
  if (action.kind === 'collect') return [...action.writes]
  return [...(action.stdout === undefined ? [] : [action.stdout]), ...(action.writes ?? [])]
}

describe.each(steps.map(step => [step.id, step] as const))('%s', (id, step) => {
  it('says what it is and where it comes from', () => {
    expect(id).toMatch(/^[a-z]+(-[a-z]+)*$/)
    expect(step.summary).toMatch(/^[A-Z].*[^.]$/)
    expect(step.summary.length).toBeLessThanOrEqual(100)
    expect(step.description.length).toBeGreaterThan(80)
    expect(step.references.length).toBeGreaterThan(0)
  })

  it('has a command of the same name with at least two examples', () => {
    const command = COMMANDS[id as keyof typeof COMMANDS]
    expect(command).toBeDefined()
    expect(command.examples?.length).toBeGreaterThanOrEqual(2)
  })

  it('names options in kebab case, integers with their unit', () => {
    for (const [name, option] of Object.entries(step.options as Record<string, Option>)) {
      expect(name).toMatch(/^[a-z]+(-[a-z]+)*$/)
      expect(option.summary.length).toBeGreaterThan(5)
      if (option.type === 'integer') expect(option.unit).not.toBe('')
    }
  })

  it('plans actions that the engine can perform', async () => {
    const actions = await actionsOf(step)
    expect(actions.length).toBeGreaterThan(0)
    const seen = new Set<string>()
    for (const action of actions) {
      expect(action.title).toMatch(/^[A-Z]/)
      expect(action.limit).toBeGreaterThan(0)
      if (action.kind === 'collect') expect(COLLECTORS).toHaveProperty([action.collector])
      if (action.kind === 'change') {
        expect(action.effect.length).toBeGreaterThan(10)
        if (action.undo.length === 0) expect(action.effect).toMatch(/undo|way back|taken back/i)
      }
      for (const running of runs(action)) {
        expect(running.argv[0], running.title).toMatch(/^\//)
        expect(running.limit).toBeGreaterThan(0)
      }
      for (const name of names(action)) {
        expect(name, 'a plain name').toMatch(/^[A-Za-z0-9._+=@,-]+\/?$/)
        expect(seen.has(name), `${name} twice`).toBe(false)
        seen.add(name)
      }
    }
  })

  it('starts only programs that the table of tools names, or iptables where the host uses it', async () => {
    for (const action of await actionsOf(step)) {
      for (const running of runs(action)) {
        const program = running.argv[0].split('/').at(-1) as string
        if (!/^ip6?tables(-legacy|-nft)?-save$/.test(program)) expect(Object.keys(TOOLS)).toContain(program)
      }
    }
  })

  it('plans the same twice, and only data', async () => {
    const [first, second] = [await actionsOf(step), await actionsOf(step)]
    expect(JSON.stringify(first)).toBe(JSON.stringify(second))
    expect(JSON.parse(JSON.stringify(first))).toEqual(first)
  })
})

it('an option has one meaning in every step that has it', () => {
  const known = new Map<string, string>()
  for (const step of steps) {
    for (const [name, option] of Object.entries(step.options as Record<string, Option>)) {
      const text = JSON.stringify(option)
      expect(known.get(name) ?? text, `--${name} of ${step.id}`).toBe(text)
      known.set(name, text)
    }
  }
})

it('the order is that of volatility, behind the cut', () => {
  expect(golden30.throughout.map(step => step.id)).toEqual(['capture-net'])
  expect(golden30.steps.map(step => step.id)).toEqual([
    'isolate',
    'snapshot-connections',
    'snapshot-processes',
    'capture-mem',
    'audit-attrs',
  ])
})
