/** What is said of a command that does not exist. */
import { UsageError } from '../src/errors.js'
import { nearest } from '../src/nearest.js'
import { visible } from '../src/print.js'

/** Says on stderr, or as a document with `--json`, what was probably meant, and sets exit code 2. */
export function unknownCommand(args: readonly string[], names: readonly string[]): void {
  const [typed = ''] = args
  const meant = nearest(typed, names)
  const hint = meant === undefined ? 'ir --help lists the commands' : `did you mean '${meant}'?`
  const error = new UsageError(`there is no command '${visible(typed)}': ${hint}`)
  if (args.includes('--json')) process.stdout.write(`${JSON.stringify({ error: error.message, exit: error.exitCode }, null, 2)}\n`)
  else process.stderr.write(`ir: ${error.message}\n`)
  process.exitCode = error.exitCode
}
