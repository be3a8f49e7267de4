import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import fc from 'fast-check'
import { expect, it } from 'vitest'
import { createCase } from '../../../src/evidence/case.js'
import { GENESIS, readCustody } from '../../../src/evidence/custody.js'
import type { JsonObject } from '../../../src/step.js'
import { ID, run, scratch, stillHost } from './cases.js'

function recorded(details: readonly JsonObject[]): { bytes: Buffer; head: string } {
  const caze = createCase({ output: scratch(), id: ID, host: stillHost() })
  for (const detail of details) caze.record('step', detail)
  return { bytes: fs.readFileSync(path.join(caze.directory, 'custody.jsonl')), head: caze.head }
}

it('writes lines as documented, each with the hash of the one before', () => {
  const { bytes, head } = recorded([{ step: 'isolate' }, { step: 'capture-mem' }])
  const [first, second] = bytes.toString().split('\n') as [string, string]
  expect(first).toBe(`{"seq":1,"at":"2026-06-11T14:22:33.120Z","mono":1000,"event":"step","step":"isolate","prev":"${GENESIS}"}`)
  expect(JSON.parse(second)).toMatchObject({ seq: 2, prev: createHash('sha256').update(first).digest('hex') })
  expect(head).toBe(createHash('sha256').update(second).digest('hex'))
})

it('has a chain that sed and sha256sum can follow, whatever is recorded', () => {
  const { bytes, head } = recorded([{ title: 'a\nb\r"\\ \u2028 \ud800 ä €' }, { title: '\x1b[2J' }])
  const file = path.join(scratch(), 'custody.jsonl')
  fs.writeFileSync(file, bytes)
  const line = run(['sed', '-n', '1p', file]).stdout.replace(/\n$/, '')
  const hash = run(['sha256sum'], { input: line }).stdout.slice(0, 64)
  expect(run(['sed', '-n', '2p', file]).stdout).toContain(`"prev":"${hash}"`)
  expect(readCustody(bytes)).toMatchObject({ head, problems: [] })
})

it('does not let a detail pose as a field of the line', () => {
  const { bytes } = recorded([{ seq: 99, prev: 'x', event: 'seal', at: 'never', mono: -1, __proto__x: 1 }])
  const { lines, problems } = readCustody(bytes)
  expect(problems).toEqual([])
  expect(lines[0]).toMatchObject({
    seq: 1,
    event: 'step',
    prev: GENESIS,
    detail: { seq_: 99, prev_: 'x', event_: 'seal', at_: 'never', mono_: -1 },
  })
})

it('reads back what was recorded', () => {
  fc.assert(
    fc.property(fc.dictionary(fc.stringMatching(/^[a-z]{6,9}$/), fc.jsonValue()), detail => {
      const expected = JSON.parse(JSON.stringify(detail))
      const caze = createCase({ output: scratch(), id: ID, host: stillHost() })
      caze.record('step', detail as JsonObject)
      const { lines, problems } = readCustody(fs.readFileSync(path.join(caze.directory, 'custody.jsonl')))
      expect(problems).toEqual([])
      expect(lines[0]?.detail).toEqual(expected)
    }),
    { numRuns: 25 },
  )
})

it('finds a changed byte, and a line that is dropped, doubled or moved', () => {
  const { bytes, head } = recorded(Array.from({ length: 6 }, (_, index) => ({ index })))
  const lines = bytes.toString().trimEnd().split('\n')
  const text = (changed: readonly string[]): Buffer => Buffer.from(`${changed.join('\n')}\n`)
  const broken = [
    lines.toSpliced(2, 1),
    lines.toSpliced(2, 0, lines[2] as string),
    lines.toSpliced(2, 2, lines[3] as string, lines[2] as string),
    lines.toSpliced(0, 1),
  ]
  for (const changed of broken) expect(readCustody(text(changed)).problems).not.toEqual([])
  for (let at = 0; at < bytes.length; at += 1) {
    const changed = Buffer.from(bytes)
    changed[at] = (changed[at] as number) ^ 1
    const reading = readCustody(changed)
    // A change in the last line has no line behind it: the head tells.
    expect(reading.problems.length > 0 || reading.head !== head || reading.torn.length > 0).toBe(true)
  }
})

it('tells a torn line from the whole ones before it', () => {
  const { bytes } = recorded([{ n: 1 }, { n: 2 }])
  const cut = bytes.subarray(0, bytes.length - 9)
  const reading = readCustody(cut)
  expect(reading.lines).toHaveLength(1)
  expect(reading.torn.toString()).toMatch(/^\{"seq":2,/)
  expect(reading.problems).toEqual([])
})
