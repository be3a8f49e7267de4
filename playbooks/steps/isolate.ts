/** Cuts the host off, except for the engineer who is connected. */
import { defineStep, type HostView, type Plan, type Running, type Verdict } from '../../src/step.js'
import { covers, formatNetwork, isLoopback, isMulticast, type Network, parseNetwork } from '../address.js'
import { isolationRules, isolationShape, RELEASE, TABLE } from '../isolation.js'
import { connectedTo, findResponder, ownAddresses, type Responder, sshPorts, type TcpSocket, tcpSockets } from '../responder.js'
import { setElements, splitRuleset } from '../ruleset.js'
import { missing } from '../tools.js'

/** The rules that are loaded after the cut: everything as it was, and our table. */
const RULESET = 'nft_-s_list_ruleset.txt'

/** Loading takes milliseconds; listing half a second at 10,000 rules. */
const LOAD_LIMIT = 10
const LIST_LIMIT = 20

export const isolate = defineStep({
  id: 'isolate',
  summary: 'Cut the host off from every network but for you',
  description: `Loads one table of nftables rules in one transaction, before every other rule and before connection tracking. It drops, for IPv4
and IPv6, whatever arrives, leaves or is forwarded, connections that are open already included. Left open: loopback, neighbour
discovery, multicast listener reports, the two messages of path MTU discovery, and TCP from the allowed addresses to the SSH ports of
this host. This host cannot open a connection to them. Packets are dropped, not refused, so that the sockets of an attacker stay visible.

You are found by the SSH connection that you came through, also behind sudo; otherwise say --allow ADDR or --allow none. Isolating
again replaces the first isolation without a gap. It stays until 'ir release'.

Not cut: programs that send raw frames past the network stack (AF_PACKET), macvlan containers, traffic between containers on one
bridge. Names, directories, network disks and the renewal of a DHCP address stop working: an address that was leased is lost when
its lease ends.`,
  references: [
    'nft(8)',
    'netfilter hook priorities: include/uapi/linux/netfilter_ipv4.h',
    'RFC 4861 (neighbour discovery)',
    'RFC 4541 (MLD snooping)',
    'RFC 1191, RFC 8201 (path MTU discovery)',
    'https://attack.mitre.org/mitigations/M1037/',
  ],
  options: {
    allow: {
      type: 'list',
      summary: "Who stays connected: addresses or networks (ADDR, ADDR/LEN), or 'none'; the SSH client when not given",
    },
    'cut-own': { type: 'switch', summary: 'Cut the connection that you came through as well, when --allow leaves it out' },
    port: { type: 'list', summary: 'TCP ports of this host by which they stay connected; 22 and those that SSH uses here when not given' },
  },

  async plan({ host, options, directory }): Promise<Plan> {
    const allowed = parseAllow(options.allow, host)
    if ('refused' in allowed) return allowed
    const typedPorts = parsePorts(options.port)
    if ('refused' in typedPorts) return typedPorts
    const nft = host.which('nft')
    if (nft === undefined) return missing(host, 'nft')

    const sockets = tcpSockets(host)
    const responder = findResponder(host, sockets)
    if (allowed.networks === undefined && !responder.found) return unknownResponder(responder.why)
    const lost = options['cut-own'] ? undefined : ownConnectionLost(allowed.networks, responder)
    if (lost !== undefined) return lost
    const allow = allowed.networks ?? (responder.found ? [responder.peer.address] : [])
    const ports = typedPorts.ports ?? portsOf(host, sockets, responder)
    const isolation = { allow, ports, label: caseOf(directory) }

    const load: Running = { title: 'Cut the host off', argv: [nft, '-f', '-'], stdin: isolationRules(isolation), limit: LOAD_LIMIT }
    const table = [TABLE.family, TABLE.name]
    return {
      actions: [
        {
          kind: 'change',
          ...load,
          effect: effectOf(allow, ports, responder, sockets),
          fallback: [
            { ...load, title: 'Cut the host off, with an nft that knows no comments on tables', stdin: isolationRules(isolation, 'plain') },
          ],
          already: { title: 'See whether the host is cut off already', argv: [nft, 'list', 'table', ...table], limit: LOAD_LIMIT },
          verify: [
            {
              title: 'See that exactly these rules are loaded',
              argv: [nft, '-s', 'list', 'table', ...table],
              matches: isolationShape(load.stdin ?? ''),
              limit: LOAD_LIMIT,
            },
          ],
          undo: [{ title: 'Take the rules away', argv: [nft, RELEASE], limit: LOAD_LIMIT }],
          lasts: 'case',
        },
        {
          kind: 'observe',
          title: 'List all rules of the host, ours included',
          argv: [nft, '-s', 'list', 'ruleset'],
          stdout: RULESET,
          limit: LIST_LIMIT,
        },
      ],
    }
  },

  async interpret(collected): Promise<readonly Verdict[]> {
    const rule = 'host-isolated'
    const [load, list] = collected.actions
    if (load?.outcome !== 'collected') {
      return [
        {
          rule,
          notAssessed: `the host is not cut off: ${load?.reason ?? 'nothing was loaded'}`,
          remedy: 'cut it off from outside: at its switch, firewall or hypervisor',
        },
      ]
    }
    const parts = splitRuleset(collected.lines(RULESET), `${TABLE.family} ${TABLE.name}`)
    const own = parts?.own ?? []
    const chains = ['prerouting', 'forward', 'output'].filter(hook => own.some(line => line.includes(`hook ${hook} priority`)))
    if (chains.length < 3) {
      const why =
        own.length > 0 ? 'parts of our table are missing from the list of rules' : (list?.reason ?? 'our table is not in the list of rules')
      return [{ rule, notAssessed: `the rules were loaded, but ${why}`, remedy: `nft list table ${TABLE.family} ${TABLE.name}` }]
    }
    const open = [...setElements(own, 'responder4'), ...setElements(own, 'responder6')]
    const whom = open.length === 0 ? 'nobody' : `${open.join(', ')} on TCP port ${setElements(own, 'ports').join(', ')}`
    return [{ rule, clear: `The host is cut off: table ${TABLE.family} ${TABLE.name} is loaded, open for ${whom}` }]
  },
})

type Refused = Extract<Plan, { refused: string }>

/** `networks` is absent when nothing was typed, and empty for 'none'. */
function parseAllow(typed: readonly string[] | undefined, host: HostView): { networks: readonly Network[] | undefined } | Refused {
  if (typed === undefined || typed.length === 0) return { networks: undefined }
  if (typed.includes('none')) {
    if (typed.length === 1) return { networks: [] }
    return { refused: '--allow none stands alone: it leaves nobody connected', remedy: 'give the addresses, or none' }
  }
  const networks: Network[] = []
  for (const text of typed) {
    const network = parseNetwork(text)
    if (network === undefined) return notAnAddress(text)
    const shown = formatNetwork(network)
    if (isLoopback(network))
      return { refused: `--allow ${shown} is this host itself, which always stays open`, remedy: 'give the address that you come from' }
    const wrong = wrongResponder(network, host)
    if (wrong !== undefined) return { refused: `--allow ${shown} is ${wrong}`, remedy: 'give the address or network that you come from' }
    networks.push(network)
  }
  return { networks }
}

/** The largest network that a responder is believed to come from: two halves of everything are everything. */
const SHORTEST_PREFIX = { 4: 8, 6: 16 } as const

function wrongResponder(network: Network, host: HostView): string | undefined {
  if (network.length < SHORTEST_PREFIX[network.family])
    return `a large part of everybody (shorter than /${SHORTEST_PREFIX[network.family]}): that would be no isolation`
  if (isMulticast(network)) return 'a multicast address: nobody connects from there'
  const single = network.length === network.bytes.length * 8
  if (single && ownAddresses(host).some(own => covers(network, own))) return 'an address of this host itself'
  return undefined
}

/** A list that leaves out whoever is typing is a mistake until they say that it is not. `--allow none` says so. */
function ownConnectionLost(networks: readonly Network[] | undefined, responder: Responder): Refused | undefined {
  if (networks === undefined || networks.length === 0 || !responder.found) return undefined
  const { address } = responder.peer
  if (networks.some(network => covers(network, address))) return undefined
  return {
    refused: `--allow leaves out ${formatNetwork(address)}, from where you are connected: you would cut yourself off`,
    remedy: `add ${formatNetwork(address)} to --allow, or --cut-own if you mean it`,
  }
}

function notAnAddress(text: string): Refused {
  const looksLikeName = /^[A-Za-z_][A-Za-z0-9._-]*$/.test(text) && /[G-Zg-z]/.test(text)
  if (!looksLikeName)
    return { refused: `--allow ${JSON.stringify(text)} is no address`, remedy: 'type it as 198.51.100.7, 198.51.100.0/24 or 2001:db8::7' }
  return {
    refused: `--allow ${text} is a name, and names cannot be trusted on this host`,
    remedy: `type its address: --allow ADDR (on another machine: getent ahosts ${text})`,
  }
}

function parsePorts(typed: readonly string[] | undefined): { ports: readonly number[] | undefined } | Refused {
  if (typed === undefined || typed.length === 0) return { ports: undefined }
  const wrong = typed.find(text => !/^[1-9]\d{0,4}$/.test(text) || Number(text) > 65_535)
  if (wrong !== undefined)
    return { refused: `--port ${JSON.stringify(wrong)} is no TCP port`, remedy: 'type numbers from 1 to 65535: --port 22,2222' }
  return { ports: ascending(typed.map(Number)) }
}

function portsOf(host: HostView, sockets: readonly TcpSocket[], responder: Responder): readonly number[] {
  const ports = sshPorts(host, sockets)
  return responder.found ? ascending([...ports, responder.server.port]) : ports
}

function ascending(numbers: readonly number[]): number[] {
  return [...new Set(numbers)].sort((one, other) => one - other)
}

function unknownResponder(why: string): Refused {
  return {
    refused: `who may stay connected is unknown: ${why}`,
    remedy: '--allow ADDR keeps TCP to the SSH ports open for the address you come from; --allow none keeps nobody connected',
    ask: { option: 'allow', question: "Which address do you come from? (ADDR, ADDR/LEN, or 'none' for nobody)" },
  }
}

function effectOf(allow: readonly Network[], ports: readonly number[], responder: Responder, sockets: readonly TcpSocket[]): string {
  const open = allow.length === 0 ? 'nobody' : `${allow.map(formatNetwork).join(', ')} (to TCP port ${ports.join(', ')})`
  const sentences = [
    'Drops all packets in, out and forwarded, IPv4 and IPv6, open connections included; ' +
      `open for loopback and ${open}. Stays until 'ir release'.`,
  ]
  const isAllowed = (address: Network): boolean => allow.some(network => covers(network, address))
  if (responder.found && !(isAllowed(responder.peer.address) && ports.includes(responder.server.port))) {
    sentences.push(`YOUR OWN CONNECTION from ${formatNetwork(responder.peer.address)} to port ${responder.server.port} WILL BE CUT.`)
  }
  const others = connectedTo(sockets, ports, isAllowed)
  if (others.length > 0) sentences.push(`Cuts other connections to these ports, from ${others.join(', ')}.`)
  return sentences.join(' ')
}

/** '<case>' of '.../<case>/data/isolate'. */
function caseOf(directory: string): string {
  return (
    directory
      .split('/')
      .filter(part => part !== '')
      .at(-3) ?? 'unknown'
  )
}
