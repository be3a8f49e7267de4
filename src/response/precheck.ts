/** What must hold before anything is touched. A dry run prints it; a real run is refused by it. */
import fs from 'node:fs'
import { errnoOf, type Host } from '../host.js'
import { mountOf, readMounts } from '../mounts.js'
import { formatBytes } from '../time.js'
import type { ResponsePlan } from './plan.js'

export interface Precheck {
  readonly what: string
  readonly ok: boolean
  /** What was found; for a failed one, what to type. */
  readonly detail: string
}

/** What the reports, logs and lists of a case need beside what the plan expects. */
const SMALL_EVIDENCE = 64 * 1024 ** 2

/** Bytes a response may write: what its actions expect, the small evidence, and the archive of it. */
export function expectedBytes(plan: ResponsePlan): number {
  let bytes = SMALL_EVIDENCE
  for (const step of plan.steps) {
    for (const action of step.actions) if (action.kind === 'collect') bytes += action.expectedBytes ?? 0
  }
  return bytes
}

/** Looks only; starts nothing, writes nothing. `force` lets a network mount pass. */
export function precheck(plan: ResponsePlan, host: Host, options: { readonly force: boolean; readonly root: boolean }): Precheck[] {
  const checks: Precheck[] = [
    {
      what: 'root',
      ok: !options.root || process.geteuid?.() === 0,
      detail: !options.root ? 'not needed' : process.geteuid?.() === 0 ? 'yes' : 'evidence and changes need root: run it with sudo',
    },
  ]
  checks.push(...checkOutput(plan, host, options.force))
  for (const step of plan.steps) {
    if (step.refused !== undefined) checks.push({ what: step.id, ok: false, detail: `${step.refused}; ${step.remedy}` })
  }
  return checks
}

function checkOutput(plan: ResponsePlan, host: Host, force: boolean): Precheck[] {
  const { output } = plan
  let real: string
  try {
    real = fs.realpathSync(output)
    if (!fs.statSync(real).isDirectory())
      return [{ what: 'output', ok: false, detail: `${output} is no directory: give one with --output` }]
    fs.accessSync(real, fs.constants.W_OK | fs.constants.X_OK)
  } catch (error) {
    const code = errnoOf(error)
    const detail =
      code === 'ENOENT'
        ? `${output} does not exist: mkdir -p it first`
        : `${output} cannot be written (${code}): give another with --output`
    return [{ what: 'output', ok: false, detail }]
  }
  const checks: Precheck[] = [{ what: 'output', ok: true, detail: output }]
  const mount = mountOf(readMounts(host), real)
  if (mount?.remote) {
    const detail = `${output} is on ${mount.type} (${mount.source}), which the cut would take away: give a local directory, or --force`
    checks.push({ what: 'local disk', ok: force, detail })
  }
  const needed = expectedBytes(plan)
  const { freeBytes } = host.statfs(real)
  const detail = `${formatBytes(needed)} needed, ${formatBytes(freeBytes)} free on the disk of ${output}`
  checks.push({ what: 'space', ok: freeBytes >= needed, detail })
  return checks
}
