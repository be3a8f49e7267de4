import fs from 'node:fs'
import path from 'node:path'
import zlib from 'node:zlib'
import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { parseBtf } from '../../../../src/collectors/memory/btf.js'
import { checkMemoryImage } from '../../../../src/collectors/memory/image-check.js'
import { isfText } from '../../../../src/collectors/memory/isf.js'
import { limeHeader } from '../../../../src/collectors/memory/lime.js'
import { smallKernel } from '../../../helpers/btf.js'
import { temporaryDirectory } from '../../../helpers/kcore.js'

const BANNER = 'Linux version 6.1.0-56-amd64 (builder@example) (gcc 12.2.0) #1 SMP\n'
const INFO = 'OSRELEASE=6.1.0-56-amd64\nBUILD-ID=aa\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff83a1d2c0\nKERNELOFFSET=34800000\n'
const LOW = { start: 0x1000n, end: 0x9f000n }
const HIGH = { start: 0x100000n, end: 0xb00000n }
const IOMEM = '00001000-0009fbff : System RAM\n00100000-00afffff : System RAM\n'

let root: string
let image: string

beforeEach(() => {
  root = temporaryDirectory()
  image = path.join(root, 'data/capture-mem/memory.lime')
  fs.mkdirSync(path.dirname(image), { recursive: true })
})
afterEach(() => fs.rmSync(root, { recursive: true }))

/** Two records with a banner and VMCOREINFO in the second, where a read of 4 MiB ends in the middle of the first of them. */
function lime(banner = BANNER, info = INFO): Buffer {
  const memory = Buffer.alloc(Number(HIGH.end - HIGH.start))
  memory.write('Linux version 5.0.0-other (in a message)', 0x2000, 'latin1')
  memory.write('Linux version 5.0.0-vmlinux (of a file in the page cache) #1\n\0', 0x3000, 'latin1')
  // Newer kernels hold a draft of it.
  if (banner === BANNER) memory.write(`${BANNER.replace('#1', '#')}\0`, 0x4000, 'latin1')
  memory.write(`${banner}\0`, (4 << 20) - 20, 'latin1')
  memory.write(info, 9 << 20, 'latin1')
  return Buffer.concat([limeHeader(LOW), Buffer.alloc(Number(LOW.end - LOW.start)), limeHeader(HIGH), memory])
}

function check(content: Buffer, beside: Readonly<Record<string, string | Buffer>> = {}) {
  fs.writeFileSync(image, content)
  for (const [name, bytes] of Object.entries(beside)) fs.writeFileSync(path.join(path.dirname(image), name), bytes)
  return checkMemoryImage(image)
}

const isf = (banner: string): Buffer => {
  const counts = { types: 0, enums: 0, symbols: 0, typed: [] }
  const producer = { name: 'ir', version: '1' }
  return zlib.gzipSync([...isfText({ btf: parseBtf(smallKernel()), symbols: [], banner: Buffer.from(banner), producer }, counts)].join(''))
}
const finish = (detail: object): string => `${JSON.stringify({ seq: 1, event: 'finish', ...detail })}\n`

describe('a whole image', () => {
  it('says what is in it', () => {
    const content = lime()
    fs.writeFileSync(
      path.join(root, 'custody.jsonl'),
      finish({
        outcome: 'collected',
        facts: { image: 'memory.lime', fileBytes: content.length, unreadable: { bytes: 8192, runs: 1, named: [] } },
      }),
    )
    const found = check(content, { 'iomem.txt': IOMEM, 'memory.isf.json.gz': isf(BANNER) })
    expect(found).toEqual({
      image,
      fileBytes: content.length,
      memoryBytes: content.length - 64,
      recordCount: 2,
      records: [
        { first: '0x1000', last: '0x9efff' },
        { first: '0x100000', last: '0xafffff' },
      ],
      holeBytes: expect.any(Number),
      unreadable: { bytes: 8192, runs: 1 },
      banner: BANNER.trimEnd(),
      kernel: { release: '6.1.0-56-amd64', offset: '0x34800000' },
      symbols: 'memory.isf.json.gz',
      problems: [],
      notes: ['8192 bytes could not be read and are zeros; the facts of the action name the pages'],
    })
  })

  it('alone: less is known, and nothing is wrong', () => {
    const found = check(lime())
    expect(found).toMatchObject({ problems: [], banner: BANNER.trimEnd() })
    expect(found).not.toHaveProperty('unreadable')
    expect(found).not.toHaveProperty('symbols')
  })

  it('of 5-level paging', () => {
    const found = check(lime(BANNER, `${INFO}NUMBER(pgtable_l5_enabled)=1\n`))
    expect(found).toMatchObject({ problems: [], kernel: { fiveLevelPaging: true }, notes: [expect.stringMatching(/5-level paging/)] })
  })

  it('has holes', () => {
    fs.writeFileSync(image, lime())
    fs.truncateSync(image, 64 + Number(LOW.end - LOW.start))
    fs.truncateSync(image, 64 + Number(LOW.end - LOW.start) + Number(HIGH.end - HIGH.start))
    expect(checkMemoryImage(image).holeBytes).toBeGreaterThan(9 << 20)
  })
})

describe('damage', () => {
  const at = 32 + Number(LOW.end - LOW.start)
  const changed = (offset: number, bytes: string): Buffer => {
    const content = lime()
    content.write(bytes, offset, 'hex')
    return content
  }

  it.each([
    ['nothing in it', Buffer.alloc(0), /damaged at byte 0: the file is empty/],
    ['another file', Buffer.from('x'.repeat(100)), /damaged at byte 0: magic/],
    ['a wrong magic', changed(at, '00'), /damaged at byte 647200: magic/],
    ['a wrong version', changed(at + 4, '02'), /version 2/],
    ['records that do not ascend', changed(at + 8, '0010000000000000'), /does not lie behind/],
    ['an end before the start', changed(at + 16, '0000000000000000'), /before it starts/],
    ['a byte behind the last record', Buffer.concat([lime(), Buffer.alloc(1)]), /1 bytes behind the last record/],
    ['padding to a page', Buffer.concat([lime(), Buffer.alloc(4096)]), /magic 0x0/],
    ['cut in a record', lime().subarray(0, -4096), /cut at byte .* lacks 4096 bytes/],
    ['cut in a header', lime().subarray(0, at + 10), /are no header/],
    ['compressed', Buffer.from('28b52ffd00', 'hex'), /^compressed with zstd: unpack it first/],
  ])('%s', (_, content, what) => {
    expect(check(content as Buffer).problems[0]).toMatch(what)
  })

  it('no banner, or not that of this kernel', () => {
    const content = lime('nothing of the kind')
    expect(check(content).problems).toEqual([expect.stringMatching(/^no banner of a Linux kernel 6\.1\.0-56-amd64 in it/)])
    expect(check(Buffer.concat([limeHeader(LOW), Buffer.alloc(Number(LOW.end - LOW.start))])).problems).toEqual([
      expect.stringMatching(/^no banner of a Linux kernel in it/),
    ])
  })

  it('symbols of another kernel, or none', () => {
    const other = BANNER.replace('#1', '#2')
    expect(check(lime(), { 'memory.isf.json.gz': isf(other) }).problems).toEqual([expect.stringMatching(/is of another kernel: .*#2 SMP$/)])
    expect(check(lime(), { 'memory.isf.json.gz': 'no gzip' }).problems).toEqual([expect.stringMatching(/is no symbol file/)])
  })

  it('what the case says of it', () => {
    fs.writeFileSync(
      path.join(root, 'custody.jsonl'),
      `not json "event":"finish" "memory.lime"\n${finish({
        outcome: 'failed',
        reason: 'the disk is full',
        facts: { image: 'memory.lime', fileBytes: 5 },
      })}`,
    )
    expect(check(lime()).problems).toEqual([
      'the case says that it is not whole (failed): the disk is full',
      expect.stringMatching(/^it has \d+ bytes, and 5 by the case$/),
    ])
  })

  it('RAM that is not in it', () => {
    const more = `${IOMEM}100000000-1ffffffff : System RAM\n`
    expect(check(lime(), { 'iomem.txt': more }).problems).toEqual([
      'it lacks 4294967296 bytes of the RAM in iomem.txt, in 1 ranges from 0x100000000-0x1ffffffff on',
    ])
  })

  it('of any kind is told, never thrown', () => {
    const content = lime().subarray(0, 700_000)
    fc.assert(
      fc.property(
        fc.array(
          fc.tuple(
            fc.constantFrom(0, at).chain(from => fc.integer({ min: from, max: from + 31 })),
            fc.nat(255),
          ),
        ),
        changes => {
          const damaged = Buffer.from(content)
          for (const [offset, byte] of changes) damaged[offset] = byte
          expect(check(damaged).problems.length).toBeGreaterThan(0)
        },
      ),
      { numRuns: 50 },
    )
  })
})
