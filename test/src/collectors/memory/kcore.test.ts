import fs from 'node:fs'
import path from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type AddressRange, hex, mergeRanges, subtractRanges, totalBytes } from '../../../../src/collectors/memory/address-range.js'
import { systemRam } from '../../../../src/collectors/memory/iomem.js'
import { contradiction, planKcore, readKcore } from '../../../../src/collectors/memory/kcore.js'
import { kcoreHeaders, type MadeSegment, NO_PHYSICAL, readBytes, readParts } from '../../../helpers/kcore.js'

const FIXTURES = path.resolve(import.meta.dirname, '../../../fixtures/capture-mem/debian-12')
const recorded = (name: string): Buffer => fs.readFileSync(path.join(FIXTURES, name))
const ramOf = (boot: string) => systemRam(recorded(`${boot}/proc/iomem`).toString())
const read = (segments: readonly MadeSegment[], options = {}) => readKcore(readBytes(kcoreHeaders(segments, options)))
const shown = (ranges: readonly AddressRange[]) => ranges.map(({ start, end }) => `${hex(start)}-${hex(end - 1n)}`)

describe('/proc/iomem', () => {
  it('gives each resource of RAM, its last address included, and not what lies inside', () => {
    expect(shown(ramOf('kaslr'))).toEqual(['0x1000-0x9fbff', '0x100000-0xffdffff'])
  })

  it('finds memory that was added later, below the resource of its driver', () => {
    const iomem = `00001000-0009ffff : System RAM
100000000-17fffffff : System RAM
  140000000-14fffffff : Crash kernel
  150000000-150000fff : System RAM
180000000-1bfffffff : Persistent Memory
  180000000-1bfffffff : dax0.0
    188000000-1bfffffff : System RAM (kmem)
1c0000000-2bfffffff : virtio0
  1c8000000-1cfffffff : System RAM (virtio_mem)
  1d0000000-1d7fffffff : System RAM (virtio_mem)
2c0000000-2cfffffff : System RAMBO
`
    expect(shown(systemRam(iomem))).toEqual([
      '0x1000-0x9ffff',
      '0x100000000-0x17fffffff',
      '0x188000000-0x1bfffffff',
      '0x1c8000000-0x1cfffffff',
      '0x1d0000000-0x1d7fffffff',
    ])
  })

  it('refuses addresses that are hidden, and a list without RAM', () => {
    expect(() => systemRam('00000000-00000000 : Reserved\n00000000-00000000 : System RAM\n00000000-00000000 : System RAM\n')).toThrow(
      /hides/,
    )
    expect(() => systemRam('00000000-00000fff : Reserved\n')).toThrow(/no System RAM/)
    expect(() => systemRam('')).toThrow(/no System RAM/)
  })

  it('never fails otherwise, whatever it reads', () => {
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom('0-f : System RAM', '  5-2 : System RAM', 'x', '    1-ff : y', ''), { maxLength: 10 }),
        lines => {
          try {
            for (const range of systemRam(lines.join('\n'))) expect(typeof range.start).toBe('bigint')
          } catch (error) {
            expect((error as Error).message).toMatch(/iomem/)
          }
        },
      ),
    )
  })
})

describe('recorded kernels', () => {
  it('4-level paging: every page of RAM through the direct map, not through the text that overlaps it', async () => {
    const layout = await readKcore(readBytes(recorded('kaslr/kcore-headers')))
    expect(layout.machine).toBe('x86-64')
    expect(layout.vmcoreinfo.get('OSRELEASE')).toBe('6.1.0-56-amd64')
    expect(layout.vmcoreinfo.get('PAGESIZE')).toBe('4096')
    expect(layout.vmcoreinfo.has('KERNELOFFSET')).toBe(true)
    const text = layout.segments.find(({ virtual, physical }) => virtual >= 0xffff_ffff_8000_0000n && physical !== undefined)
    expect(text?.physical).toBeGreaterThan(0x100000n)
    const plan = planKcore(layout, ramOf('kaslr'))
    expect(shown(plan.pieces)).toEqual(['0x1000-0x9efff', '0x100000-0xffdffff'])
    // The partial page at the end of low memory, which the kernel's segments leave out.
    expect(shown(plan.gaps)).toEqual(['0x9f000-0x9fbff'])
    expect(plan.missingPages).toEqual([])
    const direct = layout.segments.find(({ physical }) => physical === 0x100000n)
    expect(plan.pieces[1]?.offset).toBe(direct?.offset)
  })

  it('5-level paging: offsets beyond 2^53', async () => {
    const layout = await readKcore(readBytes(recorded('five-level/kcore-headers')))
    expect(layout.vmcoreinfo.get('NUMBER(pgtable_l5_enabled)')).toBe('1')
    const plan = planKcore(layout, ramOf('five-level'))
    expect(shown(plan.pieces)).toEqual(['0x1000-0x9efff', '0x100000-0xffdffff'])
    for (const piece of plan.pieces) expect(piece.offset).toBeGreaterThan(BigInt(Number.MAX_SAFE_INTEGER))
  })

  it('lockdown=integrity is the same', async () => {
    const plan = planKcore(await readKcore(readBytes(recorded('integrity/kcore-headers'))), ramOf('integrity'))
    expect(shown(plan.pieces)).toEqual(['0x1000-0x9efff', '0x100000-0xffdffff'])
  })
})

const DIRECT = 0xffff_8880_0000_0000n
const TEXT = 0xffff_ffff_8000_0000n
/** A segment of the direct map; file offsets as x86-64 has them. */
const ram = (physical: bigint, bytes: bigint): MadeSegment => ({
  offset: DIRECT - 0xffff_8000_0000_0000n + physical,
  virtual: DIRECT + physical,
  physical,
  bytes,
})
const text = (physical: bigint, bytes: bigint): MadeSegment => ({
  offset: 0x7fff_8000_0000n + physical,
  virtual: TEXT + physical,
  physical,
  bytes,
})
const vmalloc: MadeSegment = { offset: 0x4900_0000_0000n, virtual: 0xffff_c900_0000_0000n, bytes: 2n ** 45n - 1n }

describe('plan', () => {
  it('prefers the direct map also where the text reaches farther, and is first', async () => {
    const layout = await read([text(0x1000000n, 0x3000000n), vmalloc, ram(0x100000n, 0x1f00000n), ram(0x2000000n, 0x8000000n)])
    const plan = planKcore(layout, [{ start: 0x100000n, end: 0xa000000n }])
    expect(plan.pieces.map(({ offset, start }) => offset - start)).toEqual([ram(0n, 1n).offset, ram(0n, 1n).offset])
    expect(shown(plan.pieces)).toEqual(['0x100000-0x1ffffff', '0x2000000-0x9ffffff'])
    expect(plan.gaps).toEqual([])
  })

  it('takes the text where nothing else holds the page', async () => {
    const layout = await read([text(0x1000000n, 0x10000n), ram(0x2000000n, 0x100000n)])
    const plan = planKcore(layout, [{ start: 0x1000000n, end: 0x2100000n }])
    expect(plan.pieces[0]).toEqual({ start: 0x1000000n, end: 0x1010000n, offset: text(0x1000000n, 1n).offset })
    expect(shown(plan.gaps)).toEqual(['0x1010000-0x1ffffff'])
    expect(totalBytes(plan.missingPages)).toBe(0xff0000n)
  })

  it('merges resources that split a page before it cuts, and does not call that page missing', async () => {
    // As EFI firmware splits them; the kernel trims each resource to whole pages, so the shared page is in no segment.
    const resources = [
      { start: 0x100000n, end: 0x175058968n },
      { start: 0x175058968n, end: 0x180000000n },
    ]
    const layout = await read([ram(0x100000n, 0x174f58000n), ram(0x175059000n, 0xafa7000n)])
    const plan = planKcore(layout, resources)
    expect(shown(plan.gaps)).toEqual(['0x175058000-0x175058fff'])
    expect(plan.missingPages).toEqual([])
    // One segment over both: nothing is lost at the seam.
    const whole = planKcore(await read([ram(0x100000n, 0x17ff00000n)]), resources)
    expect(shown(whole.pieces)).toEqual(['0x100000-0x17fffffff'])
  })

  it('knows larger pages from the note of the kernel', async () => {
    const resources = [{ start: 0x40000000n, end: 0x50008000n }]
    const segments = [ram(0x40000000n, 0x10000000n)]
    const plan = planKcore(await read(segments, { machine: 183, vmcoreinfo: 'PAGESIZE=65536\n' }), resources)
    expect([shown(plan.gaps), plan.missingPages]).toEqual([['0x50000000-0x50007fff'], []])
    const small = planKcore(await read(segments, { machine: 183 }), resources)
    expect(totalBytes(small.missingPages)).toBe(0x8000n)
  })

  it('holds of any layout: nothing twice, nothing but RAM, at the right place, and what is not there is a gap', async () => {
    const pages = fc.tuple(fc.nat(200), fc.integer({ min: 1, max: 40 }))
    await fc.assert(
      fc.asyncProperty(
        fc.array(pages, { minLength: 1, maxLength: 8 }),
        fc.array(pages, { minLength: 1, maxLength: 6 }),
        pages,
        async (map, parts, kernel) => {
          const segments = mergeRanges(map.map(([start, count]) => ({ start: BigInt(start) * 4096n, end: BigInt(start + count) * 4096n })))
          const layout = await read([
            text(BigInt(kernel[0]) * 4096n, BigInt(kernel[1]) * 4096n),
            ...segments.map(({ start, end }) => ram(start, end - start)),
            vmalloc,
          ])
          const resources = mergeRanges(
            parts.map(([start, count]) => ({ start: BigInt(start) * 4096n + 100n, end: BigInt(start + count) * 4096n - 7n })),
          )
          const plan = planKcore(layout, resources)
          expect(totalBytes(plan.pieces) + totalBytes(plan.gaps)).toBe(totalBytes(resources))
          expect(subtractRanges(resources, mergeRanges([...plan.pieces, ...plan.gaps]))).toEqual([])
          for (const [index, piece] of plan.pieces.entries()) {
            if (index > 0) expect(piece.start).toBeGreaterThanOrEqual((plan.pieces[index - 1] as AddressRange).end)
            const inDirectMap = segments.some(({ start, end }) => start <= piece.start && piece.end <= end)
            const distance = piece.offset - piece.start
            if (inDirectMap) expect([ram(0n, 1n).offset, text(0n, 1n).offset]).toContain(distance)
            else expect(distance).toBe(text(0n, 1n).offset)
          }
        },
      ),
    )
  })
})

describe('refusals', () => {
  const zero = (segment: MadeSegment): MadeSegment => ({ ...segment, physical: 0n })
  it.each([
    [
      'physical addresses that are all 0, as before Linux 4.11',
      kcoreHeaders([zero(ram(0x1000n, 0x9e000n)), zero(vmalloc), zero(text(0x1000000n, 0x1000n))]),
      /before 4\.11/,
    ],
    ['another machine', kcoreHeaders([ram(0x1000n, 0x1000n)], { machine: 3 }), /machine is 3/],
    ['no segments', kcoreHeaders([]), /no memory segments/],
    ['no ELF', Buffer.alloc(4096), /no ELF file/],
    ['32 bit', Buffer.from(kcoreHeaders([ram(0x1000n, 0x1000n)])).fill(1, 4, 5), /no 64-bit/],
    ['big endian', Buffer.from(kcoreHeaders([ram(0x1000n, 0x1000n)])).fill(2, 5, 6), /little-endian/],
    ['a file that ends in its header', kcoreHeaders([ram(0x1000n, 0x1000n)]).subarray(0, 40), /ELF header end after 40 of 64/],
    [
      'a file that ends in its program headers',
      kcoreHeaders([ram(0x1000n, 0x1000n)]).subarray(0, 100),
      /program headers end after 36 of 112/,
    ],
    ['an empty file', Buffer.alloc(0), /end after 0/],
  ])('%s', async (_, file, why) => {
    await expect(readKcore(readBytes(Buffer.from(file)))).rejects.toThrow(why)
  })

  it('memory that really starts at 0 is none of them', async () => {
    const layout = await read([ram(0n, 0x10000n), vmalloc])
    expect(planKcore(layout, [{ start: 0n, end: 0x10000n }]).pieces).toHaveLength(1)
  })

  it('leaves out what cannot be in a file or in memory', async () => {
    const layout = await read([ram(0x1000n, 0x1000n), { ...ram(0n, 0x1000n), offset: 2n ** 63n - 1n }, { ...ram(0n, 0n) }])
    expect(layout.segments).toHaveLength(1)
    const wrapping = await read([ram(0x1000n, 0x1000n), { offset: 4096n, virtual: 0n, physical: NO_PHYSICAL - 5n, bytes: 0x1000n }])
    expect(wrapping.segments[1]?.physical).toBeUndefined()
  })

  it('any damage of the headers is told or survived', async () => {
    const whole = kcoreHeaders([ram(0x1000n, 0x9e000n), text(0x1000000n, 0x1000n), vmalloc])
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { maxLength: 20 }), async changes => {
        const damaged = Buffer.from(whole)
        for (const [at, byte] of changes) damaged[at] = byte
        try {
          const plan = planKcore(await readKcore(readBytes(damaged)), [{ start: 0x1000n, end: 0x9fc00n }])
          expect(totalBytes(plan.pieces)).toBeLessThanOrEqual(0x9ec00n)
        } catch (error) {
          expect((error as Error).message).toMatch(/^(it|its) /)
        }
      }),
    )
  })

  it('reads headers also in small pieces', async () => {
    const file = kcoreHeaders([ram(0x1000n, 0x9e000n)])
    const layout = await readKcore((into, at) => readBytes(file)(into.subarray(0, 7), at))
    expect(layout.segments).toHaveLength(1)
  })
})

describe('a page that is mapped twice', () => {
  const segments = [text(0x1000000n, 0x10000n), ram(0x100000n, 0x2000000n)]
  const resources = [{ start: 0x100000n, end: 0x2100000n }]
  const check = async (asText: Buffer, asRam: Buffer) => {
    const read = readParts([
      { at: 0n, content: kcoreHeaders(segments) },
      { at: text(0x1000000n, 1n).offset, content: asText },
      { at: ram(0x1000000n, 1n).offset, content: asRam },
    ])
    const layout = await readKcore(read)
    return contradiction(read, layout, planKcore(layout, resources))
  }
  const page = Buffer.alloc(4096, 'kernel text')

  it('must read the same', async () => {
    expect(await check(page, page)).toBeUndefined()
    expect(await check(page, Buffer.alloc(4096, 'something else'))).toMatch(/page at 0x1000000 reads differently/)
  })

  it('proves nothing when one of them is zeros', async () => {
    expect(await check(page, Buffer.alloc(4096))).toBeUndefined()
  })
})
