/**
 * Runs the host's programs: by argv, in a clean environment, in a process group of their own, with a deadline that ends
 * them together with everything they started, or abandons what will not die.
 */
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import os from 'node:os'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { execa, type Options } from 'execa'
import { SEARCH_PATH } from './host.js'
import type { Argv, Running, Seconds } from './step.js'

/** From the polite signal to SIGKILL, and from SIGKILL until a program counts as abandoned. */
const TERM_GRACE: Seconds = 2
const KILL_GRACE: Seconds = 1

/** Of what a program says on standard error, this much is kept for messages. */
const STDERR_LIMIT = 4096

/** Marks every process that a program starts, so that those that leave its process group are found again. */
const MARK = 'IR_RUN'

/** How a program ended. */
export interface Exit {
  /** Its exit code; undefined when a signal ended it, it never started, or it was abandoned. */
  readonly code?: number
  readonly signal?: string
  /** errno name when it could not be started. */
  readonly notStarted?: string
  readonly timedOut: boolean
  readonly interrupted: boolean
  /** It wrote more than it may. */
  readonly flooded: boolean
  /** It still ran when we stopped waiting for it. */
  readonly abandoned: boolean
  readonly seconds: Seconds
  /** The beginning of what it said on standard error. */
  readonly stderr: string
}

export interface ProgramIo {
  /** A descriptor that we opened, 'pipe' to read it here, nothing to drop it. */
  readonly stdout?: number | 'pipe'
  /** A descriptor that we opened; without it standard error is read here and its beginning kept. */
  readonly stderr?: number
  /** Ends the program. */
  readonly signal?: AbortSignal
  /** More than this on a `stdout` descriptor ends the program. */
  readonly maxBytes?: number
  /** Extra arguments behind those of the plan: a batch of file names. */
  readonly more?: readonly string[]
  /** Keep so much of what it says on standard error, for `said`; 4 KiB when absent. */
  readonly stderrBytes?: number
}

export interface Program {
  readonly pid: number | undefined
  /** With `stdout: 'pipe'`. */
  readonly stdout: Readable | undefined
  /** Never rejects. */
  readonly exit: Promise<Exit>
  /** What it has said on standard error so far, as bytes, at most `stderrBytes`. */
  said(): Buffer
  /** Ends it before its deadline; `exit` tells when it is gone. */
  stop(): void
}

const living = new Set<() => void>()

/** Kills every program that still runs: for the second Ctrl-C, after which nothing is waited for. */
export function killAllPrograms(): void {
  for (const kill of living) kill()
}

export function startProgram(running: Running, io: ProgramIo = {}): Program {
  const started = performance.now()
  const mark = randomUUID()
  const args = [...running.argv.slice(1), ...(io.more ?? [])]
  const options: Options = {
    shell: false,
    preferLocal: false,
    extendEnv: false,
    env: { LC_ALL: 'C', TZ: 'UTC', HOME: '/', PATH: SEARCH_PATH.join(':'), [MARK]: mark },
    cwd: '/',
    ...(running.stdin === undefined ? { stdin: 'ignore' as const } : { input: running.stdin }),
    stdout: descriptor(io.stdout ?? 'ignore'),
    stderr: descriptor(io.stderr ?? 'pipe'),
    buffer: false,
    reject: false,
    killDescendants: true,
    cleanup: false,
  }
  const child = execa(running.argv[0], args, options)
  const said: Buffer[] = []
  let room = io.stderrBytes ?? STDERR_LIMIT
  child.stderr?.on('data', (chunk: Buffer) => {
    if (room <= 0) return
    said.push(chunk.subarray(0, room))
    room -= chunk.length
  })
  // A program that closes its input early is its own business, not an error of ours.
  child.stdin?.on('error', () => {})

  let why: 'deadline' | 'interrupt' | 'flood' | undefined
  let finish: (abandoned: boolean) => void = () => {}
  const abandoned = new Promise<boolean>(resolve => {
    finish = resolve
  })
  const kill = (signal: NodeJS.Signals): void => {
    if (child.pid === undefined) return
    try {
      process.kill(-child.pid, signal)
    } catch {
      // The group is gone already.
    }
  }
  const killHard = (): void => {
    kill('SIGKILL')
    for (const pid of marked(mark)) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {
        // It ended in between.
      }
    }
  }
  const end = (cause: typeof why): void => {
    if (why !== undefined) return
    why = cause
    kill('SIGTERM')
    void sleep(TERM_GRACE * 1000, undefined, { ref: false }).then(() => {
      killHard()
      return sleep(KILL_GRACE * 1000).then(() => finish(true))
    })
  }

  living.add(killHard)
  const deadline = setTimeout(() => end('deadline'), running.limit * 1000)
  const interrupt = (): void => end('interrupt')
  if (io.signal?.aborted) interrupt()
  io.signal?.addEventListener('abort', interrupt, { once: true })
  const watch = watchSize(io, () => end('flood'))

  const gone = new Promise<{ exitCode?: number | undefined; signal?: string | undefined; code?: string | undefined }>(resolve => {
    // 'exit', not execa's own promise: that waits for pipes which a descendant may hold open for ever.
    child.nodeChildProcess.once('exit', (code, signal) => resolve({ exitCode: code ?? undefined, signal: signal ?? undefined }))
    child.then(
      result => resolve({ exitCode: result.exitCode, signal: result.signal, code: result.code }),
      error => resolve({ code: String(error?.code ?? 'EUNKNOWN') }),
    )
  })
  const exit = Promise.race([gone, abandoned]).then(async (result): Promise<Exit> => {
    clearTimeout(deadline)
    clearInterval(watch)
    io.signal?.removeEventListener('abort', interrupt)
    const left = result === true
    // Whoever it left behind in its group, or marked, goes with it.
    if (why === undefined) kill('SIGKILL')
    else killHard()
    living.delete(killHard)
    // A pipe that stays open is held by a descendant that left the group.
    if (!(await drained(child.stderr, child.stdout))) killHard()
    const facts = typeof result === 'object' ? result : {}
    return {
      ...(facts.exitCode === undefined ? {} : { code: facts.exitCode }),
      ...(facts.signal === undefined ? {} : { signal: facts.signal }),
      ...(child.pid === undefined ? { notStarted: facts.code ?? 'EUNKNOWN' } : {}),
      timedOut: why === 'deadline',
      interrupted: why === 'interrupt',
      flooded: why === 'flood',
      abandoned: left,
      seconds: (performance.now() - started) / 1000,
      stderr: Buffer.concat(said).toString('utf8', 0, STDERR_LIMIT).trim(),
    }
  })
  return { pid: child.pid, stdout: child.stdout ?? undefined, exit, said: () => Buffer.concat(said), stop: interrupt }
}

/** Runs a program to its end. */
export function runProgram(running: Running, io: ProgramIo = {}): Promise<Exit> {
  return startProgram(running, io).exit
}

/** Runs a program and keeps what it prints, at most `maxBytes`; for looks outside a case (doctor, batches of lsattr). */
export async function captureProgram(
  running: Running,
  io: { signal?: AbortSignal; maxBytes?: number; more?: readonly string[]; stderrBytes?: number } = {},
): Promise<{ exit: Exit; stdout: Buffer; stderr: Buffer }> {
  const maxBytes = io.maxBytes ?? 16 << 20
  const { maxBytes: _, ...rest } = io
  const program = startProgram(running, { ...rest, stdout: 'pipe' })
  const chunks: Buffer[] = []
  let total = 0
  program.stdout?.on('data', (chunk: Buffer) => {
    total += chunk.length
    if (total <= maxBytes) chunks.push(chunk)
    else program.stop()
  })
  const exit = await program.exit
  return {
    exit: total > maxBytes ? { ...exit, flooded: true, interrupted: false } : exit,
    stdout: Buffer.concat(chunks),
    stderr: program.said(),
  }
}

/**
 * Runs a program on our own terminal, in a session of its own: signals reach it only through `forward`, so that Ctrl-C is not counted twice.
 * Gives its exit code; 128 + n when signal n ended it, as a shell does.
 */
export async function runAttached(argv: Argv, forward: (send: (signal: NodeJS.Signals) => void) => void): Promise<number> {
  const child = execa(argv[0], argv.slice(1), {
    shell: false,
    preferLocal: false,
    stdio: 'inherit',
    detached: true,
    cleanup: false,
    reject: false,
  })
  forward(signal => void child.kill(signal))
  const result = await child
  if (result.exitCode !== undefined) return result.exitCode
  return result.signal === undefined ? 1 : 128 + (os.constants.signals[result.signal as NodeJS.Signals] ?? 0)
}

/** A process of our own that answers on its standard output what it is asked on its standard input. */
export interface Companion {
  /** undefined when it could not be started: `lost` is called then, too. */
  readonly pid: number | undefined
  ask(text: string): void
  /** Kills it and lets go of it: should it not die, it still does not hold our exit. */
  kill(): void
}

/** Starts our own program beside us, in a session of its own and with nothing of our environment; no program of the host, no deadline. */
export function startCompanion(argv: Argv, on: { heard(chunk: Buffer): void; lost(): void }): Companion {
  const child = execa(argv[0], argv.slice(1), {
    shell: false,
    preferLocal: false,
    extendEnv: false,
    env: {},
    cwd: '/',
    stdin: 'pipe',
    stdout: 'pipe',
    stderr: 'ignore',
    buffer: false,
    reject: false,
    detached: true,
    cleanup: false,
  })
  let gone = false
  const leave = (): boolean => {
    const first = !gone
    gone = true
    living.delete(kill)
    return first
  }
  const kill = (): void => {
    if (!leave()) return
    child.nodeChildProcess.kill('SIGKILL')
    child.stdin.destroy()
    child.stdout.destroy()
    child.nodeChildProcess.unref()
  }
  const lost = (): void => {
    if (leave()) on.lost()
  }
  living.add(kill)
  child.stdin.on('error', () => {})
  child.stdout.on('error', () => {})
  child.stdout.on('data', (chunk: Buffer) => {
    if (!gone) on.heard(chunk)
  })
  child.nodeChildProcess.once('exit', lost)
  child.then(lost, lost)
  return { pid: child.pid, ask: text => void child.stdin.write(text), kill }
}

/** One sentence on why a program did not do its work; undefined when it did. */
export function complaint(running: Running, exit: Exit): string | undefined {
  const name = running.argv[0]
  const said = exit.stderr === '' ? '' : `: ${exit.stderr.split('\n', 1)[0]}`
  if (exit.notStarted !== undefined) return `${name} could not be started (${exit.notStarted})`
  const left = exit.abandoned ? ', and would not die' : ''
  if (exit.timedOut) return `${name} was ended after ${running.limit} s${left}${said}`
  if (exit.interrupted) return `${name} was interrupted${left}`
  if (exit.flooded) return `${name} wrote more than it may and was ended${left}`
  if (exit.signal !== undefined) return `${name} was killed by ${exit.signal}${said}`
  if (!(running.accept ?? [0]).includes(exit.code ?? -1)) return `${name} exited with ${exit.code}${said}`
  return undefined
}

/** execa takes any descriptor; its types know only those up to 9. */
function descriptor<T extends string>(target: number | T): T | 1 {
  return target as T | 1
}

function watchSize(io: ProgramIo, flooded: () => void): NodeJS.Timeout | undefined {
  const { stdout, maxBytes } = io
  if (typeof stdout !== 'number' || maxBytes === undefined) return undefined
  const timer = setInterval(() => {
    if (fs.fstatSync(stdout).size > maxBytes) flooded()
  }, 200)
  timer.unref()
  return timer
}

/** What was already in the pipes arrives after 'exit'; a descendant that holds one open must not keep us: false when one does. */
async function drained(...pipes: (Readable | null | undefined)[]): Promise<boolean> {
  const open = pipes.filter((pipe): pipe is Readable => pipe !== null && pipe !== undefined && !pipe.readableEnded && !pipe.destroyed)
  if (open.length === 0) return true
  const ended = Promise.all(
    open.map(pipe => new Promise(resolve => pipe.once('close', resolve).once('end', resolve).once('error', resolve))),
  )
  await Promise.race([ended, sleep(500)])
  const held = open.filter(pipe => !pipe.readableEnded)
  for (const pipe of held) pipe.destroy()
  return held.length === 0
}

/** Processes whose environment carries the mark: also those that started a session of their own. */
function marked(mark: string): number[] {
  const found: number[] = []
  for (const name of fs.readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    try {
      if (fs.readFileSync(`/proc/${name}/environ`, 'latin1').includes(`${MARK}=${mark}`)) found.push(Number(name))
    } catch {
      // Gone, or not ours to read.
    }
  }
  return found
}
