/** Runs lsattr(1) over many names in few processes, and asks again, with fewer names, where an answer cannot be trusted. */
import fs from 'node:fs'
import { errnoOf } from '../host.js'
import { captureProgram, complaint, type Exit } from '../programs.js'
import type { Running, Seconds } from '../step.js'
import { matchDirectories, matchNames, type Reading } from './lsattr-output.js'
import { escapeName } from './names.js'

/** Names a run. */
const NAMES = 1000

/** Bytes a run: execve(2) grants 128 KiB at least for arguments and environment; a name costs its bytes, a NUL and a pointer. */
const BYTES = 96 * 1024
const PER_NAME = 9

/** Room for one message for each name of a run. */
const STDERR_BYTES = 1 << 20

/** Runs repeated with half the names, over all runs; each may take so long. */
const RERUNS = 200
const RERUN_LIMIT: Seconds = 5

/** Directories listed in one run, and the names they may hold together. */
const DIRECTORIES = 64
const DIRECTORY_NAMES = 20_000

/** A single directory with more names than this is not listed for the sake of a few. */
const DIRECTORY_LIMIT = 100_000

/** O_PATH of asm-generic/fcntl.h: pins a directory without opening it for reading. Node has no constant for it. */
const O_PATH = 0o10000000

/** The two ways to ask. */
export interface Lsattr {
  /** `lsattr -d`, names follow. */
  readonly names: Running
  /** `lsattr -a`, directories follow. */
  readonly directories: Running
  readonly signal?: AbortSignal
  /** Counts what is run: for the record, and to bound repetition. */
  readonly runs: { all: number; repeated: number }
}

/** Cuts names into runs; each is at most NAMES long and fits into the arguments of a program. */
export function* inRuns<T>(items: Iterable<T>, bytesOf: (item: T) => number): Generator<T[]> {
  let run: T[] = []
  let bytes = 0
  for (const item of items) {
    const cost = bytesOf(item) + PER_NAME
    if (run.length > 0 && (run.length === NAMES || bytes + cost > BYTES)) {
      yield run
      run = []
      bytes = 0
    }
    run.push(item)
    bytes += cost
  }
  if (run.length > 0) yield run
}

/**
 * What lsattr says about each of at most one run of names, all absolute and UTF-8 (Node hands arguments on as UTF-8).
 * @throws Error when lsattr cannot be started at all.
 */
export async function readNames(lsattr: Lsattr, names: readonly Buffer[], running = lsattr.names): Promise<Reading[]> {
  if (names.length === 0) return []
  const { exit, stdout, stderr } = await run(lsattr, running, names.map(String))
  const ended = wholly(exit)
  const readings = ended ? matchNames(names, stdout, stderr) : undefined
  if (readings !== undefined) return readings
  const repeat = names.length > 1 && lsattr.runs.repeated + 2 <= RERUNS && !exit.interrupted
  if (!repeat) {
    const state = ended ? 'unclear' : 'failed'
    const reason = ended ? `its output does not fit the names it was given${saying(exit)}` : (complaint(running, exit) ?? 'it did not end')
    return names.map(() => ({ state, reason }))
  }
  lsattr.runs.repeated += 2
  const half = Math.ceil(names.length / 2)
  const shorter = { ...running, limit: Math.min(running.limit, RERUN_LIMIT) }
  return [...(await readNames(lsattr, names.slice(0, half), shorter)), ...(await readNames(lsattr, names.slice(half), shorter))]
}

/** Names that cannot be arguments, in one directory. */
export interface OddNames<T> {
  /** Any bytes. */
  readonly directory: Buffer
  readonly entries: readonly T[]
}

/**
 * What lsattr says about names that are not UTF-8, or lie in a directory that is not: their directories are listed whole,
 * reached by a descriptor of ours instead of by name. `pathOf` gives the path of an entry; one array of readings for each item.
 */
export async function* readOddNames<T>(
  lsattr: Lsattr,
  odd: Iterable<OddNames<T>>,
  pathOf: (entry: T) => Buffer,
): AsyncGenerator<{ readonly entries: readonly T[]; readonly readings: Reading[] }> {
  let group: PinnedDirectory<T>[] = []
  let names = 0
  // What is listed is let go by listDirectories, the rest here.
  const take = (): PinnedDirectory<T>[] => {
    const taken = group
    group = []
    names = 0
    return taken
  }
  try {
    for (const item of odd) {
      const pinned = pinDirectory(item)
      if (typeof pinned === 'string') {
        yield { entries: item.entries, readings: item.entries.map(() => ({ state: 'failed', reason: pinned })) }
        continue
      }
      if (group.length === DIRECTORIES || names + pinned.known.size > DIRECTORY_NAMES) yield* await listDirectories(lsattr, take(), pathOf)
      group.push(pinned)
      names += pinned.known.size
    }
    yield* await listDirectories(lsattr, take(), pathOf)
  } finally {
    for (const { fd } of group) fs.closeSync(fd)
  }
}

interface PinnedDirectory<T> extends OddNames<T> {
  readonly fd: number
  /** All its names, as Latin-1 of their bytes. */
  readonly known: ReadonlySet<string>
}

/** The directory held open, or why it cannot be. */
function pinDirectory<T>(item: OddNames<T>): PinnedDirectory<T> | string {
  let fd: number | undefined
  try {
    fd = fs.openSync(item.directory, O_PATH | fs.constants.O_DIRECTORY | fs.constants.O_NOFOLLOW)
    const known = new Set<string>()
    const names = fs.opendirSync(`/proc/self/fd/${fd}/`, { encoding: 'latin1', bufferSize: 256 })
    try {
      for (let found = names.readSync(); found !== null; found = names.readSync()) {
        known.add(found.name)
        if (known.size > DIRECTORY_LIMIT) throw new Error(`its directory holds more than ${DIRECTORY_LIMIT} names`)
      }
    } finally {
      names.closeSync()
    }
    return { ...item, fd, known }
  } catch (error) {
    if (fd !== undefined) fs.closeSync(fd)
    return `its directory cannot be listed: ${errnoOf(error) || (error instanceof Error ? error.message : String(error))}`
  }
}

/** One run over pinned directories, which are let go. */
async function listDirectories<T>(
  lsattr: Lsattr,
  group: readonly PinnedDirectory<T>[],
  pathOf: (entry: T) => Buffer,
): Promise<{ readonly entries: readonly T[]; readonly readings: Reading[] }[]> {
  if (group.length === 0) return []
  try {
    // Our own /proc/<pid>/fd, not /proc/self, which would be lsattr's. The slash makes lstat(2) follow it.
    const paths = group.map(({ fd }) => `/proc/${process.pid}/fd/${fd}/`)
    const { exit, stdout, stderr } = await run(lsattr, lsattr.directories, paths)
    const known = new Map(group.map(({ fd, known }) => [fd, known]))
    const readings = matchDirectories(process.pid, known, stdout)
    const refusals = stderr.toString('latin1')
    const why = wholly(exit) ? undefined : (complaint(lsattr.directories, exit) ?? 'it did not end')
    return group.map(({ fd, entries }) => ({
      entries,
      readings: entries.map((entry): Reading => {
        const path = pathOf(entry).toString('latin1')
        const name = path.slice(path.lastIndexOf('/') + 1)
        const reading = readings.get(fd)?.get(name)
        if (reading !== undefined) return reading
        if (why !== undefined) return { state: 'failed', reason: why }
        if (unsupported(refusals, `/proc/${process.pid}/fd/${fd}/`)) return { state: 'not-supported', reason: 'Operation not supported' }
        return { state: 'unclear', reason: 'it is not listed, or in more than one way' }
      }),
    }))
  } finally {
    for (const { fd } of group) fs.closeSync(fd)
  }
}

/** Whether lsattr refused the directory itself ('.', which -a lists too): then its file system has no attributes. */
function unsupported(stderr: string, directory: string): boolean {
  return new RegExp(`not supported [Ww]hile reading flags on ${directory}/?\\.\n`).test(stderr)
}

async function run(lsattr: Lsattr, running: Running, more: readonly string[]): Promise<{ exit: Exit; stdout: Buffer; stderr: Buffer }> {
  lsattr.runs.all++
  const io = { more, stderrBytes: STDERR_BYTES, ...(lsattr.signal === undefined ? {} : { signal: lsattr.signal }) }
  const result = await captureProgram(running, io)
  if (result.exit.notStarted !== undefined) throw new Error(complaint(running, result.exit))
  return result
}

/** The beginning of what it said on standard error, made visible. */
function saying(exit: Exit): string {
  return exit.stderr === '' ? '' : `; it said ${escapeName(Buffer.from(exit.stderr.slice(0, 200)))}`
}

/** It said all it had to say. */
function wholly(exit: Exit): boolean {
  return !exit.timedOut && !exit.interrupted && !exit.flooded && !exit.abandoned && exit.signal === undefined
}
