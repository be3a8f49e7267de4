/** ir seal CASE: bundles a case that was interrupted. */
import path from 'node:path'
import { Args } from '@oclif/core'
import { RefusedError } from '../src/errors.js'
import { isSealed, openCase } from '../src/evidence/case.js'
import { sealCase } from '../src/evidence/seal.js'
import { openHost } from '../src/host.js'
import { visible } from '../src/print.js'
import { formatBytes } from '../src/time.js'
import { IrCommand } from './base.js'

export default class Seal extends IrCommand {
  static override summary = 'Bundle a case that was interrupted'
  static override description =
    'Takes the case directory as the interruption left it, writes the gap into its custody log, and seals it like any other. A sealed case is never written again.'
  static override examples = [
    '<%= config.bin %> seal ir-web1-20260611T142233Z',
    '<%= config.bin %> seal --json /var/tmp/ir-web1-20260611T142233Z',
  ]
  static override args = { case: Args.directory({ description: 'the case directory', required: true }) }

  async run(): Promise<unknown> {
    const { args } = await this.parse(Seal)
    const directory = path.resolve(args.case)
    if (isSealed(directory)) throw new RefusedError(`${directory} is sealed already, and never written again: ir verify ${directory}`)
    const host = openHost()
    const caze = openCase(directory, host)
    const sealed = await sealCase(caze, {
      host: host.hostname,
      tool: `${this.config.name} ${this.config.version}`,
      timeZone: Intl.DateTimeFormat().resolvedOptions().timeZone,
      started: host.now().toISOString(),
    })
    this.log(
      `sealed  ${visible(sealed.archive)}  (${formatBytes(sealed.bytes)})\nsha256  ${sealed.sha256}\nhead    ${sealed.head}   <- note this line`,
    )
    return sealed
  }
}
