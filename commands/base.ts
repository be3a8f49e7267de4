/** What every command shares: flags, the way from an error to an exit code, Ctrl-C, consent. */
import { createInterface } from 'node:readline/promises'
import { Command, Flags, type Interfaces } from '@oclif/core'
import { EvidenceError, RefusedError, UsageError } from '../src/errors.js'
import { visible } from '../src/print.js'
import { killAllPrograms } from '../src/programs.js'

export abstract class IrCommand extends Command {
  static override enableJsonFlag = true

  /** Known errors are one line and a documented exit code; anything else is a bug of ours, with its stack. */
  protected override async catch(error: Interfaces.CommandError): Promise<unknown> {
    if (error instanceof UsageError || error instanceof RefusedError || error instanceof EvidenceError) {
      const message = visible(error.message)
      if (this.jsonEnabled()) {
        process.stdout.write(`${JSON.stringify({ error: message, exit: error.exitCode }, null, 2)}\n`)
        this.exit(error.exitCode)
      }
      process.stderr.write(`ir: ${message}\n`)
      this.exit(error.exitCode)
    }
    return super.catch(error)
  }
}

/** Aborts at the first Ctrl-C or SIGTERM; the second one ends the process and every program it started. A dead terminal (SIGHUP) ends nothing. */
export function stopSignal(stopping: () => void): AbortSignal {
  const stop = new AbortController()
  const interrupt = (): void => {
    if (stop.signal.aborted) {
      killAllPrograms()
      process.exit(130)
    }
    stopping()
    stop.abort()
  }
  process.on('SIGINT', interrupt)
  process.on('SIGTERM', interrupt)
  process.on('SIGHUP', () => {})
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
