import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  LONGEST_PACKET,
  linkTypeName,
  PcapError,
  type PcapRecord,
  PcapSplitter,
  parsePcapHeader,
} from '../../../../src/collectors/packets/pcap.js'

interface Shape {
  readonly littleEndian: boolean
  readonly nanoseconds: boolean
  readonly packets: readonly { readonly seconds: number; readonly fraction: number; readonly data: Uint8Array }[]
}

/** A file as pcap-savefile(5) describes it, written without the code under test. */
function file({ littleEndian, nanoseconds, packets }: Shape): Buffer {
  const number = (value: number): Buffer => {
    const bytes = Buffer.alloc(4)
    if (littleEndian) bytes.writeUInt32LE(value)
    else bytes.writeUInt32BE(value)
    return bytes
  }
  const version = littleEndian ? Buffer.from([2, 0, 4, 0]) : Buffer.from([0, 2, 0, 4])
  const magic = nanoseconds ? 0xa1b23c4d : 0xa1b2c3d4
  const parts = [number(magic), version, number(0), number(0), number(LONGEST_PACKET), number(276)]
  for (const { seconds, fraction, data } of packets) {
    parts.push(number(seconds), number(fraction), number(data.length), number(data.length + 7), Buffer.from(data))
  }
  return Buffer.concat(parts)
}

const shapes = fc.record<Shape>({
  littleEndian: fc.boolean(),
  nanoseconds: fc.boolean(),
  packets: fc.array(fc.record({ seconds: fc.nat(0xffffffff), fraction: fc.nat(999_999), data: fc.uint8Array({ maxLength: 200 }) }), {
    maxLength: 30,
  }),
})

/** Cuts bytes into pieces of the given lengths, repeated. */
function pieces(bytes: Buffer, lengths: readonly number[]): Buffer[] {
  const cut: Buffer[] = []
  for (let at = 0, turn = 0; at < bytes.length; turn += 1) {
    const length = lengths[turn % lengths.length] as number
    cut.push(bytes.subarray(at, at + length))
    at += length
  }
  return cut
}

function split(parts: readonly Buffer[]): { splitter: PcapSplitter; records: { bytes: string; time: number }[] } {
  const splitter = new PcapSplitter()
  const records: { bytes: string; time: number }[] = []
  const keep = ({ buffer, start, end, time }: PcapRecord): void => {
    records.push({ bytes: buffer.subarray(start, end).toString('hex'), time })
  }
  for (const part of parts) splitter.push(part, keep)
  return { splitter, records }
}

describe('the pcap record splitter', () => {
  it('gives the same records however the stream is cut', () => {
    fc.assert(
      fc.property(shapes, fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1, maxLength: 8 }), (shape, lengths) => {
        const bytes = file(shape)
        const { splitter, records } = split(pieces(bytes, lengths))
        expect(splitter.pending).toBe(0)
        expect(splitter.header).toMatchObject({ littleEndian: shape.littleEndian, nanoseconds: shape.nanoseconds, linkType: 276 })
        expect(records.map(record => record.bytes).join('')).toBe(bytes.subarray(24).toString('hex'))
        expect(records.map(record => record.time)).toEqual(
          shape.packets.map(({ seconds, fraction }) => seconds * 1000 + fraction / (shape.nanoseconds ? 1e6 : 1e3)),
        )
      }),
      { numRuns: 500 },
    )
  })

  it('gives no record that is not whole', () => {
    fc.assert(
      fc.property(shapes, fc.nat(), (shape, cut) => {
        const bytes = file(shape)
        const length = cut % (bytes.length + 1)
        const { splitter, records } = split([bytes.subarray(0, length)])
        const given = records.reduce((sum, record) => sum + record.bytes.length / 2, 0)
        expect(given + splitter.pending + (splitter.header ? 24 : 0)).toBe(length)
        expect(bytes.subarray(24, 24 + given).toString('hex')).toBe(records.map(record => record.bytes).join(''))
      }),
    )
  })

  it('survives any bytes, and holds at most one record of them', () => {
    const header = fc.constantFrom(file({ littleEndian: true, nanoseconds: false, packets: [] }), Buffer.alloc(0))
    fc.assert(
      fc.property(header, fc.array(fc.uint8Array({ maxLength: 400 }), { maxLength: 20 }), (start, parts) => {
        const splitter = new PcapSplitter()
        try {
          for (const part of [start, ...parts.map(part => Buffer.from(part))]) splitter.push(part, () => {})
        } catch (error) {
          expect(error).toBeInstanceOf(PcapError)
        }
        expect(splitter.pending).toBeLessThanOrEqual(LONGEST_PACKET + 16 + 400)
      }),
      { numRuns: 2000 },
    )
  })

  it('does not keep the memory of the piece it was given', () => {
    const bytes = file({ littleEndian: true, nanoseconds: false, packets: [{ seconds: 1, fraction: 2, data: Buffer.from('whole') }] })
    const piece = Buffer.from(bytes.subarray(0, 30))
    const splitter = new PcapSplitter()
    splitter.push(piece, () => {})
    piece.fill(0xff)
    const records: string[] = []
    splitter.push(bytes.subarray(30), ({ buffer, start, end }) => records.push(buffer.subarray(start, end).toString('hex')))
    expect(records).toEqual([bytes.subarray(24).toString('hex')])
  })

  it('stops at a length that no packet has, after the records before it', () => {
    const good = file({ littleEndian: true, nanoseconds: false, packets: [{ seconds: 1, fraction: 0, data: Buffer.from('one') }] })
    const bad = Buffer.alloc(16)
    bad.writeUInt32LE(LONGEST_PACKET + 1, 8)
    const seen: number[] = []
    expect(() => new PcapSplitter().push(Buffer.concat([good, bad]), record => seen.push(record.time))).toThrow('262145 bytes long')
    expect(seen).toEqual([1000])
  })

  it('names what is not classic pcap', () => {
    const pcapng = Buffer.alloc(32)
    pcapng.writeUInt32BE(0x0a0d0d0a)
    expect(() => parsePcapHeader(pcapng)).toThrow('pcapng')
    expect(() => parsePcapHeader(Buffer.from('tcpdump: no permission at all'))).toThrow('0x74637064')
    expect(() => parsePcapHeader(Buffer.from('short'))).toThrow('shorter than a header')
    const usb = file({ littleEndian: true, nanoseconds: false, packets: [] })
    usb.writeUInt32LE(128 << 20, 16)
    expect(() => parsePcapHeader(usb)).toThrow('snapshot length of 134217728')
  })

  it('takes a frame check sequence out of the link type', () => {
    const bytes = file({ littleEndian: true, nanoseconds: false, packets: [] })
    bytes.writeUInt32LE((0x5400_0000 | 1) >>> 0, 20)
    expect(parsePcapHeader(bytes).linkType).toBe(1)
    expect([linkTypeName(276), linkTypeName(9999)]).toEqual(['LINUX_SLL2', '9999'])
  })
})
