/**
 * Reads what lsattr(1) prints for a list of names that we gave it, so that no name can pass for something else: names hold any
 * byte, newlines included, so lines mean nothing by themselves. Both the lsattr of e2fsprogs and that of BusyBox are understood.
 */

/** What lsattr said about one name. */
export type Reading =
  /** Letters and dashes as printed: '----i---------e-------'; chattr(1) has their meaning. */
  | { readonly state: 'listed'; readonly attributes: string }
  /** 'gone': it no longer exists. 'unclear': the output has more than one meaning. */
  | { readonly state: 'not-supported' | 'gone' | 'failed' | 'unclear'; readonly reason: string }

/** 19 to 22 places in e2fsprogs 1.42 to 1.47, as many as attributes are set in BusyBox ('--------------e---'). */
const ATTRIBUTES = /([A-Za-z-]{4,64}) /y

/** e2fsprogs misc/lsattr.c: com_err(program, errno, 'While reading flags on %s'), before 1.43 'while stating %s'. */
const E2FSPROGS = /[^\n]{0,300}?: ([^\n]{1,100}?) [Ww]hile (?:reading (?:flags|version|project) on|trying to stat|stating) /y

/**
 * What ld.so(8) says before any program begins, when /etc/ld.so.preload names a library that is not there: left behind by
 * many a clean-up. Names in that file end at white space, so it is always one line.
 */
const LOADER = /ERROR: ld\.so: object '[^\n]*\n/y

/** BusyBox e2fsprogs/lsattr.c: 'lsattr: reading NAME: REASON' and 'lsattr: stat NAME: REASON'. */
const BUSYBOX = /lsattr: (?:reading|stat) /y
const BUSYBOX_REASON = /: ([^\n]{1,100})\n/y

/**
 * One reading for each name of `lsattr -d NAME...`, by the order of the names: each is either the next on standard output or
 * the next on standard error. Undefined when that is not so, or when both fit: then the caller asks again with fewer names.
 */
export function matchNames(names: readonly Buffer[], stdout: Buffer, stderr: Buffer): Reading[] | undefined {
  const out = new Cursor(stdout)
  const err = new Cursor(stderr)
  for (let line = err.match(LOADER); line !== undefined; line = err.match(LOADER)) err.at = line.end
  const readings: Reading[] = []
  for (const bytes of names) {
    const name = bytes.toString('latin1')
    const listed = matchListed(out, name)
    const refused = matchRefused(err, name)
    if ((listed === undefined) === (refused === undefined)) return undefined
    if (listed !== undefined) {
      out.at = listed.end
      readings.push({ state: 'listed', attributes: listed.found })
    } else if (refused !== undefined) {
      err.at = refused.end
      readings.push(refusal(refused.found))
    }
  }
  return out.ended && err.ended ? readings : undefined
}

/**
 * What `lsattr -a DIRECTORY...` said about the entries of directories that were named by descriptor
 * (`/proc/<pid>/fd/<number>/`), each under its number. `known` holds all names of each directory, as Latin-1 of their bytes.
 * A name that is missing in the result was refused, or could not be told from another.
 */
export function matchDirectories(
  pid: number,
  known: ReadonlyMap<number, ReadonlySet<string>>,
  stdout: Buffer,
): Map<number, Map<string, Reading>> {
  const result = new Map<number, Map<string, Reading>>()
  for (const number of known.keys()) result.set(number, new Map())
  const text = stdout.toString('latin1')
  const start = new RegExp(`([A-Za-z-]{4,64}) /proc/${pid}/fd/([0-9]+)/{1,2}`, 'y')
  let at = 0
  while (at < text.length) {
    start.lastIndex = at
    const record = start.exec(text)
    const names = known.get(Number(record?.[2]))
    const readings = result.get(Number(record?.[2]))
    if (record === null || names === undefined || readings === undefined) break
    const from = at + record[0].length
    const [name, other] = possibleNames(text, from, names, start)
    // None or two that fit: what follows cannot be trusted either.
    if (name === undefined || other !== undefined) break
    readings.set(name, { state: 'listed', attributes: record[1] as string })
    at = from + name.length + 1
  }
  return result
}

/** NAME_MAX of linux/limits.h. */
const LONGEST = 255

/** The names that end before a newline behind which the output ends or the next record begins. */
function possibleNames(text: string, from: number, names: ReadonlySet<string>, start: RegExp): string[] {
  const possible: string[] = []
  for (let end = text.indexOf('\n', from); end >= 0 && end - from <= LONGEST; end = text.indexOf('\n', end + 1)) {
    const name = text.slice(from, end)
    start.lastIndex = end + 1
    if ((names.has(name) || name === '.' || name === '..') && (end + 1 === text.length || start.test(text))) possible.push(name)
  }
  return possible
}

interface Match {
  readonly found: string
  /** Where the next one begins. */
  readonly end: number
}

/** Output as Latin-1: one character for each byte. */
class Cursor {
  readonly text: string
  at = 0
  constructor(output: Buffer) {
    this.text = output.toString('latin1')
  }
  get ended(): boolean {
    return this.at === this.text.length
  }
  /** The pattern right here, and what it captured. */
  match(pattern: RegExp, at = this.at): Match | undefined {
    pattern.lastIndex = at
    const found = pattern.exec(this.text)
    return found === null ? undefined : { found: found[1] ?? '', end: at + found[0].length }
  }
  has(text: string, at: number): boolean {
    return this.text.startsWith(text, at)
  }
}

function matchListed(out: Cursor, name: string): Match | undefined {
  const attributes = out.match(ATTRIBUTES)
  if (attributes === undefined || !out.has(`${name}\n`, attributes.end)) return undefined
  return { found: attributes.found, end: attributes.end + name.length + 1 }
}

function matchRefused(err: Cursor, name: string): Match | undefined {
  const e2fsprogs = err.match(E2FSPROGS)
  if (e2fsprogs !== undefined && err.has(`${name}\n`, e2fsprogs.end)) {
    return { found: e2fsprogs.found, end: e2fsprogs.end + name.length + 1 }
  }
  const busybox = err.match(BUSYBOX)
  if (busybox === undefined || !err.has(name, busybox.end)) return undefined
  return err.match(BUSYBOX_REASON, busybox.end + name.length)
}

/** strerror(3) of glibc and musl: EOPNOTSUPP, ENOTTY, ENOSYS where a file system has no attributes; ENOENT, ENOTDIR for what is gone. */
function refusal(reason: string): Reading {
  if (/not supported|inappropriate ioctl|not a tty|function not implemented/i.test(reason)) return { state: 'not-supported', reason }
  if (/no such file|^not a directory/i.test(reason)) return { state: 'gone', reason }
  return { state: 'failed', reason }
}
