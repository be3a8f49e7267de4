/** What lies beside an image of physical memory so that it can be read: the kernel's types, symbols and what it says of itself. */
import type { Action, HostView, Rejected, Seconds } from '../src/step.js'
import { exists, textOf } from './look.js'

/** The symbol file that Volatility 3 opens. */
export const SYMBOLS = 'memory.isf.json.gz'

const MiB = 1024 ** 2
const FILE_LIMIT: Seconds = 60
/** In an emulated machine it takes half a minute; a real one needs a few seconds. */
const SYMBOLS_LIMIT: Seconds = 600

interface Plain {
  readonly from: string
  readonly title: string
  readonly maxBytes: number
}

/** Files that are kept as they are, named after their path; those that a host does not have are left out. */
function plainFiles(release: string): readonly Plain[] {
  const boot = (name: string, title: string): Plain => ({ from: `/boot/${name}-${release}`, title, maxBytes: 32 * MiB })
  return [
    { from: '/proc/version', title: 'Keep the banner of the kernel', maxBytes: MiB },
    { from: '/proc/cmdline', title: 'Keep the command line of the kernel', maxBytes: MiB },
    { from: '/sys/kernel/notes', title: 'Keep the build id of the kernel', maxBytes: MiB },
    { from: '/sys/kernel/vmcoreinfo', title: 'Keep where VMCOREINFO lies in memory', maxBytes: MiB },
    { from: '/proc/modules', title: 'Keep the list of kernel modules', maxBytes: 4 * MiB },
    { from: '/proc/swaps', title: 'Keep the list of swap devices, which the image does not hold', maxBytes: MiB },
    { from: '/proc/meminfo', title: 'Keep the account of memory', maxBytes: MiB },
    { from: '/proc/kallsyms', title: 'Keep the symbols of the kernel', maxBytes: 128 * MiB },
    { from: '/sys/kernel/btf/vmlinux', title: 'Keep the types of the kernel', maxBytes: 64 * MiB },
    // Release and nothing else of a hostile name: it becomes part of a path.
    ...(/^[\w.+@=-]{1,100}$/.test(release)
      ? [boot('config', 'Keep how the kernel was built'), boot('System.map', 'Keep the symbols as they were linked')]
      : []),
  ]
}

export interface SymbolKit {
  readonly actions: readonly Action[]
  /** Parts that this kernel does not give. */
  readonly rejected: readonly Rejected[]
}

/** To be done when the image is complete: all this reading changes memory. */
export function symbolKit(host: HostView): SymbolKit {
  const release = (textOf(host, '/proc/sys/kernel/osrelease') ?? '').trim()
  const debug = debugPackage(textOf(host, '/etc/os-release') ?? '', release)
  const copies = plainFiles(release)
    .filter(({ from }) => exists(host, from))
    .map(
      ({ from, title, maxBytes }): Action => ({
        kind: 'copy',
        title,
        from,
        to: from.slice(1).replaceAll('/', '_'),
        maxBytes,
        limit: FILE_LIMIT,
      }),
    )
  const make: Action = {
    kind: 'collect',
    title: `Make ${SYMBOLS} of the types and symbols of the running kernel, for Volatility 3`,
    collector: 'kernel-symbols',
    options: { to: SYMBOLS, release, debugPackage: debug },
    writes: [SYMBOLS, 'vmcoreinfo.txt', 'modules.jsonl', 'btf/'],
    expectedBytes: 16 * MiB,
    limit: SYMBOLS_LIMIT,
  }
  const noBtf = exists(host, '/sys/kernel/btf/vmlinux')
    ? []
    : [
        {
          what: SYMBOLS,
          why: 'this kernel does not describe its types (there is no /sys/kernel/btf/vmlinux)',
          remedy: fromDebugPackage(debug),
        },
      ]
  return { actions: [...copies, make], rejected: noBtf }
}

/** How a symbol file is made elsewhere. */
export function fromDebugPackage(debug: string): string {
  return `make it elsewhere with dwarf2json from ${debug}`
}

/** By the names that distributions give: Debian's -dbg, Ubuntu's -dbgsym, the -debuginfo of Red Hat and SUSE. */
export function debugPackage(osRelease: string, release: string): string {
  const id = /^ID="?([a-z0-9._-]+)"?$/m.exec(osRelease)?.[1] ?? ''
  const like = /^ID_LIKE="?([a-z0-9._ -]+)"?$/m.exec(osRelease)?.[1] ?? ''
  const family = [id, ...like.split(' ')]
  const shown = /^[\w.+~@=-]{1,100}$/.test(release) ? release : '$(uname -r)'
  if (family.includes('ubuntu')) return `linux-image-unsigned-${shown}-dbgsym (of ddebs.ubuntu.com)`
  if (family.includes('debian')) return `linux-image-${shown}-dbg`
  if (family.some(one => one === 'suse' || one.startsWith('opensuse') || one.startsWith('sles'))) {
    return `kernel-${shown.split('-').at(-1)}-debuginfo for ${shown}`
  }
  if (family.some(one => ['rhel', 'fedora', 'centos', 'amzn', 'ol'].includes(one))) return `kernel-debuginfo-${shown}`
  return `the package with the debug information of ${shown}`
}
