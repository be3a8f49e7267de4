/** What every command shares: flags, the way from an error to an exit code, Ctrl-C, consent. */
import { createInterface } from 'node:readline/promises'
import { Command, Flags, type Interfaces } from '@oclif/core'
import { EvidenceError, HostLeftChangedError, RefusedError, UsageError } from '../src/errors.js'
import { visible } from '../src/print.js'
import { killAllPrograms } from '../src/programs.js'

export abstract class IrCommand extends Command {
  static override enableJsonFlag = true

  /** Known errors are one line and a documented exit code; anything else is a bug of ours, with its stack. */
  protected override async catch(error: Interfaces.CommandError): Promise<unknown> {
    const known = KNOWN.some(kind => error instanceof kind) ? (error as Error & { exitCode: number }) : undefined
    if (this.jsonEnabled()) {
      const exit = known?.exitCode ?? error.oclif?.exit ?? error.exitCode ?? 1
      // A bug of ours is one document too, its stack on stderr.
      if (known === undefined && error.oclif === undefined) process.stderr.write(`${error.stack}\n`)
      process.stdout.write(`${JSON.stringify({ error: visible(error.message), exit }, null, 2)}\n`)
      this.exit(exit)
    }
    if (known === undefined) return super.catch(error)
    process.stderr.write(`ir: ${visible(known.message)}\n`)
    this.exit(known.exitCode)
  }
}

const KNOWN = [UsageError, RefusedError, EvidenceError, HostLeftChangedError]

/** Aborts at the first Ctrl-C, SIGTERM or SIGQUIT; the second one ends the process and every program it started. A dead terminal (SIGHUP) ends nothing. */
export function stopSignal({ stopping, aborting }: { stopping: () => void; aborting: () => void }): AbortSignal {
  const stop = new AbortController()
  const interrupt = (): void => {
    if (stop.signal.aborted) {
      killAllPrograms()
      aborting()
      process.exit(130)
    }
    stopping()
    stop.abort()
  }
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGQUIT'] as const) process.on(signal, interrupt)
  for (const signal of ['SIGHUP', 'SIGUSR2'] as const) process.on(signal, () => {})
  // Writing to a terminal that is gone (EIO) or a closed pipe (EPIPE) must not end a response; oclif's own listener throws at EIO.
  for (const stream of [process.stdout, process.stderr]) stream.removeAllListeners('error').on('error', () => {})
  return stop.signal
}

/** One line typed at the terminal, '' at its end. */
export async function ask(question: string): Promise<string> {
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  try {
    return (await terminal.question(question)).trim()
  } catch {
    return ''
  } finally {
    terminal.close()
  }
}

/** Somebody is there to answer. */
export function isInteractive(): boolean {
  return process.stdin.isTTY === true && process.stderr.isTTY === true
}

/** Flags of every command that makes a case. */
export const caseFlags = {
  output: Flags.directory({ char: 'o', summary: 'directory that the case is made in', default: '.', env: 'IR_OUTPUT', helpGroup: 'CASE' }),
  case: Flags.string({ summary: 'what you call this case, for example a ticket number', env: 'IR_CASE', helpGroup: 'CASE' }),
  examiner: Flags.string({ summary: 'who collects', env: 'IR_EXAMINER', helpGroup: 'CASE' }),
  authority: Flags.string({ summary: 'on whose authority', env: 'IR_AUTHORITY', helpGroup: 'CASE' }),
  yes: Flags.boolean({ char: 'y', summary: 'do not ask before changing the host', env: 'IR_YES', helpGroup: 'CASE' }),
  'dry-run': Flags.boolean({ summary: 'print the plan; start nothing, write nothing', env: 'IR_DRY_RUN', helpGroup: 'CASE' }),
  force: Flags.boolean({ summary: 'allow an output directory on a network mount', env: 'IR_FORCE', helpGroup: 'CASE' }),
}
