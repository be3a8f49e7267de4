/**
 * What a drill has shown: what was cut, seen and saved, computed from the sealed archive alone. It knows nothing of what was
 * planted, so that nothing is reported here that the steps did not really find.
 */
import { z } from 'zod'
import { verify } from '../evidence/verify.js'
import { type Archive, openArchive } from '../evidence/zip.js'
import { clipped, headline, visible } from '../print.js'
import { formatBytes } from '../time.js'
import { addTraffic, canonical, type Traffic } from './traffic.js'

/** A connection that was open when the host had been cut off. */
export type Flow = {
  readonly address: string
  readonly port: number
  readonly owners: readonly string[]
  /** Packets, as captured. After the cut what arrives is still seen, and dropped; what is dropped on its way out is not. */
  readonly sentBefore: number
  readonly sentAfter: number
  readonly heardAfter: number
}

export type Debrief = {
  /** The archive verifies. */
  readonly intact: boolean
  /** Connections with others than the responder: silenced ones have sent nothing since. */
  readonly cut: readonly (Flow & { readonly silenced: boolean })[]
  /** The responder's connections, and whether they were alive after the cut. */
  readonly responder: readonly (Flow & { readonly alive: boolean })[]
  /** Packets that the rules dropped until the sockets were listed, by chain; absent where the counters were not collected. */
  readonly dropped?: Readonly<Record<string, number>>
  readonly seen: readonly { readonly severity: string; readonly what: string }[]
  readonly saved: {
    readonly artifacts: number
    readonly bytes: number
    /** Executables that existed only in memory. */
    readonly executables: number
    readonly memoryBytes: number
    readonly packets: number
  }
  /** Steps that did not do all they should. */
  readonly lacking: readonly string[]
}

const ENTRY_LIMIT = 256 * 1024 ** 2

const PlanFile = z.object({ steps: z.array(z.object({ id: z.string(), options: z.record(z.string(), z.unknown()) })) })
const CustodyLine = z.object({
  event: z.string(),
  at: z.string(),
  action: z.string().optional(),
  step: z.string().optional(),
  outcome: z.string().optional(),
  reason: z.string().optional(),
})
const SocketLine = z.object({
  own: z.boolean(),
  state: z.string(),
  remote: z.object({ address: z.string(), port: z.number() }),
  local: z.object({ address: z.string(), port: z.number() }),
  owners: z.array(z.object({ pid: z.number(), command: z.string() })),
})
const FindingsFile = z.object({
  findings: z.array(z.object({ severity: z.string(), title: z.string(), subject: z.object({ name: z.string() }) })),
})
const ArtifactLine = z.object({ path: z.string(), bytes: z.number() })
const Counters = z.object({ nftables: z.array(z.unknown()) })
const Rule = z.object({ rule: z.object({ chain: z.string(), comment: z.string().optional(), expr: z.array(z.unknown()) }) })
const Counter = z.object({ counter: z.object({ packets: z.number() }) })

/** Reads a sealed archive of a drill. */
export async function debrief(file: string): Promise<Debrief> {
  const { intact } = await verify(file)
  const archive = openArchive(file)
  try {
    return { intact, ...read(archive) }
  } finally {
    archive.close()
  }
}

function read(archive: Archive): Omit<Debrief, 'intact'> {
  const text = (name: string): string => {
    return archive.has(name) ? archive.read(name, ENTRY_LIMIT).toString('utf8') : ''
  }
  const custody = lines(text('custody.jsonl'), CustodyLine)
  const cut = custody.find(line => line.event === 'finish' && line.action === 'isolate/1' && line.outcome === 'collected')
  const traffic = new Map<string, Traffic>()
  for (const name of archive.names()) {
    if (/^data\/capture-net\/capture-\d+\.pcap$/.test(name)) {
      addTraffic(archive.read(name, ENTRY_LIMIT), cut === undefined ? Number.POSITIVE_INFINITY : Date.parse(cut.at), traffic)
    }
  }
  const allowed = allowedIn(text('plan.json'))
  const flows = flowsIn(text('data/snapshot-connections/sockets.jsonl'), traffic)
  const dropped = droppedIn(text('data/snapshot-connections/nft_-j_list_table_inet_ir_isolate.json'))
  const artifacts = lines(text('artifacts.jsonl'), ArtifactLine)
  const sum = (found: readonly { bytes: number }[]): number => found.reduce((total, artifact) => total + artifact.bytes, 0)
  const findings = FindingsFile.safeParse(parsed(text('findings.json')))
  return {
    cut:
      cut === undefined ? [] : flows.filter(flow => !allowed.has(flow.address)).map(flow => ({ ...flow, silenced: flow.sentAfter === 0 })),
    responder: flows
      .filter(flow => allowed.has(flow.address))
      .map(flow => ({ ...flow, alive: cut !== undefined && flow.sentAfter > 0 && flow.heardAfter > 0 })),
    ...(dropped === undefined ? {} : { dropped }),
    seen: findings.success ? findings.data.findings.map(finding => ({ severity: finding.severity, what: headline(finding) })) : [],
    saved: {
      artifacts: artifacts.length,
      bytes: sum(artifacts),
      executables: artifacts.filter(artifact => artifact.path.startsWith('data/snapshot-processes/executables/')).length,
      memoryBytes: sum(artifacts.filter(artifact => /^data\/capture-mem\/.*\.(lime|core)$/.test(artifact.path))),
      packets: [...traffic.values()].reduce((total, one) => total + one.outBefore + one.inBefore + one.outAfter + one.inAfter, 0),
    },
    lacking: custody
      .filter(line => line.event === 'step' && line.outcome !== 'collected' && line.outcome !== 'empty')
      .map(line => `${line.step}: ${line.outcome}${line.reason === undefined ? '' : ` (${line.reason})`}`),
  }
}

function allowedIn(plan: string): ReadonlySet<string> {
  const found = PlanFile.safeParse(parsed(plan))
  const allow = found.success ? found.data.steps.find(step => step.id === 'isolate')?.options.allow : undefined
  return new Set(Array.isArray(allow) ? allow.map(address => canonical(String(address))) : [])
}

/** Established connections of our own network namespace with anybody but ourselves, one for each remote address and port. */
function flowsIn(sockets: string, traffic: ReadonlyMap<string, Traffic>): Flow[] {
  const flows = new Map<string, Flow>()
  for (const socket of lines(sockets, SocketLine)) {
    const address = plain(socket.remote.address)
    if (!socket.own || socket.state !== 'ESTABLISHED' || isLoopback(address)) continue
    // A service is one flow whatever port the other side took.
    const key = `${address} ${socket.local.port < socket.remote.port ? `from ${socket.local.port}` : socket.remote.port}`
    const packets = traffic.get(address)
    const owners = socket.owners.map(owner => `${owner.command.replaceAll(/\s+/g, ' ').trim()} (${owner.pid})`)
    flows.set(key, {
      address,
      port: socket.remote.port,
      owners: [...new Set([...(flows.get(key)?.owners ?? []), ...owners])],
      sentBefore: packets?.outBefore ?? 0,
      sentAfter: packets?.outAfter ?? 0,
      heardAfter: packets?.inAfter ?? 0,
    })
  }
  return [...flows.values()]
}

function plain(address: string): string {
  return canonical(address.replace(/^::ffff:(?=\d+\.)/i, ''))
}

function isLoopback(address: string): boolean {
  return address === '::1' || address.startsWith('127.')
}

/** Counters of the rules that drop, by chain. */
function droppedIn(json: string): Record<string, number> | undefined {
  const table = Counters.safeParse(parsed(json))
  if (!table.success) return undefined
  const dropped: Record<string, number> = {}
  for (const entry of table.data.nftables) {
    const rule = Rule.safeParse(entry)
    if (!rule.success || !rule.data.rule.expr.some(part => typeof part === 'object' && part !== null && 'drop' in part)) continue
    for (const part of rule.data.rule.expr) {
      const counter = Counter.safeParse(part)
      if (counter.success) dropped[rule.data.rule.chain] = (dropped[rule.data.rule.chain] ?? 0) + counter.data.counter.packets
    }
  }
  return dropped
}

function lines<T>(text: string, shape: z.ZodType<T>): T[] {
  return text.split('\n').flatMap(line => {
    const found = shape.safeParse(parsed(line))
    return found.success ? [found.data] : []
  })
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** The debriefing for the terminal. */
export function debriefLines(found: Debrief): string[] {
  const out = ['', 'What the sealed archive of this drill shows', '  cut']
  for (const flow of found.cut) {
    const how = flow.silenced
      ? `silent since the cut, ${flow.sentBefore} packets sent before`
      : `STILL SENDING: ${flow.sentAfter} packets since the cut`
    out.push(
      `    ${flow.address} port ${flow.port}: ${how}; held by ${flow.owners.map(owner => clipped(visible(owner), 48)).join(', ') || 'nobody that could be seen'}`,
    )
  }
  if (found.cut.length === 0) out.push('    nothing')
  if (found.dropped) out.push(`    packets dropped until the sockets were listed: ${counted(found.dropped)}`)
  for (const flow of found.responder) {
    out.push(
      `    the responder ${flow.address}: ${flow.alive ? `alive, ${flow.sentAfter} packets answered since the cut` : 'NOT heard since the cut'}`,
    )
  }
  out.push('  seen')
  for (const finding of found.seen.slice(0, 10)) out.push(`    ${finding.severity.padEnd(8)} ${clipped(visible(finding.what), 92)}`)
  if (found.seen.length > 10) out.push(`    and ${found.seen.length - 10} more`)
  if (found.seen.length === 0) out.push('    nothing')
  const { saved } = found
  out.push(
    '  saved',
    `    ${saved.artifacts} artifacts, ${formatBytes(saved.bytes)}: ${saved.packets} packets, ${formatBytes(saved.memoryBytes)} of memory, ${saved.executables} executable${saved.executables === 1 ? '' : 's'} that existed only in memory`,
    `    the archive ${found.intact ? 'verifies' : 'DOES NOT VERIFY'}`,
  )
  if (found.lacking.length > 0) out.push('  missing', ...found.lacking.map(line => `    ${visible(line)}`))
  return out
}

function counted(dropped: Readonly<Record<string, number>>): string {
  return Object.entries(dropped)
    .map(([chain, packets]) => `${packets} ${chain === 'through' ? 'forwarded' : chain}`)
    .join(', ')
}
