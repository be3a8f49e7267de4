/**
 * Splits a classic pcap stream into its records: pcap-savefile(5), draft-ietf-opsawg-pcap. Both byte orders, microseconds and nanoseconds.
 * pcapng and the variants that some vendors made with longer record headers are refused by name.
 */

/** Global header and the header of each record, in bytes: pcap-savefile(5). */
const FILE_HEADER = 24
const RECORD_HEADER = 16

/** MAXIMUM_SNAPLEN of libpcap (pcap-int.h): no network packet is captured longer. It bounds what a broken length can make us hold. */
export const LONGEST_PACKET = 262_144

export interface PcapHeader {
  /** As it came: every file that holds records of this stream begins with it. */
  readonly bytes: Buffer
  readonly littleEndian: boolean
  /** Fractions of a second are nanoseconds, otherwise microseconds. */
  readonly nanoseconds: boolean
  readonly snapshotLength: number
  /** LINKTYPE_ number: www.tcpdump.org/linktypes.html. */
  readonly linkType: number
}

/** A whole record, its header included: `buffer.subarray(start, end)`. Records of one buffer follow each other without gaps. */
export interface PcapRecord {
  readonly buffer: Buffer
  readonly start: number
  readonly end: number
  /** When the kernel saw the packet: milliseconds since the epoch, with a fraction. */
  readonly time: number
}

/** The stream is no pcap, or cannot be followed any further. What came before is whole. */
export class PcapError extends Error {}

const NAMES: ReadonlyMap<number, string> = new Map([
  [0x0a0d0d0a, 'it is pcapng'],
  [0xa1b2cd34, 'it has the longer records of a patched libpcap'],
  [0x34cdb2a1, 'it has the longer records of a patched libpcap'],
])

/** @throws PcapError when the first 24 bytes are not those of a classic pcap. */
export function parsePcapHeader(bytes: Buffer): PcapHeader {
  if (bytes.length < FILE_HEADER) throw new PcapError('not a pcap stream: it is shorter than a header')
  const magic = bytes.readUInt32BE(0)
  const orders = {
    3569595041: [true, false],
    2712847316: [false, false],
    1295823521: [true, true],
    2712812621: [false, true],
  } as const
  const order = orders[magic as keyof typeof orders]
  if (order === undefined)
    throw new PcapError(`not a pcap stream: ${NAMES.get(magic) ?? `it begins with 0x${magic.toString(16).padStart(8, '0')}`}`)
  const [littleEndian, nanoseconds] = order
  const number = (at: number): number => (littleEndian ? bytes.readUInt32LE(at) : bytes.readUInt32BE(at))
  const snapshotLength = number(16)
  if (snapshotLength > LONGEST_PACKET) throw new PcapError(`its snapshot length of ${snapshotLength} is no network capture's`)
  // The upper half of the field may carry the length of a frame check sequence (draft-ietf-opsawg-pcap, section 4).
  return { bytes: Buffer.from(bytes.subarray(0, FILE_HEADER)), littleEndian, nanoseconds, snapshotLength, linkType: number(20) & 0xffff }
}

/**
 * Takes a pcap stream in pieces of any size and gives its records whole.
 * Holds at most one incomplete record beside the piece at hand.
 */
export class PcapSplitter {
  /** Known as soon as 24 bytes have come. */
  header: PcapHeader | undefined
  private rest: Buffer = Buffer.alloc(0)

  /** Bytes of an incomplete record that wait for the rest of it; at the end of a stream: what is cut off. */
  get pending(): number {
    return this.rest.length
  }

  /**
   * Calls back for each record that is whole with this piece, in order. The buffer is only valid during the call.
   * @throws PcapError when the stream is no pcap or a record claims an impossible length. Records before it have been given.
   */
  push(piece: Buffer, onRecord: (record: PcapRecord) => void): void {
    const buffer = this.rest.length === 0 ? piece : Buffer.concat([this.rest, piece])
    let at = 0
    try {
      if (this.header === undefined) {
        if (buffer.length < FILE_HEADER) return
        this.header = parsePcapHeader(buffer)
        at = FILE_HEADER
      }
      const { littleEndian, nanoseconds } = this.header
      while (buffer.length - at >= RECORD_HEADER) {
        const length = littleEndian ? buffer.readUInt32LE(at + 8) : buffer.readUInt32BE(at + 8)
        if (length > LONGEST_PACKET) throw new PcapError(`a record claims to be ${length} bytes long`)
        const end = at + RECORD_HEADER + length
        if (end > buffer.length) break
        const seconds = littleEndian ? buffer.readUInt32LE(at) : buffer.readUInt32BE(at)
        const fraction = littleEndian ? buffer.readUInt32LE(at + 4) : buffer.readUInt32BE(at + 4)
        onRecord({ buffer, start: at, end, time: seconds * 1000 + fraction / (nanoseconds ? 1e6 : 1e3) })
        at = end
      }
    } finally {
      // A copy: the piece belongs to the stream, which may use it again.
      this.rest = Buffer.from(buffer.subarray(at))
    }
  }
}

/** Link types that tcpdump writes on Linux: www.tcpdump.org/linktypes.html. */
const LINK_TYPES: ReadonlyMap<number, string> = new Map([
  [0, 'NULL'],
  [1, 'ETHERNET'],
  [12, 'RAW'],
  [101, 'RAW'],
  [113, 'LINUX_SLL'],
  [127, 'IEEE802_11_RADIOTAP'],
  [228, 'IPV4'],
  [229, 'IPV6'],
  [239, 'NFLOG'],
  [276, 'LINUX_SLL2'],
])

/** 'LINUX_SLL2', or the number where it has no name here. */
export function linkTypeName(linkType: number): string {
  return LINK_TYPES.get(linkType) ?? String(linkType)
}
