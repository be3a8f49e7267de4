/** One artifact while it is written: hashed on the way, so that nothing is read back to be hashed. */
import { createHash, type Hash } from 'node:crypto'
import fs from 'node:fs'
import { EvidenceError } from '../errors.js'
import type { Artifact, EvidenceFile, Origin } from './case.js'
import { closeQuietly, diskRefused, hashNow } from './disk.js'

/** An artifact from this size on is written through when it is closed; smaller ones together, see docs/formats.md. */
export const LARGE = 1 << 20

/**
 * After so many bytes the kernel is asked, beside us, to write back what it holds, so that closing a memory image does
 * not stop the packet capture for as long as the disk needs for gigabytes.
 */
const WRITE_BEHIND = 64 << 20

const ZEROS = Buffer.alloc(LARGE)

/** What a file needs to know of its case. */
export interface Keeper {
  enter(artifact: Artifact, origin: Origin): Artifact
  /** The file is closed, one way or another. */
  release(path: string): void
  remove(path: string): void
}

export class WritingFile implements EvidenceFile {
  readonly path: string
  readonly fd: number
  readonly #keeper: Keeper
  readonly #hash: Hash = createHash('sha256')
  #bytes = 0
  #endsInHole = false
  #closed = false
  #behind = 0
  #syncing = false
  #lost: unknown

  constructor(path: string, fd: number, keeper: Keeper) {
    this.path = path
    this.fd = fd
    this.#keeper = keeper
  }

  get bytes(): number {
    return this.#bytes
  }

  write(chunk: Uint8Array | string): void {
    this.#assertOpen()
    const buffer = typeof chunk === 'string' ? Buffer.from(chunk) : chunk
    let done = 0
    try {
      while (done < buffer.length) {
        // A position: behind a hole the end of the file is not where the next byte belongs.
        const wrote = fs.writeSync(this.fd, buffer, done, buffer.length - done, this.#bytes)
        // Hashed piece by piece: when the disk fills up, the hash is that of what lies on it.
        this.#hash.update(buffer.subarray(done, done + wrote))
        done += wrote
        this.#bytes += wrote
        this.#endsInHole = false
      }
    } catch (error) {
      throw diskRefused(`write ${this.path}`, error)
    }
    this.#writeBehind(buffer.length)
  }

  hole(bytes: number): void {
    this.#assertOpen()
    if (!Number.isSafeInteger(bytes) || bytes < 0) throw new EvidenceError(`a hole of ${bytes} bytes in ${this.path}`)
    for (let left = bytes; left > 0; left -= ZEROS.length) this.#hash.update(left < ZEROS.length ? ZEROS.subarray(0, left) : ZEROS)
    this.#bytes += bytes
    if (bytes > 0) this.#endsInHole = true
  }

  close(origin: Origin): Artifact {
    this.#assertOpen()
    try {
      if (this.#lost !== undefined) throw this.#lost
      if (this.#endsInHole) fs.ftruncateSync(this.fd, this.#bytes)
      const size = fs.fstatSync(this.fd).size
      // A program that was given the descriptor wrote as well: what lies there is what counts.
      const sha256 = size === this.#bytes ? this.#hash.digest('hex') : hashNow(this.fd, size)
      if (size >= LARGE) fs.fsyncSync(this.fd)
      this.#finish()
      return this.#keeper.enter({ path: this.path, bytes: size, sha256 }, origin)
    } catch (error) {
      this.#finish()
      throw diskRefused(`write ${this.path}`, error)
    }
  }

  /** Closes without entering; a file that is closed already stays as it is. */
  abandon(): void {
    if (!this.#closed) this.#finish()
  }

  discard(): void {
    if (this.#closed) return
    this.#finish()
    this.#keeper.remove(this.path)
  }

  #finish(): void {
    if (this.#closed) return
    this.#closed = true
    closeQuietly(this.fd)
    this.#keeper.release(this.path)
  }

  #assertOpen(): void {
    if (this.#closed) throw new EvidenceError(`${this.path} is closed`)
  }

  #writeBehind(bytes: number): void {
    // The kernel tells of a lost write once (fsync(2)): whoever is told must not forget it.
    if (this.#lost !== undefined) throw diskRefused(`write ${this.path}`, this.#lost)
    this.#behind += bytes
    if (this.#behind < WRITE_BEHIND || this.#syncing) return
    this.#behind = 0
    this.#syncing = true
    fs.fdatasync(this.fd, error => {
      this.#syncing = false
      if (error !== null && !this.#closed) this.#lost = error
    })
  }
}
