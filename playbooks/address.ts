/** IP addresses and networks as they are typed, and as the kernel prints them. */

/** One address, or all that share its first `length` bits. Bits behind those are 0. */
export interface Network {
  readonly family: 4 | 6
  readonly bytes: readonly number[]
  /** 32 or 128 for a single address. */
  readonly length: number
}

/** The first 12 bytes of an IPv4-mapped IPv6 address: RFC 4291, section 2.5.5.2. */
const MAPPED = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]

/**
 * From '198.51.100.7', '198.51.100.0/24', '2001:db8::7', '2001:db8::/48'. An IPv4-mapped IPv6 address is the IPv4 address it means;
 * the zone of a link-local one ('fe80::1%eth0') is left out. Undefined for anything else, numbers with leading zeros included.
 */
export function parseNetwork(text: string): Network | undefined {
  const [, address = '', zone, slash] = /^([0-9a-f:.]+)(%[^/]+)?(?:\/(0|[1-9]\d{0,2}))?$/i.exec(text) ?? []
  const bytes = address.includes(':') ? parseV6(address) : zone === undefined ? parseV4(address) : undefined
  return bytes === undefined ? undefined : network(bytes, slash === undefined ? bytes.length * 8 : Number(slash))
}

/**
 * From an address of /proc/net/tcp or tcp6 ('076433C6'): 32-bit words in the byte order of the host (proc_net(5)),
 * little-endian on the machines that this runs on.
 */
export function parseProcAddress(hex: string): Network | undefined {
  if (!/^([0-9A-F]{8}|[0-9A-F]{32})$/i.test(hex)) return undefined
  const bytes = (hex.match(/.{8}/g) ?? []).flatMap(word => (word.match(/../g) ?? []).reverse().map(byte => Number.parseInt(byte, 16)))
  return network(bytes, bytes.length * 8)
}

/** '198.51.100.7', '198.51.100.0/24', '2001:db8::7' (RFC 5952). */
export function formatNetwork({ family, bytes, length }: Network): string {
  const address = family === 4 ? bytes.join('.') : formatV6(bytes)
  return length === bytes.length * 8 ? address : `${address}/${length}`
}

/** Whether every address of `inner` lies in `outer`. */
export function covers(outer: Network, inner: Network): boolean {
  return outer.family === inner.family && outer.length <= inner.length && equal(masked(inner.bytes, outer.length), outer.bytes)
}

/** An address by which a host talks to itself: 127.0.0.0/8 (RFC 1122), ::1 (RFC 4291). */
export function isLoopback({ family, bytes }: Network): boolean {
  return family === 4 ? bytes[0] === 127 : equal(bytes, [...Array<number>(15).fill(0), 1])
}

function network(bytes: readonly number[], length: number): Network | undefined {
  if (length > bytes.length * 8) return undefined
  if (bytes.length === 16 && length >= 96 && equal(bytes.slice(0, 12), MAPPED)) return network(bytes.slice(12), length - 96)
  return { family: bytes.length === 4 ? 4 : 6, bytes: masked(bytes, length), length }
}

function masked(bytes: readonly number[], length: number): number[] {
  return bytes.map((byte, index) => {
    const kept = Math.min(8, Math.max(0, length - index * 8))
    return byte & (0xff00 >> kept) & 0xff
  })
}

function equal(one: readonly number[], other: readonly number[]): boolean {
  return one.length === other.length && one.every((byte, index) => byte === other[index])
}

function parseV4(text: string): number[] | undefined {
  const parts = text.split('.')
  if (parts.length !== 4 || parts.some(part => !/^(0|[1-9]\d{0,2})$/.test(part) || Number(part) > 255)) return undefined
  return parts.map(Number)
}

/** RFC 4291, section 2.2: eight groups, one run of zeros as '::', the last two groups perhaps as an IPv4 address. */
function parseV6(text: string): number[] | undefined {
  const halves = text.split('::')
  if (halves.length > 2) return undefined
  const [left, right] = halves.map(half => (half === '' ? [] : parseGroups(half)))
  if (left === undefined || (halves.length === 2 && right === undefined)) return undefined
  const missing = 16 - left.length - (right?.length ?? 0)
  if (halves.length === 1 ? missing !== 0 : missing < 2) return undefined
  return [...left, ...Array<number>(missing).fill(0), ...(right ?? [])]
}

function parseGroups(text: string): number[] | undefined {
  const groups = text.split(':')
  const bytes: number[] = []
  for (const [index, group] of groups.entries()) {
    const v4 = index === groups.length - 1 && group.includes('.') ? parseV4(group) : undefined
    if (v4 !== undefined) bytes.push(...v4)
    else if (/^[0-9a-f]{1,4}$/i.test(group)) bytes.push(Number.parseInt(group, 16) >> 8, Number.parseInt(group, 16) & 0xff)
    else return undefined
  }
  return bytes
}

/** RFC 5952, section 4: lower case, no leading zeros, the longest run of two or more zero groups as '::', the first one of equals. */
function formatV6(bytes: readonly number[]): string {
  const groups = Array.from({ length: 8 }, (_, index) => (bytes[2 * index] as number) * 256 + (bytes[2 * index + 1] as number))
  let best = { start: 0, length: 1 }
  for (let start = 0; start < 8; start += 1) {
    let length = 0
    while (groups[start + length] === 0) length += 1
    if (length > best.length) best = { start, length }
  }
  const text = (part: readonly number[]): string => part.map(group => group.toString(16)).join(':')
  if (best.length === 1) return text(groups)
  return `${text(groups.slice(0, best.start))}::${text(groups.slice(best.start + best.length))}`
}

/** RFC 5771 and RFC 4291, section 2.7: nobody connects from there. */
export function isMulticast({ family, bytes }: Network): boolean {
  const first = bytes[0] ?? 0
  return family === 4 ? first >= 224 : first === 0xff
}
