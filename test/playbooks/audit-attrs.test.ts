/** The step: what it plans, and what it says about real, recorded output. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { auditAttrs } from '../../playbooks/steps/audit-attrs.js'
import { openHost } from '../../src/host.js'
import type { ActionResult, Finding, JsonObject, Plan, Verdict } from '../../src/step.js'
import { type CollectedOverrides, collectedFrom } from '../helpers/collected.js'

const FIXTURE = 'audit-attrs/debian-12'
const recordedActions = collectedFrom(FIXTURE).actions
const options = { path: ['/etc', '/usr/bin'], 'max-entries': 1000, 'max-time': 60 }

let root: string
beforeEach(() => {
  root = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-plan-'))
})
afterEach(() => {
  fs.rmSync(root, { recursive: true, force: true })
})

function program(name: string): void {
  fs.mkdirSync(path.join(root, path.dirname(name)), { recursive: true })
  fs.writeFileSync(path.join(root, name), '', { mode: 0o755 })
}

const plan = (given: Partial<typeof options> = {}): Promise<Plan> =>
  auditAttrs.plan({ host: openHost({ root }), options: { ...options, ...given }, directory: '/c', throughout: false })

describe('plan', () => {
  it('one walk of ours over lsattr in batches', async () => {
    program('/usr/bin/lsattr')
    expect(await plan()).toEqual({
      actions: [
        {
          kind: 'collect',
          title: 'Read the attributes of files and directories below /etc /usr/bin',
          collector: 'attributes',
          options: { paths: ['/etc', '/usr/bin'], maxEntries: 1000, maxSeconds: 60 },
          source: [
            { title: 'Attributes of the names that follow', argv: ['/usr/bin/lsattr', '-d'], accept: [0, 1], limit: 20 },
            {
              title: 'Attributes of names that are not UTF-8, by their directory',
              argv: ['/usr/bin/lsattr', '-a'],
              accept: [0, 1],
              limit: 20,
            },
          ],
          writes: ['lsattr_-d.txt', 'attributes.jsonl'],
          limit: 180,
        },
      ],
    })
  })

  it('names the package where lsattr is missing', async () => {
    program('/usr/bin/dnf')
    expect(await plan()).toEqual({ unavailable: 'lsattr is not installed', remedy: 'dnf install e2fsprogs' })
  })

  it.each([[['etc']], [['/etc', '../x']], [[]]])('refuses %j', async paths => {
    program('/usr/bin/lsattr')
    expect(await plan({ path: paths })).toHaveProperty('refused')
  })

  it('looks by default where the procedure says and where malware hides', () => {
    expect(auditAttrs.options.path.default).toEqual(
      '/etc /usr/bin /usr/sbin /usr/local /root /home /tmp /var/tmp /dev/shm /var/spool/cron'.split(' '),
    )
  })
})

const interpret = async (overrides: CollectedOverrides = {}): Promise<readonly Verdict[]> =>
  (await auditAttrs.interpret?.(collectedFrom(FIXTURE, overrides))) ?? []
const findings = (verdicts: readonly Verdict[]): Finding[] => verdicts.filter(verdict => 'severity' in verdict)
const clear = (verdicts: readonly Verdict[]): string[] =>
  verdicts.flatMap(verdict => ('clear' in verdict ? [`${verdict.rule}: ${verdict.clear}`] : []))
const gaps = (verdicts: readonly Verdict[], rule = 'attr-immutable'): { notAssessed: string; remedy: string }[] =>
  verdicts.flatMap(verdict => ('notAssessed' in verdict && verdict.rule === rule ? [verdict] : []))

function actionWith(facts: JsonObject, outcome: ActionResult['outcome'] = 'collected'): ActionResult[] {
  return [{ id: 'audit-attrs/1', outcome, facts: { ...recordedActions[0]?.facts, ...facts } }]
}

describe('interpret', () => {
  it('finds what was planted, each by its place', async () => {
    const found = findings(await interpret()).map(({ rule, severity, subject }) => [rule, severity, subject.name])
    expect(found).toEqual([
      ['attr-immutable', 'high', '/etc/ld.so.preload'],
      ['attr-immutable', 'high', '/etc/passwd'],
      ['attr-immutable', 'high', '/dev/shm/kworker'],
      ['attr-immutable', 'high', '/etc/cron.d/update'],
      ['attr-immutable', 'high', '/root/.ssh/authorized_keys'],
      ['attr-immutable', 'high', '/tmp/odd/clear\\x1b[2J'],
      ['attr-immutable', 'high', '/var/spool/cron/crontabs/root'],
      ['attr-immutable', 'high', '/tmp/odd/\\xff\\xfe'],
      ['attr-immutable', 'high', '/tmp/odd/\\xff\\xfe.d/inner'],
      ['attr-immutable', 'medium', "/home/user/it's mine"],
      ['attr-immutable', 'low', '/etc/resolv.conf'],
      ['attr-append-only', 'high', '/etc/ld.so.preload'],
      ['attr-append-only', 'high', '/tmp/.x'],
      ['attr-append-only', 'low', '/root/.bash_history'],
    ])
  })

  it('says why, where it stands and what to do next', async () => {
    const found = findings(await interpret()).find(({ subject }) => subject.name === '/dev/shm/kworker')
    expect(found).toMatchObject({
      title: 'Immutable file: /dev/shm/kworker',
      attack: ['T1222.002'],
      next: 'Keep a copy, find out who set it (auditd, shell histories), then: chattr -i /dev/shm/kworker',
    })
    expect(found?.why).toEqual([
      'lsattr prints ----i-----------------: i, it cannot be changed, renamed or removed, not even by root',
      'it is executable (mode 0755)',
      expect.stringMatching(/^it became immutable at \d{4}-\d\d-\d\dT[\d:.]+Z, its last change \(ctime\)$/),
      'everybody may write here, and nobody has a reason to keep something here for good',
    ])
    const listing = collectedFrom(FIXTURE).text('lsattr_-d.txt').split('\n')
    const records = collectedFrom(FIXTURE).text('attributes.jsonl').split('\n')
    const [inListing, inRecords] = found?.evidence ?? []
    expect(inListing?.artifact).toBe('audit-attrs/lsattr_-d.txt')
    expect(listing[(inListing?.line ?? 0) - 1]).toBe('----i----------------- /dev/shm/kworker')
    expect(inRecords?.artifact).toBe('audit-attrs/attributes.jsonl')
    expect(records[(inRecords?.line ?? 0) - 1]).toContain('/dev/shm/kworker')
  })

  it('gives command lines that are safe to paste', async () => {
    const next = findings(await interpret()).map(finding => finding.next.replace(/^.*: chattr/, 'chattr'))
    expect(next).toContain("chattr -i $'/tmp/odd/clear\\x1b[2J'")
    expect(next).toContain("chattr -i '/home/user/it'\\''s mine'")
    expect(next).toContain("chattr -i $'/tmp/odd/\\xff\\xfe.d/inner'")
    expect(next).toContain('chattr -ia /etc/ld.so.preload')
    expect(JSON.stringify(await interpret())).not.toMatch(/[\p{C}\p{Zl}\p{Zp}]/u)
  })

  it('says what was not assessed, for both rules, and never calls it clean', async () => {
    const verdicts = await interpret()
    expect(gaps(verdicts)).toEqual(gaps(verdicts, 'attr-append-only').map(gap => ({ ...gap, rule: 'attr-immutable' })))
    expect(gaps(verdicts).map(({ notAssessed }) => notAssessed)).toEqual([
      '2 of 5 files and directories below /home lie on a file system whose attributes lsattr cannot read',
      '/home/user/proc was not entered: no file system of a disk (proc)',
      '2 mounts not entered: /home/user/dead, network or FUSE file system (fuse); /home/user/proc, no file system of a disk (proc)',
    ])
    expect(clear(verdicts)).toEqual(['attr-hidden: the kernel and lsattr agree about 21 files and directories'])
  })

  it('is clear with counts where all was measured and nothing found', async () => {
    const rootFacts = { asked: '/etc', path: '/etc', state: 'walked', files: 3, directories: 1, listed: 4, notSupported: 0, notReached: 0 }
    const absent = { asked: '/usr/local', path: '/usr/local', state: 'missing', files: 0, directories: 0, listed: 0 }
    const facts = { listed: 4, notSupported: 0, crossChecked: 4, roots: [rootFacts, absent], mounts: [], mountsLeftOut: 0 }
    const verdicts = await interpret({ files: { 'attributes.jsonl': '' }, actions: actionWith(facts) })
    expect(verdicts).toEqual([
      { rule: 'attr-immutable', clear: 'none of 4 files and directories is immutable: /etc (not there: /usr/local)' },
      { rule: 'attr-append-only', clear: 'none of 4 files and directories is append-only: /etc (not there: /usr/local)' },
      { rule: 'attr-hidden', clear: 'the kernel and lsattr agree about 4 files and directories' },
    ])
  })

  it('names every bound and every failure', async () => {
    const rootFacts = {
      asked: '/home',
      path: "/home/o'neil",
      state: 'walked',
      files: 9,
      directories: 1,
      listed: 8,
      notSupported: 0,
      notReached: 3,
    }
    const facts = {
      bounds: ['entries', 'seconds'],
      roots: [rootFacts],
      mounts: [],
      listed: 8,
      failed: 1,
      unclear: 1,
      directoriesUnread: 1,
      unread: [{ path: '/home/x', why: 'EACCES' }],
      crossChecked: 0,
    }
    const verdicts = await interpret({ files: { 'attributes.jsonl': '' }, actions: actionWith(facts, 'interrupted') })
    expect(gaps(verdicts).map(({ notAssessed }) => notAssessed)).toEqual([
      "the audit reached its bound (--max-entries, --max-time) before 3 directories below /home/o'neil, and what they hold",
      '1 directory could not be read: /home/x, EACCES',
      'lsattr gave no usable answer for 2 files and directories',
      'the audit was stopped before its end',
    ])
    expect(gaps(verdicts)[0]?.remedy).toBe("ir audit-attrs --path '/home/o'\\''neil' --max-entries 10000000 --max-time 2h")
    expect(gaps(verdicts, 'attr-hidden').length).toBe(1)
    for (const verdict of verdicts) if ('notAssessed' in verdict) expect(verdict.remedy).not.toBe('')
  })

  it.each(['failed', 'timed-out', 'unavailable'] as const)('%s: nothing is clear', async outcome => {
    const verdicts = await interpret({
      outcome,
      files: { 'attributes.jsonl': '' },
      actions: [{ id: 'audit-attrs/1', outcome, reason: 'because' }],
    })
    expect(clear(verdicts)).toEqual([])
    expect(gaps(verdicts).length).toBe(1)
    expect(gaps(verdicts, 'attr-append-only').length).toBe(1)
  })

  it('an empty audit is no clean one', async () => {
    const verdicts = await interpret({
      files: { 'attributes.jsonl': '' },
      actions: actionWith({ listed: 0, roots: [], mounts: [], crossChecked: 0 }),
    })
    expect(clear(verdicts)).toEqual([])
  })

  it('what lsattr hides and the kernel shows is critical', async () => {
    const record = {
      line: 1,
      path: '/usr/bin/x',
      kind: 'file',
      state: 'listed',
      attributes: '--------------e-------',
      hidden: true,
      mode: '0755',
    }
    const [finding] = findings(await interpret({ files: { 'attributes.jsonl': `${JSON.stringify(record)}\n` } }))
    expect(finding).toMatchObject({ rule: 'attr-hidden', severity: 'critical', attack: ['T1222.002', 'T1014'] })
    expect(finding?.why[0]).toContain('lsattr prints --------------e-------')
  })

  it('a program anywhere is worse than a document', async () => {
    const line = (mode: string, kind = 'file'): string =>
      `${JSON.stringify({ line: 1, path: '/home/u/x', kind, state: 'listed', attributes: '----i---', immutable: true, mode })}\n`
    const severity = async (content: string): Promise<unknown> =>
      findings(await interpret({ files: { 'attributes.jsonl': content } }))[0]?.severity
    expect(await severity(line('0644'))).toBe('medium')
    expect(await severity(line('0755'))).toBe('high')
    expect(await severity(line('0755', 'directory'))).toBe('medium')
  })

  it('ten thousand of them are two hundred findings and one that counts the rest, the worst first', async () => {
    let content = ''
    for (let number = 1; number <= 10_000; number++) {
      const path = number === 9000 ? '/etc/ld.so.preload' : `/home/u/${number}`
      content += `${JSON.stringify({ line: number, path, kind: 'file', state: 'listed', attributes: '----i---', immutable: true, mode: '0644' })}\n`
    }
    const found = findings(await interpret({ files: { 'attributes.jsonl': content } }))
    expect(found.length).toBe(201)
    expect(found[0]?.subject.name).toBe('/etc/ld.so.preload')
    expect(found[0]?.evidence[1]?.line).toBe(9000)
    expect(found.at(-1)).toMatchObject({ title: '9800 more files and directories like these', severity: 'medium' })
  })

  it('any bytes in the records throw nothing', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.oneof(fc.json(), fc.string())), async lines => {
        await interpret({ files: { 'attributes.jsonl': lines.join('\n') } })
      }),
    )
  })
})
