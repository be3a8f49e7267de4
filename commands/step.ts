/** Makes one command out of one step. */
import { Flags, type Interfaces } from '@oclif/core'
import type { AnyStep, Seconds } from '../src/step.js'
import { caseFlags, IrCommand, stopSignal } from './base.js'
import { stepFlags } from './options.js'
import { runResponse } from './response.js'

/** A single step has no budget of its own: its actions have their limits. */
const NO_BUDGET: Seconds = 7 * 86_400

export interface StepCommandText {
  /** Command lines that work, without the name of the program. */
  readonly examples: readonly [string, string, ...string[]]
  readonly instead?: Instead
}

/** A flag with which the command does something else and the step is not even planned; it goes with no other flag but --json. */
export interface Instead {
  readonly flag: string
  readonly summary: string
  readonly helpValue: string
  /** Prints to `say`, and sets the exit code; what it gives is the document of --json. */
  run(value: string, say: (line: string) => void): unknown
}

export function stepCommand(step: AnyStep, { examples, instead }: StepCommandText): typeof IrCommand {
  const own: Interfaces.FlagInput = { ...caseFlags, ...stepFlags([step]) }
  const flags: Interfaces.FlagInput = instead === undefined ? own : { ...own, [instead.flag]: insteadFlag(instead, Object.keys(own)) }
  return class StepCommand extends IrCommand {
    static override summary = step.summary
    static override description = `${step.description}\n\nSources: ${step.references.join('; ')}`
    static override examples = examples.map(example => `<%= config.bin %> ${example}`)
    static override flags = flags
    async run(): Promise<unknown> {
      const parsed = await this.parse(StepCommand)
      const value = instead === undefined ? undefined : (parsed.flags as Record<string, unknown>)[instead.flag]
      if (instead !== undefined && typeof value === 'string') return instead.run(value, line => this.log(line))
      const { document, exitCode } = await runResponse({
        playbook: { id: step.id, summary: step.summary, throughout: [], steps: [step] },
        budget: NO_BUDGET,
        flags: parsed.flags as never,
        json: this.jsonEnabled(),
        tool: `${this.config.name} ${this.config.version}`,
        stop: stopSignal,
      })
      process.exitCode = exitCode
      return document
    }
  } as unknown as typeof IrCommand
}

function insteadFlag({ summary, helpValue }: Instead, others: string[]): Interfaces.FlagInput[string] {
  return Flags.string({ summary, helpValue, helpGroup: 'INSTEAD', exclusive: others })
}
