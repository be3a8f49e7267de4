/**
 * How evidence gets onto the disk: below a directory that is pinned by a descriptor, so that whoever may write to the
 * directory around it (the home of the user behind sudo) cannot lead us elsewhere by swapping a name.
 */
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import { EvidenceError } from '../errors.js'
import { errnoOf } from '../host.js'

const { O_RDONLY, O_WRONLY, O_APPEND, O_CREAT, O_EXCL, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK } = fs.constants

const WORDS: Readonly<Record<string, string>> = {
  ENOSPC: 'no space left on the disk',
  EDQUOT: 'the disk quota is used up',
  EROFS: 'the file system is read-only',
  EFBIG: 'the file system cannot hold a file of this size',
  EIO: 'the disk reports an error',
}

/** The error that stops a response because evidence could not be written or read back. */
export function diskRefused(what: string, error: unknown): EvidenceError {
  if (error instanceof EvidenceError) return error
  const code = errnoOf(error)
  // Not the message of an errno: it names the descriptor behind which the case lies, which helps nobody.
  const why = code === '' ? String(error instanceof Error ? error.message : error) : `${WORDS[code] ?? 'the system refuses'} (${code})`
  return new EvidenceError(`cannot ${what}: ${why}`, { cause: error })
}

/** A directory held by a descriptor. Paths below it are relative and of safe parts. */
export interface Pinned {
  readonly fd: number
  /** The path that reaches `relative` through the descriptor, whatever becomes of the names above: openat(2), as far as Node has it. */
  at(relative: string): string
}

/** Pins a directory, following links to it. Throws what open(2) throws. */
export function pin(directory: string): Pinned {
  return pinned(fs.openSync(directory, O_RDONLY | O_DIRECTORY))
}

/** Pins a directory below another; a link is refused. Throws what open(2) throws. */
export function pinBelow(parent: Pinned, name: string): Pinned {
  return pinned(fs.openSync(parent.at(name), O_RDONLY | O_DIRECTORY | O_NOFOLLOW))
}

function pinned(fd: number): Pinned {
  // proc(5), /proc/pid/fd: a magic link, followed to the open directory itself and not to its name.
  const base = `/proc/self/fd/${fd}`
  return { fd, at: relative => (relative === '' ? `${base}/` : `${base}/${relative}`) }
}

/** A new file, 0600, for reading and writing. Throws what open(2) throws: EEXIST for anything of this name, links included. */
export function createFile(directory: Pinned, relative: string): number {
  return fs.openSync(directory.at(relative), fs.constants.O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
}

/** A log that is only ever appended to: made new, or an existing regular file. Throws what open(2) throws. */
export function openLog(directory: Pinned, relative: string, mode: 'new' | 'existing'): number {
  return fs.openSync(directory.at(relative), O_WRONLY | O_APPEND | O_NOFOLLOW | (mode === 'new' ? O_CREAT | O_EXCL : 0), 0o600)
}

/**
 * An existing regular file for reading.
 * @throws Error with the errno, or one that says that it is no regular file.
 */
export function openRegular(path: string, writable = false): number {
  // O_NONBLOCK: a FIFO that somebody put there must not make us wait (open(2)).
  const fd = fs.openSync(path, (writable ? fs.constants.O_RDWR : O_RDONLY) | O_NOFOLLOW | O_NONBLOCK)
  if (fs.fstatSync(fd).isFile()) return fd
  fs.closeSync(fd)
  throw new Error('it is not a regular file')
}

/**
 * The whole of a regular file.
 * @throws Error with the errno, or one that says that it is no regular file or larger than `maxBytes`.
 */
export function readRegular(path: string, maxBytes: number): Buffer {
  const fd = openRegular(path)
  try {
    const { size } = fs.fstatSync(fd)
    if (size > maxBytes) throw new Error(`it is larger than ${maxBytes} bytes`)
    const buffer = Buffer.alloc(size)
    return buffer.subarray(0, readFully(fd, buffer, 0))
  } finally {
    fs.closeSync(fd)
  }
}

/** Fills `buffer` from a position; fewer bytes only at the end of the file. */
export function readFully(fd: number, buffer: Buffer, position: number): number {
  let done = 0
  while (done < buffer.length) {
    const got = fs.readSync(fd, buffer, done, buffer.length - done, position + done)
    if (got === 0) break
    done += got
  }
  return done
}

/** Bytes of a file from a position on, a MiB at a time; ends early where the file does. Lets others work meanwhile. */
export async function* pieces(fd: number, from: number, bytes: number): AsyncGenerator<Buffer> {
  for (let done = 0; done < bytes; ) {
    // A new buffer each time: who reads ahead still has the one before.
    const buffer = Buffer.allocUnsafe(Math.min(1 << 20, bytes - done))
    const got = await new Promise<number>((resolve, reject) => {
      fs.read(fd, buffer, 0, buffer.length, from + done, (error, read) => (error === null ? resolve(read) : reject(error)))
    })
    if (got === 0) return
    yield buffer.subarray(0, got)
    done += got
  }
}

/** SHA-256 of the first `size` bytes, lower case hex; does not let others work meanwhile. */
export function hashNow(fd: number, size: number): string {
  const hash = createHash('sha256')
  const buffer = Buffer.allocUnsafe(1 << 20)
  for (let at = 0; at < size; ) {
    const got = readFully(fd, buffer.subarray(0, Math.min(buffer.length, size - at)), at)
    if (got === 0) throw new Error('it became shorter while it was hashed')
    hash.update(buffer.subarray(0, got))
    at += got
  }
  return hash.digest('hex')
}

/**
 * Appends a line and takes it back when only a part of it fits, so that the next line does not begin in the middle of
 * this one. Throws what write(2) throws.
 */
export function appendLine(fd: number, line: Uint8Array): void {
  const before = fs.fstatSync(fd).size
  try {
    let done = 0
    while (done < line.length) done += fs.writeSync(fd, line, done, line.length - done)
  } catch (error) {
    fs.ftruncateSync(fd, before)
    throw error
  }
}

/** Writes a directory's entries through. File systems that cannot do this for directories (vfat on some kernels) say EINVAL. */
export function syncDirectory(fd: number): void {
  try {
    fs.fsyncSync(fd)
  } catch (error) {
    if (errnoOf(error) !== 'EINVAL') throw error
  }
}

/** Closes for good; a descriptor that is closed already is no trouble. */
export function closeQuietly(fd: number): void {
  try {
    fs.closeSync(fd)
  } catch {
    // EBADF: it was closed before.
  }
}
