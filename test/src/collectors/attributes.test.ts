/** The audit over real attributes, on the disk and in memory, against real and against replaced lsattr. Needs root. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { attributes } from '../../../src/collectors/attributes.js'
import type { CollectorResult } from '../../../src/collectors/collector.js'
import { createCase } from '../../../src/evidence/case.js'
import { openHost } from '../../../src/host.js'
import type { JsonObject, Running } from '../../../src/step.js'
import { recordAttributes } from '../../helpers/attributes-namespace.js'

const LSATTR = '/usr/bin/lsattr'
const host = openHost()

/** A directory for what is audited on each kind of disk, and one for the case. */
let disk: string
let memory: string
let cases: string

beforeEach(() => {
  disk = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), 'ir-attrs-')))
  memory = fs.mkdtempSync('/dev/shm/ir-attrs-')
  cases = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-attrs-case-'))
})
afterEach(() => {
  for (const directory of [disk, memory, cases]) {
    // By path only, never by name from a shell; -f: a file without attributes is no reason to stop.
    execFileSync('chattr', ['-R', '-f', '-i', '-a', directory])
    fs.rmSync(directory, { recursive: true, force: true })
  }
})

interface Audited extends CollectorResult {
  readonly facts: JsonObject & { readonly roots: readonly JsonObject[] }
  readonly listing: string[]
  readonly records: JsonObject[]
}

interface AuditOptions {
  readonly lsattr?: string
  readonly limit?: number
  readonly maxEntries?: number
  readonly maxSeconds?: number
  readonly signal?: AbortSignal
  readonly items?: (items: number | undefined) => void
}

async function audit(paths: readonly string[], options: AuditOptions = {}): Promise<Audited> {
  const { lsattr = LSATTR, limit = 20, maxEntries = 100_000, maxSeconds = 60, signal = new AbortController().signal } = options
  const caze = createCase({ output: cases, id: `case${fs.readdirSync(cases).length}`, host })
  const running = (option: string): Running => ({ title: option, argv: [lsattr, option], accept: [0, 1], limit })
  const result = await attributes({
    host,
    options: { paths, maxEntries, maxSeconds },
    source: [running('-d'), running('-a')],
    sink: [],
    case: caze,
    step: 'audit-attrs',
    action: 'audit-attrs/1',
    signal,
    progress: ({ items }) => options.items?.(items),
    onChange: () => {},
  })
  const artifact = (name: string): string => fs.readFileSync(path.join(caze.directory, 'data/audit-attrs', name), 'utf8')
  expect(caze.artifacts.map(({ path }) => path)).toEqual(['data/audit-attrs/lsattr_-d.txt', 'data/audit-attrs/attributes.jsonl'])
  const records = artifact('attributes.jsonl').split('\n').slice(0, -1)
  return {
    ...(result as CollectorResult & { facts: Audited['facts'] }),
    listing: artifact('lsattr_-d.txt').split('\n').slice(0, -1),
    records: records.map(line => JSON.parse(line) as JsonObject),
  }
}

const chattr = (attributes: string, ...names: string[]): void => void execFileSync('chattr', [attributes, ...names])
const brief = (records: readonly JsonObject[]): unknown[] =>
  records.map(({ path, attributes, immutable, appendOnly }) => [path, attributes, immutable, appendOnly])

/** What stands in place of lsattr on a host that somebody has prepared. */
function replacement(script: string): string {
  const name = path.join(cases, 'lsattr')
  fs.writeFileSync(name, `#!/bin/sh\n${script}\n`, { mode: 0o755 })
  return name
}

describe.each([
  ['a disk (ext4)', () => disk, 'e'],
  ['memory (tmpfs)', () => memory, '-'],
] as const)('on %s', (_, where, extents) => {
  it('finds +i and +a of files and directories', async () => {
    const at = (name: string): string => path.join(where(), name)
    for (const name of ['quiet', 'immutable', 'append', 'both']) fs.writeFileSync(at(name), 'inert')
    for (const name of ['locked', 'grows', '.hidden']) fs.mkdirSync(at(name))
    fs.writeFileSync(at('.hidden/.file'), 'inert')
    chattr('+i', at('immutable'), at('locked'), at('.hidden/.file'))
    chattr('+a', at('append'), at('grows'))
    chattr('+ia', at('both'))
    const { outcome, facts, listing, records } = await audit([where()])
    expect(outcome).toBe('collected')
    const shown = (letters: string): string => `----${letters}--------${extents}-------`
    expect(brief(records).sort()).toEqual([
      [at('.hidden/.file'), shown('i-'), true, false],
      [at('append'), shown('-a'), false, true],
      [at('both'), shown('ia'), true, true],
      [at('grows'), shown('-a'), false, true],
      [at('immutable'), shown('i-'), true, false],
      [at('locked'), shown('i-'), true, false],
    ])
    expect(facts).toMatchObject({ listed: 9, immutable: 4, appendOnly: 3, hidden: 0, failed: 0, unclear: 0, notSupported: 0, bounds: [] })
    // Both views agree about what is not immutable.
    expect(facts.crossChecked).toBe(5)
    expect(listing.length).toBe(9)
    for (const { line, path, attributes } of records) expect(listing[(line as number) - 1]).toBe(`${attributes} ${path}`)
    const locked = records.find(({ path }) => path === at('locked'))
    expect(locked).toMatchObject({ kind: 'directory', state: 'listed', mode: '0755', uid: 0, gid: 0, hidden: false })
    expect(Date.parse(String(locked?.changed))).toBeGreaterThan(Date.parse(String(locked?.born)) - 1)
  })
})

describe('names', () => {
  it('that pass for output, options or terminal commands keep their own attributes', async () => {
    const hostile = [
      'a\n----i---------e------- /etc/passwd',
      '----i---------e------- fake',
      '\u001b]0;owned\u0007',
      '-R',
      "'; reboot #",
      '$(id)',
      'r\u202etxt.sh',
      '\n',
      ' ',
      'a',
      'a\nb',
      'x'.repeat(255),
    ]
    // The first lies two directories down: '/etc/passwd' is the end of its path.
    fs.mkdirSync(path.dirname(path.join(disk, String(hostile[0]))), { recursive: true })
    for (const [index, name] of hostile.entries()) {
      fs.writeFileSync(path.join(disk, name), 'inert')
      if (index % 2 === 0) chattr('+i', path.join(disk, name))
    }
    const { facts, records, listing } = await audit([disk])
    expect(records.map(({ path }) => path).sort()).toEqual(
      hostile
        .filter((_, index) => index % 2 === 0)
        .map(name => path.join(disk, name))
        .sort(),
    )
    expect(facts).toMatchObject({ listed: hostile.length + 3, immutable: 6, unclear: 0, failed: 0 })
    expect(listing.length).toBe(hostile.length + 3)
    expect(listing.join('')).not.toMatch(/[\p{C}\p{Zl}\p{Zp}]/u)
  })

  it('that are not UTF-8, in directories that are not either', async () => {
    const odd = (...bytes: number[]): Buffer => Buffer.concat([Buffer.from(`${disk}/`), Buffer.from(bytes)])
    const inner = Buffer.concat([odd(0xc3, 0x28), Buffer.from('/plain')])
    fs.writeFileSync(path.join(disk, 'plain'), 'inert')
    fs.writeFileSync(odd(0xff), 'inert')
    fs.writeFileSync(odd(0xfe, 0x0a, 0x41), 'inert')
    fs.mkdirSync(odd(0xc3, 0x28))
    fs.writeFileSync(inner, 'inert')
    execFileSync('bash', ['--norc', '--noprofile', '-c', "cd -- \"$1\" && chattr +i $'\\xff' $'\\xc3(/plain'", 'bash', disk])
    const { facts, records, listing } = await audit([disk])
    const found = new Map(records.map(({ base64, immutable }) => [Buffer.from(String(base64), 'base64').toString('latin1'), immutable]))
    expect(found).toEqual(
      new Map([
        [odd(0xff).toString('latin1'), true],
        [odd(0xfe, 0x0a, 0x41).toString('latin1'), false],
        [odd(0xc3, 0x28).toString('latin1'), false],
        [inner.toString('latin1'), true],
      ]),
    )
    expect(listing).toContain(`----i---------e------- ${disk}/\\xc3(/plain`)
    expect(facts).toMatchObject({ listed: 6, immutable: 2, unclear: 0, failed: 0, runs: 2 })
  })
})

describe('bounds', () => {
  it('reads 5,000 names in a few runs, and says how far it is', async () => {
    for (let number = 0; number < 5000; number++) fs.writeFileSync(path.join(disk, `file-${number}`), '')
    const seen: (number | undefined)[] = []
    const { facts, listing } = await audit([disk], { items: items => seen.push(items) })
    expect(listing.length).toBe(5001)
    expect(facts).toMatchObject({ listed: 5001, seen: 5000, repeated: 0 })
    expect(facts.runs).toBe(6)
    expect(seen.at(-1)).toBe(5000)
  })

  it('long names: no run exceeds what a program may be given', async () => {
    const long = path.join(disk, 'd'.repeat(200), 'e'.repeat(200))
    fs.mkdirSync(long, { recursive: true })
    for (let number = 0; number < 1200; number++) fs.writeFileSync(path.join(long, `${number}-${'f'.repeat(200)}`), '')
    const { facts } = await audit([disk])
    expect(facts).toMatchObject({ listed: 1203, failed: 0, repeated: 0 })
    // 1,200 names of more than 600 bytes, 96 KiB a run.
    expect(facts.runs).toBeGreaterThanOrEqual(8)
  })

  it('stops after so many entries and says where', async () => {
    fs.mkdirSync(path.join(disk, 'deep'))
    for (let number = 0; number < 20; number++) fs.writeFileSync(path.join(disk, 'deep', `${number}`), '')
    const { outcome, facts } = await audit([disk], { maxEntries: 10 })
    expect(outcome).toBe('collected')
    expect(facts).toMatchObject({ bounds: ['entries'], seen: 10, listed: 11 })
    expect(facts.roots[0]).toMatchObject({ notReached: 1 })
  })

  it('stops when told to', async () => {
    const stop = new AbortController()
    for (let number = 0; number < 3000; number++) fs.writeFileSync(path.join(disk, `${number}`), '')
    const { outcome, reason } = await audit([disk], { signal: stop.signal, items: () => stop.abort() })
    expect(outcome).toBe('interrupted')
    expect(reason).toMatch(/^stopped after \d+ directory entries$/)
  })
})

describe('a host that lies', () => {
  /** Prints no attributes for any name. */
  const BLIND = 'shift; for name; do printf -- "--------------e------- %s\\n" "$name"; done'

  it('a replaced lsattr that hides +i is contradicted by the kernel', async () => {
    for (const name of ['locked', 'free']) fs.writeFileSync(path.join(disk, name), 'inert')
    chattr('+i', path.join(disk, 'locked'))
    const { facts, records } = await audit([disk], { lsattr: replacement(BLIND) })
    expect(records).toMatchObject([{ path: path.join(disk, 'locked'), hidden: true, immutable: false }])
    expect(facts).toMatchObject({ hidden: 1, immutable: 0, listed: 3, crossChecked: 3 })
  })

  it('a replaced lsattr that leaves a name out loses no name', async () => {
    for (const name of ['a', 'b', 'c']) fs.writeFileSync(path.join(disk, name), 'inert')
    chattr('+i', path.join(disk, 'b'))
    const script = `shift; for name; do case $name in */b) ;; *) printf -- "---------------------- %s\\n" "$name";; esac; done`
    const { facts, records } = await audit([disk], { lsattr: replacement(script) })
    // Nothing was said about b; the kernel knows.
    expect(records).toMatchObject([{ path: path.join(disk, 'b'), state: 'unclear', immutable: true }])
    expect(facts).toMatchObject({ listed: 3, unclear: 1, immutable: 1 })
    expect(facts.repeated).toBeGreaterThan(0)
  })

  it('one name that hangs lsattr costs that name only', async () => {
    for (const name of ['a', 'b', 'stuck', 'd', 'e']) fs.writeFileSync(path.join(disk, name), 'inert')
    const script = `shift; for name; do case $name in */stuck) exec sleep 60;; esac; printf -- "---------------------- %s\\n" "$name"; done`
    const { outcome, facts, records } = await audit([disk], { lsattr: replacement(script), limit: 1 })
    expect(outcome).toBe('collected')
    expect(records).toMatchObject([{ path: path.join(disk, 'stuck'), state: 'failed', reason: expect.stringContaining('ended after 1 s') }])
    expect(facts).toMatchObject({ listed: 5, failed: 1 })
  })

  it('nonsense is no evidence of anything', async () => {
    fs.writeFileSync(path.join(disk, 'a'), 'inert')
    const { outcome, facts, records } = await audit([disk], { lsattr: replacement('echo everything is fine; echo "really" >&2') })
    expect(outcome).toBe('failed')
    expect(facts).toMatchObject({ listed: 0, unclear: 2 })
    expect(records[0]).toMatchObject({ state: 'unclear', reason: expect.stringContaining('it said really') })
  })

  it('a flood is stopped', async () => {
    fs.writeFileSync(path.join(disk, 'a'), 'inert')
    const { outcome, facts } = await audit([disk], { lsattr: replacement('exec yes') })
    expect(outcome).toBe('failed')
    expect(facts).toMatchObject({ listed: 0, failed: 2 })
  })

  it('lsattr that is gone by now is an error, and what was begun is kept', async () => {
    await expect(audit([disk], { lsattr: path.join(cases, 'gone') })).rejects.toThrow('could not be started (ENOENT)')
  })
})

describe('nothing to read', () => {
  it('no path exists', async () => {
    expect(await audit([path.join(disk, 'gone')])).toMatchObject({ outcome: 'empty', reason: 'none of the paths exists', listing: [] })
  })

  it('only a file system of the kernel', async () => {
    expect(await audit(['/proc'])).toMatchObject({ outcome: 'failed', listing: [] })
  })
})

it('in a whole tree of plants, mounts and traps: everything is found, nothing hangs, nothing is followed', () => {
  const recorded = recordAttributes()
  const listing = String(recorded['lsattr_-d.txt']).split('\n').slice(0, -1)
  const records = String(recorded['attributes.jsonl'])
    .split('\n')
    .slice(0, -1)
    .map(line => JSON.parse(line) as JsonObject)
  const found = (letter: 'immutable' | 'appendOnly'): unknown[] =>
    records
      .filter(record => record[letter])
      .map(({ shown, path }) => shown ?? path)
      .sort()
  expect(found('immutable')).toEqual(
    [
      '/dev/shm/kworker',
      '/etc/cron.d/update',
      '/etc/ld.so.preload',
      '/etc/passwd',
      '/etc/resolv.conf',
      "/home/user/it's mine",
      '/root/.ssh/authorized_keys',
      '/tmp/odd/clear\\x1b[2J',
      '/tmp/odd/\\xff\\xfe',
      '/tmp/odd/\\xff\\xfe.d/inner',
      '/var/spool/cron/crontabs/root',
    ].sort(),
  )
  expect(found('appendOnly')).toEqual(['/etc/ld.so.preload', '/root/.bash_history', '/tmp/.x'])
  // ramfs keeps no attributes: named, and not clean.
  expect(listing.filter(line => line.startsWith('[not-supported]'))).toEqual([
    '[not-supported]        /home/shared',
    '[not-supported]        /home/shared/report',
  ])
  const [action] = JSON.parse(String(recorded['actions.json'])) as [{ outcome: string; facts: JsonObject & { mounts: JsonObject[] } }]
  expect(action.outcome).toBe('collected')
  expect(action.facts).toMatchObject({ notSupported: 2, failed: 0, unclear: 0, mountsLeftOut: 2 })
  // A FUSE mount whose server never answers, and proc.
  expect(action.facts.mounts.map(({ path }) => path).sort()).toEqual(['/home/user/dead', '/home/user/proc'])
  // The bind mount of /etc shows nothing new; links, the FIFO and their targets are not listed.
  expect(listing.filter(line => / \/tmp\/(etc|loop|passwd|fifo)/.test(line))).toEqual([])
})
