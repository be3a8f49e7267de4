/** What the step plans, and what it makes of recorded processes. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { snapshotProcesses } from '../../playbooks/steps/snapshot-processes.js'
import { openHost } from '../../src/host.js'
import type { ActionResult, Finding, Verdict } from '../../src/step.js'
import { type CollectedOverrides, collectedFrom } from '../helpers/collected.js'

const FIXTURE = 'snapshot-processes/debian-12'

interface Recorded {
  pid: number
  comm: string
  denied?: string[]
  kernelThread: boolean
  exe: {
    link: string
    deleted: boolean
    memfd: boolean
    replaced?: boolean
    inode?: string
    sha256?: string
    artifact?: string
    notes?: string[]
  } | null
}

const recorded = [...collectedFrom(FIXTURE).lines('processes.jsonl')].map(line => JSON.parse(line) as Recorded)
const interpret = async (overrides: CollectedOverrides = {}): Promise<readonly Verdict[]> =>
  (await snapshotProcesses.interpret?.(collectedFrom(FIXTURE, overrides))) ?? []
/** The recorded processes, changed. */
const withProcesses = (change: (records: Recorded[]) => Recorded[] | undefined): CollectedOverrides => {
  const copy = structuredClone(recorded)
  const changed = change(copy) ?? copy
  return { files: { 'processes.jsonl': changed.map(record => `${JSON.stringify(record)}\n`).join('') } }
}
const findings = (verdicts: readonly Verdict[]): Finding[] => verdicts.filter(verdict => 'severity' in verdict)
/** A process like a recorded one. */
const another = (changes: Partial<Recorded>): Recorded => ({
  ...structuredClone(recorded.at(-1) as Recorded),
  pid: 7,
  comm: 'x',
  ...changes,
})
const benign = (records: Recorded[]): Recorded[] => records.filter(({ exe }) => !exe?.deleted)

it('plans one pass of our own, without a program of the host', async () => {
  const plan = await snapshotProcesses.plan({
    host: openHost({ root: '/nonexistent' }),
    options: {},
    directory: '/case',
    throughout: false,
  })
  expect(plan).toEqual({
    actions: [expect.objectContaining({ kind: 'collect', collector: 'processes', writes: ['processes.jsonl', 'executables/', 'large/'] })],
  })
})

describe('of the recorded host', () => {
  it('finds the program in a memfd', async () => {
    const [memfd] = findings(await interpret()).filter(({ rule }) => rule === 'process-memfd')
    const planted = recorded.find(({ exe }) => exe?.memfd) as Recorded
    expect(memfd).toMatchObject({
      severity: 'critical',
      attack: ['T1620'],
      subject: { kind: 'process', name: `${planted.pid} (${planted.comm})` },
      evidence: [
        { artifact: 'snapshot-processes/processes.jsonl', line: recorded.indexOf(planted) + 1 },
        { artifact: `snapshot-processes/executables/${planted.exe?.sha256}` },
      ],
    })
    expect(memfd?.why.join('\n')).toContain('/memfd:inert (deleted)')
    expect(memfd?.why.join('\n')).toContain('[kworker/0:1] 600')
    expect(memfd?.why).toContain(`SHA-256 ${planted.exe?.sha256}`)
  })

  it('finds the deleted program, once for both of its processes', async () => {
    const found = findings(await interpret()).filter(({ rule }) => rule === 'process-executable-deleted')
    const pids = recorded.filter(({ comm }) => comm === 'gone').map(({ pid }) => pid)
    expect(found).toHaveLength(1)
    expect(found[0]).toMatchObject({
      severity: 'high',
      attack: ['T1070.004'],
      subject: { name: pids.map(pid => `${pid} (gone)`).join(', ') },
    })
    expect(found[0]?.why.filter(sentence => sentence.startsWith('process '))).toHaveLength(2)
  })

  it('says nothing else', async () => {
    expect(await interpret()).toHaveLength(2)
  })
})

describe('severity', () => {
  const deleted = async (link: string, more: Partial<NonNullable<Recorded['exe']>> = {}): Promise<Finding | undefined> => {
    const overrides = withProcesses(records => [
      ...benign(records),
      another({ exe: { link, deleted: true, memfd: false, inode: '1', ...more } }),
    ])
    return findings(await interpret(overrides)).find(({ rule }) => rule === 'process-executable-deleted')
  }

  it('is high where no package puts a program', async () => {
    for (const place of ['/tmp/x', '/var/tmp/.x', '/dev/shm/x', '/run/x', '/run/user/0/x', '/home/a/x', '/root/x']) {
      expect((await deleted(`${place} (deleted)`))?.severity, place).toBe('high')
    }
  })

  it('is medium elsewhere, and an upgrade is told as what it may be', async () => {
    for (const place of ['/usr/sbin/sshd', '/tmpfiles/x', '/opt/run/x'])
      expect((await deleted(`${place} (deleted)`))?.severity, place).toBe('medium')
    expect((await deleted('/usr/sbin/sshd (deleted)', { replaced: true }))?.why[0]).toContain('as after the upgrade of a package')
  })

  it('of what could not be saved is as high, with the reason', async () => {
    const found = await deleted('/tmp/x (deleted)', { notes: ['not hashed: 1 B for all executables were used up'] })
    expect(found?.why).toContain('not hashed: 1 B for all executables were used up')
    expect(found?.evidence).toHaveLength(1)
  })

  it('of a container runtime in its own memfd is low; of what only calls itself so it is critical', async () => {
    const memfd = async (comm: string): Promise<unknown> => {
      const exe = { link: '/memfd:runc_cloned:/proc/self/exe (deleted)', deleted: true, memfd: true, inode: '1' }
      const overrides = withProcesses(records => [...benign(records), another({ comm, exe })])
      return findings(await interpret(overrides)).find(({ rule }) => rule === 'process-memfd')?.severity
    }
    expect(await memfd('runc:[2:INIT]')).toBe('low')
    expect(await memfd('xmrig')).toBe('critical')
  })
})

describe('without a finding', () => {
  it('is clear with the number of processes looked at', async () => {
    const left = benign(structuredClone(recorded)).length
    expect(await interpret(withProcesses(benign))).toEqual([
      { rule: 'process-memfd', clear: `of ${left} processes with a program none runs a program from a memfd` },
      { rule: 'process-executable-deleted', clear: `of ${left} processes with a program none runs a deleted program` },
    ])
  })

  it('is not clear where programs could not be seen', async () => {
    const denied = withProcesses(records => [...benign(records), another({ exe: null, denied: ['exe'] })])
    const silent = withProcesses(records => [
      ...benign(records),
      {
        pid: 7,
        comm: 'x',
        kernelThread: false,
        exe: { link: '/mnt/x', deleted: false, memfd: false, notes: ['its file system did not answer'] },
      },
    ])
    const left = benign(structuredClone(recorded)).length
    for (const overrides of [denied, silent]) {
      expect(await interpret(overrides)).toEqual(
        ['process-memfd', 'process-executable-deleted'].map(rule => ({
          rule,
          notAssessed: `the programs of 1 of ${left + 1} processes could not be seen`,
          remedy: 'run ir as root',
        })),
      )
    }
  })

  it('counts kernel threads and zombies for nothing', async () => {
    const overrides = withProcesses(records => [
      ...benign(records),
      another({ comm: 'kthreadd', kernelThread: true, exe: null, denied: ['exe'] }),
      another({ comm: 'gone', exe: null }),
    ])
    expect((await interpret(overrides)).every(verdict => 'clear' in verdict)).toBe(true)
  })

  it('is not clear when the pass was cut short, or left processes unread', async () => {
    const artifacts = [{ path: 'data/snapshot-processes/processes.jsonl' }]
    const cut: ActionResult[] = [
      { id: 'snapshot-processes/1', outcome: 'interrupted', reason: 'stopped after 3 of 90 processes', artifacts },
    ]
    const unread: ActionResult[] = [{ id: 'snapshot-processes/1', outcome: 'collected', facts: { unreadable: 2 }, artifacts }]
    const whys = await Promise.all([cut, unread].map(actions => interpret({ ...withProcesses(benign), actions })))
    expect(whys[0]?.[0]).toMatchObject({ notAssessed: 'processes.jsonl is not whole: stopped after 3 of 90 processes' })
    expect(whys[1]?.[0]).toMatchObject({ notAssessed: expect.stringContaining('the programs of 2 of ') })
  })

  it('is not clear without evidence', async () => {
    expect(await interpret({ without: ['processes.jsonl'] })).toEqual([
      expect.objectContaining({ rule: 'process-memfd', notAssessed: 'there is no processes.jsonl' }),
      expect.objectContaining({ rule: 'process-executable-deleted', notAssessed: 'there is no processes.jsonl' }),
    ])
    expect((await interpret({ files: { 'processes.jsonl': '' } }))[0]).toMatchObject({ notAssessed: 'no process with a program was read' })
  })
})

it('what was found is told beside what could not be seen', async () => {
  const overrides = withProcesses(records => [...records, another({ exe: null, denied: ['exe'] })])
  const verdicts = await interpret(overrides)
  expect(findings(verdicts)).toHaveLength(2)
  expect(verdicts.filter(verdict => 'notAssessed' in verdict)).toHaveLength(2)
})

it('many processes of one program are one finding of bounded length', async () => {
  const overrides = withProcesses(records => {
    const one = records.find(({ comm }) => comm === 'gone') as Recorded
    return Array.from({ length: 300 }, (_, index) => ({ ...one, pid: 1000 + index }))
  })
  const [found] = findings(await interpret(overrides))
  expect(found?.subject.name).toMatch(/^1000 \(gone\), .* and 292 more$/)
  expect(found?.why.length).toBeLessThan(15)
})

it('lines of any text are survived', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.oneof(fc.string(), fc.json())), async lines => {
      expect((await interpret({ files: { 'processes.jsonl': lines.join('\n') } })).length).toBeGreaterThan(0)
    }),
    { numRuns: 50 },
  )
})
