/** What we may do here: root, capabilities, and what stands between us and the whole machine. */
import type { Host } from '../host.js'
import type { Fact } from './examination.js'
import { exists, linkOf, statusField, textOf } from './look.js'

/** Bits of include/uapi/linux/capability.h that steps need, and for what. */
const CAPABILITIES: readonly { readonly name: string; readonly bit: bigint; readonly use: string }[] = [
  { name: 'CAP_DAC_READ_SEARCH', bit: 2n, use: 'reading files and directories of everybody' },
  { name: 'CAP_LINUX_IMMUTABLE', bit: 9n, use: 'removing immutable attributes afterwards (chattr -i)' },
  { name: 'CAP_NET_ADMIN', bit: 12n, use: 'isolating the host, and reading its firewall and conntrack' },
  { name: 'CAP_NET_RAW', bit: 13n, use: 'capturing packets' },
  { name: 'CAP_SYS_MODULE', bit: 16n, use: 'loading LiME' },
  { name: 'CAP_SYS_RAWIO', bit: 17n, use: 'reading memory from /proc/kcore and /dev/mem' },
  { name: 'CAP_SYS_PTRACE', bit: 19n, use: 'looking into processes of other users' },
  { name: 'CAP_SYS_ADMIN', bit: 21n, use: 'entering the namespaces of containers, and the drill' },
  { name: 'CAP_SYSLOG', bit: 34n, use: 'kernel addresses in /proc/kallsyms, for symbols with the memory image' },
]

export function examineRights(host: Host): Fact[] {
  const uid = statusField(host, 'Uid')?.split(/\s+/)[1]
  const root = uid === '0'
  const about = { topic: 'rights', what: 'root' } as const
  const facts: Fact[] = [
    uid === undefined
      ? { ...about, state: 'unknown', found: '/proc/self/status cannot be read', remedy: 'mount -t proc proc /proc' }
      : root
        ? { ...about, state: 'ok', found: 'yes' }
        : { ...about, state: 'lack', found: `no, user ${uid}: what root may do is not known from here`, remedy: 'sudo ir doctor' },
  ]
  facts.push(...capabilities(host, root), ...userNamespace(host), ...tracing(host))
  return facts
}

function capabilities(host: Host, root: boolean): Fact[] {
  const mask = statusField(host, 'CapEff')
  if (mask === undefined || !/^[0-9a-f]+$/.test(mask)) return []
  const effective = BigInt(`0x${mask}`)
  const absent = CAPABILITIES.filter(({ bit }) => (effective & (1n << bit)) === 0n)
  if (absent.length === 0) {
    return [
      { topic: 'rights', what: 'capabilities', state: 'ok', found: `all ${CAPABILITIES.length} that ir uses`, detail: { effective: mask } },
    ]
  }
  const remedy = root ? 'run ir on the host itself; in a container: --privileged or --cap-add' : 'sudo ir doctor'
  return absent.map(({ name, use }) => ({ topic: 'rights', what: name, state: 'lack', found: `not ours; needed for ${use}`, remedy }))
}

/** Root of a user namespace is root over nothing outside it: user_namespaces(7). */
function userNamespace(host: Host): Fact[] {
  const map = textOf(host, '/proc/self/uid_map')?.split(/\s+/)
  if (map === undefined || (map[0] === '0' && map[1] === '0' && map[2] === '4294967295')) return []
  const found = `user ids are mapped (${map.slice(0, 3).join(' ')}): root here is not root of the host`
  return [{ topic: 'rights', what: 'user namespace', state: 'lack', found, remedy: 'run ir on the host itself, as root' }]
}

/** Documentation/admin-guide/LSM/Yama.rst: 3 forbids attaching to anything, until the next boot. */
function tracing(host: Host): Fact[] {
  if (textOf(host, '/proc/sys/kernel/yama/ptrace_scope') !== '3') return []
  const found = 'kernel.yama.ptrace_scope is 3: the memory of processes cannot be read, not even by root'
  return [
    { topic: 'rights', what: 'ptrace', state: 'lack', found, remedy: 'a lower value in /etc/sysctl.d counts from the next boot on only' },
  ]
}

/** PROC_PID_INIT_INO of include/linux/proc_ns.h: the PID namespace of the machine. */
const INITIAL_PID_NAMESPACE = `pid:[${0xeffffffc}]`

/** Kernel, distribution, container, and whether all processes can be seen. */
export function examineHost(host: Host): Fact[] {
  const release = textOf(host, '/proc/sys/kernel/osrelease')
  const system = /^PRETTY_NAME="?([^"\n]*)/m.exec(textOf(host, '/etc/os-release') ?? '')?.[1]
  const facts: Fact[] = [
    release === undefined
      ? { topic: 'host', what: 'kernel', state: 'unknown', found: '/proc cannot be read', remedy: 'mount -t proc proc /proc' }
      : { topic: 'host', what: 'kernel', state: 'note', found: `Linux ${release}${system === undefined ? '' : `, ${system}`}` },
  ]
  return [...facts, container(host), processes(host), ...hiddenProcesses(host)]
}

function container(host: Host): Fact {
  const about = { topic: 'host', what: 'container' } as const
  const signs: string[] = []
  // container(7) of systemd: the manager of a container says so in this file.
  const named = textOf(host, '/run/systemd/container')
  if (named) signs.push(`/run/systemd/container says ${named}`)
  for (const file of ['/.dockerenv', '/run/.containerenv']) if (exists(host, file)) signs.push(`there is ${file}`)
  const variable = (textOf(host, '/proc/1/environ') ?? '').split('\0').find(line => line.startsWith('container='))
  if (variable !== undefined) signs.push(`process 1 has ${variable}`)
  const group = /(docker|kubepods|containerd|libpod|lxc)[^\n]*/.exec(textOf(host, '/proc/self/cgroup') ?? '')
  if (group !== null) signs.push(`our cgroup is of ${group[1]}`)
  if (signs.length === 0) return { ...about, state: 'ok', found: 'none: this is the host itself' }
  if (kernelThreads(host)) {
    const found = `${signs.join('; ')}, yet the kernel's own threads can be seen: a file system made for a container, or one with --pid=host`
    return { ...about, state: 'note', found }
  }
  const found = `we are in one (${signs.join('; ')}): memory, kernel and other processes of the host are out of reach`
  return { ...about, state: 'lack', found, remedy: 'run ir on the host itself' }
}

/** Seen by the number of our PID namespace and by the kernel's own threads, which only the first one shows. */
function processes(host: Host): Fact {
  const about = { topic: 'host', what: 'processes' } as const
  const namespace = linkOf(host, '/proc/self/ns/pid')
  if (kernelThreads(host) || namespace === INITIAL_PID_NAMESPACE) return { ...about, state: 'ok', found: 'all of the machine can be seen' }
  if (namespace === undefined)
    return { ...about, state: 'unknown', found: '/proc/self/ns/pid cannot be read', remedy: 'mount -t proc proc /proc' }
  const found = `only those of our PID namespace (${namespace}) can be seen`
  return { ...about, state: 'lack', found, remedy: 'run ir on the host itself, or in a container with --pid=host' }
}

function kernelThreads(host: Host): boolean {
  return textOf(host, '/proc/2/comm') === 'kthreadd'
}

/** proc(5): hidepid hides what is not ours from everybody but root. */
function hiddenProcesses(host: Host): Fact[] {
  const mount = (textOf(host, '/proc/self/mountinfo') ?? '').split('\n').find(line => / \/proc .* - proc .*\bhidepid=[^0o]/.test(line))
  if (mount === undefined || statusField(host, 'Uid')?.split(/\s+/)[1] === '0') return []
  return [
    { topic: 'host', what: 'hidepid', state: 'lack', found: '/proc hides the processes of other users from us', remedy: 'sudo ir doctor' },
  ]
}
