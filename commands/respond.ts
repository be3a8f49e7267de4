/** ir respond: the golden thirty minutes. */
import { Args, Flags } from '@oclif/core'
import { golden30 } from '../playbooks/golden-30.js'
import { UsageError } from '../src/errors.js'
import { nearest } from '../src/nearest.js'
import { parseDuration } from '../src/time.js'
import { caseFlags, IrCommand, stopSignal } from './base.js'
import { listOf, stepFlags } from './options.js'
import { type ResponseDocument, runResponse, selectSteps } from './response.js'

const PLAYBOOKS = [golden30]

const names = [...golden30.throughout, ...golden30.steps].map(step => step.id)

export default class Respond extends IrCommand {
  static override summary = 'Take this host through the golden thirty minutes and seal the evidence'
  static override description = [
    'Cuts the host off from everything but you, saves what is about to vanish, and leaves one sealed archive.',
    `Steps, in order: ${names.join(', ')}.`,
    'Nothing is changed before you agreed. Ctrl-C once: stop and seal what there is. Isolation stays until `ir release`.',
    'Exit codes: 0 complete; 3 sealed, but something is missing; 4 refused, nothing touched; 5 evidence unwritable; 6 host left changed; 130 interrupted, sealed.',
  ].join('\n')
  static override examples = [
    '<%= config.bin %> respond --dry-run',
    '<%= config.bin %> respond --allow 198.51.100.7 --case INC-42 --output /var/tmp',
  ]
  static override args = { playbook: Args.string({ description: 'playbook to run', default: golden30.id }) }
  static override flags = {
    only: Flags.string({ summary: 'run these steps only', multiple: true, delimiter: ',', env: 'IR_ONLY' }),
    skip: Flags.string({ summary: 'leave these steps out', multiple: true, delimiter: ',', env: 'IR_SKIP' }),
    budget: Flags.string({ summary: 'no step is started after this time', default: '30m', env: 'IR_BUDGET', helpValue: '30m' }),
    ...caseFlags,
    ...stepFlags([...golden30.throughout, ...golden30.steps]),
  }

  async run(): Promise<ResponseDocument> {
    const { args, flags } = await this.parse(Respond)
    const playbook = PLAYBOOKS.find(one => one.id === args.playbook)
    if (playbook === undefined) {
      const known = PLAYBOOKS.map(one => one.id)
      const meant = nearest(args.playbook, known) ?? known[0]
      throw new UsageError(`there is no playbook '${args.playbook}': did you mean '${meant}'?`)
    }
    const { document, exitCode } = await runResponse({
      playbook: selectSteps(playbook, listOf(flags.only) ?? [], listOf(flags.skip) ?? [], nearest),
      budget: parseDuration(flags.budget),
      flags: flags as never,
      json: this.jsonEnabled(),
      tool: `${this.config.name} ${this.config.version}`,
      stop: stopSignal,
    })
    process.exitCode = exitCode
    return document
  }
}
