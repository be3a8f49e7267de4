/** The actors of a drill: small programs of ours that send fixed strings and wait. None of them downloads or runs anything. */
import net from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { openHost } from '../host.js'
import { ADDRESSES, ATTACKER_PORT, assertInside, configureOutside, RESPONDER_PORT } from './arena.js'

export const ROLES = ['peer', 'beacon', 'service'] as const
export type Role = (typeof ROLES)[number]

const BEAT = 300

/** Plays a role until it is ended. Every role first proves that it is in a namespace other than `outside`. */
export async function play(role: Role, outside: string): Promise<never> {
  // What the snapshots show as its command.
  process.title = `drill-${role}`
  if (role === 'peer') await peer(outside)
  if (role === 'beacon') await beacon()
  if (role === 'service') service()
  return new Promise(() => {})
}

/** The outside: the attacker's server, and the responder's session to the host, for IPv4 and IPv6. */
async function peer(outside: string): Promise<void> {
  assertInside(outside)
  await configureOutside(openHost())
  for (const family of ['v4', 'v6'] as const) {
    const server = net.createServer(socket => {
      socket.on('error', () => {})
      socket.on('data', () => socket.write('drill: order\n'))
    })
    server.listen(ATTACKER_PORT, ADDRESSES.attacker[family])
    void converse(ADDRESSES.host[family], RESPONDER_PORT, ADDRESSES.responder[family], 'drill: responder\n')
  }
}

/** What was planted: a process that calls out, and calls again when it is not heard. */
async function beacon(): Promise<void> {
  await Promise.all(
    (['v4', 'v6'] as const).map(family => converse(ADDRESSES.attacker[family], ATTACKER_PORT, undefined, 'drill: beacon\n')),
  )
}

/** Stands in for the host's sshd: answers whoever connects to the port that the responder is let through to. */
function service(): void {
  const server = net.createServer(socket => {
    socket.on('error', () => {})
    socket.on('data', chunk => socket.write(chunk))
  })
  server.listen(RESPONDER_PORT, '::')
}

/** Connects, says a line per beat, and connects again when the connection is lost. */
async function converse(host: string, port: number, localAddress: string | undefined, line: string): Promise<never> {
  while (true) {
    const socket = net.connect({ host, port, ...(localAddress === undefined ? {} : { localAddress }) })
    const closed = new Promise(resolve => socket.once('close', resolve))
    socket.on('error', () => {})
    socket.on('data', () => {})
    const beat = setInterval(() => socket.write(line), BEAT)
    await closed
    clearInterval(beat)
    await sleep(BEAT)
  }
}
