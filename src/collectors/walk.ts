/**
 * Walks directories of this machine: never follows a link, never enters a file system that could hang or that is no disk,
 * and stops at its bounds. Level by level over all roots at once, so that one huge root does not keep the others unseen.
 * (Node has no openat: a directory swapped for a link between two looks is read through it, once; the bounds hold all the same.)
 */
import fs from 'node:fs'
import { errnoOf, type Host } from '../host.js'
import { type Mount, mountOf, readMounts } from '../mounts.js'
import type { Seconds } from '../step.js'

/**
 * File systems whose data is on a disk or in the memory of this machine, from the kernel's fs/ directory (and zfs, bcachefs,
 * aufs from outside it). Everything else is left alone: network and FUSE file systems can hang, those of the kernel (proc, sysfs,
 * cgroup ...) hold no files of anybody, autofs mounts when touched.
 */
const LOCAL = new Set(
  (
    'ext2 ext3 ext4 xfs btrfs f2fs jfs reiserfs nilfs2 bcachefs zfs ntfs3 vfat msdos exfat hfsplus minix udf iso9660 ' +
    'squashfs erofs cramfs jffs2 ubifs tmpfs ramfs rootfs devtmpfs overlay aufs'
  ).split(' '),
)

/** Levels below a root. PATH_MAX (4096, linux/limits.h) allows 2,048; package trees of interpreters reach about 40. */
const DEPTH = 256

/** The kernel's own limit on links in one path: path_resolution(7). */
const LINKS = 40

export type Bound = 'entries' | 'seconds' | 'depth'

export interface WalkBounds {
  /** Directory entries that are looked at, over all roots. */
  readonly entries: number
  /** From the start of the walk, with what the caller does between two entries. */
  readonly seconds: Seconds
  readonly signal?: AbortSignal
}

/** A regular file or a directory. */
export interface Entry {
  /** As the kernel gave it, any bytes. */
  readonly path: Buffer
  readonly kind: 'file' | 'directory'
  /** The directory that holds it; of a root, itself. */
  readonly parent: Buffer
  /** Which of the walk's roots. */
  readonly root: number
}

/** One directory (or file) to start from, and how far it was walked. */
export interface WalkRoot {
  /** As asked for. */
  readonly asked: string
  /** Where it really is, links on the way followed; as asked where it was not found. */
  path: string
  /** 'covered': another root holds it. 'not-entered' and 'failed' have a reason. */
  state: 'walked' | 'missing' | 'not-entered' | 'failed' | 'covered'
  reason?: string
  files: number
  directories: number
  /** Links, devices, FIFOs and sockets: seen, left alone. */
  others: number
  /** Directories whose entries could not be read. */
  unread: number
  /** Directories whose entries a bound left unread, wholly or partly. */
  notReached: number
}

/** A place inside a root that was left alone or could not be read. */
export interface Omitted {
  readonly path: Buffer
  readonly root: number
  readonly why: string
}

export interface Walk {
  readonly roots: readonly WalkRoot[]
  /** Entries one by one; may be left early. */
  readonly entries: Iterable<Entry>
  /** Mounts not entered, as met; at most OMITTED of them. */
  readonly mounts: readonly Omitted[]
  /** Directories that could not be read, as met; at most OMITTED of them, `unread` of the roots counts all. */
  readonly unread: readonly Omitted[]
  /** The bounds that stopped the walk somewhere. */
  readonly hit: ReadonlySet<Bound>
  /** Directory entries looked at so far. */
  readonly seen: number
}

const OMITTED = 1000

/** A directory to be read. */
interface Pending {
  /** Its bytes as Latin-1: a Buffer that waits would keep the whole slab alive that Node cut it from. */
  readonly bytes: string
  readonly root: number
  readonly depth: number
}

/** Whether a mount keeps its files on this machine, in a file system that holds files. */
export function isLocal(mount: Mount | undefined): boolean {
  return mount !== undefined && !mount.remote && LOCAL.has(mount.type)
}

/**
 * Starts a walk; nothing is read below the roots before `entries` is.
 * @throws LookError when /proc/self/mountinfo cannot be read: without it no file system is known to be safe to enter.
 */
export function startWalk(host: Host, roots: readonly string[], bounds: WalkBounds): Walk {
  const walk = new Walking(host, readMounts(host), bounds)
  for (const asked of roots) walk.addRoot(asked)
  return walk
}

class Walking implements Walk {
  readonly roots: WalkRoot[] = []
  readonly mounts: Omitted[] = []
  readonly unread: Omitted[] = []
  readonly hit = new Set<Bound>()
  seen = 0
  readonly #host: Host
  readonly #mounts: readonly Mount[]
  readonly #bounds: WalkBounds
  readonly #deadline: number
  /** What is mounted at a path, by the path as UTF-8; and the directories that have such a path in them. */
  readonly #mountAt = new Map<string, Mount>()
  readonly #mountsIn = new Set<string>()
  /** Directories seen, as 'device:inode': a bind mount may show one twice, or within itself. */
  readonly #visited = new Set<string>()
  readonly #starts: Entry[] = []

  constructor(host: Host, mounts: readonly Mount[], bounds: WalkBounds) {
    this.#host = host
    this.#mounts = mounts
    this.#bounds = bounds
    this.#deadline = host.monotonic() + bounds.seconds * 1000
    // Of two mounts on one point, the later hides the earlier.
    for (const mount of mounts) this.#mountAt.set(mount.point, mount)
    for (const point of this.#mountAt.keys()) this.#mountsIn.add(point.slice(0, Math.max(1, point.lastIndexOf('/'))))
  }

  addRoot(asked: string): void {
    const root: WalkRoot = { asked, path: asked, state: 'walked', files: 0, directories: 0, others: 0, unread: 0, notReached: 0 }
    const index = this.roots.push(root) - 1
    try {
      root.path = this.#resolve(asked)
      const status = this.#host.lstat(root.path)
      const path = Buffer.from(root.path)
      if (status.kind === 'directory') {
        if (!this.#firstVisit(`${status.device}:${status.inode}`)) root.state = 'covered'
        else this.#starts.push({ path, kind: 'directory', parent: path, root: index })
      } else if (status.kind === 'file') {
        this.#starts.push({ path, kind: 'file', parent: path, root: index })
      } else {
        root.state = 'not-entered'
        root.reason = `is a ${status.kind}, neither a directory nor a regular file`
      }
    } catch (error) {
      if (error instanceof NotEntered) {
        root.state = 'not-entered'
        root.path = error.path
        root.reason = error.message
      } else {
        const code = errnoOf(error)
        root.state = code === 'ENOENT' || code === 'ENOTDIR' ? 'missing' : 'failed'
        root.reason = code || String(error)
      }
    }
  }

  get entries(): Iterable<Entry> {
    return this.#walk()
  }

  *#walk(): Generator<Entry> {
    const queue: Pending[] = []
    for (const start of this.#starts) {
      this.#count(start)
      yield start
      if (start.kind === 'directory') queue.push({ bytes: start.path.toString('latin1'), root: start.root, depth: 0 })
    }
    for (let head = 0; head < queue.length; head++) {
      const directory = queue[head] as Pending
      if (this.#stopped()) {
        this.#rootOf(directory).notReached++
        continue
      }
      yield* this.#readDirectory(directory, queue)
      // What has been read is let go, a thousand at a time.
      if (head === 1000) head -= queue.splice(0, 1000).length
    }
  }

  *#readDirectory(directory: Pending, queue: Pending[]): Generator<Entry> {
    const root = this.#rootOf(directory)
    const here = Buffer.from(directory.bytes, 'latin1')
    let names: fs.Dir | undefined
    try {
      // The type knows only text encodings; Node gives Buffers for this one, here as in readdir.
      names = fs.opendirSync(here, { encoding: 'buffer' as BufferEncoding, bufferSize: 256 })
      const holdsMounts = this.#mountsIn.has(here.toString())
      for (let found = names.readSync(); found !== null; found = names.readSync()) {
        if (this.#stopped()) {
          root.notReached++
          return
        }
        this.seen++
        const path = join(here, found.name as unknown as Buffer)
        const kind = found.isDirectory() ? 'directory' : found.isFile() ? 'file' : 'other'
        if (holdsMounts && !this.#mayTouch(path, directory.root)) continue
        if (kind === 'other') {
          root.others++
          continue
        }
        if (kind === 'directory' && !this.#isNew(path, directory.root)) continue
        const entry: Entry = { path, kind, parent: here, root: directory.root }
        this.#count(entry)
        yield entry
        if (kind === 'file') continue
        if (directory.depth + 1 >= DEPTH) {
          this.hit.add('depth')
          root.notReached++
        } else {
          queue.push({ bytes: path.toString('latin1'), root: directory.root, depth: directory.depth + 1 })
        }
      }
    } catch (error) {
      // One that is gone by now holds nothing that could be read.
      if (errnoOf(error) === 'ENOENT') return
      this.#omit(this.unread, here, directory.root, errnoOf(error) || String(error))
      root.unread++
    } finally {
      names?.closeSync()
    }
  }

  /** Where a path really is. Mounts are looked at before what lies on them: a look at a dead network mount does not come back. */
  #resolve(asked: string): string {
    const parts = asked.split('/')
    let done = ''
    let links = 0
    while (parts.length > 0) {
      const part = parts.shift() as string
      if (part === '' || part === '.') continue
      if (part === '..') {
        done = done.slice(0, Math.max(0, done.lastIndexOf('/')))
        continue
      }
      const next = `${done}/${part}`
      this.#assertLocal(next)
      if (this.#host.lstat(next).kind !== 'link') {
        done = next
        continue
      }
      if (++links > LINKS) throw new NotEntered(next, 'is a loop of links')
      const target = this.#host.readlink(next)
      if (target.startsWith('/')) done = ''
      parts.unshift(...target.split('/'))
    }
    const path = done === '' ? '/' : done
    this.#assertLocal(path)
    return path
  }

  #assertLocal(path: string): void {
    const mount = mountOf(this.#mounts, path)
    if (!isLocal(mount)) throw new NotEntered(path, notLocal(mount))
  }

  /** False for a mount point of a file system that is left alone, which is noted. */
  #mayTouch(path: Buffer, root: number): boolean {
    const mount = this.#mountAt.get(path.toString())
    if (mount === undefined || isLocal(mount)) return true
    this.#omit(this.mounts, path, root, notLocal(mount))
    return false
  }

  #isNew(path: Buffer, root: number): boolean {
    try {
      const found = fs.lstatSync(path, { bigint: true })
      // Replaced since its directory was read.
      if (!found.isDirectory()) return false
      return this.#firstVisit(`${found.dev}:${found.ino}`)
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return false
      this.#omit(this.unread, path, root, errnoOf(error))
      ;(this.roots[root] as WalkRoot).unread++
      return false
    }
  }

  #firstVisit(inode: string): boolean {
    if (this.#visited.has(inode)) return false
    this.#visited.add(inode)
    return true
  }

  #stopped(): boolean {
    if (this.#bounds.signal?.aborted) return true
    if (this.seen >= this.#bounds.entries) this.hit.add('entries')
    else if (this.#host.monotonic() > this.#deadline) this.hit.add('seconds')
    return this.hit.has('entries') || this.hit.has('seconds')
  }

  #count(entry: Entry): void {
    const root = this.#rootOf(entry)
    if (entry.kind === 'file') root.files++
    else root.directories++
  }

  #rootOf(at: { readonly root: number }): WalkRoot {
    return this.roots[at.root] as WalkRoot
  }

  #omit(list: Omitted[], path: Buffer, root: number, why: string): void {
    if (list.length < OMITTED) list.push({ path, root, why })
  }
}

class NotEntered extends Error {
  readonly path: string
  constructor(path: string, why: string) {
    super(why)
    this.path = path
  }
}

function notLocal(mount: Mount | undefined): string {
  if (mount === undefined) return 'lies on no known mount'
  return `${mount.remote ? 'network or FUSE file system' : 'no file system of a disk'} (${mount.type})`
}

const SLASH = Buffer.from('/')

function join(directory: Buffer, name: Buffer): Buffer {
  return directory.at(-1) === 0x2f ? Buffer.concat([directory, name]) : Buffer.concat([directory, SLASH, name])
}
