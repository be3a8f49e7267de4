/**
 * The program files behind running processes, read through /proc/PID/exe, which works when the file is deleted or never had a
 * name (proc_pid_exe(5)). Each is hashed once; what exists only in memory is copied out, since it goes with its last process.
 */
import { isUtf8 } from 'node:buffer'
import { z } from 'zod'
import type { Case } from '../../evidence/case.js'
import type { Host } from '../../host.js'
import { type Mount, mountOf, readMounts } from '../../mounts.js'
import type { JsonObject } from '../../step.js'
import { formatBytes, iso } from '../../time.js'
import { type ExactStatus, HungError, type Look, type Reader, type Seen } from '../reader.js'
import { textField } from './proc.js'

/** The executable of a process. Text that is not UTF-8: see proc.ts. */
export interface ExecutableRecord {
  /** As the kernel prints it: ' (deleted)' behind what has lost its name, '/memfd:NAME (deleted)' for what never had one. */
  readonly link: string
  readonly linkBase64?: string
  /** Its name is gone; files that are merely called so are not. */
  readonly deleted: boolean
  /** memfd_create(2): it never lay on a file system that anybody can list. */
  readonly memfd: boolean
  /** Another file stands where the deleted one stood, as after the upgrade of a package. */
  readonly replaced?: boolean
  readonly size?: number
  /** Decimal digits: 64 bits. */
  readonly inode?: string
  /** 'major:minor', decimal, as in /proc/PID/mountinfo. */
  readonly device?: string
  /** Permission bits, octal: '0755'. */
  readonly mode?: string
  readonly uid?: number
  readonly gid?: number
  /** 0: no name is left. */
  readonly links?: number
  /** UTC. `born` is missing where the file system does not keep it. */
  readonly times?: { readonly accessed: string; readonly modified: string; readonly changed: string; readonly born?: string }
  readonly sha256?: string
  /** Where it was saved: 'executables/<sha256>'. */
  readonly artifact?: string
  /** Why something of it is missing. */
  readonly notes?: readonly string[]
}

export const EXECUTABLE_BOUNDS = z.object({
  /** Bytes of all executables hashed, and the time for it. */
  hashBytes: z.int().positive(),
  hashSeconds: z.number().positive(),
  /** Copied out: bytes of one executable, and of all. */
  copyFileBytes: z.int().positive(),
  copyBytes: z.int().positive(),
})

export type ExecutableBounds = z.infer<typeof EXECUTABLE_BOUNDS>

/** A process whose executable is looked at. */
export interface Runner {
  readonly pid: number
  /** '/proc/812', or '/proc/812/task/815' where its first thread has ended. */
  readonly door: string
  /** Inode of its mount namespace, where we may see it. */
  readonly mountNamespace: number | undefined
}

type Named = Pick<ExecutableRecord, 'link' | 'linkBase64'>

/** A program file on its way to be hashed and saved. */
interface Program {
  /** '/proc/812/exe' */
  readonly path: string
  readonly link: string
  readonly status: ExactStatus
  /** It exists only for the processes that run it. */
  readonly only: boolean
  readonly mount: Mount | undefined
}

interface Content {
  sha256?: string
  artifact?: string
  readonly notes: string[]
}

const DELETED = ' (deleted)'
const MEMFD = '/memfd:'

export class Executables {
  private readonly host: Host
  private readonly reader: Reader
  private readonly bounds: ExecutableBounds
  private readonly evidence: { readonly case: Case; readonly step: string; readonly action: string }
  /** What was found out about each file, by device, inode, time of change and size. */
  private readonly known = new Map<string, Content>()
  private readonly saved = new Set<string>()
  /** By the inode of a mount namespace. */
  private readonly mounts = new Map<number, readonly Mount[]>()
  /** Mount points whose server did not answer: not asked again. */
  private readonly dead = new Set<string>()
  private spent = 0
  private counts = { hashed: 0, hashedBytes: 0, deleted: 0, memfd: 0, saved: 0, savedBytes: 0, notHashed: 0, notSaved: 0, notAsked: 0 }

  constructor(
    host: Host,
    reader: Reader,
    bounds: ExecutableBounds,
    evidence: { readonly case: Case; readonly step: string; readonly action: string },
  ) {
    this.host = host
    this.reader = reader
    this.bounds = bounds
    this.evidence = evidence
  }

  get facts(): JsonObject {
    return { distinct: this.known.size, ...this.counts }
  }

  /** @throws EvidenceError; whatever the host refuses is told in the record. */
  async examine(runner: Runner, target: Buffer): Promise<ExecutableRecord> {
    const link = target.toString('utf8')
    const marked = link.endsWith(DELETED)
    const named = { ...textField('link', target) }
    const mount = this.mountOf(runner, marked ? link.slice(0, -DELETED.length) : link)
    const memfd = marked && link.startsWith(MEMFD)
    const far = mount?.remote && !mount.type.startsWith('fuse')
    if (far || (mount !== undefined && this.dead.has(mount.point))) {
      this.counts.notAsked += 1
      const note = far
        ? `lies on ${mount.type}, which the cut may have left without its server: not read`
        : 'its file system does not answer: not read'
      return { ...named, deleted: marked, memfd: false, notes: [note] }
    }
    try {
      return await this.read(runner, target, { named, marked, memfd, mount })
    } catch (error) {
      if (!(error instanceof HungError)) throw error
      if (mount?.remote) this.dead.add(mount.point)
      this.counts.notAsked += 1
      return { ...named, deleted: marked, memfd, notes: ['its file system did not answer'] }
    }
  }

  private async read(
    runner: Runner,
    target: Buffer,
    { named, marked, memfd, mount }: { named: Named; marked: boolean; memfd: boolean; mount: Mount | undefined },
  ): Promise<ExecutableRecord> {
    const path = `${runner.door}/exe`
    const seen = await this.one({ op: 'status', path: this.host.at(path) })
    const { status } = seen
    if (status === undefined) return { ...named, deleted: marked, memfd, notes: [`stat: ${seen.error}`] }
    const place = marked ? await this.standsThere(runner, target, status) : { deleted: false }
    const only = place.deleted
    if (only && memfd) this.counts.memfd += 1
    else if (only) this.counts.deleted += 1
    const { sha256, artifact, notes } = await this.content({ path, link: named.link, status, only, mount })
    return {
      ...named,
      ...place,
      memfd: memfd && only,
      ...statusFields(status),
      ...(sha256 === undefined ? {} : { sha256 }),
      ...(artifact === undefined ? {} : { artifact }),
      ...(notes.length === 0 ? {} : { notes }),
    }
  }

  /** Whether a link that ends with ' (deleted)' means it, and what stands in its place now. */
  private async standsThere(runner: Runner, target: Buffer, status: ExactStatus): Promise<{ deleted: boolean; replaced?: boolean }> {
    // A path that is no text cannot be asked for; the kernel says deleted, and that stands.
    if (!isUtf8(target)) return { deleted: true }
    const link = target.toString('utf8')
    const root = this.host.at(`${runner.door}/root`)
    const [same, there] = await this.reader.look([
      { op: 'status', path: `${root}${link}` },
      { op: 'status', path: `${root}${link.slice(0, -DELETED.length)}` },
    ])
    const is = (found: Seen | undefined): boolean =>
      found?.status !== undefined && found.status.device === status.device && found.status.inode === status.inode
    if (status.links !== '0' && is(same)) return { deleted: false }
    if (link.startsWith(MEMFD) || there?.status === undefined) return { deleted: true }
    return { deleted: true, replaced: !is(there) }
  }

  /** Hash, and a copy when the file is in no directory any more: once for each file. */
  private async content(file: Program): Promise<Content> {
    const { status, only } = file
    const key = [status.device, status.inode, status.modified, status.size].join(' ')
    const known = this.known.get(key)
    if (known !== undefined) return known
    const found: Content = { notes: [] }
    this.known.set(key, found)
    const sha256 = await this.hash(file, found.notes)
    if (sha256 === undefined) {
      this.counts.notHashed += 1
      if (only) this.counts.notSaved += 1
      return found
    }
    found.sha256 = sha256
    if (only) {
      const artifact = await this.save(file, sha256, found.notes)
      if (artifact === undefined) this.counts.notSaved += 1
      else found.artifact = artifact
    }
    return found
  }

  private async hash({ path, status, mount }: Program, notes: string[]): Promise<string | undefined> {
    const { hashBytes, hashSeconds } = this.bounds
    const left = hashBytes - this.counts.hashedBytes
    if (Number(status.size) > left) {
      notes.push(`not hashed: ${formatBytes(hashBytes)} for all executables were used up`)
      return undefined
    }
    if (this.spent >= hashSeconds) {
      notes.push(`not hashed: ${hashSeconds} s for all executables were used up`)
      return undefined
    }
    const started = this.host.monotonic()
    let seen: Seen
    try {
      seen = await this.one({ op: 'hash', path: this.host.at(path), max: left })
    } catch (error) {
      if (!(error instanceof HungError)) throw error
      if (mount?.remote) this.dead.add(mount.point)
      notes.push('not hashed: reading it did not end')
      return undefined
    } finally {
      this.spent += (this.host.monotonic() - started) / 1000
    }
    if (seen.sha256 === undefined) {
      notes.push(`not hashed: ${seen.error ?? (seen.cut ? 'it grew' : 'it is no regular file')}`)
      return undefined
    }
    this.counts.hashed += 1
    this.counts.hashedBytes += Number(status.size)
    return seen.sha256
  }

  private async save({ path, link, status }: Program, sha256: string, notes: string[]): Promise<string | undefined> {
    const name = `executables/${sha256}`
    if (this.saved.has(sha256)) return name
    const { copyFileBytes, copyBytes } = this.bounds
    const size = Number(status.size)
    if (size > copyFileBytes || size > copyBytes - this.counts.savedBytes) {
      const bound = size > copyFileBytes ? `${formatBytes(copyFileBytes)} for one` : `${formatBytes(copyBytes)} for all`
      notes.push(`not saved: its ${formatBytes(size)} are above the bound of ${bound}`)
      return undefined
    }
    const { case: caze, step, action } = this.evidence
    const file = caze.open(step, name)
    const failed = (why: string): undefined => {
      file.discard()
      notes.push(`not saved: ${why}`)
    }
    let seen: Seen | undefined
    try {
      ;[seen] = await this.reader.look([{ op: 'file', path: this.host.at(path), max: size }], bytes => file.write(bytes))
    } catch (error) {
      if (!(error instanceof HungError)) throw error
      return failed('reading it did not end')
    }
    if (seen?.error !== undefined) return failed(seen.error)
    if (file.bytes === 0) return failed('it was empty')
    const entered = file.close({ action, how: 'collector', path, link, notes: ['executable of a process, without a name on disk'] })
    this.saved.add(sha256)
    this.counts.saved += 1
    this.counts.savedBytes += entered.bytes
    if (entered.sha256 !== sha256) notes.push(`it changed while it was saved: the copy hashes to ${entered.sha256}`)
    return name
  }

  private async one(look: Look): Promise<Seen> {
    const [seen] = await this.reader.look([look])
    return seen as Seen
  }

  /** Undefined where the mounts of that process cannot be told. */
  private mountOf({ pid, mountNamespace }: Runner, path: string): Mount | undefined {
    if (mountNamespace === undefined) return undefined
    let mounts = this.mounts.get(mountNamespace)
    if (mounts === undefined) {
      try {
        mounts = readMounts(this.host, pid)
      } catch {
        return undefined
      }
      this.mounts.set(mountNamespace, mounts)
    }
    return mountOf(mounts, path)
  }
}

function statusFields(status: ExactStatus): Partial<ExecutableRecord> {
  const device = BigInt(status.device)
  // makedev(3), gnu_dev_major and gnu_dev_minor of glibc: both numbers are split over the 64 bits.
  const major = ((device >> 8n) & 0xfffn) | ((device >> 32n) & 0xfffff000n)
  const minor = (device & 0xffn) | ((device >> 12n) & 0xffffff00n)
  const time = (nanoseconds: string): string | undefined => {
    const date = new Date(Number(BigInt(nanoseconds) / 1_000_000n))
    return Number.isNaN(date.getTime()) ? undefined : iso(date)
  }
  const [accessed, modified, changed] = [status.accessed, status.modified, status.changed].map(stamp => time(stamp) ?? '')
  const born = status.born === '0' ? undefined : time(status.born)
  return {
    size: Number(status.size),
    inode: status.inode,
    device: `${major}:${minor}`,
    mode: status.mode.toString(8).padStart(4, '0'),
    uid: status.uid,
    gid: status.gid,
    links: Number(status.links),
    times: {
      accessed: accessed as string,
      modified: modified as string,
      changed: changed as string,
      ...(born === undefined ? {} : { born }),
    },
  }
}
