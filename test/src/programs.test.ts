/** Programs that will not end: the deadline must, whatever they leave behind. Real programs throughout. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { captureProgram, complaint, runProgram, startProgram } from '../../src/programs.js'
import type { Argv, Running } from '../../src/step.js'

let directory: string
beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-programs-'))
})
afterEach(() => {
  fs.rmSync(directory, { recursive: true, force: true })
})

const running = (argv: Argv, limit = 30, more: Partial<Running> = {}): Running => ({ title: 'Test', argv, limit, ...more })
const shell = (script: string, limit?: number): Running => running(['/bin/sh', '-c', script], limit)
const output = (): number => fs.openSync(path.join(directory, 'out'), 'w+')
const alive = (pid: number): boolean => {
  try {
    return !/^\d+ \(.*\) Z/s.test(fs.readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false
  }
}
const pidIn = (name: string): number => Number(fs.readFileSync(path.join(directory, name), 'utf8'))
const gone = async (pid: number): Promise<boolean> => {
  for (let tries = 0; tries < 100 && alive(pid); tries++) await new Promise(resolve => setTimeout(resolve, 20))
  return !alive(pid)
}

describe('a program', () => {
  it('writes into the descriptor it was given', async () => {
    const exit = await runProgram(running(['/bin/echo', 'hello']), { stdout: output() })
    expect(exit).toMatchObject({ code: 0, timedOut: false, abandoned: false })
    expect(fs.readFileSync(path.join(directory, 'out'), 'utf8')).toBe('hello\n')
  })

  it('reads what the plan gives it and nothing else', async () => {
    expect((await captureProgram({ ...running(['/usr/bin/sort']), stdin: 'b\na\n' })).stdout.toString()).toBe('a\nb\n')
    expect((await captureProgram(running(['/bin/cat']))).stdout.length).toBe(0)
  })

  it('sees a clean environment', async () => {
    process.env.LD_PRELOAD_TEST = 'evil'
    const { stdout } = await captureProgram(running(['/usr/bin/env']))
    delete process.env.LD_PRELOAD_TEST
    const names = stdout
      .toString()
      .trim()
      .split('\n')
      .map(line => line.split('=', 1)[0])
    expect(names.toSorted()).toEqual(['HOME', 'IR_RUN', 'LC_ALL', 'PATH', 'TZ'])
  })

  it('gets its arguments as they are, never through a shell', async () => {
    const hostile = '$(touch /tmp/never); `id` "\'\n*'
    expect((await captureProgram(running(['/usr/bin/printf', '%s', hostile]))).stdout.toString()).toBe(hostile)
  })

  it('that is missing could not be started', async () => {
    const missing = running(['/nonexistent/program'])
    const exit = await runProgram(missing)
    expect(exit.notStarted).toBe('ENOENT')
    expect(complaint(missing, exit)).toContain('could not be started (ENOENT)')
  })

  it('that fails is quoted with its own words', async () => {
    const failing = shell('echo no such table >&2; exit 3')
    expect(complaint(failing, await runProgram(failing))).toBe('/bin/sh exited with 3: no such table')
  })

  it('may be allowed other exit codes', async () => {
    const accepted = { ...shell('exit 1'), accept: [1] }
    expect(complaint(accepted, await runProgram(accepted))).toBeUndefined()
    const refused = { ...shell('exit 0'), accept: [1] }
    expect(complaint(refused, await runProgram(refused))).toContain('exited with 0')
  })
})

describe('the deadline ends', () => {
  it('a program that sleeps', async () => {
    const exit = await runProgram(running(['/bin/sleep', '600'], 0.5), { stdout: output() })
    expect(exit).toMatchObject({ timedOut: true, abandoned: false })
    expect(exit.seconds).toBeLessThan(10)
  })

  it('a program that ignores SIGTERM', async () => {
    const exit = await runProgram(shell('trap "" TERM; while :; do sleep 1; done', 0.5), { stdout: output() })
    expect(exit).toMatchObject({ timedOut: true, signal: 'SIGKILL' })
  })

  it('the children that a program waits for', async () => {
    const exit = await runProgram(shell(`sleep 600 & echo $! > ${directory}/child; wait`, 0.7), { stdout: output() })
    expect(exit.timedOut).toBe(true)
    expect(await gone(pidIn('child'))).toBe(true)
  })

  it('a child in a session of its own that holds the pipe', async () => {
    const exit = await runProgram(shell(`setsid sh -c 'echo $$ > ${directory}/child; exec sleep 600' & wait`, 0.7), { stdout: 'pipe' })
    expect(exit.timedOut).toBe(true)
    expect(exit.seconds).toBeLessThan(10)
    expect(await gone(pidIn('child'))).toBe(true)
  })

  it('a program that floods its output', async () => {
    const exit = await runProgram(running(['/usr/bin/yes']), { stdout: output(), maxBytes: 1 << 20 })
    expect(exit).toMatchObject({ flooded: true, timedOut: false })
    const captured = await captureProgram(running(['/usr/bin/yes']), { maxBytes: 1 << 20 })
    expect(captured.exit.flooded).toBe(true)
    expect(captured.stdout.length).toBeLessThanOrEqual(1 << 20)
  })
})

describe('a program that ended', () => {
  it('does not keep us by a pipe that a descendant holds', async () => {
    const program = startProgram(shell(`setsid sh -c 'echo $$ > ${directory}/child; exec sleep 600' & sleep 0.3; exit 0`), {
      stdout: 'pipe',
    })
    const exit = await program.exit
    expect(exit).toMatchObject({ code: 0, timedOut: false })
    expect(exit.seconds).toBeLessThan(10)
    expect(await gone(pidIn('child'))).toBe(true)
  })

  it('is interrupted by its signal', async () => {
    const stop = new AbortController()
    const exit = runProgram(running(['/bin/sleep', '600']), { signal: stop.signal })
    stop.abort()
    expect(await exit).toMatchObject({ interrupted: true, timedOut: false })
    expect(await runProgram(running(['/bin/sleep', '600']), { signal: AbortSignal.abort() })).toMatchObject({ interrupted: true })
  })
})
