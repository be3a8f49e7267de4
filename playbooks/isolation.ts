/** The rules that cut a host off, as text for `nft -f -`: nft(8). */
import { formatNetwork, type Network } from './address.js'

/** Our table. Nothing else of the host's firewall is touched. */
export const TABLE = { family: 'inet', name: 'ir_isolate' } as const

export interface Isolation {
  /** Who stays connected; nobody when empty. */
  readonly allow: readonly Network[]
  /** TCP ports of this host by which they may reach it, ascending. */
  readonly ports: readonly number[]
  /** Name of the case, written into the rules for whoever finds them. */
  readonly label: string
}

/**
 * Takes the isolation away; also where there is none. One transaction. An unknown table cannot be deleted in older kernels and nft
 * (`destroy` came with Linux 6.3), so it is added first. One argument of nft, so that the way back is one line to type.
 */
export const RELEASE = `add table ${TABLE.family} ${TABLE.name}; delete table ${TABLE.family} ${TABLE.name}`

/** Before defragmentation (-400), raw (-300) and connection tracking (-200): NF_IP_PRI_* of uapi/linux/netfilter_ipv4.h. */
const PRIORITY = -450

/** Neighbours must find us, and we them: RFC 4861 demands hop limit 255, so that none of it can come through a router. */
const NEIGHBOURS_IN = 'icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } ip6 hoplimit 255'
const NEIGHBOURS_OUT = 'icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } ip6 hoplimit 255'

/** Switches that snoop deliver neighbour solicitations only to those who report: RFC 4541. Hop limit 1: RFC 2710, RFC 3810. */
const LISTENERS_IN = 'icmpv6 type mld-listener-query ip6 hoplimit 1'
const LISTENERS_OUT = 'icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } ip6 hoplimit 1'

/** Without it a session with large packets hangs on a path with a smaller MTU: RFC 1191, RFC 8201. Anybody may send it, hence limited. */
const PATH_MTU = ['icmp type destination-unreachable icmp code frag-needed', 'icmpv6 type packet-too-big']
const PATH_MTU_RATE = 'limit rate 10/second'

/**
 * One transaction that replaces an earlier isolation without a gap. Packets are dropped, never refused: the sockets stay in the
 * kernel's tables with their owners. No rule asks for the state of a connection, so one that is tracked already is cut as well.
 * `plain` is for an older nft, which knows no comment on a table.
 */
export function isolationRules({ allow, ports, label }: Isolation, form: 'commented' | 'plain' = 'commented'): string {
  const families = ([4, 6] as const).flatMap(family => {
    const addresses = allow.filter(network => network.family === family).map(formatNetwork)
    return addresses.length === 0 || ports.length === 0
      ? []
      : [{ ip: family === 4 ? 'ip' : 'ip6', set: `responder${family}`, type: `ipv${family}_addr`, addresses }]
  })
  const table = `table ${TABLE.family} ${TABLE.name}`
  return `${[
    table,
    `delete ${table}`,
    `${table} {`,
    ...(form === 'commented' ? [`  comment "ir isolate case=${plainLabel(label)}"`] : []),
    ...families.map(
      ({ set, type, addresses }) => `  set ${set} { type ${type}; flags interval; auto-merge; elements = { ${addresses.join(', ')} }; }`,
    ),
    ...(families.length === 0 ? [] : [`  set ports { type inet_service; elements = { ${ports.join(', ')} }; }`]),
    ...chain('arriving', 'prerouting', [
      'iif lo accept',
      ...families.map(({ ip, set }) => `${ip} saddr @${set} tcp dport @ports counter accept comment "responder"`),
      `${NEIGHBOURS_IN} accept`,
      `${LISTENERS_IN} accept`,
      ...PATH_MTU.map(match => `${match} ${PATH_MTU_RATE} accept`),
      'counter drop comment "dropped arriving"',
    ]),
    ...chain('through', 'forward', ['counter drop comment "dropped forwarded"']),
    ...chain('leaving', 'output', [
      'oif lo accept',
      // Answers only: the first packet of a connection has SYN without ACK (RFC 9293), and this host must not open one to the responder.
      ...families.map(
        ({ ip, set }) => `${ip} daddr @${set} tcp sport @ports tcp flags & (syn | ack) != syn counter accept comment "responder"`,
      ),
      `${NEIGHBOURS_OUT} accept`,
      `${LISTENERS_OUT} accept`,
      'counter drop comment "dropped leaving"',
    ]),
    '}',
  ].join('\n')}\n`
}

/**
 * Source of a regular expression that `nft list table` must match when exactly these rules are in force: every chain at its hook,
 * with as many rules as were loaded, each with its verdict, in order. How nft spells the rest of a rule differs between versions.
 */
export function isolationShape(rules: string): string {
  const chains = [...rules.matchAll(/^ {2}chain (\w+) \{\n {4}type filter hook (\w+) .*\n((?: {4}.*\n)*) {2}\}$/gm)]
  return chains
    .map(([, name, hook, body = '']) => {
      const verdicts = body
        .trimEnd()
        .split('\n')
        .map(rule => (/ accept( |$)/.test(rule) ? 'accept' : 'drop'))
      const lines = verdicts.map(verdict => `[^\\n]*\\b${verdict}( comment "[^"\\n]*")?\\s*\\n`)
      return `(?=[\\s\\S]*chain ${name} \\{\\s*type filter hook ${hook} priority ${PRIORITY}; policy accept;\\s*\\n${lines.join('')}\\s*\\})`
    })
    .join('')
}

function chain(name: string, hook: string, rules: readonly string[]): string[] {
  return [
    `  chain ${name} {`,
    `    type filter hook ${hook} priority ${PRIORITY}; policy accept;`,
    ...rules.map(rule => `    ${rule}`),
    '  }',
  ]
}

/** Inside quotes in the rules, where nft knows no escape. A comment holds 128 bytes (NFTNL_UDATA_COMMENT_MAXLEN of libnftnl). */
function plainLabel(label: string): string {
  return label.replaceAll(/[^A-Za-z0-9._-]/g, '_').slice(0, 100)
}
