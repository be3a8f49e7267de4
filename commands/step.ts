/** Makes one command out of one step. */
import type { Interfaces } from '@oclif/core'
import type { AnyStep, Seconds } from '../src/step.js'
import { caseFlags, IrCommand, stopSignal } from './base.js'
import { stepFlags } from './options.js'
import { type ResponseDocument, runResponse } from './response.js'

/** A single step has no budget of its own: its actions have their limits. */
const NO_BUDGET: Seconds = 7 * 86_400

export interface StepCommandText {
  /** Two command lines that work, without the name of the program. */
  readonly examples: readonly [string, string]
}

export function stepCommand(step: AnyStep, { examples }: StepCommandText): typeof IrCommand {
  const flags: Interfaces.FlagInput = { ...caseFlags, ...stepFlags([step]) }
  return class StepCommand extends IrCommand {
    static override summary = step.summary
    static override description = `${step.description}\n\nSources: ${step.references.join('; ')}`
    static override examples = examples.map(example => `<%= config.bin %> ${example}`)
    static override flags = flags
    async run(): Promise<ResponseDocument> {
      const parsed = await this.parse(StepCommand)
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
