/** The case as it lies on the disk while a response runs. */
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { EvidenceError, RefusedError, UsageError } from '../errors.js'
import { errnoOf, type Host } from '../host.js'
import type { JsonObject } from '../step.js'
import { artifactLine, readArtifacts } from './artifacts.js'
import type { Artifact, Case, EvidenceFile, Origin } from './case.js'
import { CustodyLog, GENESIS, readCustody } from './custody.js'
import {
  appendLine,
  closeQuietly,
  createFile,
  diskRefused,
  openLog,
  openRegular,
  type Pinned,
  pieces,
  pin,
  pinBelow,
  readRegular,
  syncDirectory,
} from './disk.js'
import { type Keeper, LARGE, WritingFile } from './evidence-file.js'
import { isCaseId, isSafeName, isSafePart } from './names.js'

const CUSTODY = 'custody.jsonl'
const ARTIFACTS = 'artifacts.jsonl'

/** Written by us alone: a tag of such a name would be overwritten by the seal, or break it. */
const RESERVED = /^(bagit\.txt|bag-info\.txt|fetch\.txt|(tag)?manifest-.*|custody\..*|artifacts\..*|data)$/

/**
 * So many small artifacts are written through before a 'finish' line; the line must not wait for the disk longer than a
 * few times it needs for itself. What is more waits for the kernel, or for the seal.
 */
const SYNC_AT_FINISH = 16

/** Descriptors written through at the same time by the seal; measured: 0.14 ms a file against 0.23 ms one by one. */
const SYNC_TOGETHER = 16

/** A program that we could not end may still write: so much of it is waited for while its file is hashed. */
const GROWTH = 16 << 20

/** Longest log that is read back, far below the longest string of V8 (512 MiB): half a million artifacts and more. */
export const LONGEST_LOG = 256 << 20

/**
 * File systems that do not keep the owner that we are, so that a directory of ours may show another one there:
 * MSDOS, EXFAT, NTFS, NTFS3, FUSE, NFS, CIFS and SMB2 (linux/magic.h, and the sources of those that are not in it).
 */
const OTHER_OWNER = new Set([0x4d44n, 0x2011bab0n, 0x5346544en, 0x7366746en, 0x65735546n, 0x6969n, 0xff534d42n, 0xfe534d42n])

export class CaseDirectory implements Case, Keeper {
  readonly id: string
  readonly directory: string
  readonly host: Host
  /** The case, and the directory in which it and its archive lie. */
  readonly root: Pinned
  readonly parent: Pinned
  readonly #custody: CustodyLog
  readonly #custodyFd: number
  readonly #artifactsFd: number
  readonly #artifacts: Artifact[] = []
  /** Of every artifact entered, and of those being adopted. */
  readonly #taken = new Set<string>()
  readonly #writing = new Map<string, WritingFile>()
  readonly #folders = new Set(['data'])
  readonly #unsynced = new Set<string>()
  #over = false

  private constructor(place: Place, host: Host, before: Before) {
    this.id = place.id
    this.directory = place.directory
    this.root = place.root
    this.parent = place.parent
    this.host = host
    this.#custodyFd = openLog(place.root, CUSTODY, before.mode)
    this.#artifactsFd = openLog(place.root, ARTIFACTS, before.mode)
    this.#custody = new CustodyLog(this.#custodyFd, host, before.custody)
    for (const artifact of before.artifacts) {
      if (this.#taken.has(artifact.path)) continue
      this.#taken.add(artifact.path)
      this.#artifacts.push(artifact)
    }
  }

  /** @throws UsageError, RefusedError or EvidenceError, see createCase. */
  static create(output: string, id: string, host: Host): CaseDirectory {
    if (!isCaseId(id)) {
      throw new UsageError(`'${id}' is no name for a case: letters, digits and . _ + = @ , - behind a letter or digit, at most 200 of them`)
    }
    let parent: Pinned
    try {
      parent = pin(output)
    } catch (error) {
      if (['ENOENT', 'ENOTDIR'].includes(errnoOf(error))) throw new RefusedError(`there is no directory ${output}`, { cause: error })
      throw diskRefused(`open ${output}`, error)
    }
    const directory = path.join(fs.realpathSync(output), id)
    try {
      for (const name of [id, `${id}.zip`]) {
        if (exists(parent, name)) throw new RefusedError(`${path.join(output, name)} exists already`)
      }
      fs.mkdirSync(parent.at(id), 0o700)
      const root = pinBelow(parent, id)
      assertOurs(root, directory)
      fs.mkdirSync(root.at('data'), 0o700)
      const place = { id, directory, root, parent }
      const created = new CaseDirectory(place, host, { mode: 'new', custody: { seq: 0, head: GENESIS }, artifacts: [] })
      syncDirectory(root.fd)
      syncDirectory(parent.fd)
      return created
    } catch (error) {
      closeQuietly(parent.fd)
      if (error instanceof RefusedError) throw error
      if (errnoOf(error) === 'EEXIST') throw new RefusedError(`${directory} exists already`, { cause: error })
      throw diskRefused(`make ${directory}`, error)
    }
  }

  /** @throws UsageError, RefusedError or EvidenceError, see openCase. */
  static open(directory: string, host: Host): CaseDirectory {
    const place = findCase(directory)
    const refuse = (why: string): RefusedError => {
      closeQuietly(place.root.fd)
      closeQuietly(place.parent.fd)
      return new RefusedError(why)
    }
    if (endsSealed(place.root)) throw refuse(`${place.directory} is sealed: a sealed case is never written again`)
    const writer = writerOf(path.join(place.directory, CUSTODY), host)
    if (writer !== undefined) throw refuse(`${place.directory} is being written by process ${writer}`)
    try {
      const custody = readCustody(readRegular(place.root.at(CUSTODY), LONGEST_LOG))
      const torn = custody.torn.length
      if (torn > 0) cutTorn(place.root, CUSTODY, custody.torn)
      const artifacts = recoverArtifacts(place.root)
      const last = custody.lines.at(-1)
      const seq = Math.max(last?.seq ?? 0, custody.lines.length)
      const opened = new CaseDirectory(place, host, {
        mode: 'existing',
        custody: { seq, head: custody.head },
        artifacts: artifacts.artifacts,
      })
      opened.record('gap', {
        why: 'the run before this one ended without a seal',
        after: last?.at ?? null,
        tornBytes: torn,
        artifactsTornBytes: artifacts.torn,
        // Bounded: a log of nonsense must not grow by a description of its nonsense.
        chain: custody.problems.slice(0, 10).map(problem => `line ${problem.line} ${problem.what}`),
        artifactLines: artifacts.broken.slice(0, 10),
      })
      return opened
    } catch (error) {
      throw diskRefused(`open the case ${place.directory}`, error)
    }
  }

  get artifacts(): readonly Artifact[] {
    return this.#artifacts
  }

  get head(): string {
    return this.#custody.head
  }

  /** Whether an artifact of this path is entered or about to be. */
  has(artifact: string): boolean {
    return this.#taken.has(artifact)
  }

  open(step: string, name: string): EvidenceFile {
    this.#assertOpen()
    const relative = this.#place(step, name)
    try {
      const file = new WritingFile(relative, createFile(this.root, relative), this)
      this.#writing.set(relative, file)
      return file
    } catch (error) {
      if (errnoOf(error) === 'EEXIST') throw new EvidenceError(`${relative} exists already`, { cause: error })
      throw diskRefused(`make ${relative}`, error)
    }
  }

  /**
   * Besides EvidenceError (the disk refuses, or the artifact is entered already) it rejects with a plain Error when there
   * is no such file or it is no regular one: that is an outcome of the program that should have written it.
   */
  async adopt(step: string, name: string, origin: Origin): Promise<Artifact> {
    this.#assertOpen()
    const relative = this.#place(step, name)
    if (this.#taken.has(relative)) throw new EvidenceError(`${relative} is entered already`)
    this.#writing.get(relative)?.abandon()
    const fd = openWritten(this.root, relative)
    this.#taken.add(relative)
    try {
      const status = fs.fstatSync(fd)
      if (status.nlink !== 1) throw new Error(`${relative} has another name outside of the case`)
      const { sha256, bytes } = await hashGrowing(fd, status.size)
      const grown = fs.fstatSync(fd).size > bytes
      if (grown) fs.truncateSync(this.root.at(relative), bytes)
      makePrivate(fd, status)
      if (bytes >= LARGE) await synced(fd)
      this.#assertOpen()
      const notes = [...(origin.notes ?? []), ...(grown ? [`still being written: cut at ${bytes} bytes`] : [])]
      return this.enter({ path: relative, bytes, sha256 }, { ...origin, notes })
    } catch (error) {
      this.#taken.delete(relative)
      if (errnoOf(error) !== '') throw diskRefused(`hash ${relative}`, error)
      throw error
    } finally {
      closeQuietly(fd)
    }
  }

  pathOf(step: string, name: string): string {
    this.#assertOpen()
    return path.join(this.directory, this.#place(step, name))
  }

  tag(name: string, content: string | Uint8Array): void {
    if (!isSafePart(name) || name.startsWith('.') || RESERVED.test(name)) throw new EvidenceError(`'${name}' is no name for a tag file`)
    this.writeTag(name, content)
  }

  /** As `tag`, for the names that are ours. */
  writeTag(name: string, content: string | Uint8Array): void {
    this.#assertOpen()
    const fresh = `.${name}.new`
    try {
      fs.rmSync(this.root.at(fresh), { force: true })
      const fd = createFile(this.root, fresh)
      try {
        // writeFileSync of a descriptor loops until all is written.
        fs.writeFileSync(fd, content)
        fs.fsyncSync(fd)
      } finally {
        closeQuietly(fd)
      }
      fs.renameSync(this.root.at(fresh), this.root.at(name))
      syncDirectory(this.root.fd)
    } catch (error) {
      this.#removeUnfinished(fresh)
      throw diskRefused(`write ${name}`, error)
    }
  }

  record(event: string, detail: JsonObject): void {
    this.#assertOpen()
    if (event === 'finish') this.#syncSome()
    this.#custody.append(event, detail)
  }

  /** Keeper: the artifact is on the disk, whole. */
  enter(artifact: Artifact, origin: Origin): Artifact {
    try {
      appendLine(this.#artifactsFd, Buffer.from(`${artifactLine(artifact, origin, this.host.now())}\n`))
    } catch (error) {
      throw diskRefused(`write ${ARTIFACTS}`, error)
    }
    this.#taken.add(artifact.path)
    this.#artifacts.push(artifact)
    if (artifact.bytes < LARGE) this.#unsynced.add(artifact.path)
    return artifact
  }

  /** Keeper. */
  release(relative: string): void {
    this.#writing.delete(relative)
  }

  /** Keeper. */
  remove(relative: string): void {
    try {
      fs.rmSync(this.root.at(relative), { force: true })
    } catch (error) {
      throw diskRefused(`remove ${relative}`, error)
    }
  }

  /** Closes the files that nobody closed; the seal enters what lies in them. */
  abandonWriting(): readonly string[] {
    const left = [...this.#writing.keys()]
    for (const file of [...this.#writing.values()]) file.abandon()
    return left
  }

  /** Writes through what is not yet: artifacts, their folders, the log of the artifacts. */
  async syncAll(): Promise<void> {
    try {
      const left = [...this.#unsynced, ...[...this.#folders].sort()]
      const worker = async (): Promise<void> => {
        for (let next = left.shift(); next !== undefined; next = left.shift()) await syncedByName(this.root.at(next))
      }
      await Promise.all(Array.from({ length: SYNC_TOGETHER }, worker))
      this.#unsynced.clear()
      fs.fsyncSync(this.#artifactsFd)
      syncDirectory(this.root.fd)
    } catch (error) {
      throw diskRefused(`write ${this.directory} through`, error)
    }
  }

  /** Nothing is written to it any more. `root` and `parent` stay open for the archive. */
  end(): void {
    this.#over = true
    closeQuietly(this.#custodyFd)
    closeQuietly(this.#artifactsFd)
  }

  #assertOpen(): void {
    if (this.#over) throw new EvidenceError(`${this.directory} is sealed: a sealed case is never written again`)
  }

  /** 'data/<step>/<name>', its folders made. */
  #place(step: string, name: string): string {
    if (!isSafePart(step) || !isSafeName(name)) throw new EvidenceError(`'${step}/${name}' is no name for an artifact`)
    const parts = ['data', step, ...name.split('/')]
    for (let depth = 2; depth < parts.length; depth += 1) this.#makeFolder(parts.slice(0, depth).join('/'))
    return parts.join('/')
  }

  #makeFolder(relative: string): void {
    if (this.#folders.has(relative)) return
    try {
      fs.mkdirSync(this.root.at(relative), 0o700)
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw diskRefused(`make ${relative}`, error)
      if (!fs.lstatSync(this.root.at(relative)).isDirectory()) throw new EvidenceError(`${relative} is no directory`)
    }
    this.#folders.add(relative)
  }

  #syncSome(): void {
    const some = [...this.#unsynced].slice(-SYNC_AT_FINISH)
    try {
      for (const relative of new Set([...some, ...some.map(path.dirname)])) syncByName(this.root.at(relative))
      if (some.length > 0) fs.fdatasyncSync(this.#artifactsFd)
    } catch (error) {
      throw diskRefused('write artifacts through', error)
    }
    for (const relative of some) this.#unsynced.delete(relative)
  }

  #removeUnfinished(name: string): void {
    try {
      fs.rmSync(this.root.at(name), { force: true })
    } catch {
      // The error that led here is the one to tell.
    }
  }
}

interface Place {
  readonly id: string
  readonly directory: string
  readonly root: Pinned
  readonly parent: Pinned
}

interface Before {
  readonly mode: 'new' | 'existing'
  readonly custody: { readonly seq: number; readonly head: string }
  readonly artifacts: readonly Artifact[]
}

/**
 * The case at a path, pinned.
 * @throws UsageError when there is none.
 */
export function findCase(directory: string): Place {
  let parent: Pinned | undefined
  try {
    const real = fs.realpathSync(directory)
    const id = path.basename(real)
    parent = pin(path.dirname(real))
    const root = pinBelow(parent, id)
    if (isCaseId(id) && exists(root, CUSTODY)) return { id, directory: real, root, parent }
    closeQuietly(root.fd)
  } catch (error) {
    if (parent !== undefined) closeQuietly(parent.fd)
    const why = error instanceof Error && errnoOf(error) !== 'ENOENT' ? ` (${error.message})` : ''
    throw new UsageError(`there is no case at ${directory}${why}`, { cause: error })
  }
  closeQuietly(parent.fd)
  throw new UsageError(`${directory} is no case: it has no ${CUSTODY}`)
}

/** The seal is one short line. */
const SEAL_LINE = 64 << 10

/** Whether the last complete line of the custody log is the seal. */
export function endsSealed(root: Pinned): boolean {
  let fd: number
  try {
    fd = openRegular(root.at(CUSTODY))
  } catch (error) {
    throw diskRefused(`read ${CUSTODY}`, error)
  }
  try {
    const size = fs.fstatSync(fd).size
    const buffer = Buffer.alloc(Math.min(size, SEAL_LINE))
    const got = fs.readSync(fd, buffer, 0, buffer.length, size - buffer.length)
    const lines = buffer.subarray(0, got).toString('utf8').split('\n')
    const parsed: unknown = JSON.parse(lines.at(-2) ?? '')
    return typeof parsed === 'object' && parsed !== null && 'event' in parsed && parsed.event === 'seal'
  } catch (error) {
    if (error instanceof SyntaxError) return false
    throw diskRefused(`read ${CUSTODY}`, error)
  } finally {
    closeQuietly(fd)
  }
}

function exists(directory: Pinned, name: string): boolean {
  try {
    fs.lstatSync(directory.at(name))
    return true
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false
    throw error
  }
}

/** Between mkdir and open, whoever may write to the directory around it could have put a directory of his own there. */
function assertOurs(root: Pinned, directory: string): void {
  const owner = fs.fstatSync(root.fd).uid
  if (owner === process.geteuid?.() || OTHER_OWNER.has(fs.statfsSync(root.at(''), { bigint: true }).type)) return
  throw new EvidenceError(`${directory} was replaced by user ${owner} while it was made`)
}

/** Another process that has the log open for writing; undefined when there is none, or none that we may see. */
function writerOf(log: string, host: Host): number | undefined {
  for (const name of namesOf(host, '/proc')) {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) continue
    for (const fd of namesOf(host, `/proc/${name}/fd`)) {
      try {
        if (host.readlink(`/proc/${name}/fd/${fd}`) === log && isForWriting(host.read(`/proc/${name}/fdinfo/${fd}`))) return Number(name)
      } catch {
        // Closed in between.
      }
    }
  }
  return undefined
}

/** The line 'flags:' is octal and holds O_ACCMODE of open(2) in its last two bits: proc(5), /proc/pid/fdinfo. */
function isForWriting(fdinfo: string): boolean {
  const flags = /^flags:\s*([0-7]+)$/m.exec(fdinfo)?.[1]
  return flags !== undefined && (Number.parseInt(flags, 8) & 0o3) !== fs.constants.O_RDONLY
}

function namesOf(host: Host, directory: string): readonly string[] {
  try {
    return host.list(directory)
  } catch {
    return []
  }
}

/** Moves the torn end of a log to '<log without .jsonl>.torn', first there and then away from here. */
function cutTorn(root: Pinned, log: string, torn: Uint8Array): void {
  const base = log.replace(/\.jsonl$/, '.torn')
  let name = base
  for (let n = 2; exists(root, name); n += 1) name = `${base}.${n}`
  const fd = createFile(root, name)
  try {
    fs.writeFileSync(fd, torn)
    fs.fsyncSync(fd)
  } finally {
    closeQuietly(fd)
  }
  const logFd = openRegular(root.at(log), true)
  try {
    fs.ftruncateSync(logFd, fs.fstatSync(logFd).size - torn.length)
    fs.fsyncSync(logFd)
  } finally {
    closeQuietly(logFd)
  }
  syncDirectory(root.fd)
}

function recoverArtifacts(root: Pinned): ReturnType<typeof readArtifacts> & { readonly torn: number } {
  if (!exists(root, ARTIFACTS)) {
    // The power went between the two logs.
    closeQuietly(openLog(root, ARTIFACTS, 'new'))
    return { artifacts: [], broken: [], torn: 0 }
  }
  const bytes = readRegular(root.at(ARTIFACTS), LONGEST_LOG)
  const whole = bytes.lastIndexOf(0x0a) + 1
  const torn = bytes.subarray(whole)
  if (torn.length > 0) cutTorn(root, ARTIFACTS, torn)
  return { ...readArtifacts(bytes.toString('utf8', 0, whole)), torn: torn.length }
}

/** A plain Error, also where it is an errno: a program that did not write its file is no reason to stop. */
function openWritten(root: Pinned, relative: string): number {
  try {
    return openRegular(root.at(relative))
  } catch (error) {
    const code = errnoOf(error)
    const why = code === 'ENOENT' ? 'it was not written' : code || (error as Error).message
    throw new Error(`${relative}: ${why}`, { cause: error })
  }
}

/** Hashes to the end of a file, or to `GROWTH` beyond the size that it had; lets others work meanwhile. */
async function hashGrowing(fd: number, size: number): Promise<{ sha256: string; bytes: number }> {
  const hash = createHash('sha256')
  let bytes = 0
  for await (const piece of pieces(fd, 0, size + GROWTH)) {
    hash.update(piece)
    bytes += piece.length
  }
  return { sha256: hash.digest('hex'), bytes }
}

/** A program makes its files as it likes: with its own umask, or as the user to whom it drops its rights. */
function makePrivate(fd: number, status: fs.Stats): void {
  try {
    if (process.geteuid?.() === 0 && status.uid !== 0) fs.fchownSync(fd, 0, 0)
    if ((status.mode & 0o7777) !== 0o600) fs.fchmodSync(fd, 0o600)
  } catch (error) {
    // vfat and its like have neither.
    if (!['EPERM', 'ENOTSUP', 'EINVAL', 'ENOSYS'].includes(errnoOf(error))) throw error
  }
}

function synced(fd: number): Promise<void> {
  return new Promise((resolve, reject) => {
    fs.fsync(fd, error => (error === null ? resolve() : reject(error)))
  })
}

async function syncedByName(name: string): Promise<void> {
  const fd = openForSync(name)
  if (fd === undefined) return
  try {
    await synced(fd)
  } catch (error) {
    if (errnoOf(error) !== 'EINVAL') throw error
  } finally {
    closeQuietly(fd)
  }
}

function syncByName(name: string): void {
  const fd = openForSync(name)
  if (fd === undefined) return
  try {
    syncDirectory(fd)
  } finally {
    closeQuietly(fd)
  }
}

/** Undefined when it is gone: the seal says so. */
function openForSync(name: string): number | undefined {
  try {
    return fs.openSync(name, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK)
  } catch (error) {
    if (['ENOENT', 'ELOOP', 'ENOTDIR', 'ENXIO'].includes(errnoOf(error))) return undefined
    throw error
  }
}
