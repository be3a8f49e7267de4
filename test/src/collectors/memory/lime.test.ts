import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { LIME_HEADER, limeBytes, limeHeader, readLime } from '../../../../src/collectors/memory/lime.js'

function read(file: Buffer) {
  return readLime((into, at) => file.copy(into, 0, at), file.length)
}

function record(start: bigint, content: Buffer): Buffer {
  return Buffer.concat([limeHeader({ start, end: start + BigInt(content.length) }), content])
}

const good = Buffer.concat([record(0x1000n, Buffer.from('first')), record(0x1_0000_0000n, Buffer.from('second'))])

describe('writer', () => {
  it('writes the header of the format byte by byte', () => {
    // The first record of an image that LiME 1.9.1 itself wrote on a PC with a BIOS.
    expect(limeHeader({ start: 0x1000n, end: 0x9fc00n }).toString('hex')).toBe(
      '454d694c' + '01000000' + '0010000000000000' + 'fffb090000000000' + '0000000000000000',
    )
    // Beyond 2^53, where a Number would round.
    expect(limeHeader({ start: 2n ** 60n + 1n, end: 2n ** 60n + 3n }).toString('hex')).toBe(
      '454d694c' + '01000000' + '0100000000000010' + '0200000000000010' + '0000000000000000',
    )
  })

  it('puts records back to back, with nothing before, between or behind', () => {
    expect(good.length).toBe(2 * LIME_HEADER + 11)
    expect(
      limeBytes([
        { start: 0x1000n, end: 0x1005n },
        { start: 0x1_0000_0000n, end: 0x1_0000_0006n },
      ]),
    ).toBe(good.length)
    const golden =
      '454d694c0100000000100000000000000410000000000000' +
      '0000000000000000' +
      '6669727374' +
      '454d694c0100000000000000010000000500000001000000' +
      '0000000000000000' +
      '7365636f6e64'
    expect(good.toString('hex')).toBe(golden)
  })

  it('refuses a range without bytes', () => {
    expect(() => limeHeader({ start: 5n, end: 5n })).toThrow(RangeError)
  })
})

describe('reader', () => {
  it('lists the records and where their bytes lie', () => {
    expect(read(good)).toEqual({
      records: [
        { start: 0x1000n, end: 0x1005n, at: 32 },
        { start: 0x1_0000_0000n, end: 0x1_0000_0006n, at: 69 },
      ],
    })
  })

  const broken = (change: (copy: Buffer) => void): Buffer => {
    const copy = Buffer.from(good)
    change(copy)
    return copy
  }
  it.each([
    ['an empty file', Buffer.alloc(0), 'format', 0, /empty/],
    ['one byte behind the last record', Buffer.concat([good, Buffer.alloc(1)]), 'format', good.length, /1 bytes behind/],
    ['padding behind the last record', Buffer.concat([good, Buffer.alloc(4096)]), 'format', good.length, /magic 0x0/],
    ['another magic', broken(b => b.write('AVML', 37)), 'format', 37, /magic/],
    ['another version', broken(b => b.writeUInt32LE(2, 41)), 'format', 37, /version 2/],
    ['an end before the start', broken(b => b.writeBigUInt64LE(5n, 53)), 'format', 37, /before it starts/],
    ['records that do not ascend', broken(b => b.writeBigUInt64LE(0x1004n, 45)), 'format', 37, /does not lie behind/],
    ['reserved bytes', broken(b => b.writeUInt8(1, 60 + 4)), 'format', 37, /reserved/],
    ['a last record that is cut', good.subarray(0, good.length - 2), 'cut', good.length - 2, /lacks 2 bytes/],
    ['a last record of nothing but its header', good.subarray(0, 69), 'cut', 69, /lacks 6 bytes/],
    ['a record of nearly 2^64 bytes', broken(b => b.writeBigUInt64LE(2n ** 64n - 1n, 53)), 'cut', good.length, /lacks/],
  ] as const)('finds %s', (_, file, kind, at, what) => {
    expect(read(Buffer.from(file)).damage).toEqual({ kind, at, what: expect.stringMatching(what) })
  })

  it('reads back what was written', () => {
    const parts = fc.array(fc.tuple(fc.bigInt(1n, 2n ** 40n), fc.uint8Array({ minLength: 1, maxLength: 50 })), {
      minLength: 1,
      maxLength: 20,
    })
    fc.assert(
      fc.property(parts, list => {
        let address = 0n
        const records = list.map(([gap, bytes]) => {
          const start = address + gap
          address = start + BigInt(bytes.length)
          return { start, content: Buffer.from(bytes) }
        })
        const file = Buffer.concat(records.map(({ start, content }) => record(start, content)))
        const image = read(file)
        expect(image.damage).toBeUndefined()
        expect(image.records.map(({ start, end, at }) => [start, file.subarray(at, at + Number(end - start))])).toEqual(
          records.map(({ start, content }) => [start, content]),
        )
        // Any shorter file is damaged.
        expect(read(file.subarray(0, file.length - 1)).damage).toBeDefined()
      }),
    )
  })

  it('never throws, whatever the file holds', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 300 }), bytes => void read(Buffer.from(bytes))))
    const headers = fc.array(fc.tuple(fc.bigInt(0n, 2n ** 64n - 1n), fc.bigInt(0n, 2n ** 64n - 1n)), { maxLength: 5 })
    fc.assert(
      fc.property(headers, list => {
        const file = Buffer.concat(
          list.map(([start, last]) => {
            const header = limeHeader({ start: 0n, end: 1n })
            header.writeBigUInt64LE(start, 8)
            header.writeBigUInt64LE(last, 16)
            return header
          }),
        )
        const { records } = read(file)
        expect(records.length).toBeLessThanOrEqual(list.length)
      }),
    )
  })
})
