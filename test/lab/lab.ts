/**
 * Runs one command on a real kernel: `npm run lab -- [--boot KIND] [--memory MIB] [--limit SECONDS] 'command'`. The exit code is that
 * of the command; 2 for wrong usage, 125 when the machine did not get as far.
 */
import fs from 'node:fs'
import { parseArgs } from 'node:util'
import { prepareKernel } from './kernel.js'
import { BOOTS, type BootKind, boot, makeShare } from './machine.js'
import { checkPrerequisites } from './prerequisites.js'

const USAGE = `usage: npm run lab -- [--boot ${Object.keys(BOOTS).join('|')}] [--memory MIB] [--limit SECONDS] 'command'`

interface Call {
  readonly kind: BootKind
  readonly memory: number
  readonly limit: number
  readonly command: string
}

/** Undefined when it is called wrongly. */
function readCall(): Call | undefined {
  try {
    const { values, positionals } = parseArgs({
      options: {
        boot: { type: 'string', default: 'plain' },
        memory: { type: 'string', default: '512' },
        limit: { type: 'string', default: '600' },
      },
      allowPositionals: true,
    })
    const [command] = positionals
    const [memory, limit] = [Number(values.memory), Number(values.limit)]
    const usable = Number.isSafeInteger(memory) && memory >= 256 && limit > 0 && limit <= 86_400 && Object.hasOwn(BOOTS, values.boot)
    if (command === undefined || positionals.length !== 1 || !usable) return undefined
    return { kind: values.boot as BootKind, memory, limit, command }
  } catch {
    return undefined
  }
}

const call = readCall()
if (call === undefined) {
  console.error(USAGE)
  process.exit(2)
}
let share: string | undefined
try {
  checkPrerequisites()
  const kernel = prepareKernel()
  share = makeShare()
  const { exitCode, report, seconds } = await boot(share, {
    ...call,
    kernel,
    output: (stream, text) => void process[stream].write(text),
  })
  const offset = `0x${report.kaslrOffset.toString(16)}`
  console.error(
    `lab: ${call.kind}: ${kernel.release}, KASLR offset ${offset}, ${report.paging} paging, lockdown ${report.lockdown}, ${seconds.toFixed(0)} s`,
  )
  process.exitCode = exitCode
} catch (error) {
  console.error(`lab: ${error instanceof Error ? error.message : String(error)}`)
  process.exitCode = 125
} finally {
  if (share !== undefined) fs.rmSync(share, { recursive: true, force: true })
}
