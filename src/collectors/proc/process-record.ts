/** One process as evidence: what was seen of it in /proc, put together. proc(5). */

import { entries, type Look, type Seen } from '../reader.js'
import type { ExecutableRecord } from './executables.js'
import {
  type BootClock,
  type Ids,
  KERNEL_THREAD,
  linkedInode,
  listField,
  type ProcessStat,
  parseMaps,
  parseStatus,
  textField,
} from './proc.js'

export interface OpenFile {
  readonly fd: number
  /** What it is open on: a path, 'socket:[12345]', 'pipe:[678]', 'anon_inode:[eventpoll]' ... */
  readonly link: string
  readonly linkBase64?: string
  /** Flags of open(2), octal as the kernel prints them. */
  readonly flags?: string
  readonly pos?: number
}

/**
 * One line of `processes.jsonl`. Text that is not UTF-8: see proc.ts. A field is missing, or null, where there is nothing of
 * the kind or it could not be read; `denied` names what we were not allowed to read.
 */
export interface ProcessRecord {
  readonly pid: number
  readonly ppid: number
  readonly tgid: number | null
  readonly comm: string
  readonly commBase64?: string
  /** One letter of proc_pid_stat(5): R running, S sleeping, D uninterruptible, Z zombie, T stopped, I idle kernel thread ... */
  readonly state: string
  readonly kernelThread: boolean
  readonly threads: number
  /** UTC, exact to the second. */
  readonly started: string | null
  /** Clock ticks between boot and start: tells apart two processes that have had the same id. */
  readonly startTicks: number
  readonly uid: Ids | null
  readonly gid: Ids | null
  /** Who logged in, whoever it became since; null when nobody did. */
  readonly loginuid: number | null
  readonly sessionid: number | null
  readonly cmdline: readonly string[]
  readonly cmdlineBase64?: string
  readonly exe: ExecutableRecord | null
  readonly cwd: string | null
  readonly cwdBase64?: string
  readonly root: string | null
  readonly rootBase64?: string
  /** Inodes by the names in /proc/PID/ns. */
  readonly namespaces: Readonly<Record<string, number>>
  /** /proc/PID/cgroup as it is. */
  readonly cgroup: string
  readonly cgroupBase64?: string
  readonly oomScore: number | null
  readonly oomScoreAdj: number | null
  /** What it waits for in the kernel: the name of a function, or '0'. */
  readonly wchan: string
  /** Counters of /proc/PID/io: rchar, wchar, read_bytes, write_bytes ... */
  readonly io: Readonly<Record<string, number>> | null
  /** /proc/PID/limits as it is. */
  readonly limits: string
  readonly files: readonly OpenFile[]
  /** Code that it has mapped from files without a name; at most 64. */
  readonly unlinkedCode: readonly { readonly start: string; readonly end: string; readonly path: string; readonly pathBase64?: string }[]
  /** /proc/PID/stat, status, environ and maps as they are. */
  readonly stat: string
  readonly statBase64?: string
  readonly status: string
  readonly statusBase64?: string
  readonly environ: readonly string[]
  readonly environBase64?: string
  readonly maps: string
  readonly mapsBase64?: string
  /** Its first thread has ended and shows nothing any more: everything but stat and status is of this thread. */
  readonly through?: number
  /** Reading its memory did not end, or was not tried any more: command, environment, maps, counters and positions of files are missing. */
  readonly heldUp?: true
  /** It is `ir` itself. */
  readonly own?: true
  /** It ended while it was read. */
  readonly ended?: true
  /** Parts we may not read, by the names of proc(5). */
  readonly denied?: readonly string[]
  /** Parts of which there was more than we read. */
  readonly cut?: readonly string[]
  /** The whole record, where it is too long for a line: maps, environ, files and the end of cmdline are only there. */
  readonly full?: string
}

/** Bytes that are read of each; far above what the kernel gives, but for the last three. */
const MOST = {
  small: 4096,
  text: 65_536,
  cmdline: 1 << 20,
  environ: 1 << 20,
  maps: 8 << 20,
  descriptors: 16_384,
  fdinfo: 4096,
  /** Of one fdinfo: `pos` and `flags` come first. */
  fdinfoBytes: 128,
} as const

/** No process can hold up who reads these: the kernel has them at hand. */
const AT_HAND = {
  stat: 'file',
  status: 'file',
  cgroup: 'file',
  limits: 'file',
  oom_score: 'file',
  oom_score_adj: 'file',
  wchan: 'file',
  loginuid: 'file',
  sessionid: 'file',
  exe: 'link',
  cwd: 'link',
  root: 'link',
  ns: 'links',
  fd: 'links',
} as const

/** These come from its memory, or wait for locks that it can hold. */
const FROM_ITS_MEMORY = { fdinfo: 'files', cmdline: 'file', environ: 'file', maps: 'file', io: 'file' } as const

export type Part = keyof typeof AT_HAND | keyof typeof FROM_ITS_MEMORY
export type Parts = { readonly [P in Part]?: Seen }

const CAREFUL_PARTS = Object.keys(AT_HAND) as Part[]
const ALL_PARTS = [...CAREFUL_PARTS, ...(Object.keys(FROM_ITS_MEMORY) as Part[])]

/** What to look at below `door`, the real path of a directory as /proc/812. */
export function processLooks(door: string, careful: boolean): Look[] {
  return (careful ? CAREFUL_PARTS : ALL_PARTS).map(part => lookAt(`${door}/${part}`, part))
}

/** What the looks of `processLooks` saw, by name. */
export function partsOf(seen: readonly Seen[]): Parts {
  return Object.fromEntries(seen.map((one, index) => [ALL_PARTS[index], one]))
}

function lookAt(path: string, part: Part): Look {
  switch (part) {
    case 'exe':
    case 'cwd':
    case 'root':
      return { op: 'link', path }
    case 'ns':
    case 'fd':
      return { op: 'links', path, max: MOST.descriptors }
    case 'fdinfo':
      return { op: 'files', path, max: MOST.fdinfo, each: MOST.fdinfoBytes }
    case 'cmdline':
    case 'environ':
    case 'maps':
      return { op: 'file', path, max: MOST[part] }
    case 'cgroup':
    case 'status':
      return { op: 'file', path, max: MOST.text }
    default:
      return { op: 'file', path, max: MOST.small }
  }
}

export interface About {
  readonly exe: ExecutableRecord | null
  readonly clock: BootClock
  readonly through?: number
  readonly heldUp?: boolean
  readonly own?: boolean
}

/** The record of a process from its parts. */
export function processRecord(stat: ProcessStat, parts: Parts, about: About): ProcessRecord {
  const bytes = (part: Part): Buffer => parts[part]?.bytes ?? Buffer.alloc(0)
  const status = parseStatus(bytes('status').toString('latin1'))
  const denied = partsWhere(parts, seen => seen.error === 'EACCES' || seen.error === 'EPERM' || (seen.denied ?? 0) > 0)
  const cut = partsWhere(parts, seen => seen.cut)
  const ended = partsWhere(parts, seen => seen.error === 'ESRCH').length > 0
  return {
    pid: stat.pid,
    ppid: stat.ppid,
    tgid: status.tgid ?? null,
    ...textField('comm', stat.comm),
    state: stat.state,
    kernelThread: (stat.flags & KERNEL_THREAD) !== 0,
    threads: stat.threads,
    started: about.clock.stamp(stat.startTicks) ?? null,
    startTicks: stat.startTicks,
    uid: status.uid ?? null,
    gid: status.gid ?? null,
    loginuid: auditId(bytes('loginuid')),
    sessionid: auditId(bytes('sessionid')),
    ...listField('cmdline', bytes('cmdline')),
    exe: about.exe,
    ...linkField('cwd', parts.cwd),
    ...linkField('root', parts.root),
    namespaces: namespacesOf(parts.ns),
    ...textField('cgroup', bytes('cgroup')),
    oomScore: integer(bytes('oom_score')),
    oomScoreAdj: integer(bytes('oom_score_adj')),
    wchan: bytes('wchan').toString('utf8'),
    io: countersOf(parts.io),
    limits: bytes('limits').toString('utf8'),
    files: filesOf(parts.fd, parts.fdinfo),
    unlinkedCode: unlinkedCode(bytes('maps'), about.exe?.link),
    ...textField('stat', bytes('stat')),
    ...textField('status', bytes('status')),
    ...listField('environ', bytes('environ')),
    ...textField('maps', bytes('maps')),
    ...(about.through === undefined ? {} : { through: about.through }),
    ...(about.heldUp ? { heldUp: true } : {}),
    ...(about.own ? { own: true } : {}),
    ...(ended ? { ended } : {}),
    ...(denied.length === 0 ? {} : { denied }),
    ...(cut.length === 0 ? {} : { cut }),
  }
}

/** A line of at most so many bytes is whole for whoever reads line by line: StepArtifacts.lines cuts above 1 MiB. */
const LONGEST_LINE = 1_000_000

/** The command of a record that is cut to a line, in characters. */
const SHORT_COMMAND = 4096

/** The line for a record, and the whole of it where it does not fit. */
export function recordLine(record: ProcessRecord, full: string): { readonly line: string; readonly full?: string } {
  const whole = JSON.stringify(record)
  if (Buffer.byteLength(whole) <= LONGEST_LINE) return { line: whole }
  const { maps: _, mapsBase64: __, environ: ___, environBase64: ____, cmdlineBase64: _____, ...kept } = record
  const short = { ...kept, maps: '', environ: [], files: [], cmdline: shortened(record.cmdline), unlinkedCode: [], full }
  return { line: JSON.stringify(short), full: whole }
}

function shortened(words: readonly string[]): string[] {
  const kept: string[] = []
  let left = SHORT_COMMAND
  for (const word of words) {
    if (left <= 0) break
    kept.push(word.slice(0, left))
    left -= word.length + 1
  }
  return kept
}

function partsWhere(parts: Parts, wanted: (seen: Seen) => boolean): string[] {
  return Object.entries(parts)
    .filter(([, seen]) => wanted(seen))
    .map(([part]) => part)
}

/** (uid_t)-1 stands for not set: audit_get_loginuid of include/linux/audit.h. */
const UNSET = 0xffff_ffff

function auditId(bytes: Buffer): number | null {
  const id = integer(bytes)
  return id === UNSET ? null : id
}

function integer(bytes: Buffer): number | null {
  const text = bytes.toString('latin1').trim()
  return /^-?\d{1,15}$/.test(text) ? Number(text) : null
}

function linkField<N extends string>(name: N, seen: Seen | undefined): { [K in N]: string | null } & { [K in `${N}Base64`]?: string } {
  if (seen === undefined || seen.error !== undefined) return { [name]: null } as { [K in N]: null } & { [K in `${N}Base64`]?: string }
  return textField(name, seen.bytes)
}

function namespacesOf(seen: Seen | undefined): Record<string, number> {
  const found: Record<string, number> = {}
  if (seen === undefined) return found
  for (const [name, target] of entries(seen)) {
    const inode = linkedInode(target.toString('latin1'))
    if (inode !== undefined) found[name] = inode
  }
  return found
}

function countersOf(seen: Seen | undefined): Record<string, number> | null {
  if (seen === undefined || seen.error !== undefined) return null
  const lines = [...seen.bytes.toString('latin1').matchAll(/^([a-z_]{1,32}): (\d{1,20})$/gm)]
  return Object.fromEntries(lines.map(([, name, value]) => [name, Number(value)]))
}

function filesOf(links: Seen | undefined, infos: Seen | undefined): OpenFile[] {
  if (links === undefined) return []
  const told = new Map(infos === undefined ? [] : [...entries(infos)].map(([fd, content]) => [fd, content.toString('latin1')]))
  return [...entries(links)]
    .map(([fd, target]) => {
      const info = told.get(fd) ?? ''
      const flags = /^flags:\t(0[0-7]*)$/m.exec(info)?.[1]
      const pos = /^pos:\t(\d{1,20})$/m.exec(info)?.[1]
      return {
        fd: Number(fd),
        ...textField('link', target),
        ...(flags === undefined ? {} : { flags }),
        ...(pos === undefined ? {} : { pos: Number(pos) }),
      }
    })
    .sort((a, b) => a.fd - b.fd)
}

const MOST_UNLINKED = 64

function unlinkedCode(maps: Buffer, exe: string | undefined): ProcessRecord['unlinkedCode'] {
  const found: { start: string; end: string; path: string; pathBase64?: string }[] = []
  for (const { start, end, permissions, path } of parseMaps(maps.toString('latin1'))) {
    if (found.length >= MOST_UNLINKED) break
    if (permissions[2] !== 'x' || !path.endsWith(' (deleted)')) continue
    const field = textField('path', Buffer.from(path, 'latin1'))
    if (field.path !== exe) found.push({ start: start.toString(16), end: end.toString(16), ...field })
  }
  return found
}
