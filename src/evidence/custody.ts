/**
 * The custody log: what was done to the host and to the evidence, line by line. Each line carries the SHA-256 of the line
 * before it, as written, so that sed and sha256sum can follow the chain. See docs/formats.md.
 */
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import { z } from 'zod'
import type { Host } from '../host.js'
import type { Json, JsonObject } from '../step.js'
import { iso } from '../time.js'
import { appendLine, diskRefused } from './disk.js'

/** `prev` of the first line: there is nothing before it. */
export const GENESIS = '0'.repeat(64)

const LF = 0x0a

const Line = z.looseObject({
  seq: z.int().positive(),
  at: z.iso.datetime(),
  mono: z.number(),
  event: z.string().min(1),
  prev: z.string().regex(/^[0-9a-f]{64}$/),
})

/** One line as read back; `detail` is everything besides the five fields that every line has. */
export interface CustodyLine {
  readonly seq: number
  /** UTC, ISO 8601, by the host's clock. */
  readonly at: string
  /** Milliseconds of a clock that never steps, since an arbitrary start; comparable within one run only. */
  readonly mono: number
  readonly event: string
  readonly detail: JsonObject
  readonly prev: string
}

/** What a log holds, and everything that is wrong with it. */
export interface CustodyReading {
  readonly lines: readonly CustodyLine[]
  /** SHA-256 of the last complete line; GENESIS when there is none. */
  readonly head: string
  /** Bytes behind the last LF: a line that was being written when the power went. */
  readonly torn: Buffer
  /** Breaks of the chain, the line counted from 1. */
  readonly problems: readonly { readonly line: number; readonly what: string }[]
}

/** Reads a log and follows its chain. Never throws: a log that makes no sense has problems. */
export function readCustody(bytes: Buffer): CustodyReading {
  const lines: CustodyLine[] = []
  const problems: { line: number; what: string }[] = []
  let head = GENESIS
  let start = 0
  let number = 0
  for (let end = bytes.indexOf(LF); end !== -1; end = bytes.indexOf(LF, start)) {
    const raw = bytes.subarray(start, end)
    start = end + 1
    number += 1
    const line = parseLine(raw)
    if (line === undefined) {
      problems.push({ line: number, what: 'is no custody line' })
    } else {
      if (line.seq !== number) problems.push({ line: number, what: `has the number ${line.seq}` })
      if (line.prev !== head) problems.push({ line: number, what: 'does not carry the hash of the line before it' })
      lines.push(line)
    }
    head = lineHash(raw)
  }
  return { lines, head, torn: bytes.subarray(start), problems }
}

function parseLine(raw: Buffer): CustodyLine | undefined {
  try {
    const { seq, at, mono, event, prev, ...detail } = Line.parse(JSON.parse(raw.toString('utf8')))
    return { seq, at, mono, event, prev, detail: detail as JsonObject }
  } catch {
    return undefined
  }
}

/** SHA-256 of a line's bytes without the LF, in lower case hex. */
function lineHash(raw: Uint8Array): string {
  return createHash('sha256').update(raw).digest('hex')
}

/** A log that is being written. */
export class CustodyLog {
  readonly #fd: number
  readonly #host: Host
  #seq: number
  #head: string

  /** `fd` is open for appending; `after` is what the log holds already. */
  constructor(fd: number, host: Host, after: { readonly seq: number; readonly head: string }) {
    this.#fd = fd
    this.#host = host
    this.#seq = after.seq
    this.#head = after.head
  }

  /** SHA-256 of the last line. */
  get head(): string {
    return this.#head
  }

  /**
   * Appends a line and writes it through.
   * @throws EvidenceError when the disk refuses; the log then ends with the line before.
   */
  append(event: string, detail: JsonObject): void {
    const line = Buffer.from(
      JSON.stringify({
        seq: this.#seq + 1,
        at: iso(this.#host.now()),
        mono: Math.round(this.#host.monotonic() * 1000) / 1000,
        event,
        ...withoutReserved(detail),
        prev: this.#head,
      }),
    )
    try {
      appendLine(this.#fd, Buffer.concat([line, Buffer.from([LF])]))
      this.#seq += 1
      this.#head = lineHash(line)
      fs.fsyncSync(this.#fd)
    } catch (error) {
      throw diskRefused('write the custody log', error)
    }
  }
}

/** A detail cannot pose as one of the line's own fields. */
function withoutReserved(detail: JsonObject): JsonObject {
  const entries = Object.entries(detail).map(([key, value]): [string, Json] => [Object.hasOwn(Line.shape, key) ? `${key}_` : key, value])
  return Object.fromEntries(entries)
}
