/** Where the memory of a running Linux can be read from, and why not: each source is tried by looking only. */
import type { Action, HostView, Rejected, Seconds } from '../src/step.js'
import { type LoadSegment, loadSegments, moduleInfo } from './elf.js'
import { exists, linkOf, listOf, textOf } from './look.js'
import { missing } from './tools.js'

/** What a source offers: what would be done, or why it cannot be. */
export type Offer = { readonly actions: readonly Action[] } | Rejected

export interface MemoryRequest {
  readonly host: HostView
  /** Where the image will lie. */
  readonly directory: string
  readonly limeModule: string | undefined
  readonly pids: readonly string[]
  /** Also those that run an executable which is deleted, in memory only, or in a directory for temporary files. */
  readonly suspicious: boolean
  /** Bytes of memory of one process. */
  readonly maxProcess: number
}

export const IMAGE = 'memory.lime'

const KCORE = '/proc/kcore'
const MEM = '/dev/mem'
const CRASH = '/dev/crash'
const IOMEM = '/proc/iomem'

/** Assumed, bytes a second: what a plain disk of a rented server takes, which is less than the kernel gives. */
const RATE = 125 * 1024 ** 2
/** LiME writes page by page: nine times as long as our reader for the same 1 GiB in an emulated machine. */
const LIME_RATE = RATE / 9

/** Never reached by a capture that makes progress: the remaining time is shown, and the engineer decides. */
const CAPTURE_LIMIT: Seconds = 86_400
const SMALL_LIMIT: Seconds = 10
/** A process may hold its reader up; so many times the expected time is enough for one that does not. */
const PROCESS_SLACK = 20

/** Stays free on the disk of the case, for the log, the other steps' evidence and the seal. */
const DISK_RESERVE = 64 * 1024 ** 2

const PAGE = 4096
/** fs/proc/kcore.c: a segment without a physical address, since Linux 4.11. */
const NO_PHYSICAL = 0xffff_ffff_ffff_ffffn
/** CONFIG_STRICT_DEVMEM leaves only what lies below readable (arch/x86/mm/init.c, devmem_is_allowed). */
const FIRST_MEBIBYTE = 1n << 20n

/** Bits of CapEff, linux/capability.h. */
const CAP_SYS_MODULE = 16n
const CAP_SYS_RAWIO = 17n

/** Where nothing on this host helps. */
export const FROM_OUTSIDE = 'take it from outside: a snapshot with memory by the hypervisor (virsh dump --memory-only on KVM)'
const ON_THE_HOST = 'run it on the host itself, outside the container'

/** A path that insmod can pass on to the module: the kernel splits module arguments at spaces and takes quotes for its own. */
const PLAIN_PATH = /^\/[A-Za-z0-9._/+=@,-]*$/
const SIGNATURE = '~Module signature appended~\n'

function no(what: string, why: string, remedy = ''): Rejected {
  return { what, why, remedy }
}

/** /proc/kcore: opens, and gives a page at three places. */
export function offerKcore({ host }: MemoryRequest): Offer {
  const masked = maskOf(host, KCORE)
  if (masked !== undefined) return masked
  let segments: readonly LoadSegment[] | undefined
  try {
    segments = loadSegments(host, KCORE)
  } catch (error) {
    // Only root may open it, and only root captures: as somebody else we cannot tell, and plan what root would do.
    if (codeOf(error) === 'EACCES' && !isRoot(host)) return captureActions(host, 'kcore', KCORE, ', not tried: only root may open it')
    return refusal(host, KCORE, codeOf(error))
  }
  if (segments === undefined) return no(KCORE, 'it is no 64-bit little-endian core file')
  if (segments.length > 0 && segments.every(({ physical }) => physical === 0n)) {
    return no(KCORE, 'it gives no physical addresses (kernel before 4.11): an image of it would hold wrong data', limeRemedy(host))
  }
  const places = threePlaces(segments)
  if (places.length === 0) return no(KCORE, 'it names no physical memory', limeRemedy(host))
  const refused = refusedEverywhere(host, KCORE, places)
  if (refused !== undefined) return no(KCORE, `it opens, but no page can be read (${refused})`, limeRemedy(host))
  return captureActions(host, 'kcore', KCORE)
}

/** /dev/mem: only when pages above the first mebibyte can be read. Not by dd, which would read device memory between the ranges of RAM. */
export function offerMem({ host }: MemoryRequest): Offer {
  try {
    const { kind } = host.lstat(MEM)
    if (kind !== 'character') return no(MEM, `a ${kind} stands in its place`, ON_THE_HOST)
    host.peek(MEM, 0n, 1)
  } catch (error) {
    const code = codeOf(error)
    if (code === 'ENOENT') return no(MEM, 'none (kernel built without CONFIG_DEVMEM, or a container hides it)', limeRemedy(host))
    // Another error may concern the first byte alone; the pages below decide.
    if (code === 'EACCES' || code === 'EPERM') return refusal(host, MEM, code)
  }
  const places = placesAbove(systemRam(host) ?? [], FIRST_MEBIBYTE)
  if (places.length === 0) return no(MEM, `${IOMEM} names no RAM above 1 MiB`, 'run as root')
  const refused = refusedEverywhere(host, MEM, places)
  if (refused !== undefined) {
    return no(MEM, `nothing above 1 MiB can be read (${refused}): the kernel is built with CONFIG_STRICT_DEVMEM`, limeRemedy(host))
  }
  return captureActions(host, 'mem', MEM)
}

/** /dev/crash: the driver that Red Hat's kernels have for the crash utility; it gives one page at a time. */
export function offerCrash({ host }: MemoryRequest): Offer {
  try {
    const { kind } = host.lstat(CRASH)
    if (kind !== 'character') return no(CRASH, `a ${kind} stands in its place`, ON_THE_HOST)
  } catch (error) {
    const code = codeOf(error)
    if (code === 'ENOENT') return no(CRASH, 'none (only kernels of Red Hat have its driver, as a module)', limeRemedy(host))
    return refusal(host, CRASH, code)
  }
  const places = placesAbove(systemRam(host) ?? [], FIRST_MEBIBYTE)
  if (places.length === 0) return no(CRASH, `${IOMEM} names no RAM above 1 MiB`, 'run as root')
  const refused = refusedEverywhere(host, CRASH, places)
  if (refused === 'EACCES' || refused === 'EPERM') return refusal(host, CRASH, refused)
  if (refused !== undefined) return no(CRASH, `no page can be read (${refused})`, limeRemedy(host))
  return captureActions(host, 'crash', CRASH)
}

/** LiME's kernel module: given, built for this very kernel, and the kernel will take it. */
export function offerLime({ host, limeModule, directory }: MemoryRequest): Offer {
  const what = 'LiME module'
  if (limeModule === undefined) return no(what, 'none given, and a kernel module is never loaded unasked', limeRemedy(host))
  const blocked = modulesBlocked(host)
  if (blocked !== undefined) return blocked
  const insmod = host.which('insmod')
  if (insmod === undefined) return no(what, missing(host, 'insmod').unavailable, missing(host, 'insmod').remedy)
  const rmmod = host.which('rmmod')
  if (rmmod === undefined) return no(what, missing(host, 'rmmod').unavailable, missing(host, 'rmmod').remedy)
  const release = firstLine(host, '/proc/sys/kernel/osrelease') ?? ''
  const found = moduleFile(host, limeModule, release)
  if ('why' in found) return found
  const { path, info } = found
  const name = info.get('name')?.[0] ?? 'lime'
  if (!/^[A-Za-z0-9_]{1,55}$/.test(name)) return no(what, `${path} gives no usable module name`)
  const built = info.get('vermagic')?.[0]?.split(' ')[0] ?? 'an unknown kernel'
  if (built !== release) return no(what, `${path} is built for ${built}, this kernel is ${release}`, limeRemedy(host))
  const unwelcome = moduleUnwelcome(host, path, name)
  if (unwelcome !== undefined) return unwelcome
  if (!PLAIN_PATH.test(directory)) {
    return no(what, `the module cannot be told to write to ${directory}`, 'give an --output of letters, digits and . _ + = @ , -')
  }
  const bytes = ramBytes(host)
  // Without it a slow page makes LiME leave the rest of the range as zeros, silently; older modules do not know it.
  const timeout = info.get('parmtype')?.some(parameter => parameter.startsWith('timeout:')) ? ['timeout=0'] : []
  return {
    actions: [
      copyIomem(),
      {
        kind: 'change',
        title: 'Let the LiME module write physical memory',
        argv: [insmod, path, `path=${directory}/${IMAGE}`, 'format=lime', ...timeout],
        writes: [IMAGE],
        effect: `loads the kernel module ${name} (${path}), which taints the kernel until it is booted, and copies memory while it loads; the module is removed again, the taint stays`,
        undo: [{ title: `Remove the module ${name}`, argv: [rmmod, name], limit: 60 }],
        lasts: 'step',
        limit: CAPTURE_LIMIT,
      },
      {
        kind: 'collect',
        title: `Check ${IMAGE} against the list of RAM: LiME reports success also when its writes failed`,
        collector: 'physical-memory',
        options: { source: 'lime', iomem: IOMEM, image: IMAGE },
        writes: [],
        // Of the image that it checks; the change that makes it has no place for them.
        ...expectation(bytes, LIME_RATE),
        limit: CAPTURE_LIMIT,
      },
    ],
  }
}

/** The memory of processes, which is not the machine's. */
export function offerProcesses({ host, pids, suspicious, maxProcess }: MemoryRequest): Offer {
  const what = 'process memory'
  if (pids.length === 0 && !suspicious) {
    return no(what, 'no process given', '--pid LIST, or --suspicious: the memory of these processes, which is not physical memory')
  }
  const wrong = pids.find(pid => !/^[1-9]\d{0,9}$/.test(pid))
  if (wrong !== undefined) return no(what, `'${wrong}' is no process id`, '--pid 1234,5678')
  const chosen = new Map(pids.map(pid => [Number(pid), 'asked for']))
  if (suspicious) for (const [pid, why] of suspects(host)) chosen.set(pid, why)
  const wanted = [...chosen.keys()].sort((a, b) => a - b)
  if (wanted.length === 0) {
    return no(what, 'no process runs an executable that is deleted, in memory only, or in a directory for temporary files', '--pid LIST')
  }
  const there = wanted.filter(pid => exists(host, `/proc/${pid}`))
  if (there.length === 0) return no(what, `no such process: ${wanted.join(', ')}`, 'ps -e shows the ids')
  return {
    actions: [
      {
        kind: 'collect',
        title: `Copy the memory of ${wanted.length === 1 ? `process ${wanted[0]}` : `${wanted.length} processes`} (this is not physical memory)`,
        collector: 'process-memory',
        options: {
          pids: wanted,
          maxBytes: maxProcess,
          reserve: DISK_RESERVE,
          ...(suspicious ? { why: Object.fromEntries(wanted.map(pid => [pid, chosen.get(pid) ?? ''])) } : {}),
        },
        writes: wanted.flatMap(pid => [`process-${pid}.maps.txt`, `process-${pid}.core`]),
        limit: 60 + Math.ceil((PROCESS_SLACK * maxProcess * wanted.length) / RATE),
      },
    ],
  }
}

/** More than that is a host on which the signs mean nothing, such as one in the middle of an upgrade. */
const MAX_SUSPECTS = 500

/** hier(7): where anybody may write. */
const TEMPORARY = ['/tmp/', '/var/tmp/', '/dev/shm/', '/run/shm/', '/run/user/']

/** Processes whose executable is not an installed file, by what /proc/PID/exe says (proc_pid_exe(5)); never ourselves. */
function suspects(host: HostView): [pid: number, why: string][] {
  const own = linkOf(host, '/proc/self')
  const found: [number, string][] = []
  for (const name of listOf(host, '/proc')) {
    if (!/^[1-9]\d{0,9}$/.test(name) || name === own) continue
    const executable = linkOf(host, `/proc/${name}/exe`)
    const why = executable === undefined ? undefined : suspicion(executable)
    if (why !== undefined) found.push([Number(name), why])
    if (found.length === MAX_SUSPECTS) break
  }
  return found
}

function suspicion(executable: string): string | undefined {
  if (executable.startsWith('/memfd:')) return 'runs from memory, without a file'
  if (executable.endsWith(' (deleted)')) return 'its executable is deleted'
  const folder = TEMPORARY.find(one => executable.startsWith(one))
  return folder === undefined ? undefined : `its executable lies below ${folder}`
}

function captureActions(
  host: HostView,
  source: 'kcore' | 'mem' | 'crash',
  from: string,
  remark = '',
): { readonly actions: readonly Action[] } {
  return {
    actions: [
      copyIomem(),
      {
        kind: 'collect',
        title: `Copy physical memory from ${from}${remark}`,
        collector: 'physical-memory',
        options: { source, from, iomem: IOMEM, to: IMAGE, reserve: DISK_RESERVE },
        writes: [IMAGE],
        ...expectation(ramBytes(host), RATE),
        limit: CAPTURE_LIMIT,
      },
    ],
  }
}

/** Which addresses are RAM: without it nobody can tell whether an image is whole. */
function copyIomem(): Action {
  return { kind: 'copy', title: 'Keep the list of physical address ranges', from: IOMEM, to: 'iomem.txt', limit: SMALL_LIMIT }
}

function expectation(bytes: number | undefined, rate: number): { expectedBytes?: number; expectedSeconds?: Seconds } {
  return bytes === undefined ? {} : { expectedBytes: bytes, expectedSeconds: Math.ceil(bytes / rate) }
}

interface RamRange {
  readonly start: bigint
  /** Inclusive, as the kernel prints it. */
  readonly last: bigint
}

/** The RAM of /proc/iomem, nested too; undefined when it cannot be read or hides its addresses, as it does from all but root. */
function systemRam(host: HostView): readonly RamRange[] | undefined {
  const text = textOf(host, IOMEM) ?? ''
  const found = [...text.matchAll(/^ *([0-9a-f]+)-([0-9a-f]+) : System RAM(?: \(.*\))?$/gm)]
  const ranges = found.map(([, start, last]) => ({ start: BigInt(`0x${start}`), last: BigInt(`0x${last}`) }))
  const shown = ranges.filter(({ last }) => last > 0n).toSorted((a, b) => (a.start < b.start ? -1 : 1))
  // Nested in another one it would count twice.
  const outer = shown.filter((range, index) => !shown.slice(0, index).some(before => range.last <= before.last))
  return outer.length === 0 ? undefined : outer
}

/** Bytes of RAM, by /proc/iomem or, where that hides them, MemTotal, which leaves out what the kernel kept for itself. */
function ramBytes(host: HostView): number | undefined {
  const ram = systemRam(host)
  if (ram !== undefined) return Number(ram.reduce((sum, { start, last }) => sum + (last - start + 1n), 0n))
  const total = /^MemTotal: +(\d{1,15}) kB$/m.exec(textOf(host, '/proc/meminfo') ?? '')
  return total === null ? undefined : Number(total[1]) * 1024
}

/** Addresses of the first page of RAM from `least` on, of one in the middle, and of the last one. */
function placesAbove(ram: readonly RamRange[], least: bigint): bigint[] {
  const page = BigInt(PAGE)
  const above = ram
    .map(({ start, last }) => ({ start: start > least ? start : least, last }))
    .filter(({ start, last }) => last - start >= 2n * page)
  const [first, last] = [above[0], above.at(-1)]
  if (first === undefined || last === undefined) return []
  return [first.start, (first.start + first.last) / 2n, last.last - page + 1n].map(address => address - (address % page))
}

/** File offsets of the first page of the lowest segment, a middle one of the largest, the last one of the highest. */
function threePlaces(segments: readonly LoadSegment[]): bigint[] {
  const page = BigInt(PAGE)
  const ram = segments
    .filter(({ physical, bytes }) => physical !== NO_PHYSICAL && bytes >= page)
    .toSorted((a, b) => (a.physical < b.physical ? -1 : 1))
  const [first, last] = [ram[0], ram.at(-1)]
  if (first === undefined || last === undefined) return []
  const largest = ram.reduce((best, segment) => (segment.bytes > best.bytes ? segment : best))
  return [first.offset, largest.offset + (largest.bytes / page / 2n) * page, last.offset + last.bytes - page]
}

/** The errno of the last place when none of them can be read. */
function refusedEverywhere(host: HostView, path: string, places: readonly bigint[]): string | undefined {
  let refused: string | undefined
  for (const place of places) {
    try {
      if (host.peek(path, place, PAGE).length > 0) return undefined
      refused = 'no data'
    } catch (error) {
      refused = codeOf(error)
    }
  }
  return refused
}

/** What container runtimes do: an empty file system or /dev/null mounted over it. */
function maskOf(host: HostView, path: string): Rejected | undefined {
  try {
    const { kind, size } = host.lstat(path)
    if (kind === 'file' && size > 0n) return undefined
    const instead = kind === 'file' ? 'an empty file' : kind === 'character' ? 'a character device' : `a ${kind}`
    return no(path, `${instead} stands in its place: a container runtime masks it`, ON_THE_HOST)
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return no(path, 'none (kernel built without CONFIG_PROC_KCORE)', limeRemedy(host))
    return refusal(host, path, codeOf(error))
  }
}

/** In the order of the kernel's own checks: permission bits, lockdown, capability. */
function refusal(host: HostView, path: string, code: string): Rejected {
  if (code === 'EACCES') {
    return isRoot(host)
      ? no(path, 'not allowed even for root (EACCES): a user namespace, or a security module', ON_THE_HOST)
      : no(path, 'only root may open it (EACCES)', 'run as root')
  }
  if (code !== 'EPERM') return no(path, `it cannot be read (${code || 'unknown error'})`, limeRemedy(host))
  const state = lockdown(host)
  if (state !== undefined && state !== 'none') {
    return no(path, `kernel lockdown is '${state}' (EPERM)`, FROM_OUTSIDE)
  }
  if (!has(host, CAP_SYS_RAWIO)) return no(path, 'CAP_SYS_RAWIO is missing (EPERM), as in a container', ON_THE_HOST)
  const unknown = state === undefined ? '; lockdown is not known, securityfs is not mounted' : ''
  return no(path, `the kernel refuses it (EPERM)${unknown}`, limeRemedy(host))
}

function moduleFile(
  host: HostView,
  given: string,
  release: string,
): { readonly path: string; readonly info: ReadonlyMap<string, readonly string[]> } | Rejected {
  const what = 'LiME module'
  if (!given.startsWith('/')) return no(what, `'${given}' is no absolute path`, `--lime-module /path/to/lime-${release}.ko`)
  let path = given.replace(/(?<=.)\/+$/, '')
  try {
    if (host.lstat(path).kind === 'directory') path = `${path}/lime-${release.replaceAll('/', '-')}.ko`
    const { kind } = host.lstat(path)
    if (kind !== 'file') return no(what, `${path} is a ${kind}, no file`, 'give the module itself')
    const info = moduleInfo(host, path)
    if (info === undefined) return no(what, `${path} is no kernel module`, 'unpack it, if it is compressed')
    return { path, info }
  } catch (error) {
    return no(what, `${path} cannot be read (${codeOf(error)})`, limeRemedy(host))
  }
}

/** What keeps this kernel from taking any module. */
function modulesBlocked(host: HostView): Rejected | undefined {
  const what = 'LiME module'
  if (textOf(host, '/proc/modules') === undefined) return no(what, 'this kernel takes no modules: there is no /proc/modules', FROM_OUTSIDE)
  if (firstLine(host, '/proc/sys/kernel/modules_disabled') === '1') {
    return no(what, 'kernel.modules_disabled is 1: no module can be loaded until it is booted', FROM_OUTSIDE)
  }
  if (isRoot(host) && !has(host, CAP_SYS_MODULE)) return no(what, 'CAP_SYS_MODULE is missing, as in a container', ON_THE_HOST)
  return undefined
}

/** What keeps it from taking this one. */
function moduleUnwelcome(host: HostView, path: string, name: string): Rejected | undefined {
  const what = 'LiME module'
  const loaded = textOf(host, '/proc/modules') ?? ''
  if (loaded.split('\n').some(line => line.startsWith(`${name} `))) {
    return no(what, `a module ${name} is loaded already`, `look who loaded it, then rmmod ${name}`)
  }
  if (isSigned(host, path)) return undefined
  const remedy = 'sign it with a key that the kernel trusts'
  const state = lockdown(host) ?? 'none'
  if (state !== 'none') return no(what, `kernel lockdown is '${state}', and ${path} is not signed`, remedy)
  if (firstLine(host, '/sys/module/module/parameters/sig_enforce') === 'Y') {
    return no(what, `the kernel takes only signed modules, and ${path} is not signed`, remedy)
  }
  return undefined
}

function isSigned(host: HostView, path: string): boolean {
  const { size } = host.lstat(path)
  if (size < BigInt(SIGNATURE.length)) return false
  return new TextDecoder('latin1').decode(host.peek(path, size - BigInt(SIGNATURE.length), SIGNATURE.length)) === SIGNATURE
}

function limeRemedy(host: HostView): string {
  if (textOf(host, '/proc/modules') === undefined) return FROM_OUTSIDE
  const release = firstLine(host, '/proc/sys/kernel/osrelease') ?? '$(uname -r)'
  return `--lime-module FILE, built elsewhere for exactly ${release}`
}

/** 'none', 'integrity', 'confidentiality'; undefined where securityfs is not mounted or the kernel has no lockdown. */
function lockdown(host: HostView): string | undefined {
  return /\[([a-z]+)\]/.exec(textOf(host, '/sys/kernel/security/lockdown') ?? '')?.[1]
}

/** By the effective user id, proc_pid_status(5); when that cannot be read, nothing is assumed to be allowed. */
function isRoot(host: HostView): boolean {
  return /^Uid:\t\d+\t0\t/m.test(textOf(host, '/proc/self/status') ?? '')
}

function has(host: HostView, capability: bigint): boolean {
  const effective = /^CapEff:\t([0-9a-f]{1,16})$/m.exec(textOf(host, '/proc/self/status') ?? '')
  return effective === null || ((BigInt(`0x${effective[1]}`) >> capability) & 1n) === 1n
}

function firstLine(host: HostView, path: string): string | undefined {
  return textOf(host, path)?.split('\n', 1)[0]
}

/** errno name of how a look failed. */
function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : 'unknown error'
}
