/** Images read without anything of `ir`: what it wrote is not checked by what wrote it. */
import fs from 'node:fs'

/** A run of memory in a file. */
export interface Run {
  /** Physical address in a LiME image, virtual one in a core file. */
  readonly start: bigint
  readonly bytes: bigint
  /** Where it lies in the file. */
  readonly at: number
}

/** What the planted process says of itself. */
export interface Canary {
  readonly pid: number
  /** Hexadecimal. */
  readonly mark: string
  readonly pages: number
}

const PAGE = 4096
const CHUNK = 4 << 20

/** "EMiL" on the disk, version 1: LiME's doc/ and src/lime.h. */
const LIME_MAGIC = 0x4c694d45
const LIME_HEADER = 32

/** elf(5) */
const PT_LOAD = 1

/**
 * The records of a LiME image, by Volatility's rules, which let the last one be cut off; it is here only where a part is expected.
 * @throws an Error at the first byte that Volatility would not take.
 */
export function limeRuns(file: string, { part = false } = {}): Run[] {
  return reading(file, (read, size) => {
    const runs: Run[] = []
    for (let at = 0; at < size; ) {
      const header = read(at, LIME_HEADER)
      if (header.readUInt32LE(0) !== LIME_MAGIC || header.readUInt32LE(4) !== 1) throw new Error(`no header at byte ${at}`)
      const [start, last] = [header.readBigUInt64LE(8), header.readBigUInt64LE(16)]
      const before = runs.at(-1)
      if (last < start || (before !== undefined && start < before.start + before.bytes)) throw new Error(`out of order at byte ${at}`)
      const bytes = Number(last - start + 1n)
      at += LIME_HEADER
      if (at + bytes > size && !part) throw new Error(`the record of 0x${start.toString(16)} is cut off`)
      runs.push({ start, bytes: BigInt(Math.min(bytes, size - at)), at })
      at += bytes
    }
    return runs
  })
}

/** The loadable segments of an ELF core file that hold data. */
export function coreRuns(file: string): Run[] {
  return reading(file, read => {
    const elf = read(0, 64)
    const [at, size, count] = [Number(elf.readBigUInt64LE(32)), elf.readUInt16LE(54), elf.readUInt16LE(56)]
    return Array.from({ length: count }, (_, index) => read(at + index * size, size))
      .filter(header => header.readUInt32LE(0) === PT_LOAD)
      .map(header => ({ start: header.readBigUInt64LE(16), bytes: header.readBigUInt64LE(32), at: Number(header.readBigUInt64LE(8)) }))
  })
}

/** How many different pages of the canary the file holds, each byte of each as it was stamped. */
export function countCanaryPages(file: string, runs: readonly Run[], { mark, pages }: Canary): number {
  const wanted = Buffer.from(mark, 'hex')
  const found = new Set<number>()
  return reading(file, read => {
    for (const run of runs) {
      for (let done = 0; done < Number(run.bytes); done += CHUNK) {
        const chunk = read(run.at + done, Math.min(CHUNK, Number(run.bytes) - done))
        for (let at = 0; at + PAGE <= chunk.length; at += PAGE) {
          const page = chunk.subarray(at, at + PAGE)
          if (!page.subarray(0, wanted.length).equals(wanted)) continue
          const number = page.readUInt32LE(wanted.length)
          if (number < pages && page.subarray(wanted.length + 4).every(byte => byte === number % 255)) found.add(number)
        }
      }
    }
    return found.size
  })
}

function reading<Result>(file: string, look: (read: (at: number, bytes: number) => Buffer, size: number) => Result): Result {
  const fd = fs.openSync(file, 'r')
  try {
    const read = (at: number, bytes: number): Buffer => {
      const buffer = Buffer.alloc(bytes)
      const got = fs.readSync(fd, buffer, 0, bytes, at)
      if (got !== bytes) throw new Error(`${file} ends at byte ${at + got}`)
      return buffer
    }
    return look(read, fs.fstatSync(fd).size)
  } finally {
    fs.closeSync(fd)
  }
}
