/** What interpreters see, from a directory of recorded files instead of a case. */
import fs from 'node:fs'
import path from 'node:path'
import type { ActionResult, Collected, Outcome, StepArtifacts } from '../../src/step.js'

const TEXT_LIMIT = 16 * 1024 ** 2
const LINE_LIMIT = 1 << 20

export interface CollectedOverrides {
  /** 'collected' when absent. */
  readonly outcome?: Outcome
  /** Those of the recorded actions.json when absent, none where there is no such file. */
  readonly actions?: readonly ActionResult[]
  /** Artifacts that are not to be seen although they were recorded. */
  readonly without?: readonly string[]
  /** Artifacts in place of, or beside, the recorded ones. */
  readonly files?: Readonly<Record<string, string>>
  /** What `of(step)` gives; undefined for every other step. */
  readonly steps?: Readonly<Record<string, StepArtifacts>>
}

/**
 * The artifacts of one step as `interpret` gets them. Every file below `directory` is an artifact by its relative name, but
 * for README.md (how it was recorded) and actions.json (how the actions ended: ActionResult[]).
 * @param directory absolute, or relative to test/fixtures; it may be missing when `files` gives all there is.
 */
export function collectedFrom(directory: string, overrides: CollectedOverrides = {}): Collected {
  const root = path.resolve(import.meta.dirname, '../fixtures', directory)
  const given = new Map(Object.entries(overrides.files ?? {}))
  const recorded = filesBelow(root).filter(name => name !== 'README.md' && name !== 'actions.json')
  const names = [...new Set([...recorded, ...given.keys()])].filter(name => !overrides.without?.includes(name)).sort()
  const content = (name: string): string => {
    if (!names.includes(name)) return ''
    return given.get(name) ?? fs.readFileSync(path.join(root, name), 'utf8')
  }
  return {
    outcome: overrides.outcome ?? 'collected',
    actions: overrides.actions ?? recordedActions(root),
    names,
    has: name => names.includes(name),
    text: (name, maxBytes = TEXT_LIMIT) => Buffer.from(content(name)).subarray(0, maxBytes).toString('utf8'),
    *lines(name) {
      const lines = content(name).split('\n')
      if (lines.at(-1) === '') lines.pop()
      for (const line of lines) yield line.slice(0, LINE_LIMIT)
    },
    of: step => overrides.steps?.[step],
  }
}

function recordedActions(root: string): readonly ActionResult[] {
  const file = path.join(root, 'actions.json')
  return fs.existsSync(file) ? (JSON.parse(fs.readFileSync(file, 'utf8')) as ActionResult[]) : []
}

function filesBelow(root: string): string[] {
  if (!fs.existsSync(root)) return []
  return fs
    .readdirSync(root, { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile())
    .map(entry => path.relative(root, path.join(entry.parentPath, entry.name)))
}
