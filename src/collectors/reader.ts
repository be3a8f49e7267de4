/**
 * Reads of the host that may never come back, done by a child that can be killed. `/proc/PID/{cmdline,environ,maps,io}` wait for
 * locks of that process, which it keeps while one of its threads hangs in a page fault on a dead NFS or FUSE server (before Linux
 * 4.17 even the bytes came from there: CVE-2018-1120); what `/proc/PID/exe` leads to may lie on such a server itself. A read that
 * blocks inside this process blocks its exit too.
 *
 * The child is our own Node with a loop of a few lines: it answers looks, in order, with frames on its standard output. It
 * starts no program and writes nothing. A look that is not answered in time costs the child, not the collection.
 */
import { type Companion, startCompanion } from '../programs.js'
import type { Seconds } from '../step.js'

/** One look at the host; paths are real ones (`host.at`). */
export type Look =
  /** The content of a file, at most `max` bytes. Its access time stays as it was where the kernel lets us (O_NOATIME, open(2)). */
  | { readonly op: 'file'; readonly path: string; readonly max: number }
  /** The target of a symbolic link. */
  | { readonly op: 'link'; readonly path: string }
  /** The targets of the links in a directory, of at most `max` of them; `only` those that begin with one of these. */
  | { readonly op: 'links'; readonly path: string; readonly max: number; readonly only?: readonly string[] }
  /** The contents of the files in a directory, of at most `max` of them, at most `each` bytes of each. */
  | { readonly op: 'files'; readonly path: string; readonly max: number; readonly each: number }
  /** stat(2), links followed. */
  | { readonly op: 'status'; readonly path: string }
  /** stat(2) and the SHA-256 of a regular file of at most `max` bytes. */
  | { readonly op: 'hash'; readonly path: string; readonly max: number }

/** As stat(2) gives it, in decimal digits (64 bit each); times in nanoseconds since the epoch. */
export interface ExactStatus {
  readonly regular: boolean
  readonly device: string
  readonly inode: string
  readonly mode: number
  readonly links: string
  readonly uid: number
  readonly gid: number
  readonly size: string
  readonly accessed: string
  readonly modified: string
  readonly changed: string
  readonly born: string
}

/** What a look saw. */
export interface Seen {
  /** errno name; what was read before it is in `bytes`. */
  readonly error?: string
  /** There was more than was asked for. */
  readonly cut: boolean
  /** Content, or link target; of directories see `entries`. Empty where it was handed to `onBytes`. */
  readonly bytes: Buffer
  /** Of a directory: how many entries it has, and how many of them could not be read because we may not. */
  readonly total?: number
  readonly denied?: number
  readonly status?: ExactStatus
  /** Lower case hex. */
  readonly sha256?: string
}

/** A look was not answered: its process holds readers up, or the child could not be kept alive. */
export class HungError extends Error {}

export interface Reader {
  /** Process ids of the children so far, the last one living: they are to be told from what is looked at. */
  readonly pids: readonly number[]
  /** False when no child could be started and looks are done in this process, unprotected. */
  readonly apart: boolean
  /** How many looks were never answered. */
  readonly hung: number
  /**
   * Looks, in this order. With `onBytes` the content of files is handed over piece by piece instead of being kept.
   * @throws HungError, and whatever `onBytes` throws
   */
  look(looks: readonly Look[], onBytes?: (bytes: Buffer) => void): Promise<readonly Seen[]>
  /** Ends the child; what is still asked fails with a HungError. */
  close(): void
}

export interface ReaderOptions {
  /** Without any answer for so long the child counts as held up; 2 s when absent. */
  readonly patience?: Seconds
  /** Started as Node is; our own Node when absent. */
  readonly program?: string
}

const PATIENCE: Seconds = 2

/** So many children are lost at most: each may stay behind in the kernel, unkillable, and has cost `patience`. */
const MOST_CHILDREN = 24

export function openReader(options: ReaderOptions = {}): Reader {
  return new ChildReader(options)
}

/** The entries of a `links` or `files` look. */
export function* entries(seen: Seen): Iterable<readonly [name: string, content: Buffer]> {
  const { bytes } = seen
  let at = 0
  while (at < bytes.length) {
    const name = bytes.indexOf(0, at)
    const end = name < 0 ? -1 : bytes.indexOf(0, name + 1)
    if (end < 0) return
    yield [bytes.toString('latin1', at, name), bytes.subarray(name + 1, end)]
    at = end + 1
  }
}

interface Meta {
  /** Index of the look that this belongs to. */
  readonly look?: number
  /** Content follows in further frames of the same look. */
  readonly more?: boolean
  /** Nothing new but that it goes on. */
  readonly beat?: boolean
  /** All looks of the request are answered. */
  readonly done?: boolean
  readonly error?: string
  readonly cut?: boolean
  readonly total?: number
  readonly denied?: number
  readonly status?: ExactStatus
  readonly sha256?: string
}

interface Request {
  readonly id: number
  readonly looks: readonly Look[]
}

interface Pending extends Request {
  readonly onBytes: ((bytes: Buffer) => void) | undefined
  readonly resolve: (seen: readonly Seen[]) => void
  readonly reject: (error: unknown) => void
  parts: Buffer[][]
  seen: Seen[]
  /** Bytes were handed over already: it cannot be asked again. */
  begun: boolean
  lost: number
  /** What `onBytes` threw: told when the answer has ended. */
  thrown?: unknown
}

/** Bytes before each frame: id, length of its JSON, length of its content; each a little-endian 32 bit number. */
const FRAME = 12

class ChildReader implements Reader {
  readonly pids: number[] = []
  apart = true
  hung = 0
  private readonly patience: Seconds
  private readonly program: string
  private readonly queue: Pending[] = []
  private child: Companion | undefined
  private rest: Buffer = Buffer.alloc(0)
  private timer: NodeJS.Timeout | undefined
  private heard = 0
  private next = 0
  private closed = false

  constructor(options: ReaderOptions) {
    this.patience = options.patience ?? PATIENCE
    this.program = options.program ?? process.execPath
    this.start()
  }

  look(looks: readonly Look[], onBytes?: (bytes: Buffer) => void): Promise<readonly Seen[]> {
    return new Promise((resolve, reject) => {
      const id = this.next++
      const pending: Pending = { id, looks, onBytes, resolve, reject, parts: [], seen: [], begun: false, lost: 0 }
      if (this.closed) reject(new HungError('the reader is closed'))
      else {
        this.queue.push(pending)
        this.send(pending)
        this.watch()
      }
    })
  }

  close(): void {
    this.closed = true
    this.stopChild()
    for (const pending of this.queue.splice(0)) pending.reject(new HungError('the reader was closed'))
    clearTimeout(this.timer)
  }

  private start(): void {
    if (this.pids.length >= MOST_CHILDREN) {
      this.closed = true
      for (const pending of this.queue.splice(0)) pending.reject(new HungError(`${MOST_CHILDREN} children were lost`))
      return
    }
    // A session of its own: Ctrl-C at the terminal is for us to handle. Nothing of our environment is passed on.
    const child: Companion = startCompanion([this.program, '-e', START], {
      heard: chunk => {
        if (child === this.child) this.receive(chunk)
      },
      lost: () => this.lost(child),
    })
    this.child = child
    this.rest = Buffer.alloc(0)
    if (child.pid !== undefined) this.pids.push(child.pid)
    child.ask(oneLine(CODE))
  }

  private stopChild(): void {
    this.child?.kill()
    this.child = undefined
  }

  private send(pending: Pending): void {
    const request: Request = { id: pending.id, looks: pending.looks }
    if (this.apart) this.child?.ask(oneLine(request))
    else setImmediate(() => answering((id, meta, bytes) => this.take(id, meta, Buffer.from(bytes)))(request))
  }

  /** The child ended though it was not told to: never started, killed by somebody, out of memory. */
  private lost(child: Companion): void {
    if (child !== this.child || this.closed) return
    this.stopChild()
    if (child.pid === undefined) {
      this.apart = false
      for (const pending of this.queue) this.send(pending)
      return
    }
    const head = this.queue[0]
    if (head !== undefined) {
      head.lost += 1
      if (head.lost > 1 || head.begun) this.giveUp(head, 'the reading child was killed twice')
    }
    this.again()
  }

  private again(): void {
    this.start()
    for (const pending of this.queue) {
      pending.parts = []
      pending.seen = []
      this.send(pending)
    }
    this.watch()
  }

  private giveUp(pending: Pending, why: string): void {
    this.hung += 1
    this.queue.splice(this.queue.indexOf(pending), 1)
    pending.reject(new HungError(why))
  }

  private watch(): void {
    if (this.timer !== undefined || this.queue.length === 0 || !this.apart) return
    const since = this.heard
    this.timer = setTimeout(() => {
      // After the poll phase: an answer that came while we were busy is heard first.
      setImmediate(() => {
        this.timer = undefined
        const head = this.queue[0]
        if (head !== undefined && since === this.heard && !this.closed) {
          this.stopChild()
          this.giveUp(head, `no answer within ${this.patience} s`)
          this.again()
        }
        this.watch()
      })
    }, this.patience * 1000)
  }

  private receive(chunk: Buffer): void {
    let data = this.rest.length === 0 ? chunk : Buffer.concat([this.rest, chunk])
    while (data.length >= FRAME) {
      const [meta, content] = [data.readUInt32LE(4), data.readUInt32LE(8)]
      const end = FRAME + meta + content
      if (data.length < end) break
      const told = JSON.parse(data.toString('utf8', FRAME, FRAME + meta)) as Meta
      this.take(data.readUInt32LE(0), told, data.subarray(FRAME + meta, end))
      data = data.subarray(end)
    }
    this.rest = data
  }

  private take(id: number, meta: Meta, bytes: Buffer): void {
    this.heard += 1
    const pending = this.queue[0]
    if (pending === undefined || pending.id !== id || meta.beat) return
    if (meta.done) {
      this.queue.shift()
      if (this.queue.length === 0) {
        clearTimeout(this.timer)
        this.timer = undefined
      }
      if ('thrown' in pending) pending.reject(pending.thrown)
      else pending.resolve(pending.seen)
      return
    }
    const index = meta.look as number
    if (pending.onBytes !== undefined && pending.looks[index]?.op === 'file') {
      pending.begun = true
      handOver(pending, bytes)
    } else {
      const parts = pending.parts[index] ?? []
      // A copy: `bytes` is a window into a chunk of the pipe that may hold much more.
      parts.push(Buffer.from(bytes))
      pending.parts[index] = parts
    }
    if (meta.more) return
    const { look: _, more: __, ...told } = meta
    pending.seen[index] = { cut: false, ...told, bytes: Buffer.concat(pending.parts[index] ?? []) }
    pending.parts[index] = []
  }
}

/** Called from the pipe's event: an exception of the receiver must reach who asked, not the process. */
function handOver(pending: Pending, bytes: Buffer): void {
  if (bytes.length === 0 || 'thrown' in pending) return
  try {
    pending.onBytes?.(bytes)
  } catch (error) {
    pending.thrown = error
  }
}

type Emit = (id: number, meta: Meta, bytes: Uint8Array) => void

/** Answers requests, synchronously. Runs in the child from its source text: it may use nothing from outside itself. */
function answering(emit: Emit): (request: Request) => void {
  const fs = process.getBuiltinModule('node:fs')
  const crypto = process.getBuiltinModule('node:crypto')
  const { O_RDONLY, O_NONBLOCK, O_NOCTTY, O_NOATIME } = fs.constants
  const none = Buffer.alloc(0)
  const chunk = Buffer.allocUnsafe(262_144)
  const codeOf = (error: unknown): string => String((error as { code?: unknown }).code ?? error)
  const open = (path: string): number => {
    const flags = O_RDONLY | O_NONBLOCK | O_NOCTTY
    try {
      return fs.openSync(path, flags | O_NOATIME)
    } catch (error) {
      // Only the owner and CAP_FOWNER may (open(2)).
      if (codeOf(error) !== 'EPERM') throw error
      return fs.openSync(path, flags)
    }
  }
  const statusOf = (found: import('node:fs').BigIntStats): ExactStatus => ({
    regular: found.isFile(),
    device: String(found.dev),
    inode: String(found.ino),
    mode: Number(found.mode & 0o7777n),
    links: String(found.nlink),
    uid: Number(found.uid),
    gid: Number(found.gid),
    size: String(found.size),
    accessed: String(found.atimeNs),
    modified: String(found.mtimeNs),
    changed: String(found.ctimeNs),
    born: String(found.birthtimeNs),
  })
  /** Reads on until the end or `max`, telling each piece; true when there was more. */
  const readOn = (fd: number, max: number, piece: (bytes: Buffer) => void): boolean => {
    let total = 0
    for (;;) {
      const got = fs.readSync(fd, chunk, 0, Math.min(chunk.length, max + 1 - total), null)
      if (got === 0) return false
      if (total + got > max) {
        if (max > total) piece(chunk.subarray(0, max - total))
        return true
      }
      total += got
      piece(chunk.subarray(0, got))
    }
  }
  const within = <T>(path: string, use: (fd: number) => T): T => {
    const fd = open(path)
    try {
      return use(fd)
    } finally {
      fs.closeSync(fd)
    }
  }
  const directory = (path: string, max: number, entry: (path: string) => Buffer | undefined): [Meta, Buffer] => {
    const names = fs.readdirSync(path)
    const parts: Buffer[] = []
    let denied = 0
    for (const name of names.slice(0, max)) {
      try {
        const bytes = entry(`${path}/${name}`)
        if (bytes !== undefined) parts.push(Buffer.from(`${name}\0`, 'latin1'), bytes, Buffer.of(0))
      } catch (error) {
        if (codeOf(error) === 'EACCES' || codeOf(error) === 'EPERM') denied += 1
      }
    }
    return [{ total: names.length, denied, cut: names.length > max }, Buffer.concat(parts)]
  }
  const hashed = (path: string, max: number, beat: () => void): Meta =>
    within(path, fd => {
      const status = statusOf(fs.fstatSync(fd, { bigint: true }))
      if (!status.regular) return { status }
      const hash = crypto.createHash('sha256')
      let quiet = 0
      const cut = readOn(fd, max, bytes => {
        hash.update(bytes)
        quiet += bytes.length
        if (quiet < 4_194_304) return
        quiet = 0
        beat()
      })
      return cut ? { status, cut } : { status, sha256: hash.digest('hex') }
    })
  const linked = (path: string, only: readonly string[] | undefined): Buffer | undefined => {
    const target = fs.readlinkSync(path, { encoding: 'buffer' })
    if (only === undefined) return target
    const text = target.toString('latin1')
    return only.some(begin => text.startsWith(begin)) ? target : undefined
  }
  const content = (path: string, max: number): Buffer =>
    within(path, fd => {
      const parts: Buffer[] = []
      readOn(fd, max, bytes => void parts.push(Buffer.from(bytes)))
      return Buffer.concat(parts)
    })
  /** The end of the answer; whatever comes before it goes through `piece`. */
  const answer = (look: Look, piece: (meta: Meta, bytes: Uint8Array) => void): [Meta, Buffer] => {
    switch (look.op) {
      case 'file':
        return [{ cut: within(look.path, fd => readOn(fd, look.max, bytes => piece({ more: true }, bytes))) }, none]
      case 'link':
        return [{}, fs.readlinkSync(look.path, { encoding: 'buffer' })]
      case 'links':
        return directory(look.path, look.max, path => linked(path, look.only))
      case 'files':
        return directory(look.path, look.max, path => content(path, look.each))
      case 'status':
        return [{ status: statusOf(fs.statSync(look.path, { bigint: true })) }, none]
      case 'hash':
        return [hashed(look.path, look.max, () => piece({ beat: true }, none)), none]
    }
  }
  return request => {
    request.looks.forEach((look, index) => {
      let end: [Meta, Buffer]
      try {
        end = answer(look, (meta, bytes) => emit(request.id, { look: index, ...meta }, bytes))
      } catch (error) {
        end = [{ error: codeOf(error) }, none]
      }
      emit(request.id, { look: index, ...end[0] }, end[1])
    })
    emit(request.id, { done: true }, none)
  }
}

/** The child's main loop: requests as JSON lines on standard input, frames on standard output; it ends with its input. */
function serve(answers: typeof answering, begun: string): void {
  // Our own snapshots show it: nobody shall wonder what it is.
  process.title = 'ir-reader'
  const fs = process.getBuiltinModule('node:fs')
  const answer = answers((id, meta, bytes) => {
    const json = Buffer.from(JSON.stringify(meta))
    const frame = Buffer.allocUnsafe(12 + json.length + bytes.length)
    frame.writeUInt32LE(id, 0)
    frame.writeUInt32LE(json.length, 4)
    frame.writeUInt32LE(bytes.length, 8)
    json.copy(frame, 12)
    frame.set(bytes, 12 + json.length)
    let at = 0
    while (at < frame.length) at += fs.writeSync(1, frame, at)
  })
  const input = Buffer.allocUnsafe(65_536)
  let rest = begun
  for (;;) {
    const lines = rest.split('\n')
    rest = lines.pop() as string
    for (const line of lines) answer(JSON.parse(line))
    const got = fs.readSync(0, input, 0, input.length, null)
    if (got === 0) return
    rest += input.toString('latin1', 0, got)
  }
}

/** A line of ASCII: nothing in it is split between two reads. */
function oneLine(value: Request | string): string {
  const escaped = (character: string): string => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`
  return `${JSON.stringify(value).replaceAll(/[\u0080-\uffff]/g, escaped)}\n`
}

/** Source text, not a file: it runs the same from sources, compiled, and bundled. `__name` is what some bundlers wrap functions in. */
const CODE = `const __name = f => f; begun => (${serve.toString()})(${answering.toString()}, begun)`

/** Runs the code that it reads as the first line, so that the command line of the child stays short. */
const START = `
const { readSync } = process.getBuiltinModule('node:fs')
const input = Buffer.allocUnsafe(65536)
let text = ''
for (let got = 1; got > 0 && !text.includes('\\n'); text += input.toString('latin1', 0, got)) got = readSync(0, input)
const end = text.indexOf('\\n')
if (end >= 0) (0, eval)(JSON.parse(text.slice(0, end)))(text.slice(end + 1))
`
