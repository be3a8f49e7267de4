/**
 * The socket tables of a network namespace in /proc/PID/net: Documentation/networking/proc_net_tcp.rst, proc_pid_net(5), and for
 * the others the kernel's *_seq_show functions (net/ipv4/raw.c, net/unix/af_unix.c, net/packet/af_packet.c,
 * net/netlink/af_netlink.c). Each line is taken for itself; one that is not of the form is counted, not guessed at.
 */
import os from 'node:os'
import { type TextField, textField } from './proc.js'

/** The tables that are read, and what they hold. */
export const SOCKET_TABLES = {
  tcp: 'inet',
  tcp6: 'inet',
  udp: 'inet',
  udp6: 'inet',
  raw: 'inet',
  raw6: 'inet',
  icmp: 'inet',
  icmp6: 'inet',
  udplite: 'inet',
  udplite6: 'inet',
  unix: 'unix',
  packet: 'packet',
  netlink: 'netlink',
} as const

export type SocketTable = keyof typeof SOCKET_TABLES

export interface Endpoint {
  /** '192.0.2.7', '2001:db8::7', '::ffff:192.0.2.7' (an IPv4 connection of an IPv6 socket), '0.0.0.0' and '::' for any. */
  readonly address: string
  /** Of raw sockets the protocol number, of icmp sockets the identifier. */
  readonly port: number
}

export interface InetSocket {
  readonly protocol: Exclude<SocketTable, 'unix' | 'packet' | 'netlink'>
  /** The kernel's name: 'ESTABLISHED', 'LISTEN', 'TIME_WAIT' ...; 'UNCONN', as ss(8) has it, for what is not TCP and not connected. */
  readonly state: string
  readonly local: Endpoint
  readonly remote: Endpoint
  /** 0 where no process can hold it: TIME_WAIT, SYN_RECV. */
  readonly inode: number
  readonly uid: number
  /** Bytes not yet acknowledged, or not yet sent. */
  readonly sendQueue: number
  /** Bytes not yet read; of a LISTEN socket the connections not yet accepted. */
  readonly receiveQueue: number
  readonly timer: 'none' | 'retransmit' | 'keepalive' | 'time-wait' | 'zero-window' | 'unknown'
  /** Seconds until the timer ends. */
  readonly timerSeconds: number
  readonly retransmits: number
}

/** `path` of an abstract name begins with '@'; '' when it has none. */
export type UnixSocket = {
  readonly protocol: 'unix'
  readonly type: string
  readonly state: string
  readonly inode: number
  readonly references: number
} & TextField<'path'>

export interface PacketSocket {
  readonly protocol: 'packet'
  readonly type: string
  /** Ethertype as '0x0003', ETH_P_ALL, which hears everything: include/uapi/linux/if_ether.h. */
  readonly ethertype: string
  /** Index of the interface, 0 for all. */
  readonly interface: number
  readonly running: boolean
  readonly inode: number
  readonly uid: number
}

export interface NetlinkSocket {
  readonly protocol: 'netlink'
  /** 'route', 'audit' ..., or the number. */
  readonly family: string
  /** Often the process id; 0 is the kernel. */
  readonly portId: number
  /** Multicast groups joined, a hexadecimal mask. */
  readonly groups: string
  readonly inode: number
}

export type SocketEntry = InetSocket | UnixSocket | PacketSocket | NetlinkSocket

/** include/net/tcp_states.h, as /proc prints them. */
const TCP_STATES: readonly string[] = [
  '',
  'ESTABLISHED',
  'SYN_SENT',
  'SYN_RECV',
  'FIN_WAIT1',
  'FIN_WAIT2',
  'TIME_WAIT',
  'CLOSE',
  'CLOSE_WAIT',
  'LAST_ACK',
  'LISTEN',
  'CLOSING',
  'NEW_SYN_RECV',
  'BOUND_INACTIVE',
]

/** Documentation/networking/proc_net_tcp.rst, in the order of its numbers. */
const TIMERS = ['none', 'retransmit', 'keepalive', 'time-wait', 'zero-window'] as const

/** enum sock_type of include/linux/net.h. */
const TYPES: Readonly<Record<number, string>> = { 1: 'stream', 2: 'dgram', 3: 'raw', 5: 'seqpacket', 10: 'packet' }

/** enum socket_state of include/uapi/linux/net.h. */
const UNIX_STATES = ['FREE', 'UNCONNECTED', 'CONNECTING', 'CONNECTED', 'DISCONNECTING'] as const

/** __SO_ACCEPTCON of include/uapi/linux/net.h: it listens. */
const ACCEPTS = 0x1_0000

/** NETLINK_* of include/uapi/linux/netlink.h. */
const NETLINK_FAMILIES: Readonly<Record<number, string>> = {
  0: 'route',
  2: 'usersock',
  3: 'firewall',
  4: 'sock_diag',
  5: 'nflog',
  6: 'xfrm',
  7: 'selinux',
  8: 'iscsi',
  9: 'audit',
  10: 'fib_lookup',
  11: 'connector',
  12: 'netfilter',
  13: 'ip6_fw',
  14: 'dnrtmsg',
  15: 'kobject_uevent',
  16: 'generic',
  18: 'scsitransport',
  19: 'ecryptfs',
  20: 'rdma',
  21: 'crypto',
  22: 'smc',
}

export interface TableFormat {
  /** Of the kernel: it prints addresses as numbers of its own byte order. */
  readonly endianness: 'LE' | 'BE'
  /** Clock ticks a second, for timers. */
  readonly ticks: number
}

/** Of this machine. */
export function tableFormat(ticks: number): TableFormat {
  return { endianness: os.endianness(), ticks }
}

/**
 * The sockets of one table, its text decoded as latin1 (names are bytes); undefined for each line that is not of its form.
 * Names of unix sockets can hold newlines, which the kernel prints as they are: what follows such a newline and is no entry
 * counts as a line not understood, and what is made to look like an entry cannot be told from one.
 */
export function* parseTable(table: SocketTable, text: string, format: TableFormat): Iterable<SocketEntry | undefined> {
  // The first line is a header.
  let at = text.indexOf('\n') + 1
  if (at === 0) return
  while (at < text.length) {
    const newline = text.indexOf('\n', at)
    const end = newline < 0 ? text.length : newline
    yield parseLine(table, text.slice(at, end), format)
    at = end + 1
  }
}

function parseLine(table: SocketTable, line: string, format: TableFormat): SocketEntry | undefined {
  switch (table) {
    case 'unix':
      return parseUnix(line)
    case 'packet':
      return parsePacket(line)
    case 'netlink':
      return parseNetlink(line)
    default:
      return parseInet(table, line, format)
  }
}

const INET =
  /^ *\d+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ([0-9A-F]{2}) ([0-9A-F]{8}):([0-9A-F]{8}) ([0-9A-F]{2}):([0-9A-F]{8}) ([0-9A-F]{8}) +(\d{1,10}) +\d+ +(\d{1,15})(?: |$)/

function parseInet(protocol: InetSocket['protocol'], line: string, format: TableFormat): InetSocket | undefined {
  const found = INET.exec(line)
  if (found === null) return undefined
  const [, local, localPort, remote, remotePort, state, send, receive, timer, when, retransmits, uid, inode] = found as unknown as string[]
  const hex = (digits: string | undefined): number => Number.parseInt(digits as string, 16)
  return {
    protocol,
    state: stateName(protocol, hex(state)),
    local: { address: parseAddress(local as string, format.endianness), port: hex(localPort) },
    remote: { address: parseAddress(remote as string, format.endianness), port: hex(remotePort) },
    inode: Number(inode),
    uid: Number(uid),
    sendQueue: hex(send),
    receiveQueue: hex(receive),
    timer: TIMERS[hex(timer)] ?? 'unknown',
    timerSeconds: hex(when) / format.ticks,
    retransmits: hex(retransmits),
  }
}

function stateName(protocol: InetSocket['protocol'], state: number): string {
  // UDP and raw sockets borrow the numbers of TCP: 1 is connected, 7 is not.
  if (state === 7 && !protocol.startsWith('tcp')) return 'UNCONN'
  return TCP_STATES[state] || String(state)
}

/** '0100007F' -> '127.0.0.1'; 32 digits -> IPv6 in the form of RFC 5952: each group of 8 digits is a number in the kernel's byte order. */
export function parseAddress(digits: string, endianness: 'LE' | 'BE'): string {
  const bytes = Buffer.from(digits, 'hex')
  if (endianness === 'LE') bytes.swap32()
  if (bytes.length === 4) return bytes.join('.')
  const words = Array.from({ length: 8 }, (_, index) => bytes.readUInt16BE(index * 2))
  // IPv4-mapped, RFC 4291 section 2.5.5.2: the dotted form shows the address that the other side really has.
  if (words.slice(0, 5).every(word => word === 0) && words[5] === 0xffff) return `::ffff:${bytes.subarray(12).join('.')}`
  return shortened(words)
}

/** The longest run of two or more zero words becomes '::', the first of equally long ones (RFC 5952 section 4.2). */
function shortened(words: readonly number[]): string {
  let [from, length] = [0, 0]
  for (let start = 0; start < words.length; start += 1) {
    let end = start
    while (words[end] === 0) end += 1
    if (end - start > length) [from, length] = [start, end - start]
  }
  const text = (part: readonly number[]): string => part.map(word => word.toString(16)).join(':')
  return length < 2 ? text(words) : `${text(words.slice(0, from))}::${text(words.slice(from + length))}`
}

const UNIX = /^[0-9a-f]+: ([0-9A-F]{8}) [0-9A-F]{8} ([0-9A-F]{8}) ([0-9A-F]{4}) ([0-9A-F]{2}) +(\d{1,15})(?: ([^\n]*))?$/

function parseUnix(line: string): UnixSocket | undefined {
  const found = UNIX.exec(line)
  if (found === null) return undefined
  const [references, flags, type, state] = found.slice(1, 5).map(digits => Number.parseInt(digits, 16)) as [number, number, number, number]
  return {
    protocol: 'unix',
    type: TYPES[type] ?? String(type),
    state: flags & ACCEPTS ? 'LISTEN' : (UNIX_STATES[state] ?? String(state)),
    inode: Number(found[5]),
    references,
    ...textField('path', Buffer.from(found[6] ?? '', 'latin1')),
  }
}

const PACKET = /^[0-9a-f]+ +\d+ +(\d{1,3}) +([0-9a-f]{4}) +(-?\d{1,10}) +(\d) +\d+ +(\d{1,10}) +(\d{1,15}) *$/

function parsePacket(line: string): PacketSocket | undefined {
  const found = PACKET.exec(line)
  if (found === null) return undefined
  const [, type, ethertype, device, running, uid, inode] = found as unknown as string[]
  return {
    protocol: 'packet',
    type: TYPES[Number(type)] ?? String(type),
    ethertype: `0x${ethertype}`,
    interface: Number(device),
    running: running !== '0',
    inode: Number(inode),
    uid: Number(uid),
  }
}

const NETLINK = /^[0-9a-f]+ +(\d{1,3}) +(-?\d{1,10}) +([0-9a-f]{8}) +.*? (\d{1,15}) *$/

function parseNetlink(line: string): NetlinkSocket | undefined {
  const found = NETLINK.exec(line)
  if (found === null) return undefined
  const [, family, portId, groups, inode] = found as unknown as string[]
  return {
    protocol: 'netlink',
    family: NETLINK_FAMILIES[Number(family)] ?? String(family),
    portId: Number(portId),
    groups: groups as string,
    inode: Number(inode),
  }
}
