/** Copies memory, of the machine or of a process, into an image: in big reads, and down to single pages where the kernel fails. */
import { errnoOf } from '../../host.js'
import type { JsonObject } from '../../step.js'
import { hex } from './address-range.js'
import type { Target } from './disk-room.js'
import type { Piece, ReadAt } from './kcore.js'

/** TypeScript's types for Node lack it. */
declare const WebAssembly: { readonly Memory: new (options: { initial: number }) => { readonly buffer: ArrayBuffer } }

/** Bytes of a page of WebAssembly memory (its specification, 4.2.8). */
const WASM_PAGE = 65_536

/** The smallest page of both machines; with larger ones a failing page is met several times, which costs time only. */
export const PAGE = 4096

/** A buffer that starts at a page, as no other way of JavaScript gives it: reads need no second copy, and O_DIRECT accepts it. */
export function pageAligned(bytes: number): Buffer {
  return Buffer.from(new WebAssembly.Memory({ initial: Math.ceil(bytes / WASM_PAGE) }).buffer, 0, bytes)
}

/** The largest stage: 4 MiB reads are as fast as the kernel gives memory; 4 KiB reads take four times as long. */
export const STAGE_BYTES = 4 << 20

/** Never written, so it costs no memory. */
const ZEROS = Buffer.alloc(STAGE_BYTES)

/** What the kernel says of a page that it cannot give: not mapped, failing hardware, poisoned. Anything else ends the copy. */
const UNREADABLE = new Set(['EFAULT', 'EIO', 'EHWPOISON'])
/** Our own name for a read that gives nothing. */
const NOTHING = 'no data'
/** And of a chunk that was given up. */
const STALLED = 'stalled'

/** So many runs of unreadable pages are named one by one; the rest are only counted. */
const MAX_NAMED = 1000

/** Pages that could not be read and stand as zeros in the image. */
export class UnreadablePages {
  /** Together. */
  bytes = 0n
  private runs = 0
  private readonly named: { readonly start: bigint; end: bigint; readonly error: string }[] = []

  add(start: bigint, bytes: number, error: string): void {
    const end = start + BigInt(bytes)
    this.bytes += BigInt(bytes)
    const last = this.named.at(-1)
    if (last !== undefined && this.runs === this.named.length && last.end === start && last.error === error) {
      last.end = end
      return
    }
    this.runs++
    if (this.named.length < MAX_NAMED) this.named.push({ start, end, error })
  }

  /** Counts, and the runs by address as far as they are kept. */
  facts(): JsonObject {
    return {
      bytes: Number(this.bytes),
      runs: this.runs,
      named: this.named.map(({ start, end, error }) => ({ first: hex(start), last: hex(end - 1n), error })),
    }
  }
}

/** Why a copy ended before its end. */
export interface Stop {
  readonly outcome: 'interrupted' | 'failed'
  readonly reason: string
}

/** Part of a chunk: what holds nothing is not read, and is zeros. */
export interface Run {
  readonly bytes: number
  readonly absent: boolean
}

export interface PageCopy {
  /** See `interruptible`. */
  readonly read: ReadAt
  readonly sink: Target
  /** Its size, at most STAGE_BYTES, is the size of a read. Replaced where a read that hangs may still write to it. */
  stage: Buffer
  readonly unreadable: UnreadablePages
  /** Asked before each chunk: is there room for so many bytes more? */
  room(bytes: number): Stop | undefined
  /** How many reads hang, where `read` gives up on them (see `watched`). */
  stalls?(): number
  /** Called after each chunk with its size, the first address behind it, and whether it was all zeros. */
  copied(bytes: number, upTo: bigint, zero: boolean): void
  /** Which parts of a chunk hold nothing; without it everything is read. */
  readonly runs?: (address: bigint, bytes: number) => Promise<readonly Run[]>
}

export interface Copied {
  /** Bytes of the piece that are in the image. */
  readonly bytes: bigint
  readonly stopped?: Stop
}

/** The responder ended it, perhaps in the middle of a read. */
export class InterruptedRead extends Error {}

/** A read did not come back in time. */
class StalledRead extends Error {}

/** Each read that hangs keeps one of the four threads that Node reads files with (UV_THREADPOOL_SIZE); one must be left to go on. */
const MAX_STALLS = 3

/**
 * The same reads, given up after `patience` milliseconds: where a hypervisor backs memory by something slow, or hangs on it, a
 * chunk of zeros is better than no image. Like `interruptible`, it leaves the buffer to the read that hangs.
 * @returns a function that rejects with StalledRead; for good, once three reads hang.
 */
export function watched(read: ReadAt, patience: number): { readonly read: ReadAt; stalls(): number } {
  let stalls = 0
  return {
    stalls: () => stalls,
    read: (into, at) =>
      new Promise((resolve, reject) => {
        const timer = setTimeout(() => {
          stalls++
          reject(new StalledRead(`a read did not come back within ${patience / 1000} s`))
        }, patience)
        Promise.resolve()
          .then(() => read(into, at))
          .then(resolve, reject)
          .finally(() => clearTimeout(timer))
      }),
  }
}

export const INTERRUPTED: Stop = { outcome: 'interrupted', reason: 'interrupted' }

/**
 * The same reads, ended by the signal also while one of them hangs. That read goes on behind our back: neither its buffer nor the
 * source may be used again.
 * @returns a function that rejects with InterruptedRead once the signal is given.
 */
export function interruptible(read: ReadAt, signal: AbortSignal): ReadAt {
  return (into, at) =>
    new Promise((resolve, reject) => {
      const abort = (): void => reject(new InterruptedRead('interrupted'))
      if (signal.aborted) return abort()
      signal.addEventListener('abort', abort, { once: true })
      Promise.resolve()
        .then(() => read(into, at))
        .then(resolve, reject)
        .finally(() => signal.removeEventListener('abort', abort))
    })
}

/**
 * Copies a piece. All-zero chunks become holes of the file, unreadable pages zeros.
 * @throws errno errors of the source that concern more than a page, TargetError, and what `room` throws.
 */
export async function copyPiece(piece: Piece, copy: PageCopy): Promise<Copied> {
  const { sink } = copy
  const length = piece.end - piece.start
  let done = 0n
  while (done < length) {
    const bytes = length - done < BigInt(copy.stage.length) ? Number(length - done) : copy.stage.length
    const stopped = copy.room(bytes)
    if (stopped !== undefined) return { bytes: done, stopped }
    let touched: boolean
    try {
      touched = await fillChunk(copy, piece.start + done, piece.offset + done, bytes)
    } catch (error) {
      if (error instanceof InterruptedRead) return { bytes: done, stopped: INTERRUPTED }
      if (!(error instanceof StalledRead)) throw error
      copy.stage = pageAligned(copy.stage.length)
      copy.unreadable.add(piece.start + done, bytes, STALLED)
      if ((copy.stalls?.() ?? 0) >= MAX_STALLS) return { bytes: done, stopped: { outcome: 'failed', reason: `${MAX_STALLS} reads hang` } }
      touched = false
    }
    const chunk = copy.stage.subarray(0, bytes)
    const zero = !touched || chunk.equals(ZEROS.subarray(0, bytes))
    if (zero) sink.hole(bytes)
    else sink.write(chunk)
    done += BigInt(bytes)
    copy.copied(bytes, piece.start + done, zero)
  }
  return { bytes: done }
}

/** Fills the stage; tells whether anything was read. */
async function fillChunk(copy: PageCopy, address: bigint, offset: bigint, bytes: number): Promise<boolean> {
  const runs = (await copy.runs?.(address, bytes)) ?? [{ bytes, absent: false }]
  let filled = 0
  let touched = false
  for (const run of runs) {
    const part = copy.stage.subarray(filled, filled + run.bytes)
    if (run.absent) part.fill(0)
    else {
      await fillRun(copy, part, address + BigInt(filled), offset + BigInt(filled))
      touched = true
    }
    filled += run.bytes
  }
  return touched
}

/** Reads as much as it can at once; where the kernel fails, half of it, down to the one page that is the cause, and doubles again behind it. */
async function fillRun(copy: PageCopy, part: Buffer, address: bigint, offset: bigint): Promise<void> {
  let filled = 0
  let step = part.length
  while (filled < part.length) {
    const here = address + BigInt(filled)
    const wanted = Math.min(step, part.length - filled)
    const got = await readSome(copy.read, part.subarray(filled, filled + wanted), offset + BigInt(filled))
    if (typeof got === 'number') {
      filled += got
      step = Math.min(part.length, step * 2)
      continue
    }
    const toPageEnd = PAGE - Number(here % BigInt(PAGE))
    if (wanted > toPageEnd) {
      step = Math.max(toPageEnd, Math.floor(wanted / 2))
      continue
    }
    part.fill(0, filled, filled + wanted)
    copy.unreadable.add(here, wanted, got.unreadable)
    filled += wanted
    step = PAGE
  }
}

async function readSome(read: ReadAt, into: Buffer, at: bigint): Promise<number | { readonly unreadable: string }> {
  try {
    const got = await read(into, at)
    return got > 0 ? got : { unreadable: NOTHING }
  } catch (error) {
    const code = errnoOf(error)
    if (UNREADABLE.has(code)) return { unreadable: code }
    throw error
  }
}
