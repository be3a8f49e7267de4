/**
 * Who is connected: the address from which the engineer came over SSH, and the ports by which SSH is reached here.
 *
 * sudo drops SSH_CONNECTION, so it is read from the environment of our ancestors. tmux and screen keep that of an older session,
 * so it counts only while its connection is established.
 */
import type { HostView } from '../src/step.js'
import { formatNetwork, isLoopback, type Network, parseNetwork, parseProcAddress } from './address.js'

export interface Endpoint {
  readonly address: Network
  readonly port: number
}

export interface SshConnection {
  /** Where the engineer is, as this host sees it. */
  readonly peer: Endpoint
  /** Our end. */
  readonly server: Endpoint
}

export type Responder =
  | (SshConnection & {
      readonly found: true
      /** The ancestor that told. */
      readonly pid: number
      /** In what: the variable SSH_CONNECTION, or the only connection of an SSH server. */
      readonly by: 'environment' | 'connection'
    })
  | { readonly found: false; readonly why: string }

/** What SSH uses when nobody says otherwise: sshd_config(5). */
const SSH_PORT = 22

/** Programs that hold the connection of an SSH session. OpenSSH 9.8 split sshd-session off sshd (its release notes). */
const SSH_SERVERS = ['sshd', 'sshd-session', 'dropbear']

/** Bounds of what is looked at; real hosts stay far below. */
const ANCESTORS_MOST = 64
const PROCESSES_MOST = 65_536
const DESCRIPTORS_MOST = 4096
const SOCKETS_BYTES = 64 * 1024 ** 2
const ENVIRONMENT_BYTES = 1024 ** 2
const CONFIG_FILES_MOST = 64

/** Looks for the SSH connection that this process was started through. `sockets` from `tcpSockets`, read once for all questions. */
export function findResponder(host: HostView, sockets: readonly TcpSocket[]): Responder {
  const ancestors = ancestorsOf(host, ownPid(host))
  const stale: string[] = []
  for (const { pid } of ancestors) {
    const connection = parseSshConnection(environmentOf(host, pid).get('SSH_CONNECTION'))
    if (connection === undefined) continue
    if (sockets.some(socket => socket.state === ESTABLISHED && same(socket, connection))) {
      return accept(connection, pid, 'environment')
    }
    stale.push(formatNetwork(connection.peer.address))
  }
  for (const { pid, command } of ancestors) {
    if (!SSH_SERVERS.includes(command)) continue
    const own = connectionsOf(host, pid, sockets)
    if (own.length === 1) return accept(own[0] as SshConnection, pid, 'connection')
  }
  if (stale.length > 0) return { found: false, why: `the SSH connection from ${stale[0]} that this terminal remembers is no longer open` }
  return { found: false, why: 'this terminal does not come over SSH' }
}

/** A loopback peer is only the near end of something else: a tunnel, a proxy, an agent. */
function accept(connection: SshConnection, pid: number, by: 'environment' | 'connection'): Responder {
  const { peer, server } = connection
  const address = formatNetwork(peer.address)
  if (isLoopback(peer.address) || address === formatNetwork(server.address)) {
    return {
      found: false,
      why: `this terminal comes from this host itself (${address}), through a tunnel or an agent whose outer address must stay open`,
    }
  }
  return { found: true, ...connection, pid, by }
}

/** The ports by which SSH is reached: 22, those of sshd_config, and those that an SSH server listens on. Ascending. */
export function sshPorts(host: HostView, sockets: readonly TcpSocket[]): readonly number[] {
  const ports = new Set([SSH_PORT, ...configuredPorts(host)])
  const listening = new Map<string, number>()
  for (const { state, inode, local } of sockets) if (state === LISTENING) listening.set(inode, local.port)
  for (const pid of processes(host)) {
    if (!SSH_SERVERS.includes(statOf(host, pid)?.command ?? '')) continue
    for (const inode of socketInodes(host, pid)) {
      const port = listening.get(inode)
      if (port !== undefined) ports.add(port)
    }
  }
  return [...ports].sort((one, other) => one - other)
}

/** Peers of connections that are established to these ports now, each once, at most 20; without those that `leave` covers. */
export function connectedTo(
  sockets: readonly TcpSocket[],
  ports: readonly number[],
  leave: (address: Network) => boolean,
): readonly string[] {
  const peers = new Set<string>()
  for (const { state, local, remote } of sockets) {
    if (state !== ESTABLISHED || !ports.includes(local.port) || isLoopback(remote.address) || leave(remote.address)) continue
    peers.add(formatNetwork(remote.address))
    if (peers.size === 20) break
  }
  return [...peers]
}

/** A TCP socket that is established or listens. */
export interface TcpSocket {
  readonly local: Endpoint
  readonly remote: Endpoint
  readonly state: string
  readonly inode: string
}

/** States of /proc/net/tcp: include/net/tcp_states.h. */
const ESTABLISHED = '01'
const LISTENING = '0A'

/** Connections and listeners in the network namespace that we are in; none of a family that the kernel does not have. */
export function tcpSockets(host: HostView): TcpSocket[] {
  return ['/proc/net/tcp', '/proc/net/tcp6'].flatMap(path => textOf(host, path, SOCKETS_BYTES).split('\n').slice(1).flatMap(parseSocket))
}

/** proc_net(5): 'sl local_address rem_address st queues timer retrnsmt uid timeout inode ...'. */
function parseSocket(line: string): TcpSocket[] {
  const [, local = '', remote = '', state = '', , , , , , inode = ''] = line.trim().split(/\s+/)
  if (state !== ESTABLISHED && state !== LISTENING) return []
  const [near, far] = [parseProcEndpoint(local), parseProcEndpoint(remote)]
  return near === undefined || far === undefined ? [] : [{ local: near, remote: far, state, inode }]
}

function parseProcEndpoint(text: string): Endpoint | undefined {
  const [hex = '', port = ''] = text.split(':')
  const address = parseProcAddress(hex)
  return address === undefined || !/^[0-9A-F]{4}$/i.test(port) ? undefined : { address, port: Number.parseInt(port, 16) }
}

/** ssh(1): 'client address, client port, server address, server port'. */
function parseSshConnection(value: string | undefined): SshConnection | undefined {
  const words = (value ?? '').split(' ')
  if (words.length !== 4) return undefined
  const [peer, server] = [parseEndpoint(words[0], words[1]), parseEndpoint(words[2], words[3])]
  return peer === undefined || server === undefined ? undefined : { peer, server }
}

function parseEndpoint(address = '', port = ''): Endpoint | undefined {
  const network = parseNetwork(address)
  return network === undefined || address.includes('/') || !/^\d{1,5}$/.test(port) ? undefined : { address: network, port: Number(port) }
}

function same(socket: TcpSocket, { peer, server }: SshConnection): boolean {
  return sameEndpoint(socket.local, server) && sameEndpoint(socket.remote, peer)
}

function sameEndpoint(one: Endpoint, other: Endpoint): boolean {
  return one.port === other.port && formatNetwork(one.address) === formatNetwork(other.address)
}

/** Established connections of an SSH server to a port it is reached by: what it forwards for its user does not count. */
function connectionsOf(host: HostView, pid: number, sockets: readonly TcpSocket[]): SshConnection[] {
  const inodes = new Set(socketInodes(host, pid))
  const ports = sshPorts(host, sockets)
  return sockets
    .filter(({ state, inode, local }) => state === ESTABLISHED && inodes.has(inode) && ports.includes(local.port))
    .map(({ local, remote }) => ({ peer: remote, server: local }))
}

function ownPid(host: HostView): number {
  try {
    return Number(host.readlink('/proc/self'))
  } catch {
    return 0
  }
}

/** This process first, then its parent, and so on. */
function ancestorsOf(host: HostView, self: number): { readonly pid: number; readonly command: string }[] {
  const found: { pid: number; command: string }[] = []
  for (let pid = self; pid > 0 && found.length < ANCESTORS_MOST; ) {
    const stat = statOf(host, pid)
    if (stat === undefined) break
    found.push({ pid, command: stat.command })
    pid = stat.parent
  }
  return found
}

/** proc_pid_stat(5). The command may hold anything, ')' and line feeds included: it ends at the last ')'. */
function statOf(host: HostView, pid: number): { command: string; parent: number } | undefined {
  const text = textOf(host, `/proc/${pid}/stat`, 4096)
  const [open, close] = [text.indexOf('('), text.lastIndexOf(')')]
  if (open < 0 || close < open) return undefined
  const parent = Number(text.slice(close + 2).split(' ')[1])
  return { command: text.slice(open + 1, close), parent: Number.isInteger(parent) ? parent : 0 }
}

function environmentOf(host: HostView, pid: number): Map<string, string> {
  const pairs = textOf(host, `/proc/${pid}/environ`, ENVIRONMENT_BYTES).split('\0')
  return new Map(pairs.map(pair => [pair.slice(0, Math.max(0, pair.indexOf('='))), pair.slice(pair.indexOf('=') + 1)]))
}

function processes(host: HostView): number[] {
  return namesIn(host, '/proc')
    .filter(name => /^\d+$/.test(name))
    .slice(0, PROCESSES_MOST)
    .map(Number)
}

function socketInodes(host: HostView, pid: number): string[] {
  const inodes: string[] = []
  for (const descriptor of namesIn(host, `/proc/${pid}/fd`).slice(0, DESCRIPTORS_MOST)) {
    try {
      const inode = /^socket:\[(\d+)\]$/.exec(host.readlink(`/proc/${pid}/fd/${descriptor}`))?.[1]
      if (inode !== undefined) inodes.push(inode)
    } catch {
      // Closed in between.
    }
  }
  return inodes
}

/**
 * `Port` and `ListenAddress` of sshd_config(5) and its drop-in files: with socket activation (systemd's ssh.socket) no SSH server
 * listens itself. A port too many lets the responder alone in by one more.
 */
function configuredPorts(host: HostView): number[] {
  const folder = '/etc/ssh/sshd_config.d'
  const names = namesIn(host, folder).filter(name => name.endsWith('.conf'))
  const files = ['/etc/ssh/sshd_config', ...names.slice(0, CONFIG_FILES_MOST).map(name => `${folder}/${name}`)]
  const lines = files.flatMap(file => textOf(host, file, 262_144).split('\n'))
  return lines.flatMap(line => {
    const port = /^\s*(?:Port[\s=]+|ListenAddress[\s=]+(?:\[[^\]]*\]|[^\s:]+):)"?(\d{1,5})"?(?:\s|$)/i.exec(line)?.[1]
    return port === undefined || Number(port) < 1 || Number(port) > 65_535 ? [] : [Number(port)]
  })
}

/** '' for what is not there or not ours to read: an ancestor may end at any time. */
function textOf(host: HostView, path: string, maxBytes: number): string {
  try {
    return host.read(path, maxBytes)
  } catch {
    return ''
  }
}

function namesIn(host: HostView, path: string): readonly string[] {
  try {
    return host.list(path)
  } catch {
    return []
  }
}

/** Addresses of this host: /proc/net/fib_trie names those of IPv4 'host LOCAL', /proc/net/if_inet6 has those of IPv6. Empty where neither can be read. */
export function ownAddresses(host: HostView): readonly Network[] {
  const read = (path: string): string[] => {
    try {
      return host.read(path).split('\n')
    } catch {
      return []
    }
  }
  const trie = read('/proc/net/fib_trie')
  const four = trie.flatMap((line, index) => (/\/32 host LOCAL/.test(line) ? (/\|-- (\S+)/.exec(trie[index - 1] ?? '')?.[1] ?? []) : []))
  const six = read('/proc/net/if_inet6').flatMap(line => /^([0-9a-f]{32}) /.exec(line)?.[1]?.replaceAll(/(.{4})(?=.)/g, '$1:') ?? [])
  return [...new Set([...four, ...six])].flatMap(text => parseNetwork(text) ?? [])
}
