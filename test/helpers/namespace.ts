/**
 * Private network namespaces for tests: nothing here can reach the machine's own network.
 *
 *     const host = await openNamespace()                      // loopback up
 *     const peer = await openNamespace()
 *     await joinNamespaces(host, ['192.0.2.10/24', '2001:db8::10/64'], peer, ['192.0.2.7/24', '2001:db8::7/64'])
 *     await host.run(['nft', '-f', '-'], { stdin: rules })    // a program to its end
 *     const server = peer.start(['nc', '-l', '22'])           // a program beside the test
 *     await host.call('/path/of/module.ts', { any: 'json' })  // default export of a TypeScript module
 *     await host.close(); await peer.close()                  // or `await using`
 *
 * How it is kept safe: the first process of a namespace proves with src/confinement.ts that it is not in the machine's,
 * and says which one it is in. We hold a descriptor of that namespace, compare its identity with what was proved, and every
 * program enters through this descriptor: were anything wrong, it would not start. Nothing is left behind: programs die
 * with the test (PR_SET_PDEATHSIG); the first process sees its standard input end and ends whatever else is in there.
 */
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process'
import fs from 'node:fs'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { networkNamespace } from '../../src/confinement.js'
import { openHost } from '../../src/host.js'

const SOURCES = fileURLToPath(new URL('sources.mjs', import.meta.url))
const HOLDER = fileURLToPath(new URL('namespace-holder.ts', import.meta.url))
const CALL = fileURLToPath(new URL('namespace-call.ts', import.meta.url))
const [UNSHARE, NSENTER, SETPRIV] = ['unshare', 'nsenter', 'setpriv'].map(tool) as [string, string, string]

/** Of programs that the tests start: nothing of the developer's environment. */
const ENVIRONMENT = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C', TZ: 'UTC', HOME: '/nonexistent' }

export interface RunOptions {
  readonly stdin?: string
  /** In place of the clean one; programs without a '/' are looked for in its PATH. */
  readonly env?: Readonly<Record<string, string>>
  readonly cwd?: string
  /** Milliseconds until SIGKILL, 60,000 when absent. */
  readonly timeout?: number
}

export interface Finished {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

export interface Namespace extends AsyncDisposable {
  /** Of its first process: what `ip link set X netns PID` takes. */
  readonly pid: number
  /** 'net:[4026532177]' */
  readonly id: string
  /** Runs a program to its end; never rejects because of how it ended. */
  run(argv: readonly string[], options?: RunOptions): Promise<Finished>
  /** Runs a program to its end and returns its standard output. @throws when it did not exit with 0. */
  must(argv: readonly string[], options?: RunOptions): Promise<string>
  /** Starts a program beside the test, all three standard streams as pipes. It dies with the test or with `close`. */
  start(argv: readonly string[], options?: RunOptions): ChildProcess
  /** Calls the default export of a module (.ts or .js) in a Node process in the namespace, JSON in and out. */
  call<T>(module: string | URL, argument?: unknown, options?: RunOptions): Promise<T>
  /** Ends everything in it; the kernel takes it down. */
  close(): Promise<void>
}

/** A new network namespace with its loopback up. Needs root. @throws when it is not proved to be apart from the machine's. */
export async function openNamespace(): Promise<Namespace> {
  const outside = networkNamespace()
  if (outside === undefined) throw new Error('our own network namespace is unknown: nothing is started')
  const holder = spawn(UNSHARE, ['--net', '--', process.execPath, '--import', SOURCES, HOLDER, outside], {
    env: ENVIRONMENT,
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const proved = await firstLine(holder)
  if (proved === undefined || proved === outside || !/^net:\[\d+\]$/.test(proved)) {
    holder.kill('SIGKILL')
    throw new Error(`no confined network namespace could be made (${proved ?? 'its first process ended'})`)
  }
  const pid = holder.pid as number
  const fd = fs.openSync(`/proc/${pid}/ns/net`, 'r')
  const namespace = new OpenNamespace({ outside, proved, fd, holder })
  await namespace.must(['ip', 'link', 'set', 'lo', 'up'])
  return namespace
}

interface Parts {
  readonly outside: string
  readonly proved: string
  readonly fd: number
  readonly holder: ChildProcess
}

class OpenNamespace implements Namespace {
  readonly pid: number
  readonly id: string
  private readonly parts: Parts
  private closed: Promise<void> | undefined

  constructor(parts: Parts) {
    this.parts = parts
    this.pid = parts.holder.pid as number
    this.id = parts.proved
  }

  start(argv: readonly string[], options: RunOptions = {}): ChildProcess {
    return this.spawn(argv, options, ['pipe', 'pipe', 'pipe'])
  }

  run(argv: readonly string[], options: RunOptions = {}): Promise<Finished> {
    const child = this.start(argv, options)
    child.stdin?.on('error', () => {})
    child.stdin?.end(options.stdin ?? '')
    return finished(child, options.timeout)
  }

  async must(argv: readonly string[], options: RunOptions = {}): Promise<string> {
    const result = await this.run(argv, options)
    if (result.code !== 0) throw new Error(`${argv.join(' ')}: ${result.signal ?? `exit ${result.code}`}: ${result.stderr.trim()}`)
    return result.stdout
  }

  async call<T>(module: string | URL, argument: unknown = null, options: RunOptions = {}): Promise<T> {
    const path = module instanceof URL ? fileURLToPath(module) : module
    const argv = [process.execPath, '--import', SOURCES, CALL, this.parts.outside, path, JSON.stringify(argument)]
    const child = this.spawn(argv, options, ['ignore', 'pipe', 'pipe', 'pipe'])
    let answer = ''
    const stream = child.stdio[3] as NodeJS.ReadableStream
    stream.on('data', chunk => {
      answer += String(chunk)
    })
    const result = await finished(child, options.timeout)
    if (result.code !== 0)
      throw new Error(`${path} in the namespace: ${result.signal ?? `exit ${result.code}`}\n${result.stderr}${result.stdout}`)
    return JSON.parse(answer) as T
  }

  close(): Promise<void> {
    this.closed ??= new Promise(resolve => {
      const { holder, fd } = this.parts
      const gone = (): void => {
        fs.closeSync(fd)
        resolve()
      }
      if (holder.exitCode !== null || holder.signalCode !== null) gone()
      else holder.once('exit', gone).stdin?.end()
    })
    return this.closed
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** The descriptor of the namespace follows those of the program; nsenter enters through it and the program inherits it, unused. */
  private spawn(argv: readonly string[], options: RunOptions, stdio: ('pipe' | 'ignore')[]): ChildProcess {
    const { fd, proved, outside } = this.parts
    if (this.closed !== undefined) throw new Error('this namespace is closed')
    const now = fs.readlinkSync(`/proc/self/fd/${fd}`)
    if (now !== proved || now === outside) throw new Error(`not the namespace that was proved: ${now}`)
    const enter = [`--net=/proc/self/fd/${stdio.length}`, '--', SETPRIV, '--pdeathsig', 'KILL', '--', ...argv]
    const spawnOptions: SpawnOptions = { env: { ...(options.env ?? ENVIRONMENT) }, stdio: [...stdio, fd] }
    if (options.cwd !== undefined) spawnOptions.cwd = options.cwd
    return spawn(NSENTER, enter, spawnOptions)
  }
}

/**
 * Joins two namespaces by a veth pair, both ends named `name` ('eth0' when absent), with these addresses ('192.0.2.10/24').
 * IPv6 addresses can be used at once (no duplicate address detection).
 */
export async function joinNamespaces(
  one: Namespace,
  addressesOfOne: readonly string[],
  other: Namespace,
  addressesOfOther: readonly string[],
  name = 'eth0',
  nameAtOther = name,
): Promise<void> {
  await one.must(['ip', 'link', 'add', name, 'type', 'veth', 'peer', 'name', nameAtOther, 'netns', String(other.pid)])
  for (const [namespace, device, addresses] of [
    [one, name, addressesOfOne],
    [other, nameAtOther, addressesOfOther],
  ] as const) {
    for (const address of addresses) {
      await namespace.must(['ip', 'address', 'add', address, 'dev', device, ...(address.includes(':') ? ['nodad'] : [])])
    }
    await namespace.must(['ip', 'link', 'set', device, 'up'])
  }
}

function tool(name: string): string {
  const path = openHost().which(name)
  if (path === undefined) throw new Error(`the tests need ${name} (package util-linux)`)
  return path
}

async function firstLine(child: ChildProcess): Promise<string | undefined> {
  const lines = createInterface({ input: child.stdout as NodeJS.ReadableStream })
  try {
    return await new Promise(resolve => {
      lines.once('line', resolve)
      child.once('exit', () => resolve(undefined)).once('error', () => resolve(undefined))
    })
  } finally {
    lines.close()
  }
}

function finished(child: ChildProcess, timeout = 60_000): Promise<Finished> {
  const killer = setTimeout(() => child.kill('SIGKILL'), timeout)
  const output = { stdout: '', stderr: '' }
  child.stdout?.on('data', chunk => {
    output.stdout += String(chunk)
  })
  child.stderr?.on('data', chunk => {
    output.stderr += String(chunk)
  })
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', (code, signal) => {
      clearTimeout(killer)
      const ended = (): void => resolve({ code, signal, ...output })
      // What it left behind may hold its pipes open: that is waited for only a moment.
      child.once('close', ended)
      setTimeout(ended, 1000).unref()
    })
  })
}
