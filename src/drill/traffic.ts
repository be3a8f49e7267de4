/** Who sent and who was heard, before and after the cut: read from the captured segments. */
import { isIPv6 } from 'node:net'
import { PcapSplitter } from '../collectors/packets/pcap.js'

/** Packets with one remote address. */
export interface Traffic {
  outBefore: number
  inBefore: number
  outAfter: number
  inAfter: number
}

/** LINKTYPE_LINUX_SLL2, what `tcpdump -i any` writes: www.tcpdump.org/linktypes/LINKTYPE_LINUX_SLL2.html. */
const SLL2 = 276
const SLL2_HEADER = 20
/** sll2_pkttype of a packet that this host sent. */
const OUTGOING = 4
const RECORD_HEADER = 16

/** Adds the packets of one segment to `totals`, by remote address. `cut` is when the rules were in force, in milliseconds since the epoch. */
export function addTraffic(segment: Buffer, cut: number, totals: Map<string, Traffic>): void {
  const splitter = new PcapSplitter()
  splitter.push(segment, record => {
    if (splitter.header?.linkType !== SLL2) return
    const packet = record.buffer.subarray(record.start + RECORD_HEADER, record.end)
    const addresses = addressesOf(packet)
    if (addresses === undefined) return
    const out = packet[10] === OUTGOING
    const remote = out ? addresses.to : addresses.from
    const total = totals.get(remote) ?? { outBefore: 0, inBefore: 0, outAfter: 0, inAfter: 0 }
    total[`${out ? 'out' : 'in'}${record.time < cut ? 'Before' : 'After'}`]++
    totals.set(remote, total)
  })
}

/** Source and destination of an IPv4 or IPv6 packet (RFC 791, RFC 8200), undefined for anything else. */
function addressesOf(packet: Buffer): { from: string; to: string } | undefined {
  if (packet.length < SLL2_HEADER) return undefined
  const protocol = packet.readUInt16BE(0)
  const ip = packet.subarray(SLL2_HEADER)
  if (protocol === 0x0800 && ip.length >= 20) return { from: v4(ip, 12), to: v4(ip, 16) }
  if (protocol === 0x86dd && ip.length >= 40) return { from: v6(ip, 8), to: v6(ip, 24) }
  return undefined
}

function v4(ip: Buffer, at: number): string {
  return ip.subarray(at, at + 4).join('.')
}

function v6(ip: Buffer, at: number): string {
  const words = Array.from({ length: 8 }, (_, index) => ip.readUInt16BE(at + 2 * index).toString(16))
  return canonical(words.join(':'))
}

/** One spelling for each IPv6 address (RFC 5952); IPv4 addresses as they are. */
export function canonical(address: string): string {
  return isIPv6(address) ? new URL(`http://[${address}]`).hostname.slice(1, -1) : address
}
