/** ir seal CASE: bundles a case that was interrupted. */
import fs from 'node:fs'
import path from 'node:path'
import { Args } from '@oclif/core'
import { isSealed, openCase } from '../src/evidence/case.js'
import { bundleCase, type Sealed, sealCase } from '../src/evidence/seal.js'
import { openHost } from '../src/host.js'
import { sealedLines, visible } from '../src/print.js'
import { missingSteps } from '../src/response/missing.js'
import { keptPlan } from '../src/response/plan.js'
import { IrCommand } from './base.js'
import { ownerBehindSudo } from './response.js'

export default class Seal extends IrCommand {
  static override summary = 'Bundle a case that was interrupted'
  static override description =
    'Takes the case directory as the interruption left it, writes the gap into its custody log, and seals it like any other. A sealed case is never written again; where only its archive is missing, that is made.'
  static override examples = [
    '<%= config.bin %> seal ir-web1-20260611T142233Z',
    '<%= config.bin %> seal --json /var/tmp/ir-web1-20260611T142233Z',
  ]
  static override args = { case: Args.directory({ description: 'the case directory', required: true }) }

  async run(): Promise<Sealed & { missing: readonly string[] }> {
    const { args } = await this.parse(Seal)
    const sealed = await this.bundle(path.resolve(args.case))
    for (const line of sealedLines(sealed)) this.log(line)
    const directory = path.resolve(args.case)
    const missing = missingSteps(fs.readFileSync(path.join(directory, 'custody.jsonl')), keptPlan(planIn(directory)))
    for (const line of missing) this.log(`missing ${visible(line)}`)
    process.exitCode = sealed.damaged.length > 0 ? 5 : missing.length > 0 ? 3 : 0
    return { ...sealed, missing }
  }

  private bundle(directory: string): Promise<Sealed> {
    const host = openHost()
    const owner = ownerBehindSudo()
    if (isSealed(directory)) return bundleCase(directory, { date: host.now(), ...owner })
    const caze = openCase(directory, host)
    const plan = keptPlan(planIn(directory))
    return sealCase(caze, {
      host: plan?.host ?? host.hostname,
      tool: `${this.config.name} ${this.config.version}`,
      timeZone: Intl.DateTimeFormat().resolvedOptions().timeZone,
      started: plan?.planned ?? host.now().toISOString(),
      ...(plan?.label === undefined ? {} : { label: plan.label }),
      ...owner,
    })
  }
}

/** '' where the interruption came before it was written. */
function planIn(directory: string): string {
  try {
    const flag = fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW
    return fs.readFileSync(path.join(directory, 'plan.json'), { encoding: 'utf8', flag })
  } catch {
    return ''
  }
}
