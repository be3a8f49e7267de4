/**
 * What the kernel tells about processes in /proc: proc(5), Documentation/filesystems/proc.rst.
 *
 * Names, arguments, paths and environments are bytes that an attacker chose. Text fields keep them without loss: where the
 * bytes are valid UTF-8 the field holds them; where they are not, it holds them with U+FFFD in place of what is invalid, for
 * the eye, and a second field with `Base64` behind its name holds every byte.
 */
import { isUtf8 } from 'node:buffer'
import fs from 'node:fs'
import os from 'node:os'
import type { Host } from '../../host.js'
import { iso } from '../../time.js'

/** PF_KTHREAD of include/linux/sched.h in field 9 of /proc/PID/stat: a thread of the kernel itself, whatever its name. */
export const KERNEL_THREAD = 0x0020_0000

/** A text field, and its bytes where the text alone would lose some. */
export type TextField<N extends string> = { readonly [K in N]: string } & { readonly [K in `${N}Base64`]?: string }

/** `{ comm: 'sshd' }`, or `{ comm: 'ss\ufffd', commBase64: 'c3P/' }`. */
export function textField<N extends string>(name: N, bytes: Buffer): TextField<N> {
  const lossless = isUtf8(bytes) ? {} : { [`${name}Base64`]: bytes.toString('base64') }
  return { [name]: bytes.toString('utf8'), ...lossless } as TextField<N>
}

/** Strings that end with NUL each, as in cmdline and environ; the bytes of all of them where one is not valid UTF-8. */
export type ListField<N extends string> = { readonly [K in N]: readonly string[] } & { readonly [K in `${N}Base64`]?: string }

export function listField<N extends string>(name: N, bytes: Buffer): ListField<N> {
  const strings = bytes.toString('utf8').split('\0')
  if (strings.at(-1) === '') strings.pop()
  const lossless = isUtf8(bytes) ? {} : { [`${name}Base64`]: bytes.toString('base64') }
  return { [name]: strings, ...lossless } as ListField<N>
}

/** Ids of the processes that /proc lists, ascending. Threads but the first of each process are not among them. */
export function processIds(host: Host): number[] {
  return fs
    .readdirSync(host.at('/proc'))
    .filter(name => /^[1-9]\d*$/.test(name))
    .map(Number)
    .sort((a, b) => a - b)
}

export interface ProcessStat {
  readonly pid: number
  readonly comm: Buffer
  /** One letter: R, S, D, Z, T, t, X, I ... */
  readonly state: string
  readonly ppid: number
  readonly group: number
  readonly session: number
  /** PF_* of include/linux/sched.h. */
  readonly flags: number
  readonly threads: number
  /** Clock ticks between boot and its start. */
  readonly startTicks: number
}

/**
 * /proc/PID/stat. The name in parentheses may hold anything, ')' and newlines too; after its last ')' only numbers follow.
 * @returns undefined when it is not of this form.
 */
export function parseStat(bytes: Buffer): ProcessStat | undefined {
  const text = bytes.toString('latin1')
  const [open, close] = [text.indexOf(' ('), text.lastIndexOf(') ')]
  if (open < 0 || close < open + 2 || !/^\d{1,10}$/.test(text.slice(0, open))) return undefined
  // rest[0] is field 3 of proc_pid_stat(5).
  const rest = text
    .slice(close + 2)
    .trimEnd()
    .split(' ')
  const field = (number: number): number => {
    const token = rest[number - 3] ?? ''
    return /^-?\d{1,20}$/.test(token) ? Number(token) : Number.NaN
  }
  const state = rest[0] ?? ''
  const stat = {
    pid: Number(text.slice(0, open)),
    comm: bytes.subarray(open + 2, close),
    state,
    ppid: field(4),
    group: field(5),
    session: field(6),
    flags: field(9),
    threads: field(20),
    startTicks: field(22),
  }
  const numbers = [stat.ppid, stat.group, stat.session, stat.flags, stat.threads, stat.startTicks]
  return /^[A-Za-z]$/.test(state) && !numbers.some(Number.isNaN) ? stat : undefined
}

/** The four ids of a process: credentials(7). */
export interface Ids {
  readonly real: number
  readonly effective: number
  readonly saved: number
  readonly filesystem: number
}

export interface ProcessStatus {
  readonly tgid: number | undefined
  readonly uid: Ids | undefined
  readonly gid: Ids | undefined
}

/** /proc/PID/status, the parts that no other file tells. The kernel escapes newlines in the name, so lines are what they seem. */
export function parseStatus(text: string): ProcessStatus {
  const lines = `\n${text}\n`
  const value = (key: string): string => {
    const at = lines.indexOf(`\n${key}:`)
    return at < 0 ? '' : lines.slice(at + key.length + 2, lines.indexOf('\n', at + 1)).trim()
  }
  const ids = (key: string): Ids | undefined => {
    const found = /^(\d{1,10})\s+(\d{1,10})\s+(\d{1,10})\s+(\d{1,10})$/.exec(value(key))
    if (found === null) return undefined
    const [real, effective, saved, filesystem] = found.slice(1).map(Number) as [number, number, number, number]
    return { real, effective, saved, filesystem }
  }
  const tgid = value('Tgid')
  return { tgid: /^\d{1,10}$/.test(tgid) ? Number(tgid) : undefined, uid: ids('Uid'), gid: ids('Gid') }
}

export interface Mapping {
  readonly start: bigint
  /** First address behind it. */
  readonly end: bigint
  /** Four characters: r or -, w or -, x or -, p (private) or s (shared). */
  readonly permissions: string
  readonly offset: bigint
  /** 'fe:01', as printed: hexadecimal. */
  readonly device: string
  readonly inode: bigint
  /** '' for anonymous memory; '[heap]', '/memfd:x (deleted)' ... Newlines stand as \012. */
  readonly path: string
}

const MAPPING = /^([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([r-][w-][x-][ps]) ([0-9a-f]{1,16}) ([0-9a-f]{1,8}:[0-9a-f]{1,8}) (\d{1,20}) *([^\n]*)$/

/** /proc/PID/maps, proc_pid_maps(5): line by line, those left out that are not of its form. */
export function* parseMaps(text: string): Iterable<Mapping> {
  let at = 0
  while (at < text.length) {
    const newline = text.indexOf('\n', at)
    const end = newline < 0 ? text.length : newline
    const found = MAPPING.exec(text.slice(at, end))
    at = end + 1
    if (found === null) continue
    const [, start, stop, permissions, offset, device, inode, path] = found as unknown as [string, ...string[]]
    yield {
      start: BigInt(`0x${start}`),
      end: BigInt(`0x${stop}`),
      permissions: permissions as string,
      offset: BigInt(`0x${offset}`),
      device: device as string,
      inode: BigInt(inode as string),
      path: path as string,
    }
  }
}

/** The inode in 'net:[4026531833]' or 'socket:[12345]'; undefined when it is no such link. */
export function linkedInode(link: string): number | undefined {
  const found = /^[a-z_]+:\[(\d{1,15})\]$/.exec(link)
  return found === null ? undefined : Number(found[1])
}

/** AT_CLKTCK of include/uapi/linux/auxvec.h: what sysconf(_SC_CLK_TCK) gives. */
const AT_CLKTCK = 17n

/** Clock ticks a second from the auxiliary vector (getauxval(3)), pairs of 64 bit words; 100, USER_HZ, where it has none. */
export function parseClockTicks(auxv: Buffer, endianness: 'LE' | 'BE' = os.endianness()): number {
  const word = (at: number): bigint => (endianness === 'LE' ? auxv.readBigUInt64LE(at) : auxv.readBigUInt64BE(at))
  for (let at = 0; at + 16 <= auxv.length; at += 16) {
    if (word(at) === AT_CLKTCK) {
      const ticks = Number(word(at + 8))
      return ticks >= 1 && ticks <= 1_000_000 ? ticks : 100
    }
  }
  return 100
}

/** Seconds since the epoch when the system booted, from the `btime` line of /proc/stat; undefined when it has none. */
export function parseBootTime(text: string): number | undefined {
  const found = /^btime (\d{1,12})$/m.exec(text)
  return found === null ? undefined : Number(found[1])
}

/** Turns clock ticks since boot into UTC stamps; exact to the second, as `btime` is. */
export interface BootClock {
  /** Ticks a second. */
  readonly ticks: number
  /** Seconds since the epoch. */
  readonly booted: number | undefined
  stamp(ticksSinceBoot: number): string | undefined
}

export function bootClock(host: Host): BootClock {
  const ticks = parseClockTicks(readOr(host, '/proc/self/auxv'))
  const booted = parseBootTime(readOr(host, '/proc/stat').toString('latin1'))
  return {
    ticks,
    booted,
    stamp(since) {
      const date = new Date(((booted ?? Number.NaN) + since / ticks) * 1000)
      return Number.isNaN(date.getTime()) ? undefined : iso(date)
    },
  }
}

/** Small files of /proc that no process can hold up. */
function readOr(host: Host, path: string): Buffer {
  try {
    return fs.readFileSync(host.at(path))
  } catch {
    return Buffer.alloc(0)
  }
}
