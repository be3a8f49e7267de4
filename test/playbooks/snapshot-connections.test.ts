/** What the step plans on hosts of all kinds, does on a real one, and makes of what it saw. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { snapshotConnections, ssSockets } from '../../playbooks/steps/snapshot-connections.js'
import { openHost } from '../../src/host.js'
import type { Action, ActionResult, Finding, Plan, Verdict } from '../../src/step.js'
import { collectedFrom } from '../helpers/collected.js'
import { openNamespace } from '../helpers/namespace.js'

const FIXTURE = 'snapshot-connections/debian-12'

describe('plan', () => {
  let root: string
  beforeEach(() => {
    root = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-host-'))
  })
  afterEach(() => fs.rmSync(root, { recursive: true, force: true }))

  const put = (name: string, content = '', mode = 0o644): void => {
    const full = path.join(root, name)
    fs.mkdirSync(path.dirname(full), { recursive: true })
    fs.writeFileSync(full, content, { mode })
  }
  const programs = (...names: string[]): void => names.forEach(name => void put(`/usr/bin/${name}`, '', 0o755))
  const plan = async (): Promise<Extract<Plan, { actions: unknown }>> => {
    const made = await snapshotConnections.plan({ host: openHost({ root }), options: {}, directory: '/case', throughout: false })
    if (!('actions' in made)) throw new Error(JSON.stringify(made))
    return made
  }
  const names = (actions: readonly Action[]): (string | undefined)[] =>
    actions.map(action => (action.kind === 'copy' ? action.to : action.kind === 'collect' ? action.writes[0] : action.stdout))

  it('reads the sockets first, and always, whatever the host lacks', async () => {
    programs('apt-get')
    const { actions, missing, rejected } = await plan()
    expect(actions).toHaveLength(1)
    expect(actions[0]).toMatchObject({ kind: 'collect', collector: 'sockets', writes: ['sockets.jsonl'] })
    expect(missing?.map(({ why, remedy }) => [why, remedy])).toEqual([
      ['ss is not installed', 'apt-get install iproute2'],
      ['ip is not installed', 'apt-get install iproute2'],
      ['nft is not installed', 'apt-get install nftables'],
    ])
    expect(rejected).toEqual([{ what: 'tracked connections', why: 'the kernel of this host tracks none', remedy: '' }])
  })

  it('puts the copies of the tables between two looks of ss', async () => {
    programs('ss', 'ip', 'nft')
    for (const table of ['tcp', 'tcp6', 'udp', 'unix', 'route']) put(`/proc/net/${table}`)
    const { actions, missing } = await plan()
    const order = names(actions)
    expect(missing).toEqual([])
    expect(order.slice(0, 7)).toEqual([
      'sockets.jsonl',
      'ss_-OnapieA_all.txt',
      'proc_net_tcp',
      'proc_net_tcp6',
      'proc_net_udp',
      'proc_net_unix',
      'ss_-tunap.txt',
    ])
    expect(order).toContain('proc_net_route')
    expect(order).not.toContain('proc_net_udp6')
  })

  it('never looks up a name', async () => {
    programs('ss', 'ip', 'nft', 'conntrack')
    put('/proc/sys/net/netfilter/nf_conntrack_count')
    for (const action of (await plan()).actions) {
      if (action.kind !== 'observe') continue
      if (action.argv[0].endsWith('/ss')) expect(action.argv[1]).toMatch(/^-[A-Za-z0]*n/)
      expect(action.argv).not.toContain('-r')
    }
  })

  it('lists tracked connections where the kernel tracks, with or without conntrack', async () => {
    put('/proc/sys/net/netfilter/nf_conntrack_count')
    put('/proc/net/nf_conntrack')
    const without = await plan()
    expect(names(without.actions)).toContain('proc_net_nf_conntrack')
    expect(without.missing?.map(({ why }) => why)).toContain('conntrack is not installed')
    programs('conntrack')
    expect(names((await plan()).actions)).toEqual(expect.arrayContaining(['conntrack_-L_-f_ipv4.txt', 'conntrack_-L_-f_ipv6.txt']))
  })

  it('lists old rules of iptables only where there are some', async () => {
    programs('nft', 'ip', 'ss', 'iptables-save', 'iptables-legacy-save', 'dnf')
    expect(names((await plan()).actions)).toContain('iptables-save_-c.txt')
    expect(names((await plan()).actions)).not.toContain('iptables-legacy-save_-c.txt')
    put('/proc/net/ip_tables_names', 'filter\n')
    put('/proc/net/ip6_tables_names', 'filter\n')
    const { actions, missing } = await plan()
    expect(names(actions)).toEqual(expect.arrayContaining(['iptables-legacy-save_-c.txt', 'proc_net_ip_tables_names']))
    expect(missing).toEqual([
      { what: 'the rules of ip6tables, which nft does not list', why: 'ip6tables-save is not installed', remedy: 'dnf install iptables' },
    ])
  })

  it('copies the resolver state that is there', async () => {
    put('/etc/resolv.conf')
    put('/run/systemd/resolve/resolv.conf')
    expect(names((await plan()).actions).slice(1)).toEqual(['etc_resolv.conf', 'run_systemd_resolve_resolv.conf'])
  })

  it('takes the absence of our table for no failure', async () => {
    programs('nft')
    const counters = (await plan()).actions.find(action => action.kind === 'observe' && action.stdout?.startsWith('nft_-j'))
    expect(counters).toMatchObject({ accept: [0, 1], stdout: 'nft_-j_list_table_inet_ir_isolate.json' })
  })
})

describe('performed in a namespace with sockets of each kind', () => {
  it('saves everything, sees itself in both views, and finds nothing hidden', async () => {
    await using namespace = await openNamespace()
    const holder = namespace.start(['/usr/bin/python3', '-c', HOLDER])
    await new Promise(resolve => holder.stdout?.once('data', resolve))
    await namespace.must(['nft', 'add table inet before'])
    const module = new URL('../helpers/snapshot-performed.ts', import.meta.url)
    const performed = await namespace.call<Performed>(module, { step: 'snapshot-connections', name: 'snapshotConnections' })
    const bad = performed.results.filter(({ outcome }) => outcome !== 'collected' && outcome !== 'empty')
    expect(bad).toEqual([])
    expect(performed.artifacts['nft_-s_list_ruleset.txt']).toContain('table inet before')
    expect(performed.artifacts['ss_-tunap.txt']).toContain(`pid=${holder.pid}`)
    const records = (performed.artifacts['sockets.jsonl'] ?? '')
      .split('\n')
      .slice(0, -1)
      .map(line => JSON.parse(line) as { own: boolean; protocol: string; owners: { pid: number }[] })
    const held = records.filter(({ owners }) => owners.some(({ pid }) => pid === holder.pid))
    // Its standard streams are unix sockets that we made, in our namespace.
    expect(held.filter(({ protocol }) => protocol !== 'unix').every(({ own }) => own)).toBe(true)
    expect(new Set(held.map(({ protocol }) => protocol))).toEqual(new Set(['tcp', 'tcp6', 'udp', 'raw', 'packet', 'netlink', 'unix']))
    expect(performed.verdicts).toEqual([
      { rule: 'socket-hidden', clear: expect.stringMatching(/^6 lasting TCP, UDP and raw sockets with an owner stand in/) },
    ])
  })
})

const HOLDER = `
import socket, sys
a = socket.create_server(('127.0.0.1', 8080))
b = socket.create_connection(('127.0.0.1', 8080))
c = a.accept()
d = socket.create_server(('::', 8443), family=socket.AF_INET6)
e = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
e.bind(('127.0.0.1', 53))
f = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
g = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
h = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
h.bind((0, 0))
i = socket.socketpair()
print('ready', flush=True)
sys.stdin.read()
`

interface Performed {
  readonly results: readonly ActionResult[]
  readonly artifacts: Readonly<Record<string, string>>
  readonly verdicts: readonly Verdict[]
}

describe('interpret', () => {
  const interpret = async (overrides: Parameters<typeof collectedFrom>[1] = {}): Promise<readonly Verdict[]> =>
    (await snapshotConnections.interpret?.(collectedFrom(FIXTURE, overrides))) ?? []
  const recorded = (name: string): string => collectedFrom(FIXTURE).text(name)
  const without = (name: string, ...parts: string[]): string =>
    recorded(name)
      .split('\n')
      .filter(line => !parts.some(part => line.includes(part)))
      .join('\n')
  const findings = (verdicts: readonly Verdict[]): Finding[] => verdicts.filter(verdict => 'severity' in verdict)

  /** The planted connection to port 4444, by what each view knows it by. */
  const beacon = JSON.parse(
    recorded('sockets.jsonl')
      .split('\n')
      .find(line => line.includes('"port":4444') && line.includes('"own":true') && line.includes('ESTABLISHED')) ?? '{}',
  ) as { inode: number; local: { port: number }; owners: { pid: number; fd: number }[] }
  const SS = ['ss_-OnapieA_all.txt', 'ss_-tunap.txt'] as const

  it('of the recorded host is clear, with what was measured', async () => {
    expect(await interpret()).toEqual([
      { rule: 'socket-hidden', clear: '10 lasting TCP, UDP and raw sockets with an owner stand in /proc/net and in ss alike' },
    ])
  })

  it('finds a socket that ss does not show', async () => {
    const files = Object.fromEntries(SS.map(name => [name, without(name, `ino:${beacon.inode} `)]))
    const found = findings(await interpret({ files }))
    const line =
      recorded('sockets.jsonl')
        .split('\n')
        .findIndex(text => text.includes(`"inode":${beacon.inode},`)) + 1
    expect(found).toHaveLength(1)
    expect(found[0]).toMatchObject({
      rule: 'socket-hidden',
      severity: 'critical',
      attack: ['T1014'],
      subject: { kind: 'connection', name: `tcp 192.0.2.10:${beacon.local.port} 192.0.2.7:4444` },
      evidence: [
        { artifact: 'snapshot-connections/sockets.jsonl', line },
        { artifact: 'snapshot-connections/proc_net_tcp' },
        expect.anything(),
      ],
    })
    expect(found[0]?.why.join()).toContain(`process ${beacon.owners[0]?.pid} (python3, /usr/bin/python3.11)`)
  })

  it('finds a socket that /proc does not show', async () => {
    const files = {
      'sockets.jsonl': without('sockets.jsonl', `"inode":${beacon.inode},`),
      proc_net_tcp: without('proc_net_tcp', ` ${beacon.inode} `),
    }
    const found = findings(await interpret({ files }))
    expect(found).toHaveLength(1)
    expect(found[0]).toMatchObject({
      title: 'A socket is hidden from /proc',
      severity: 'critical',
      subject: { name: `tcp 192.0.2.10:${beacon.local.port} 192.0.2.7:4444` },
    })
    expect(found[0]?.why.join()).toContain(`pid=${beacon.owners[0]?.pid}`)
  })

  it('takes what came or went between the looks for what it is', async () => {
    // Closed before the kernel was asked again.
    const closed = Object.fromEntries([
      ...SS.map(name => [name, without(name, `ino:${beacon.inode} `)]),
      ['proc_net_tcp', without('proc_net_tcp', ` ${beacon.inode} `)],
    ])
    expect(findings(await interpret({ files: closed }))).toEqual([])
    // Opened after our reading, seen by everybody after that.
    expect(findings(await interpret({ files: { 'sockets.jsonl': without('sockets.jsonl', `"inode":${beacon.inode},`) } }))).toEqual([])
    // Opened after the kernel was asked.
    const late = {
      'sockets.jsonl': without('sockets.jsonl', `"inode":${beacon.inode},`),
      proc_net_tcp: without('proc_net_tcp', ` ${beacon.inode} `),
      'ss_-OnapieA_all.txt': without('ss_-OnapieA_all.txt', `ino:${beacon.inode} `),
    }
    expect(findings(await interpret({ files: late }))).toEqual([])
  })

  it('says nothing of sockets without an owner', async () => {
    const sockets = recorded('sockets.jsonl').replaceAll(/"owners":\[.*?\]\}/g, '"owners":[]}')
    const files = { 'sockets.jsonl': sockets, ...Object.fromEntries(SS.map(name => [name, without(name, 'ino:')])) }
    expect(await interpret({ files })).toEqual([
      { rule: 'socket-hidden', notAssessed: 'no process could be seen to hold any of 10 sockets', remedy: 'run ir as root' },
    ])
  })

  it('does not assess what it has not got', async () => {
    for (const name of ['sockets.jsonl', ...SS]) {
      expect(await interpret({ without: [name] })).toEqual([
        expect.objectContaining({ notAssessed: expect.stringContaining(`there is no ${name}`) }),
      ])
    }
    const cut: ActionResult[] = [
      {
        id: 'snapshot-connections/2',
        outcome: 'timed-out',
        reason: 'ss was ended after 20 s',
        artifacts: [{ path: `data/snapshot-connections/${SS[0]}` }],
      },
    ]
    expect(await interpret({ actions: cut })).toEqual([
      expect.objectContaining({ notAssessed: `no second view, ${SS[0]} is not whole: ss was ended after 20 s` }),
    ])
    const tables = ['tcp', 'tcp6', 'udp', 'udp6', 'raw', 'raw6'].map(table => `proc_net_${table}`)
    expect(await interpret({ without: tables })).toEqual([
      expect.objectContaining({ notAssessed: "the kernel's tables could not be copied" }),
    ])
  })

  it('survives evidence of any bytes', async () => {
    await fc.assert(
      fc.asyncProperty(fc.string(), fc.string(), fc.string(), async (sockets, ss, tcp) => {
        const files = { 'sockets.jsonl': sockets, [SS[0]]: ss, [SS[1]]: ss, proc_net_tcp: tcp }
        expect((await interpret({ files })).length).toBeGreaterThan(0)
      }),
      { numRuns: 50 },
    )
  })
})

describe('what ss prints', () => {
  const line = (users: string): string =>
    `tcp   ESTAB  0      0      192.0.2.10:22   [2001:db8::7]:49364 ${users} timer:(keepalive,10sec,0) ino:4711 sk:1 cgroup:/ <-> cubic`

  it('is read with owners and inode', () => {
    expect(ssSockets([line('users:(("sshd",pid=812,fd=4),("sshd-session",pid=900,fd=4))')])).toEqual([
      expect.objectContaining({ netid: 'tcp', state: 'ESTAB', peer: '[2001:db8::7]:49364', inode: 4711, holders: ['812/4', '900/4'] }),
    ])
    expect(ssSockets([line('')])).toEqual([expect.objectContaining({ holders: [], inode: 4711 })])
  })

  it('cannot be misled by the name of a program', () => {
    for (const name of ['x ino:1 ', '")) ino:1 y', 'a",pid=1,fd=2', '",pid=1,fd=1),', '((((', 'users:(("', '\\', '"']) {
      const [socket] = ssSockets([line(`users:(("${name}",pid=812,fd=4))`)])
      expect(socket?.inode, name).toBe(4711)
      expect(socket?.holders, name).toContain('812/4')
    }
    const [socket] = ssSockets(line('users:(("a\nb",pid=812,fd=4))').split('\n'))
    expect(socket).toMatchObject({ inode: 4711, holders: ['812/4'], line: 1 })
  })

  it('of any other form is nothing, and takes no longer for many owners', () => {
    fc.assert(fc.property(fc.array(fc.string()), lines => void ssSockets(lines)))
    const many = `users:((${'("a",pid=1,fd=1),'.repeat(20_000)}`
    expect(ssSockets([line(many)])).toHaveLength(1)
  })
})
