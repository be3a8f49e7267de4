/**
 * The place of a drill: a network namespace of its own with one cable to an outside that is a second namespace.
 * Both are anonymous and end with the processes in them, whatever ends those. Nothing here runs before the proof of confinement.
 */
import { assertConfined, networkNamespace } from '../confinement.js'
import { RefusedError } from '../errors.js'
import type { Host } from '../host.js'
import { captureProgram, complaint, type Program, startProgram } from '../programs.js'
import type { Argv, Seconds } from '../step.js'

/** Documentation addresses: RFC 5737 and RFC 3849. Nobody's, even if a packet could leave. */
export const ADDRESSES = {
  host: { v4: '192.0.2.10', v6: '2001:db8:1::10' },
  router: { v4: '192.0.2.1', v6: '2001:db8:1::1' },
  responder: { v4: '198.51.100.7', v6: '2001:db8:7::7' },
  attacker: { v4: '203.0.113.66', v6: '2001:db8:66::66' },
} as const

/** The attacker's port in the drill, one that miners' pools use. */
export const ATTACKER_PORT = 4444
export const RESPONDER_PORT = 22

/** The programs without which there is no place to drill in. */
export const ARENA_TOOLS = ['unshare', 'setpriv', 'ip', 'mount'] as const

/** How to start ourselves again in another role: [node, script] or [single file]. */
export type Self = readonly string[]

export interface Arena {
  /** Starts this program again in a role, inside our namespace, ending with us. */
  start(role: string, ...args: string[]): Program
  /** Starts any program the same way. */
  launch(argv: Argv): Program
  stop(): Promise<void>
}

/** The command line that puts a drill into namespaces of its own: network and mounts. It ends when we end. */
export function confinedArgv(host: Host, self: Self, args: readonly string[]): Argv {
  const [unshare, setpriv] = [tool(host, 'unshare'), tool(host, 'setpriv')]
  return [setpriv, '--pdeathsig', 'KILL', unshare, '--net', '--mount', ...self, ...args]
}

/**
 * Builds the arena around this process, which must be in a network namespace made for it.
 * @throws RefusedError when it is not, or a program of the arena fails.
 */
export async function openArena(host: Host, self: Self, outside: string, lasts: Seconds): Promise<Arena> {
  assertInside(outside)
  const setpriv = tool(host, 'setpriv')
  const programs: Program[] = []
  const launch = (argv: Argv): Program => {
    const running = { title: 'Drill', argv: [setpriv, '--pdeathsig', 'KILL', ...argv] as unknown as Argv, limit: lasts }
    const program = startProgram(running, { stdout: 'pipe' })
    // Nobody reads what they say, and a full pipe must not stop them.
    program.stdout?.resume()
    programs.push(program)
    return program
  }
  const start = (role: string, ...args: string[]): Program => launch([...self, 'drill', '--role', role, ...args] as unknown as Argv)
  const stop = async (): Promise<void> => {
    for (const program of programs) program.stop()
    await Promise.all(programs.map(program => program.exit))
  }
  try {
    await run(host, 'mount', '-t', 'tmpfs', '-o', 'mode=1777,size=64m', 'drill', '/dev/shm')
    await run(host, 'ip', 'link', 'set', 'lo', 'up')
    const peer = launch([
      tool(host, 'unshare'),
      '--net',
      ...self,
      'drill',
      '--role',
      'peer',
      '--confined-from',
      networkNamespace() as string,
    ])
    await ownNamespace(peer, outside)
    await run(host, 'ip', 'link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', String(peer.pid))
    await address(host, 'eth0', `${ADDRESSES.host.v4}/24`, `${ADDRESSES.host.v6}/64`)
    await run(host, 'ip', 'route', 'add', 'default', 'via', ADDRESSES.router.v4)
    await run(host, 'ip', '-6', 'route', 'add', 'default', 'via', ADDRESSES.router.v6)
  } catch (error) {
    await stop()
    throw error
  }
  return { start, launch, stop }
}

/** Its own namespace is neither the machine's nor that of the process that started us. */
export function assertInside(outside: string): void {
  assertConfined(outside)
  if (networkNamespace() === networkNamespace(process.ppid)) {
    throw new RefusedError('a drill runs in a network namespace made for it, not in that of the process that started it: type ir drill')
  }
}

/** The outside's end of the cable; it waits until we have plugged it in. */
export async function configureOutside(host: Host): Promise<void> {
  for (let tries = 0; tries < 100; tries++) {
    if ((await attempt(host, 'ip', 'link', 'show', 'eth0')) === undefined) break
    await new Promise(resolve => setTimeout(resolve, 50))
  }
  await run(host, 'ip', 'link', 'set', 'lo', 'up')
  await address(host, 'eth0', `${ADDRESSES.router.v4}/24`, `${ADDRESSES.router.v6}/64`)
  await address(host, 'lo', `${ADDRESSES.responder.v4}/32`, `${ADDRESSES.responder.v6}/128`)
  await address(host, 'lo', `${ADDRESSES.attacker.v4}/32`, `${ADDRESSES.attacker.v6}/128`)
}

async function address(host: Host, device: string, v4: string, v6: string): Promise<void> {
  await run(host, 'ip', 'addr', 'add', v4, 'dev', device)
  // nodad: no waiting for duplicate address detection (ip-address(8)).
  await run(host, 'ip', '-6', 'addr', 'add', v6, 'dev', device, 'nodad')
  await run(host, 'ip', 'link', 'set', device, 'up')
}

/** unshare has done its work when the process is in a namespace that is neither ours nor the machine's. */
async function ownNamespace(program: Program, outside: string): Promise<void> {
  for (let tries = 0; tries < 100; tries++) {
    const theirs = program.pid === undefined ? undefined : networkNamespace(program.pid)
    if (theirs !== undefined && theirs !== networkNamespace() && theirs !== outside) return
    await new Promise(resolve => setTimeout(resolve, 50))
  }
  throw new RefusedError('the outside of the drill got no network namespace of its own')
}

async function run(host: Host, program: string, ...args: string[]): Promise<void> {
  const problem = await attempt(host, program, ...args)
  if (problem !== undefined) throw new RefusedError(`the drill could not be set up: ${problem}`)
}

async function attempt(host: Host, program: string, ...args: string[]): Promise<string | undefined> {
  const running = { title: 'Set up the drill', argv: [tool(host, program), ...args] as unknown as Argv, limit: 10 }
  return complaint(running, (await captureProgram(running)).exit)
}

function tool(host: Host, name: string): string {
  const found = host.which(name)
  if (found === undefined) throw new RefusedError(`a drill needs ${name}, which is not installed: run bin/setup`)
  return found
}
