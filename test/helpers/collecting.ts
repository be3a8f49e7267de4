/** Runs one of our collectors into a throwaway case, as the engine would. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import type { Collector, CollectorResult, Progress } from '../../src/collectors/collector.js'
import { type Case, createCase } from '../../src/evidence/case.js'
import { type Host, openHost } from '../../src/host.js'
import type { JsonObject } from '../../src/step.js'

export interface Collecting {
  readonly host?: Host
  readonly signal?: AbortSignal
  progress?(figures: Progress): void
}

export interface Ended extends Disposable {
  readonly result: CollectorResult
  readonly facts: JsonObject
  readonly case: Case
  /** Names of its artifacts, in the order in which they were entered. */
  readonly names: readonly string[]
  /** The bytes of an artifact. */
  bytes(name: string): Buffer
  /** The records of an artifact of one JSON document a line. */
  records<T>(name: string): T[]
}

/** `using ended = await collecting(sockets, {...})` removes the case at the end of its block. */
export async function collecting(collector: Collector, options: JsonObject, how: Collecting = {}): Promise<Ended> {
  const output = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-collecting-'))
  const host = how.host ?? openHost()
  const caze = createCase({ output, id: 'case', host: openHost() })
  const result = await collector({
    host,
    options,
    source: [],
    sink: [],
    case: caze,
    step: 'step',
    action: 'step/1',
    signal: how.signal ?? new AbortController().signal,
    progress: figures => how.progress?.(figures),
    onChange: () => {},
  })
  const bytes = (name: string): Buffer => fs.readFileSync(path.join(caze.directory, 'data/step', name))
  return {
    result,
    facts: result.facts ?? {},
    case: caze,
    names: caze.artifacts.map(artifact => artifact.path.slice('data/step/'.length)),
    bytes,
    records: <T>(name: string) =>
      bytes(name)
        .toString('utf8')
        .split('\n')
        .filter(line => line !== '')
        .map(line => JSON.parse(line) as T),
    [Symbol.dispose]: () => fs.rmSync(output, { recursive: true, force: true }),
  }
}
