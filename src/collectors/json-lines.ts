/** One JSON document a line, written in pieces of a size that disks like: never the whole file in memory. */
import type { EvidenceFile } from '../evidence/case.js'

const PIECE = 64 * 1024

export interface JsonLines {
  /** Lines so far. */
  readonly count: number
  /** Adds a record; or the text of one, without newline. */
  add(record: object | string): void
  /** Writes what is still held back. */
  flush(): void
}

export function jsonLines(file: EvidenceFile): JsonLines {
  let held: string[] = []
  let length = 0
  let count = 0
  const flush = (): void => {
    if (length > 0) file.write(held.join(''))
    held = []
    length = 0
  }
  return {
    get count() {
      return count
    },
    add(record) {
      const line = `${typeof record === 'string' ? record : JSON.stringify(record)}\n`
      held.push(line)
      length += line.length
      count += 1
      if (length >= PIECE) flush()
    },
    flush,
  }
}
