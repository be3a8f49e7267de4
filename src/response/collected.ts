/** What interpreters see of a case: artifacts by the names that the plan gave them. Reads the case, never the host. */
import fs from 'node:fs'
import path from 'node:path'
import type { Case } from '../evidence/case.js'
import { readFile } from '../host.js'
import type { ActionResult, Collected, Outcome, StepArtifacts } from '../step.js'

const TEXT_LIMIT = 16 * 1024 ** 2
const LINE_LIMIT = 1 << 20

export interface EndedStep {
  readonly id: string
  readonly outcome: Outcome
  readonly actions: readonly ActionResult[]
}

/** The artifacts of one ended step, with those of the other ended steps behind `of`. */
export function collectedOf(caze: Case, step: EndedStep, ended: ReadonlyMap<string, EndedStep>): Collected {
  return {
    ...artifactsOf(caze, step),
    of(id) {
      const other = ended.get(id)
      return other === undefined ? undefined : artifactsOf(caze, other)
    },
  }
}

function artifactsOf(caze: Case, step: EndedStep): StepArtifacts {
  const prefix = `data/${step.id}/`
  const names = caze.artifacts.filter(artifact => artifact.path.startsWith(prefix)).map(artifact => artifact.path.slice(prefix.length))
  const known = new Set(names)
  const locate = (name: string): string => path.join(caze.directory, prefix, name)
  return {
    outcome: step.outcome,
    actions: step.actions,
    names,
    has: name => known.has(name),
    text: (name, maxBytes = TEXT_LIMIT) => (known.has(name) ? readFile(locate(name), maxBytes).toString('utf8') : ''),
    *lines(name) {
      if (known.has(name)) yield* linesOf(locate(name))
    },
  }
}

function* linesOf(file: string): Iterable<string> {
  const fd = fs.openSync(file, 'r')
  try {
    const chunk = Buffer.allocUnsafe(65_536)
    let rest: Buffer = Buffer.alloc(0)
    while (true) {
      const got = fs.readSync(fd, chunk, 0, chunk.length, null)
      if (got === 0) break
      let data = rest.length === 0 ? Buffer.from(chunk.subarray(0, got)) : Buffer.concat([rest, chunk.subarray(0, got)])
      let end = data.indexOf(10)
      while (end >= 0) {
        yield data.subarray(0, Math.min(end, LINE_LIMIT)).toString('utf8')
        data = data.subarray(end + 1)
        end = data.indexOf(10)
      }
      // An endless line is kept up to its limit and read past.
      rest = data.length > LINE_LIMIT ? data.subarray(0, LINE_LIMIT) : data
    }
    if (rest.length > 0) yield rest.toString('utf8')
  } finally {
    fs.closeSync(fd)
  }
}
