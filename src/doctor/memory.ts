/** Whether physical memory can be captured, and what the kernel says about it. */
import type { Host } from '../host.js'
import { formatBytes } from '../time.js'
import type { Fact, MemoryOffer } from './examination.js'
import { exists, textOf } from './look.js'

const LOCKDOWN = '/sys/kernel/security/lockdown'

export function examineMemory(host: Host, offer: MemoryOffer): Fact[] {
  const about = { topic: 'memory' } as const
  const facts: Fact[] = offer.chosen.map(({ title, bytes }) => ({
    ...about,
    what: 'capture',
    state: 'ok',
    found: bytes === undefined ? title : `${title}, ${formatBytes(bytes)}`,
  }))
  const works = offer.chosen.length > 0
  const [remedy = 'take a snapshot with memory from the hypervisor'] = offer.rejected
    .map(({ remedy }) => remedy)
    .filter(text => text !== '')
  if (!works) facts.push({ ...about, what: 'capture', state: 'lack', found: 'no source of physical memory works here', remedy })
  const told = new Set([remedy])
  for (const source of offer.rejected) {
    // Once one source works, what the others lack is no lack; and one remedy is told once.
    const lack = !works && source.remedy !== '' && !told.has(source.remedy)
    const fact = { ...about, what: source.what, found: source.why }
    facts.push(lack ? { ...fact, state: 'lack', remedy: source.remedy } : { ...fact, state: 'note' })
    told.add(source.remedy)
  }
  return [...facts, lockdown(host), modules(host, works), ...swap(host)]
}

/** kernel_lockdown(7); the file reads 'none [integrity] confidentiality'. */
function lockdown(host: Host): Fact {
  const about = { topic: 'memory', what: 'lockdown' } as const
  const text = textOf(host, LOCKDOWN)
  const mode = /\[(\w+)\]/.exec(text ?? '')?.[1]
  if (mode === 'none') return { ...about, state: 'ok', found: 'none' }
  if (mode === 'integrity')
    return { ...about, state: 'note', found: 'integrity: /proc/kcore can be read, /dev/mem and unsigned modules cannot' }
  if (mode !== undefined) {
    const remedy = 'take a snapshot with memory from the hypervisor; lockdown can only be left by a reboot, which destroys the memory'
    return { ...about, state: 'lack', found: `${mode}: the kernel gives its memory to nobody`, remedy }
  }
  if (textOf(host, '/proc/self/mountinfo')?.includes(' - securityfs ')) {
    return exists(host, LOCKDOWN)
      ? { ...about, state: 'unknown', found: `${LOCKDOWN} cannot be read`, remedy: 'sudo ir doctor' }
      : { ...about, state: 'ok', found: 'none: this kernel has no lockdown' }
  }
  const remedy = 'mount -t securityfs securityfs /sys/kernel/security'
  return { ...about, state: 'unknown', found: 'securityfs is not mounted', remedy }
}

/** Documentation/admin-guide/sysctl/kernel.rst, modules_disabled; Documentation/admin-guide/module-signing.rst, sig_enforce. */
function modules(host: Host, works: boolean): Fact {
  const about = { topic: 'memory', what: 'modules' } as const
  const closed = (found: string): Fact =>
    works
      ? { ...about, state: 'note', found }
      : { ...about, state: 'lack', found, remedy: 'without LiME, a snapshot by the hypervisor is left' }
  if (!exists(host, '/proc/modules')) return closed('this kernel has no loadable modules: no LiME')
  if (textOf(host, '/proc/sys/kernel/modules_disabled') === '1') return closed('kernel.modules_disabled is 1 until the next boot: no LiME')
  if (textOf(host, '/sys/module/module/parameters/sig_enforce') === 'Y') {
    return {
      ...about,
      state: 'note',
      found: 'only signed modules can be loaded: LiME would have to be signed with a key that this kernel trusts',
    }
  }
  return { ...about, state: 'ok', found: 'can be loaded' }
}

/** What lies in swap is not in an image of the memory. zram and zswap are memory, compressed. */
function swap(host: Host): Fact[] {
  const lines = (textOf(host, '/proc/swaps') ?? '').split('\n').slice(1)
  const devices = lines.flatMap(line => {
    const [name, , , used] = line.split(/\s+/)
    return name === undefined || name === '' ? [] : [{ name, bytes: Number(used) * 1024 }]
  })
  if (devices.length === 0) return []
  const used = devices.reduce((sum, { bytes }) => sum + bytes, 0)
  const names = devices.map(({ name }) => name).join(' ')
  const found = used === 0 ? `${names}, not in use` : `${formatBytes(used)} of the memory of processes is in ${names}, not in an image`
  return [{ topic: 'memory', what: 'swap', state: used > 0 ? 'note' : 'ok', found, detail: { usedBytes: used } }]
}
