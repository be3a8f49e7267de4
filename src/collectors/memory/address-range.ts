/** Ranges of addresses, of physical memory or of a process. Beyond 2^53 on real machines, hence bigint throughout. */
import type { JsonObject } from '../../step.js'

/** Half open: `end` is the first address behind it. */
export interface AddressRange {
  readonly start: bigint
  readonly end: bigint
}

/** Math.min and Math.max take no bigint. */
export function lower(a: bigint, b: bigint): bigint {
  return b < a ? b : a
}

export function higher(a: bigint, b: bigint): bigint {
  return b > a ? b : a
}

/** Sorted, with overlapping and touching ranges made one. */
export function mergeRanges(ranges: readonly AddressRange[]): AddressRange[] {
  const sorted = ranges.filter(range => range.end > range.start).toSorted((a, b) => (a.start < b.start ? -1 : a.start > b.start ? 1 : 0))
  const merged: { start: bigint; end: bigint }[] = []
  for (const { start, end } of sorted) {
    const last = merged.at(-1)
    if (last !== undefined && start <= last.end) last.end = higher(end, last.end)
    else merged.push({ start, end })
  }
  return merged
}

/** What `ranges` and `others` have in common; both sorted and without overlap. */
export function intersectRanges(ranges: readonly AddressRange[], others: readonly AddressRange[]): AddressRange[] {
  const common: AddressRange[] = []
  let i = 0
  let j = 0
  while (i < ranges.length && j < others.length) {
    const a = ranges[i] as AddressRange
    const b = others[j] as AddressRange
    const start = higher(a.start, b.start)
    const end = lower(a.end, b.end)
    if (start < end) common.push({ start, end })
    if (a.end < b.end) i++
    else j++
  }
  return common
}

/** `ranges` without what `others` cover; both sorted and without overlap. */
export function subtractRanges(ranges: readonly AddressRange[], others: readonly AddressRange[]): AddressRange[] {
  const left: AddressRange[] = []
  let j = 0
  for (const range of ranges) {
    let { start } = range
    while (j < others.length && (others[j] as AddressRange).end <= start) j++
    for (let k = j; k < others.length && (others[k] as AddressRange).start < range.end; k++) {
      const other = others[k] as AddressRange
      if (other.start > start) left.push({ start, end: other.start })
      start = higher(start, other.end)
    }
    if (start < range.end) left.push({ start, end: range.end })
  }
  return left
}

/** The pages that lie wholly in a range; those that hold no whole page vanish. */
export function wholePages(ranges: readonly AddressRange[], pageSize: bigint): AddressRange[] {
  return ranges
    .map(({ start, end }) => ({ start: ((start + pageSize - 1n) / pageSize) * pageSize, end: (end / pageSize) * pageSize }))
    .filter(range => range.end > range.start)
}

/** Bytes of all ranges together. */
export function totalBytes(ranges: readonly AddressRange[]): bigint {
  return ranges.reduce((sum, range) => sum + (range.end - range.start), 0n)
}

/** '0x9fc00' */
export function hex(address: bigint): string {
  return `0x${address.toString(16)}`
}

/** As people and /proc/iomem write it: first and last address. */
export function rangeFacts(range: AddressRange): JsonObject {
  return { first: hex(range.start), last: hex(range.end - 1n) }
}
