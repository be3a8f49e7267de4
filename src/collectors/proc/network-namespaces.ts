/** The network namespaces of a host, and where each can be looked into: namespaces(7), network_namespaces(7). */
import fs from 'node:fs'
import { errnoOf, type Host } from '../../host.js'
import { pacer } from '../pace.js'
import { linkedInode } from './proc.js'

export interface NetworkNamespace {
  /** As in 'net:[4026531833]'. */
  readonly inode: number
  /** The one that we run in. */
  readonly own: boolean
  /** Directories of processes and threads in it whose `net` shows its tables: '/proc/self', '/proc/812', '/proc/812/task/815'. */
  readonly doors: readonly string[]
  /** How many processes are in it, and threads whose process is not. */
  readonly members: number
}

export interface NetworkNamespaces {
  /** Our own first. */
  readonly found: readonly NetworkNamespace[]
  /** Processes whose namespace we may not see. */
  readonly denied: number
  /** Processes with more than one thread, with the ids of the others. */
  readonly threads: ReadonlyMap<number, readonly number[]>
  /** Threads that were not looked at because there were too many. */
  readonly notLookedAt: number
}

/** A few doors each: the process behind one may end while we read. */
const DOORS = 4

/** Threads can each be in a namespace of their own (setns(2)), so all are asked, up to this many. */
const MOST_THREADS = 50_000

/** Asks every process, and every thread, for its namespace. */
export async function networkNamespaces(host: Host, pids: readonly number[], signal: AbortSignal): Promise<NetworkNamespaces> {
  const pace = pacer()
  const found = new Map<number, { inode: number; own: boolean; doors: string[]; members: number }>()
  const threads = new Map<number, readonly number[]>()
  let [denied, asked, notLookedAt] = [0, 0, 0]
  const enter = (door: string, inode: number | undefined): void => {
    if (inode === undefined) return
    const known = found.get(inode)
    if (known === undefined) found.set(inode, { inode, own: door === '/proc/self', doors: [door], members: 1 })
    else {
      known.members += 1
      if (known.doors.length < DOORS) known.doors.push(door)
    }
  }
  const mine = namespaceOf(host, '/proc/self')
  enter('/proc/self', mine)
  for (const pid of pids) {
    if (signal.aborted) break
    let inode: number | undefined
    try {
      inode = namespaceOf(host, `/proc/${pid}`)
      enter(`/proc/${pid}`, inode)
    } catch (error) {
      if (errnoOf(error) === 'EACCES' || errnoOf(error) === 'EPERM') denied += 1
      else continue
    }
    const others = threadsOf(host, pid)
    if (others.length > 0) threads.set(pid, others)
    for (const thread of others) {
      if (asked >= MOST_THREADS) {
        notLookedAt += 1
        continue
      }
      asked += 1
      try {
        const elsewhere = namespaceOf(host, `/proc/${pid}/task/${thread}`)
        if (elsewhere !== inode) enter(`/proc/${pid}/task/${thread}`, elsewhere)
      } catch {
        // It ended, or is counted with its process.
      }
      await pace()
    }
    await pace()
  }
  // Ourselves, counted twice.
  const own = found.get(mine ?? -1)
  if (own !== undefined && pids.includes(process.pid)) own.members -= 1
  return { found: [...found.values()], denied, threads, notLookedAt }
}

/** @throws an error with a code when it cannot be seen. */
export function namespaceOf(host: Host, door: string): number | undefined {
  return linkedInode(fs.readlinkSync(host.at(`${door}/ns/net`)))
}

function threadsOf(host: Host, pid: number): number[] {
  try {
    return fs
      .readdirSync(host.at(`/proc/${pid}/task`))
      .map(Number)
      .filter(thread => thread !== pid)
  } catch {
    return []
  }
}

/** NSFS_MAGIC of include/uapi/linux/magic.h. */
const NSFS = 0x6e736673n

/** Where `ip netns` and container engines keep a namespace alive without a process in it. */
const KEPT = ['/run/netns', '/var/run/netns', '/run/docker/netns']

/** Namespaces kept by a mount: inode by path. */
export function keptNamespaces(host: Host): Map<number, string> {
  const kept = new Map<number, string>()
  for (const directory of KEPT) {
    for (const name of namesIn(host, directory)) {
      const path = `${directory}/${name}`
      try {
        const { inode } = host.lstat(path)
        if (host.statfs(path).type === NSFS && !kept.has(Number(inode))) kept.set(Number(inode), path)
      } catch {
        // A name without a namespace behind it.
      }
    }
  }
  return kept
}

function namesIn(host: Host, directory: string): readonly string[] {
  try {
    return host.list(directory)
  } catch {
    return []
  }
}
