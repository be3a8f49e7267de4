/** Saves every socket with its owner, and the state of the network around them, before they time out. */
import { type Action, defineStep, type Finding, type HostView, type Rejected, type StepArtifacts, type Verdict } from '../../src/step.js'
import { TABLE } from '../isolation.js'
import { incomplete, records } from '../records.js'
import { installLine, type ToolName } from '../tools.js'

const SOCKETS = 'sockets.jsonl'
/** Before and after the copies of the kernel's tables: what is there on both sides of a look was there during it. */
const SS_BEFORE = 'ss_-OnapieA_all.txt'
const SS_AFTER = 'ss_-tunap.txt'

/** Tables that both views can show; ss knows nothing of udplite and of ICMP sockets. */
const COMPARED = ['tcp', 'tcp6', 'udp', 'udp6', 'raw', 'raw6'] as const

const TABLES = [...COMPARED, 'unix', 'packet', 'netlink', 'icmp', 'icmp6', 'udplite', 'udplite6']
const COUNTERS = ['route', 'ipv6_route', 'arp', 'dev', 'if_inet6', 'snmp', 'snmp6', 'netstat', 'sockstat', 'sockstat6']
const TRACKED = '/proc/net/nf_conntrack'
const TRACKING = '/proc/sys/net/netfilter/nf_conntrack_count'

const RESOLVER = [
  '/etc/resolv.conf',
  '/etc/hosts',
  '/etc/nsswitch.conf',
  '/run/systemd/resolve/resolv.conf',
  '/run/systemd/resolve/stub-resolv.conf',
]

/** The collector writes within a second; with millions of sockets and descriptors it stops by its own bounds. */
const COLLECT_LIMIT = 30
const LIST_LIMIT = 20
/** Half a second at 10,000 rules. */
const RULES_LIMIT = 60
const COPY_LIMIT = 10

export const snapshotConnections = defineStep({
  id: 'snapshot-connections',
  summary: 'Save every socket with its process, routes, neighbours, tracked connections, firewall rules',
  description: `Reads the sockets of every network namespace that a process is in from /proc, with the processes that hold them, and writes them at once
(sockets.jsonl). Then what ss says of this namespace as a second view, copies of the kernel's own tables, addresses, routes, rules, neighbours, tracked
connections, resolver configuration, and the firewall rules: those that were there before, and our own table ${TABLE.family} ${TABLE.name}, with its counters, where
the host is isolated.

Changes nothing. ss, nft and conntrack can make the kernel load its modules for listing (tcp_diag, nf_conntrack_netlink ...). No name is looked up.

Left out: network namespaces that nobody is in (they are named in the facts), VSOCK and SCTP sockets of other namespaces.`,
  references: [
    'RFC 3227, section 2.1 (order of volatility)',
    'proc_pid_net(5)',
    'https://docs.kernel.org/networking/proc_net_tcp.html',
    'ss(8), ip(8), nft(8), conntrack(8)',
    'https://attack.mitre.org/techniques/T1049/',
    'https://attack.mitre.org/techniques/T1014/',
  ],
  options: {},

  async plan({ host }) {
    const tools = new Programs(host)
    const exists = existing(host)
    const copies = (paths: readonly string[]): Action[] => paths.filter(exists).map(copyOf)
    const actions: Action[] = [
      {
        kind: 'collect',
        title: 'Read every socket and who holds it, in every network namespace',
        collector: 'sockets',
        options: { tableBytes: 64 * 1024 ** 2, descriptors: 65_536, ownerSeconds: 4 },
        writes: [SOCKETS],
        expectedBytes: 1024 ** 2,
        expectedSeconds: 1,
        limit: COLLECT_LIMIT,
      },
      ...tools.observe('ss', ['-OnapieA', 'all'], SS_BEFORE, 'List all sockets, the second view'),
      ...copies(TABLES.map(table => `/proc/net/${table}`)),
      ...tools.observe('ss', ['-tunapieO'], SS_AFTER, 'List TCP and UDP sockets again'),
      ...tools.observe('ss', ['-O0nbpe'], 'ss_-O0nbpe.txt', 'List packet sockets with their filters'),
      ...trackedConnections(tools, exists),
      ...tools.observe('ip', ['-d', '-s', 'addr'], 'ip_-d_-s_addr.txt', 'List interfaces and addresses'),
      ...tools.observe('ip', ['-4', 'route', 'show', 'table', 'all'], 'ip_-4_route_show_table_all.txt', 'List IPv4 routes'),
      ...tools.observe('ip', ['-6', 'route', 'show', 'table', 'all'], 'ip_-6_route_show_table_all.txt', 'List IPv6 routes'),
      ...tools.observe('ip', ['neigh'], 'ip_neigh.txt', 'List neighbours'),
      ...tools.observe('ip', ['-4', 'rule'], 'ip_-4_rule.txt', 'List IPv4 routing rules'),
      ...tools.observe('ip', ['-6', 'rule'], 'ip_-6_rule.txt', 'List IPv6 routing rules'),
      ...tools.observe('ip', ['netns'], 'ip_netns.txt', 'List named network namespaces'),
      ...copies(COUNTERS.map(table => `/proc/net/${table}`)),
      ...copies(RESOLVER),
      ...firewall(host, tools, exists),
    ]
    return { actions, missing: tools.missing, rejected: tools.rejected }
  },

  async interpret(collected) {
    return compareViews(collected)
  },
})

/** The programs of this host, and what could not be planned for the lack of one. */
class Programs {
  readonly missing: Rejected[] = []
  readonly rejected: Rejected[] = []
  private readonly host: HostView

  constructor(host: HostView) {
    this.host = host
  }

  /** No action where the host lacks the program, which is then named as missing, once. */
  observe(
    tool: ToolName,
    args: readonly string[],
    stdout: string,
    title: string,
    accept?: readonly number[],
    limit = LIST_LIMIT,
  ): Action[] {
    const program = this.host.which(tool)
    if (program === undefined) {
      this.lack(tool, `what ${tool} lists`, installLine(this.host, tool))
      return []
    }
    return [{ kind: 'observe', title, argv: [program, ...args], stdout, ...(accept === undefined ? {} : { accept }), limit }]
  }

  /** A program that is no tool of ours: used where it is there. */
  observeIfThere(name: string, args: readonly string[], stdout: string, title: string): Action[] {
    const program = this.host.which(name)
    return program === undefined ? [] : [{ kind: 'observe', title, argv: [program, ...args], stdout, limit: LIST_LIMIT }]
  }

  lack(name: string, what: string, remedy: string): void {
    const why = `${name} is not installed`
    if (!this.missing.some(lacking => lacking.why === why)) this.missing.push({ what, why, remedy })
  }
}

/** Only where the kernel tracks: conntrack(8) would load the modules for it. */
function trackedConnections(tools: Programs, exists: (path: string) => boolean): Action[] {
  if (!exists(TRACKING)) {
    tools.rejected.push({ what: 'tracked connections', why: 'the kernel of this host tracks none', remedy: '' })
    return []
  }
  return [
    ...tools.observe('conntrack', ['-L', '-f', 'ipv4'], 'conntrack_-L_-f_ipv4.txt', 'List tracked IPv4 connections'),
    ...tools.observe('conntrack', ['-L', '-f', 'ipv6'], 'conntrack_-L_-f_ipv6.txt', 'List tracked IPv6 connections'),
    ...(exists(TRACKED) ? [copyOf(TRACKED)] : []),
  ]
}

function firewall(host: HostView, tools: Programs, exists: (path: string) => boolean): Action[] {
  const table = [TABLE.family, TABLE.name]
  const actions = [
    ...tools.observe('nft', ['-s', 'list', 'ruleset'], 'nft_-s_list_ruleset.txt', 'List firewall rules', undefined, RULES_LIMIT),
    // 1: there is no such table, the host is not isolated.
    ...tools.observe(
      'nft',
      ['-j', 'list', 'table', ...table],
      `nft_-j_list_table_${table.join('_')}.json`,
      'Read the counters of the cut',
      [0, 1],
      RULES_LIMIT,
    ),
  ]
  for (const [program, names] of [
    ['iptables', '/proc/net/ip_tables_names'],
    ['ip6tables', '/proc/net/ip6_tables_names'],
  ] as const) {
    const save = tools.observeIfThere(`${program}-save`, ['-c'], `${program}-save_-c.txt`, `List the rules of ${program}`)
    actions.push(...save)
    // Rules of the old kind, which nft does not list. Asking for them where there are none would load their modules.
    if (!exists(names) || readOr(host, names).trim() === '') continue
    const legacy = tools.observeIfThere(
      `${program}-legacy-save`,
      ['-c'],
      `${program}-legacy-save_-c.txt`,
      `List the old rules of ${program}`,
    )
    if (legacy.length === 0 && save.length === 0)
      tools.lack(`${program}-save`, `the rules of ${program}, which nft does not list`, iptablesLine(host))
    actions.push(...legacy, copyOf(names))
  }
  return actions
}

function iptablesLine(host: HostView): string {
  const manager = (['apt-get', 'dnf', 'apk'] as const).find(name => host.which(name) !== undefined)
  if (manager === undefined) return 'install iptables'
  return manager === 'apk' ? 'apk add iptables' : `${manager} install iptables`
}

/** '/proc/net/tcp' -> proc_net_tcp */
function copyOf(path: string): Action {
  return { kind: 'copy', title: `Copy ${path}`, from: path, to: nameOf(path), limit: COPY_LIMIT }
}

function nameOf(path: string): string {
  return path.slice(1).replaceAll('/', '_')
}

function existing(host: HostView): (path: string) => boolean {
  return path => {
    try {
      host.lstat(path)
      return true
    } catch {
      return false
    }
  }
}

function readOr(host: HostView, path: string): string {
  try {
    return host.read(path, 4096)
  } catch {
    return ''
  }
}

const RULE = 'socket-hidden'

/** What the collector writes, as far as it matters here; src/collectors/proc/sockets.ts has the whole. */
interface SocketRecord {
  readonly own: boolean
  readonly protocol: string
  readonly state: string
  readonly local?: { readonly address: string; readonly port: number }
  readonly remote?: { readonly address: string; readonly port: number }
  readonly inode: number
  readonly uid: number
  readonly owners: readonly {
    readonly pid: number
    readonly fd: number
    readonly comm: string
    readonly exe: string
    readonly command: string
  }[]
}

/** States in which a socket stays: what is only passing may well be in one view and not in the other. */
const LASTING = new Set(['LISTEN', 'ESTABLISHED', 'ESTAB', 'UNCONN'])

/** Findings are for people. */
const MOST_FINDINGS = 32

/**
 * A kernel rootkit that filters /proc/net leaves the answers to ss, and the reverse: so both are asked, twice each, in turns
 * (/proc, ss, /proc, ss). Hidden is what one view has on both sides of a look of the other that does not have it, with a
 * process that holds it. Sockets are told apart by their inode, which the kernel does not
 * use again for billions of others, or by the descriptor that holds them.
 */
function compareViews(collected: StepArtifacts): readonly Verdict[] {
  const ours = incomplete(collected, SOCKETS)
  if (ours !== undefined) return [{ rule: RULE, notAssessed: ours, remedy: 'run ir snapshot-connections again, as root' }]
  for (const name of [SS_BEFORE, SS_AFTER]) {
    const why = incomplete(collected, name)
    if (why !== undefined)
      return [{ rule: RULE, notAssessed: `no second view, ${why}`, remedy: 'install ss: package iproute2, iproute or iproute2-ss' }]
  }
  const kernel = new Map(COMPARED.map(table => [table as string, kernelInodes(collected, table)]))
  const before = ssSockets(collected.lines(SS_BEFORE))
  const after = ssSockets(collected.lines(SS_AFTER))
  const listed = new Set([...before, ...after].flatMap(namesOf))

  const findings: Finding[] = []
  const known = new Set<number>()
  let [compared, unowned] = [0, 0]
  for (const { line, record } of records<SocketRecord>(collected, SOCKETS)) {
    const again = kernel.get(record.protocol)
    if (!record.own || again === undefined) continue
    known.add(record.inode)
    if (!LASTING.has(record.state) || !again.has(record.inode)) continue
    if (record.owners.length === 0) {
      unowned += 1
      continue
    }
    compared += 1
    const names = [String(record.inode), ...record.owners.map(({ pid, fd }) => `${pid}/${fd}`)]
    if (!names.some(name => listed.has(name))) findings.push(hiddenFromSs(record, line))
  }
  const inKernel = new Set([...kernel.values()].flatMap(inodes => [...(inodes ?? [])]))
  const stayed = new Set(after.map(socket => socket.inode))
  for (const socket of before) {
    const { inode } = socket
    if (inode === undefined || !stayed.has(inode) || known.has(inode) || inKernel.has(inode)) continue
    if (socket.holders.length > 0 && LASTING.has(socket.state) && kernelHas(kernel, socket.netid)) findings.push(hiddenFromProc(socket))
  }
  if (findings.length > 0) return bounded(findings)
  const absent = COMPARED.filter(table => kernel.get(table) === undefined)
  if (compared === 0 && (unowned > 0 || absent.length === COMPARED.length)) {
    return [
      {
        rule: RULE,
        notAssessed: unowned > 0 ? `no process could be seen to hold any of ${unowned} sockets` : "the kernel's tables could not be copied",
        remedy: 'run ir as root',
      },
    ]
  }
  const left = unowned > 0 ? `; ${unowned} that no visible process holds were left out` : ''
  return [{ rule: RULE, clear: `${compared} lasting TCP, UDP and raw sockets with an owner stand in /proc/net and in ss alike${left}` }]
}

/** Undefined when there is no such table here: then ss cannot be checked against it. */
function kernelInodes(collected: StepArtifacts, table: string): Set<number> | undefined {
  const name = nameOf(`/proc/net/${table}`)
  if (incomplete(collected, name) !== undefined) return undefined
  const inodes = new Set<number>()
  // Behind the addresses: state, queues, timer, retransmits, uid, timeout, inode.
  const pattern = /^ *\d+: [0-9A-F:]+ [0-9A-F:]+ [0-9A-F]{2} [0-9A-F:]+ [0-9A-F:]+ [0-9A-F]+ +\d+ +\d+ +(\d+)/
  for (const line of collected.lines(name)) {
    const inode = pattern.exec(line)?.[1]
    if (inode !== undefined) inodes.add(Number(inode))
  }
  return inodes
}

/** ss does not tell the families apart: both tables must be there to say that a socket is in neither. */
function kernelHas(kernel: ReadonlyMap<string, Set<number> | undefined>, netid: string): boolean {
  return kernel.get(netid) !== undefined && kernel.get(`${netid}6`) !== undefined
}

interface SsSocket {
  readonly netid: string
  readonly state: string
  readonly local: string
  readonly peer: string
  /** Missing where ss has it from /proc because the kernel cannot list this kind in any other way. */
  readonly inode: number | undefined
  /** 'pid/fd' of whoever holds it. */
  readonly holders: readonly string[]
  /** '("sshd",pid=812,fd=3)' and so on, as printed. */
  readonly users: string
  /** Of the file, from 1. */
  readonly line: number
  readonly artifact: string
}

const SS_LINE = /^(tcp|udp|raw)\s+([A-Z0-9-]+)\s+\d+\s+\d+\s+(\S+)\s+(\S+)(.*)$/s

/** One of 'users:(("sshd",pid=812,fd=3),...)'. Names are at most 15 bytes, but may hold quotes, brackets and newlines. */
const SS_USER = /\(".{0,64}?",pid=(\d+),fd=(\d+)\)(?:,(?=\(")|(?=\)(?:\s|$)))/sy

/** By what a socket of ss can be told to be one of ours. */
function namesOf({ inode, holders }: SsSocket): string[] {
  return inode === undefined ? [...holders] : [String(inode), ...holders]
}

/** The TCP, UDP and raw sockets in what `ss -ape` prints, one a line (-O). */
export function ssSockets(lines: Iterable<string>): SsSocket[] {
  const found: SsSocket[] = []
  for (const { text, line } of joined(lines)) {
    const parts = SS_LINE.exec(text)
    if (parts === null) continue
    const [, netid, state, local, peer, rest] = parts as unknown as string[]
    const users = usersIn(rest as string)
    // Behind the users: their names could hold the word.
    const inode = /\sino:(\d{1,15})(?:\s|$)/.exec((rest as string).slice(users.end))?.[1]
    found.push({
      netid: netid as string,
      state: state as string,
      local: local as string,
      peer: peer as string,
      inode: inode === undefined ? undefined : Number(inode),
      holders: users.holders,
      users: users.text,
      line,
      artifact: `snapshot-connections/${SS_BEFORE}`,
    })
  }
  return found
}

function usersIn(rest: string): { readonly text: string; readonly holders: readonly string[]; readonly end: number } {
  const begin = /^\s*users:\(/.exec(rest)?.[0].length
  if (begin === undefined) return { text: '', holders: [], end: 0 }
  const holders: string[] = []
  let end = begin
  SS_USER.lastIndex = begin
  for (let user = SS_USER.exec(rest); user !== null; user = SS_USER.exec(rest)) {
    holders.push(`${user[1]}/${user[2]}`)
    end = SS_USER.lastIndex
  }
  return { text: rest.slice(begin, end), holders, end }
}

/** Lines that begin no socket belong to the one before: a newline in the name of a program breaks a line in two. */
function* joined(lines: Iterable<string>): Iterable<{ readonly text: string; readonly line: number }> {
  let held: { text: string; line: number } | undefined
  let number = 0
  for (const line of lines) {
    number += 1
    if (/^[a-z0-9_?]+\s+[A-Z0-9-]+\s+\d+\s+\d+\s/.test(line) || held === undefined) {
      if (held !== undefined) yield held
      held = { text: line, line: number }
    } else if (held.text.length < 65_536) held.text += `\n${line}`
  }
  if (held !== undefined) yield held
}

function hiddenFromSs(record: SocketRecord, line: number): Finding {
  const [local, remote] = [record.local, record.remote].map(end => (end === undefined ? '?' : withPort(end)))
  const owners = record.owners.map(owner => `process ${owner.pid} (${owner.comm}, ${owner.exe || 'executable not seen'})`)
  return {
    rule: RULE,
    title: 'A socket is hidden from ss',
    severity: 'critical',
    subject: { kind: 'connection', name: `${record.protocol} ${local} ${remote}` },
    why: [
      `/proc/net/${record.protocol} lists inode ${record.inode}, ${record.state}, before and after ss was asked; ss did not list it`,
      `it is held by ${owners.join(', ')}`,
    ],
    attack: ['T1014'],
    evidence: [
      { artifact: `snapshot-connections/${SOCKETS}`, line },
      { artifact: `snapshot-connections/${nameOf(`/proc/net/${record.protocol}`)}` },
      { artifact: `snapshot-connections/${SS_BEFORE}` },
    ],
    next: 'Trust no program of this host: its ss, a library that it loads, or its kernel was changed. Compare the hash of ss with its package on another machine, and look into the memory image.',
  }
}

function hiddenFromProc(socket: SsSocket): Finding {
  return {
    rule: RULE,
    title: 'A socket is hidden from /proc',
    severity: 'critical',
    subject: { kind: 'connection', name: `${socket.netid} ${socket.local} ${socket.peer}` },
    why: [
      `ss lists inode ${socket.inode}, ${socket.state}, before and after /proc/net was read; /proc/net does not list it`,
      `it is held by ${socket.users}`,
    ],
    attack: ['T1014'],
    evidence: [
      { artifact: socket.artifact, line: socket.line },
      { artifact: `snapshot-connections/${nameOf(`/proc/net/${socket.netid}`)}` },
    ],
    next: 'Trust nothing that the kernel of this host says: a rootkit filters /proc. Look into the memory image.',
  }
}

function withPort({ address, port }: { readonly address: string; readonly port: number }): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`
}

function bounded(findings: readonly Finding[]): readonly Finding[] {
  const shown = findings.slice(0, MOST_FINDINGS)
  const last = shown.at(-1)
  if (last === undefined || findings.length <= MOST_FINDINGS) return shown
  return [
    ...shown.slice(0, -1),
    { ...last, why: [...last.why, `${findings.length - MOST_FINDINGS} more sockets are hidden in the same way`] },
  ]
}
