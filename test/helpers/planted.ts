/** Inert processes for the tests to find: a Python that does one thing, says so, and sleeps until it is ended. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'

/** Debian's own, not one that a developer's PATH has. */
const PYTHON = '/usr/bin/python3'

export interface Planted extends AsyncDisposable {
  readonly pid: number
  /** The first line that it printed. */
  readonly said: string
  readonly child: ChildProcess
}

/**
 * Starts a program and waits until it has printed a line. It is killed at the end of the block: `await using`.
 * @throws when it ends without saying anything.
 */
export async function planted(child: ChildProcess): Promise<Planted> {
  let complaint = ''
  child.stderr?.on('data', chunk => {
    complaint += String(chunk)
  })
  const lines = createInterface({ input: child.stdout as NodeJS.ReadableStream })
  const said = await new Promise<string>((resolve, reject) => {
    lines.once('line', resolve)
    child.once('error', reject)
    child.once('exit', code => reject(new Error(`the planted process ended with ${code}: ${complaint}`)))
  })
  return {
    pid: child.pid as number,
    said,
    child,
    async [Symbol.asyncDispose]() {
      if (child.exitCode !== null || child.signalCode !== null) return
      const ended = once(child, 'exit')
      child.kill('SIGKILL')
      await ended
    },
  }
}

/** Python that runs `script`, which must print a line when it is ready and then keep still. */
export function pythonArgv(script: string): [string, ...string[]] {
  return [PYTHON, '-c', script]
}

export function plantPython(script: string): Promise<Planted> {
  const [program, ...args] = pythonArgv(script)
  return planted(spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'], env: { PATH: '/usr/bin:/bin' } }))
}
