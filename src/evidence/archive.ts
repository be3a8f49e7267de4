/**
 * A zip written front to back from closed regular files. archiver hangs or throws uncaught on anything else (a FIFO, a
 * growing file, a stream that fails), so it is given one file at a time, and is watched.
 */
import { createHash, type Hash } from 'node:crypto'
import fs from 'node:fs'
import { type Readable, Writable } from 'node:stream'
import { finished } from 'node:stream/promises'
import { EvidenceError } from '../errors.js'
import type { Seconds } from '../step.js'
import { diskRefused } from './disk.js'

/** The zip comment: the SHA-256 of every byte before it. */
export const COMMENT_LENGTH = 'sha256:'.length + 64

/** 'sha256:<64 hex>' */
export function commentOf(sha256: string): string {
  return `sha256:${sha256}`
}

/**
 * zlib's fastest: measured on an executable, file listings, JSON lines and half-empty memory it is 2.2 to 3.5 times as
 * fast as level 6 (82 to 280 MB/s), for an archive that is 8 to 16 % larger. The host is in trouble; time is dearer.
 */
const LEVEL = 1

/** Written and hashed in pieces of this size: archiver hands over its headers field by field. */
const PIECE = 1 << 20

/** Without a byte read or written for so long, the archive is given up. */
const STALL: Seconds = 120

/** One file of the archive. */
export interface ArchiveMember {
  readonly name: string
  /** Compressed already: kept as it is. */
  readonly stored: boolean
  /** What is in it: all of a small file, or a stream that ends. */
  open(): Buffer | Readable
}

export interface WrittenArchive {
  readonly bytes: number
  /** Of the whole file, as sha256sum prints it. */
  readonly sha256: string
}

/**
 * Writes members in their order into an empty file that is open for writing, and writes it through.
 * @throws EvidenceError when a member cannot be read, the disk refuses, or nothing moves for `stall` seconds.
 */
export async function writeArchive(
  fd: number,
  members: Iterable<ArchiveMember>,
  { date, stall = STALL }: { readonly date: Date; readonly stall?: Seconds },
): Promise<WrittenArchive> {
  // Loaded when it is needed: it costs every other command a tenth of its start.
  const { ZipArchive } = await import('archiver')
  const sink = new Sink(fd)
  const zip = new ZipArchive({ zlib: { level: LEVEL }, comment: commentOf('0'.repeat(64)) })
  const trouble = Promise.withResolvers<never>()
  // Whoever loses a race below must not bring the process down as an unhandled rejection.
  trouble.promise.catch(() => {})
  zip.on('error', trouble.reject)
  zip.on('warning', trouble.reject)
  let entered: () => void = () => {}
  zip.on('entry', () => entered())

  let moved = 0
  let source: Readable | undefined
  const watch = watchStall(() => moved + sink.received, stall, trouble.reject)
  try {
    zip.pipe(sink)
    const written = finished(sink)
    written.catch(trouble.reject)
    for (const member of members) {
      const done = new Promise<void>(resolve => {
        entered = resolve
      })
      const content = member.open()
      if (!Buffer.isBuffer(content)) {
        source = content
        content.on('data', (chunk: Buffer) => {
          moved += chunk.length
        })
        content.on('error', trouble.reject)
      }
      zip.append(content, { name: member.name, date, mode: 0o600, store: member.stored })
      await Promise.race([done, trouble.promise])
    }
    await Promise.race([zip.finalize(), trouble.promise])
    await Promise.race([written, trouble.promise])
    return sink.result()
  } catch (error) {
    zip.abort()
    source?.destroy()
    sink.destroy()
    throw diskRefused('write the archive', error)
  } finally {
    clearInterval(watch)
  }
}

function watchStall(figure: () => number, stall: Seconds, reject: (error: Error) => void): NodeJS.Timeout {
  let last = figure()
  let since = performance.now()
  return setInterval(
    () => {
      const now = figure()
      if (now !== last) {
        last = now
        since = performance.now()
      } else if (performance.now() - since > stall * 1000) {
        reject(new EvidenceError(`the archive stalled: nothing was read or written for ${stall} s`))
      }
    },
    Math.min(1000, stall * 250),
  )
}

/** Hashes and writes what archiver makes, and puts the hash in the place of the comment. */
class Sink extends Writable {
  readonly #fd: number
  readonly #hash: Hash = createHash('sha256')
  #pending: Buffer[] = []
  #pendingBytes = 0
  #written = 0
  #sha256 = ''
  received = 0

  constructor(fd: number) {
    super({ highWaterMark: PIECE })
    this.#fd = fd
  }

  result(): WrittenArchive {
    return { bytes: this.#written, sha256: this.#sha256 }
  }

  override _write(chunk: Buffer, _encoding: string, callback: (error?: Error | null) => void): void {
    this.#pending.push(chunk)
    this.#pendingBytes += chunk.length
    this.received += chunk.length
    if (this.#pendingBytes < PIECE + COMMENT_LENGTH) callback()
    // The end may be the comment, and the comment is not hashed.
    else this.#put(COMMENT_LENGTH, callback)
  }

  override _final(callback: (error?: Error | null) => void): void {
    this.#put(COMMENT_LENGTH, error => {
      if (error) return callback(error)
      const comment = Buffer.from(commentOf(this.#hash.copy().digest('hex')))
      this.#hash.update(comment)
      this.#sha256 = this.#hash.digest('hex')
      this.#writeAll(comment, failed => (failed ? callback(failed) : fs.fsync(this.#fd, callback)))
    })
  }

  /** Hashes and writes all that is pending but its last `keep` bytes. */
  #put(keep: number, callback: (error?: Error | null) => void): void {
    const all = Buffer.concat(this.#pending)
    const ready = all.subarray(0, all.length - keep)
    this.#pending = [all.subarray(ready.length)]
    this.#pendingBytes = keep
    this.#hash.update(ready)
    this.#writeAll(ready, callback)
  }

  #writeAll(buffer: Buffer, callback: (error?: Error | null) => void): void {
    if (buffer.length === 0) {
      callback()
      return
    }
    fs.write(this.#fd, buffer, 0, buffer.length, this.#written, (error, wrote) => {
      if (error) {
        callback(error)
        return
      }
      this.#written += wrote
      this.#writeAll(buffer.subarray(wrote), callback)
    })
  }
}
