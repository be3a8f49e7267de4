/**
 * Every socket of every network namespace that a process is in, with the processes that hold it: our own reading of /proc,
 * beside what ss(8) says. No program of the host has a part in it.
 *
 * Tables first, they change fastest; then the descriptors of every process; written at once. A record of `sockets.jsonl` is a
 * SocketRecord.
 */
import fs from 'node:fs'
import { z } from 'zod'
import { errnoOf, type Host } from '../../host.js'
import type { Json, JsonObject, Seconds } from '../../step.js'
import type { Collector, CollectorContext, CollectorResult } from '../collector.js'
import { jsonLines } from '../json-lines.js'
import { ahead, pacer } from '../pace.js'
import { entries, type Look, openReader, type Reader, type Seen } from '../reader.js'
import { keptNamespaces, type NetworkNamespace, type NetworkNamespaces, namespaceOf, networkNamespaces } from './network-namespaces.js'
import { bootClock, linkedInode, listField, processIds, textField } from './proc.js'
import { parseTable, SOCKET_TABLES, type SocketEntry, type SocketTable, type TableFormat, tableFormat } from './socket-table.js'

/** One line of `sockets.jsonl`. Text that is not UTF-8: see proc.ts. */
export type SocketRecord = {
  /** Inode of its network namespace. */
  readonly namespace: number
  /** It is the namespace that `ir` runs in, the only one that ss(8) shows. */
  readonly own: boolean
} & SocketEntry & {
    /** Who holds it, as far as we may see; none of TIME_WAIT, of the kernel's own, of what is in flight between two processes. */
    readonly owners: readonly SocketOwner[]
  }

export type SocketOwner = {
  readonly pid: number
  readonly fd: number
  /** When only this thread holds it: it has a descriptor table of its own. */
  readonly thread?: number
  readonly comm: string
  readonly commBase64?: string
  /** As /proc/PID/exe has it, with ' (deleted)' where that stands; '' where there is none or we may not see it. */
  readonly exe: string
  readonly exeBase64?: string
  /** Arguments joined by blanks, at most 4 KiB of them. */
  readonly command: string
  readonly commandBase64?: string
}

const OPTIONS = z.object({
  /** Bytes of all tables together. */
  tableBytes: z.int().positive(),
  /** Descriptors looked at in one process. */
  descriptors: z.int().positive(),
  /** The search for owners ends after so long. */
  ownerSeconds: z.number().positive(),
})

/** Requests ahead of the one that is awaited: keeps the reading child busy. */
const AHEAD = 8
const COMMAND_BYTES = 4096
/** Of TASK_COMM_LEN 16; kernel threads show up to 64. */
const COMM_BYTES = 64
/** Lists in the facts go into the custody log: no more than so many entries. */
const LISTED = 32

export const sockets: Collector = async context => {
  const reader = openReader()
  try {
    return await new SocketSnapshot(context, reader).take()
  } finally {
    reader.close()
  }
}

interface TableText {
  readonly namespace: NetworkNamespace
  readonly table: SocketTable
  readonly text: string
}

interface Holder {
  readonly pid: number
  readonly fd: number
  readonly thread?: number
}

class SocketSnapshot {
  private readonly context: CollectorContext
  private readonly host: Host
  private readonly reader: Reader
  private readonly options: z.infer<typeof OPTIONS>
  private readonly format: TableFormat
  private readonly pace = pacer()
  private readonly holders = new Map<number, Holder[]>()
  /** Namespaces that somebody holds open: inode by who. */
  private readonly held = new Map<number, string>()
  private readonly bounds: string[] = []
  private readonly unread: number[] = []
  private tableBytes = 0
  private deniedDescriptors = 0
  private hung = 0

  constructor(context: CollectorContext, reader: Reader) {
    this.context = context
    this.host = context.host
    this.reader = reader
    this.options = OPTIONS.parse(context.options)
    this.format = tableFormat(bootClock(context.host).ticks)
  }

  async take(): Promise<CollectorResult> {
    const { host, context } = this
    const started = host.monotonic()
    const since = (): Seconds => Math.round(host.monotonic() - started) / 1000
    const pids = processIds(host)
    const namespaces = await networkNamespaces(host, pids, context.signal)
    const tables = await this.readTables(namespaces.found)
    const tableSeconds = since()
    if (tables.length === 0) {
      const outcome = context.signal.aborted ? 'interrupted' : 'failed'
      return { outcome, reason: 'no socket table of /proc could be read' }
    }
    await this.findHolders(pids, namespaces.threads, tables)
    const people = await this.describe()
    const ownerSeconds = since()
    const { byNamespace, ...written } = await this.write(tables, people)
    const facts = {
      ...written,
      ...this.describeNamespaces(namespaces, byNamespace),
      processes: pids.length,
      denied: { namespaces: namespaces.denied, descriptors: this.deniedDescriptors },
      hung: this.hung,
      bounds: this.bounds,
      // Ourselves: they hold sockets and pipes too.
      self: [process.pid, ...this.reader.pids],
      readApart: this.reader.apart,
      seconds: { tables: tableSeconds, owners: ownerSeconds, all: since() },
    }
    if (context.signal.aborted) return { outcome: 'interrupted', reason: 'stopped before every process was searched for owners', facts }
    if (written.sockets === 0) return { outcome: 'empty', reason: 'there is no socket', facts }
    return { outcome: 'collected', facts }
  }

  private async readTables(namespaces: readonly NetworkNamespace[]): Promise<TableText[]> {
    const tables: TableText[] = []
    for (const namespace of namespaces) {
      if (this.context.signal.aborted) break
      const texts = await this.readNamespace(namespace)
      if (texts === undefined) this.unread.push(namespace.inode)
      else tables.push(...texts)
    }
    return tables
  }

  /** Through the first door that leads to this namespace before and after; undefined when none does any more. */
  private async readNamespace(namespace: NetworkNamespace): Promise<TableText[] | undefined> {
    for (const door of namespace.doors) {
      const before = this.tableBytes
      const texts: TableText[] = []
      for (const table of Object.keys(SOCKET_TABLES) as SocketTable[]) {
        const text = await this.readTable(`${door}/net/${table}`)
        if (text !== undefined) texts.push({ namespace, table, text })
      }
      if (texts.length > 0 && this.leadsTo(door, namespace.inode)) return texts
      this.tableBytes = before
    }
    return undefined
  }

  private leadsTo(door: string, inode: number): boolean {
    try {
      return namespaceOf(this.host, door) === inode
    } catch {
      return false
    }
  }

  /** The kernel gives a page at most with each read; undefined when there is no such table. */
  private async readTable(path: string): Promise<string | undefined> {
    let fd: number
    try {
      fd = fs.openSync(this.host.at(path), 'r')
    } catch {
      return undefined
    }
    const parts: string[] = []
    const buffer = Buffer.allocUnsafe(65_536)
    try {
      while (true) {
        if (this.tableBytes >= this.options.tableBytes) {
          this.bound(`tables were read up to ${this.options.tableBytes} bytes: later sockets are missing`)
          break
        }
        const got = fs.readSync(fd, buffer, 0, buffer.length, null)
        if (got === 0) break
        this.tableBytes += got
        parts.push(buffer.toString('latin1', 0, got))
        await this.pace()
      }
    } catch (error) {
      // The process behind the door ended.
      if (errnoOf(error) === '') throw error
    } finally {
      fs.closeSync(fd)
    }
    return parts.join('')
  }

  private async findHolders(pids: readonly number[], threads: NetworkNamespaces['threads'], tables: readonly TableText[]): Promise<void> {
    const until = this.host.monotonic() + this.options.ownerSeconds * 1000
    const doors = pids.map(pid => ({ pid, door: `/proc/${pid}` }))
    if (!(await this.searchDescriptors(doors, until))) return
    // A thread may have left the descriptor table of its process (unshare(2), CLONE_FILES): only asked where an owner is missing.
    const missing = await this.ownerless(tables)
    if (missing.size === 0) return
    const others = [...threads].flatMap(([pid, ids]) => ids.map(thread => ({ pid, thread, door: `/proc/${pid}/task/${thread}` })))
    await this.searchDescriptors(others, until, missing)
  }

  /** False when it was stopped. `missing` are the only sockets asked for, and are taken out when found. */
  private async searchDescriptors(
    doors: readonly { readonly pid: number; readonly thread?: number; readonly door: string }[],
    until: number,
    missing?: Set<number>,
  ): Promise<boolean> {
    const { descriptors, ownerSeconds } = this.options
    const look = (door: string): Look => ({
      op: 'links',
      path: this.host.at(`${door}/fd`),
      max: descriptors,
      only: missing === undefined ? ['socket:[', 'net:['] : ['socket:['],
    })
    let done = 0
    for await (const [{ pid, thread, door }, seen] of ahead(doors, AHEAD, ({ door }) => this.ask([look(door)]))) {
      done += 1
      if (this.context.signal.aborted) return false
      if (missing?.size === 0) return true
      if (this.host.monotonic() > until) {
        this.bound(`owners were searched for ${ownerSeconds} s: ${doors.length - done} of ${doors.length} were not looked at`)
        return false
      }
      const [links] = seen ?? []
      if (seen === undefined) this.hung += 1
      if (links === undefined) continue
      if (links.error === 'EACCES' || links.error === 'EPERM' || (links.denied ?? 0) > 0) this.deniedDescriptors += 1
      if (links.cut) this.bound(`${door} has ${links.total} descriptors: ${descriptors} were looked at`)
      this.enter(links, { pid, ...(thread === undefined ? {} : { thread }) }, missing)
      if (missing === undefined) this.context.progress({ items: done, totalItems: doors.length })
    }
    return true
  }

  private enter(links: Seen, holder: Omit<Holder, 'fd'>, missing?: Set<number>): void {
    for (const [name, target] of entries(links)) {
      const link = target.toString('latin1')
      const inode = linkedInode(link)
      if (inode === undefined) continue
      if (link.startsWith('net:')) {
        if (!this.held.has(inode)) this.held.set(inode, `/proc/${holder.pid}/fd/${name}`)
        continue
      }
      if (missing !== undefined && !missing.delete(inode)) continue
      const known = this.holders.get(inode)
      if (known === undefined) this.holders.set(inode, [{ ...holder, fd: Number(name) }])
      else known.push({ ...holder, fd: Number(name) })
    }
  }

  /** Sockets that a process must hold and none was seen to. */
  private async ownerless(tables: readonly TableText[]): Promise<Set<number>> {
    const missing = new Set<number>()
    for (const { table, text } of tables) {
      if (SOCKET_TABLES[table] !== 'inet' && SOCKET_TABLES[table] !== 'packet') continue
      for (const entry of parseTable(table, text, this.format)) {
        if (entry !== undefined && entry.inode > 0 && !this.holders.has(entry.inode)) missing.add(entry.inode)
        await this.pace()
      }
    }
    return missing
  }

  /** Name, executable and command of everybody who holds a socket. */
  private async describe(): Promise<Map<number, object>> {
    const people = new Map<number, object>()
    const pids = new Set([...this.holders.values()].flatMap(holders => holders.map(holder => holder.pid)))
    const { host } = this
    const looks = (pid: number): Look[] => [
      { op: 'file', path: host.at(`/proc/${pid}/comm`), max: COMM_BYTES },
      { op: 'link', path: host.at(`/proc/${pid}/exe`) },
    ]
    const command = (pid: number): Look => ({ op: 'file', path: host.at(`/proc/${pid}/cmdline`), max: COMMAND_BYTES })
    for await (const [pid, seen] of ahead(
      pids,
      AHEAD,
      async pid => (await this.ask([...looks(pid), command(pid)])) ?? this.ask(looks(pid)),
    )) {
      const [comm, exe, cmdline] = seen ?? []
      if (cmdline === undefined) this.hung += 1
      people.set(pid, {
        ...textField('comm', withoutNewline(comm?.bytes)),
        ...textField('exe', exe?.bytes ?? Buffer.alloc(0)),
        ...commandField(cmdline?.bytes ?? Buffer.alloc(0)),
      })
      if (this.context.signal.aborted) break
    }
    return people
  }

  private async write(tables: readonly TableText[], people: ReadonlyMap<number, object>) {
    const file = this.context.case.open(this.context.step, 'sockets.jsonl')
    const lines = jsonLines(file)
    const byProtocol: Record<string, number> = {}
    const byNamespace = new Map<number, number>()
    let [owned, notUnderstood] = [0, 0]
    for (const { namespace, table, text } of tables) {
      for (const entry of parseTable(table, text, this.format)) {
        await this.pace()
        if (entry === undefined) {
          notUnderstood += 1
          continue
        }
        const owners = (this.holders.get(entry.inode) ?? []).map(holder => ({ ...holder, ...people.get(holder.pid) }))
        lines.add({ namespace: namespace.inode, own: namespace.own, ...entry, owners })
        if (owners.length > 0) owned += 1
        byProtocol[table] = (byProtocol[table] ?? 0) + 1
        byNamespace.set(namespace.inode, (byNamespace.get(namespace.inode) ?? 0) + 1)
      }
    }
    lines.flush()
    const notes = [...this.bounds, ...(this.context.signal.aborted ? ['interrupted: owners may be missing'] : [])]
    file.close({ action: this.context.action, how: 'collector', notes })
    return { sockets: lines.count, byProtocol, byNamespace, owned, notUnderstood }
  }

  private describeNamespaces({ found, notLookedAt }: NetworkNamespaces, byNamespace: ReadonlyMap<number, number>): JsonObject {
    const known = new Set(found.map(namespace => namespace.inode))
    const unreachable = [...keptNamespaces(this.host), ...this.held].filter(([inode]) => !known.has(inode))
    if (notLookedAt > 0) this.bound(`${notLookedAt} threads were not asked for their namespace`)
    return {
      namespaceCount: found.length,
      namespaces: found
        .slice(0, LISTED)
        .map(({ inode, own, members }): Json => ({ inode, own, members, sockets: byNamespace.get(inode) ?? 0 })),
      // Kept alive by a mount or a descriptor with nobody in it, or gone before they were read.
      unreachable: [...new Map(unreachable)].slice(0, LISTED).map(([inode, path]): Json => ({ inode, path })),
      gone: this.unread.slice(0, LISTED),
    }
  }

  /** Undefined when it was held up. */
  private async ask(looks: readonly Look[]): Promise<readonly Seen[] | undefined> {
    try {
      return await this.reader.look(looks)
    } catch {
      return undefined
    }
  }

  private bound(sentence: string): void {
    if (this.bounds.length < LISTED && !this.bounds.includes(sentence)) this.bounds.push(sentence)
  }
}

function withoutNewline(bytes: Buffer | undefined): Buffer {
  if (bytes === undefined) return Buffer.alloc(0)
  return bytes.at(-1) === 10 ? bytes.subarray(0, -1) : bytes
}

function commandField(cmdline: Buffer): object {
  const { cmdline: words, cmdlineBase64 } = listField('cmdline', cmdline)
  return { command: words.join(' '), ...(cmdlineBase64 === undefined ? {} : { commandBase64: cmdlineBase64 }) }
}
