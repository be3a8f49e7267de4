import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  type AddressRange,
  intersectRanges,
  mergeRanges,
  rangeFacts,
  subtractRanges,
  totalBytes,
  wholePages,
} from '../../../../src/collectors/memory/address-range.js'

const BASE = 2n ** 62n

/** Small numbers high up: every address can be looked at one by one. */
const ranges = fc
  .array(fc.tuple(fc.nat(60), fc.nat(12)), { maxLength: 12 })
  .map(pairs => pairs.map(([start, bytes]) => ({ start: BASE + BigInt(start), end: BASE + BigInt(start + bytes) })))

function addresses(list: readonly AddressRange[]): Set<bigint> {
  const found = new Set<bigint>()
  for (const { start, end } of list) for (let at = start; at < end; at++) found.add(at)
  return found
}

function ordered(list: readonly AddressRange[]): boolean {
  return list.every((range, index) => range.end > range.start && (index === 0 || (list[index - 1] as AddressRange).end <= range.start))
}

describe('ranges against sets of single addresses', () => {
  it('merge', () => {
    fc.assert(
      fc.property(ranges, list => {
        const merged = mergeRanges(list)
        expect(addresses(merged)).toEqual(addresses(list))
        expect(merged.every((range, index) => index === 0 || (merged[index - 1] as AddressRange).end < range.start)).toBe(true)
      }),
    )
  })

  it('intersect and subtract', () => {
    fc.assert(
      fc.property(ranges, ranges, (one, other) => {
        const [a, b] = [mergeRanges(one), mergeRanges(other)]
        const [common, left] = [intersectRanges(a, b), subtractRanges(a, b)]
        const [inA, inB] = [[...addresses(a)], addresses(b)]
        expect([...addresses(common)]).toEqual(inA.filter(address => inB.has(address)))
        expect([...addresses(left)]).toEqual(inA.filter(address => !inB.has(address)))
        expect(ordered(common) && ordered(left)).toBe(true)
        expect(totalBytes(common) + totalBytes(left)).toBe(totalBytes(a))
      }),
    )
  })

  it('whole pages', () => {
    fc.assert(
      fc.property(ranges, list => {
        const pages = addresses(wholePages(mergeRanges(list), 4n))
        const all = addresses(list)
        for (let page = BASE; page < BASE + 80n; page += 4n) {
          const whole = [0n, 1n, 2n, 3n].every(offset => all.has(page + offset))
          for (const offset of [0n, 1n, 2n, 3n]) expect(pages.has(page + offset)).toBe(whole)
        }
      }),
    )
  })
})

it('is written with its first and last address', () => {
  expect(rangeFacts({ start: 0x1000n, end: 0x9fc00n })).toEqual({ first: '0x1000', last: '0x9fbff' })
})
