/**
 * Traffic between namespaces for tests: echo servers, connections that live on, and the question whether they still work.
 *
 *     const host = await startTraffic(hostNamespace)
 *     const peer = await startTraffic(peerNamespace)
 *     await host.listen('0.0.0.0', 22)
 *     const session = await peer.connect({ from: '192.0.2.7', to: '192.0.2.10', port: 22 })   // undefined: refused or no answer
 *     await session?.works()
 *     await peer.datagram({ to: '192.0.2.10', port: 22 })
 */
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import type { Namespace } from './namespace.js'

const AGENT = fileURLToPath(new URL('traffic-agent.mjs', import.meta.url))

/** Long enough for what must work on a busy machine; what must not work is waited for this long each time. */
const WORKS = 10_000
const DEAD = 1500

export interface Towards {
  /** Own address, the kernel's choice when absent. */
  readonly from?: string
  readonly fromPort?: number
  readonly to: string
  readonly port: number
  /** Milliseconds to wait for an answer, 10,000 when absent. */
  readonly timeout?: number
}

export interface Flow {
  /** Sends so much (16 bytes when absent) and waits until it has come back. */
  works(bytes?: number): Promise<boolean>
  /** The same, but waits only as long as a working flow would need at most on a quiet machine. */
  isDead(): Promise<boolean>
}

export interface Traffic {
  /** Of the process that makes it. */
  readonly pid: number
  /** Opens an echo server for TCP and UDP. */
  listen(address: string, port: number): Promise<void>
  connect(towards: Towards): Promise<Flow | undefined>
  /** Nobody answers there, or it is refused. */
  cannotConnect(towards: Towards): Promise<boolean>
  /** Sends a UDP datagram and waits for its echo. */
  datagram(towards: Towards): Promise<boolean>
  stop(): void
}

/** Starts the process that makes and answers traffic in a namespace; it ends with it. */
export async function startTraffic(namespace: Namespace): Promise<Traffic> {
  const child = namespace.start([process.execPath, AGENT])
  const waiting = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>()
  let last = 0
  createInterface({ input: child.stdout as NodeJS.ReadableStream }).on('line', line => {
    const { id, value, error } = JSON.parse(line) as { id: number; value?: unknown; error?: string }
    const asked = waiting.get(id)
    waiting.delete(id)
    if (error === undefined) asked?.resolve(value)
    else asked?.reject(new Error(error))
  })
  let said = ''
  child.stderr?.on('data', chunk => {
    said += String(chunk)
  })
  child.once('exit', () => {
    for (const { reject } of waiting.values()) reject(new Error(`the traffic process ended: ${said}`))
  })
  child.stdin?.on('error', () => {})
  const ask = (command: string, options: object): Promise<unknown> =>
    new Promise((resolve, reject) => {
      last += 1
      waiting.set(last, { resolve, reject })
      child.stdin?.write(`${JSON.stringify({ id: last, command, ...options })}\n`)
    })
  const connect = async (towards: Towards): Promise<Flow | undefined> => {
    const flow = await ask('connect', { timeout: WORKS, ...towards })
    if (flow === false) return undefined
    return {
      works: async (bytes = 16) => (await ask('echo', { flow, bytes, timeout: WORKS })) === true,
      isDead: async () => (await ask('echo', { flow, timeout: DEAD })) === false,
    }
  }
  return {
    pid: child.pid as number,
    listen: async (address, port) => void (await ask('listen', { address, port })),
    connect,
    cannotConnect: async towards => (await connect({ timeout: DEAD, ...towards })) === undefined,
    datagram: async towards => (await ask('datagram', { timeout: WORKS, ...towards })) === true,
    stop: () => child.stdin?.end(),
  }
}
