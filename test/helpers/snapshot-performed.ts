/** Plans a step, performs it with the engine's own actions into a throwaway case, interprets it: for `namespace.call`. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { createCase } from '../../src/evidence/case.js'
import { openHost } from '../../src/host.js'
import { type PerformedAction, perform } from '../../src/response/action.js'
import { collectedOf } from '../../src/response/collected.js'
import type { AnyStep, Verdict } from '../../src/step.js'

export interface Performed {
  readonly results: readonly PerformedAction[]
  readonly artifacts: Readonly<Record<string, string>>
  readonly verdicts: readonly Verdict[]
}

export default async function performed({ step: file, name }: { step: string; name: string }): Promise<Performed> {
  const step = ((await import(`../../playbooks/steps/${file}.js`)) as Record<string, AnyStep>)[name] as AnyStep
  const output = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-performed-'))
  try {
    const host = openHost()
    const caze = createCase({ output, id: 'case', host })
    const plan = await step.plan({ host, options: {}, directory: output, throughout: false })
    if (!('actions' in plan)) throw new Error(JSON.stringify(plan))
    const signal = new AbortController().signal
    const context = {
      host,
      case: caze,
      step: step.id,
      signal,
      hung: new Set<string>(),
      progress() {},
      onChange() {},
      changing() {},
      announce() {},
    }
    const actions: PerformedAction[] = []
    for (const [index, action] of plan.actions.entries()) actions.push(await perform({ id: `${step.id}/${index + 1}`, ...action }, context))
    const prefix = `data/${step.id}/`
    const artifacts = caze.artifacts.filter(({ path: name }) => name.startsWith(prefix))
    return {
      results: actions,
      artifacts: Object.fromEntries(
        artifacts.map(one => [one.path.slice(prefix.length), fs.readFileSync(path.join(caze.directory, one.path), 'utf8')]),
      ),
      verdicts: (await step.interpret?.(collectedOf(caze, { id: step.id, outcome: 'collected', actions }, new Map()))) ?? [],
    }
  } finally {
    fs.rmSync(output, { recursive: true, force: true })
  }
}
