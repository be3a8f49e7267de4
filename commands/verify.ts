/** ir verify ARCHIVE|CASE: proves evidence intact, on any machine, without root. */
import path from 'node:path'
import { Args } from '@oclif/core'
import { verify } from '../src/evidence/verify.js'
import { visible } from '../src/print.js'
import { IrCommand } from './base.js'

export default class Verify extends IrCommand {
  static override summary = 'Prove an archive or a case directory intact'
  static override description =
    'Reads every byte again and compares it with the manifests and the custody log. Names what differs and exits 5. Compare the head it prints with the one that was noted at the terminal.'
  static override examples = [
    '<%= config.bin %> verify ir-web1-20260611T142233Z.zip',
    '<%= config.bin %> verify --json ir-web1-20260611T142233Z',
  ]
  static override args = { archive: Args.string({ description: 'the .zip or the case directory', required: true }) }

  async run(): Promise<unknown> {
    const { args } = await this.parse(Verify)
    const found = await verify(path.resolve(args.archive))
    for (const check of found.checks) this.log(`${check.ok ? 'ok  ' : 'BAD '} ${check.what.padEnd(28)} ${visible(check.detail)}`)
    for (const difference of found.differences) this.log(`differs: ${visible(difference.path)}: ${visible(difference.what)}`)
    for (const line of found.notChecked) this.log(`not checked: ${visible(line)}`)
    this.log(found.intact ? `intact, head ${found.head}` : 'NOT intact')
    process.exitCode = found.intact ? 0 : 5
    return found
  }
}
