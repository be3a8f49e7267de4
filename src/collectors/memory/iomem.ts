/** Where RAM lies in the physical address space: /proc/iomem, proc_iomem(5). */
import type { AddressRange } from './address-range.js'

/** A resource of RAM: boot memory, or memory added later below a driver's resource ('System RAM (virtio_mem)', '... (kmem)'). */
const RAM = /^System RAM(?: \(.*\))?$/

/**
 * Every resource of RAM, sorted, at whatever depth; what lies inside one (kernel code, crash kernel) belongs to it. Not merged:
 * the kernel trims each resource to whole pages by itself, so their borders matter.
 * @throws Error when there is none, or the addresses are hidden: without CAP_SYS_ADMIN all are shown as 0.
 */
export function systemRam(iomem: string): AddressRange[] {
  const resources: AddressRange[] = []
  let inside = Number.POSITIVE_INFINITY
  for (const line of iomem.split('\n')) {
    const found = /^( *)([0-9a-f]+)-([0-9a-f]+) : (.*)$/.exec(line)
    if (found === null) continue
    const depth = (found[1] as string).length
    if (depth > inside) continue
    inside = Number.POSITIVE_INFINITY
    if (!RAM.test(found[4] as string)) continue
    inside = depth
    // The last address is part of the range.
    resources.push({ start: BigInt(`0x${found[2]}`), end: BigInt(`0x${found[3]}`) + 1n })
  }
  if (resources.length === 0) throw new Error('/proc/iomem names no System RAM')
  if (resources.every(({ start, end }) => start === 0n && end === 1n)) {
    throw new Error('/proc/iomem hides the addresses: it shows them only with CAP_SYS_ADMIN')
  }
  return resources.toSorted((a, b) => (a.start < b.start ? -1 : a.start > b.start ? 1 : 0))
}
