/**
 * The only door to the machine: its files, its clock, its programs (see programs.ts).
 * `openHost({ root })` shows a recorded tree instead of the real one; everything that plans works on both.
 */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import type { FileKind, FileStatus, FileSystemStatus, HostView } from './step.js'

/** Where programs are looked for, whatever the caller's PATH says: hier(7), and /usr/local last because it is writable more often. */
export const SEARCH_PATH = ['/usr/sbin', '/usr/bin', '/sbin', '/bin', '/usr/local/sbin', '/usr/local/bin'] as const

const READ_LIMIT = 1 << 20

export interface HostOptions {
  /** A recorded tree in place of '/'. */
  readonly root?: string
  readonly hostname?: string
  /** Replaces the wall clock, in tests. */
  readonly clock?: () => Date
  /** Replaces SEARCH_PATH, as paths inside the root. */
  readonly searchPath?: readonly string[]
}

/** What executing may see on top of what planning may: real paths and a clock that never steps. */
export interface Host extends HostView {
  /** The real path behind a path of the host; collectors open files by it. */
  at(path: string): string
  /** Milliseconds since an arbitrary start, never going backwards. */
  monotonic(): number
}

/** The host we run on, or a recorded tree of one. */
export function openHost(options: HostOptions = {}): Host {
  const root = options.root === undefined ? '' : path.resolve(options.root)
  const at = (name: string): string => (root === '' ? name : path.join(root, name))
  const search = options.searchPath ?? SEARCH_PATH
  return {
    hostname: options.hostname ?? os.hostname(),
    now: options.clock ?? (() => new Date()),
    at,
    monotonic: () => performance.now(),
    which(program) {
      for (const directory of search) {
        const candidate = path.join(directory, program)
        try {
          if (fs.statSync(at(candidate)).isFile()) {
            fs.accessSync(at(candidate), fs.constants.X_OK)
            return candidate
          }
        } catch {
          // Not here: look in the next directory.
        }
      }
      return undefined
    },
    list: name => fs.readdirSync(at(name)).sort(),
    lstat: name => fileStatus(fs.lstatSync(at(name), { bigint: true })),
    readlink: name => fs.readlinkSync(at(name)),
    statfs: name => fileSystemStatus(at(name)),
    read: (name, maxBytes = READ_LIMIT) => readFile(at(name), maxBytes).toString('utf8'),
    peek(name, offset, bytes) {
      const fd = fs.openSync(at(name), fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)
      try {
        const buffer = Buffer.alloc(bytes)
        return buffer.subarray(0, fs.readSync(fd, buffer, 0, bytes, offset))
      } finally {
        fs.closeSync(fd)
      }
    },
  }
}

/** The whole of a file of any kind that ends, at most `maxBytes`; the size that stat tells is not trusted (0 in /proc). */
export function readFile(realPath: string, maxBytes: number): Buffer {
  // O_NONBLOCK: opening a FIFO must not wait for a writer (open(2)).
  const fd = fs.openSync(realPath, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK | fs.constants.O_NOCTTY)
  try {
    const chunks: Buffer[] = []
    let total = 0
    while (total < maxBytes) {
      const chunk = Buffer.allocUnsafe(Math.min(65_536, maxBytes - total))
      const got = fs.readSync(fd, chunk, 0, chunk.length, null)
      if (got === 0) break
      chunks.push(chunk.subarray(0, got))
      total += got
    }
    return chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks)
  } finally {
    fs.closeSync(fd)
  }
}

function fileSystemStatus(realPath: string): FileSystemStatus {
  const found = fs.statfsSync(realPath, { bigint: true })
  return {
    type: found.type,
    totalBytes: Number(found.blocks * found.bsize),
    // bavail, not bfree: the reserve of the superuser is not ours to fill.
    freeBytes: Number(found.bavail * found.bsize),
  }
}

export function fileStatus(found: fs.BigIntStats): FileStatus {
  return {
    kind: kindOf(found),
    mode: Number(found.mode & 0o7777n),
    uid: Number(found.uid),
    gid: Number(found.gid),
    size: found.size,
    device: found.dev,
    inode: found.ino,
    links: Number(found.nlink),
    accessed: Number(found.atimeNs) / 1e6,
    modified: Number(found.mtimeNs) / 1e6,
    changed: Number(found.ctimeNs) / 1e6,
    born: Number(found.birthtimeNs) / 1e6,
  }
}

function kindOf(found: fs.BigIntStats): FileKind {
  if (found.isFile()) return 'file'
  if (found.isDirectory()) return 'directory'
  if (found.isSymbolicLink()) return 'link'
  if (found.isFIFO()) return 'fifo'
  if (found.isSocket()) return 'socket'
  if (found.isCharacterDevice()) return 'character'
  if (found.isBlockDevice()) return 'block'
  return 'other'
}

/** errno name of an error of the file system or a program start, '' when it is none. */
export function errnoOf(error: unknown): string {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : ''
}
