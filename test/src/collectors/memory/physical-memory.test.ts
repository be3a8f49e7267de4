import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { CollectorContext, Progress } from '../../../../src/collectors/collector.js'
import type { ReadAt } from '../../../../src/collectors/memory/kcore.js'
import { limeHeader, readLime } from '../../../../src/collectors/memory/lime.js'
import { openMemory, pageByPage, physicalMemory, physicalMemoryFrom } from '../../../../src/collectors/memory/physical-memory.js'
import { EvidenceError } from '../../../../src/errors.js'
import { type Case, createCase } from '../../../../src/evidence/case.js'
import { openHost } from '../../../../src/host.js'
import type { JsonObject } from '../../../../src/step.js'
import { kcoreHeaders, type MadeSegment, temporaryDirectory, tmpfsDirectory, writeParts } from '../../../helpers/kcore.js'

const PAGE = 4096
const MiB = 1 << 20

/** Low memory with a partial last page, and 10 MiB above 1 MiB: three reads. */
const IOMEM = `00000000-00000fff : Reserved
00001000-0009fbff : System RAM
000a0000-000fffff : Reserved
00100000-00afffff : System RAM
  00200000-002fffff : Kernel code
`
const LOW: MadeSegment = { offset: 2n ** 62n + 0x5000n, virtual: 0xff11_0000_0000_1000n, physical: 0x1000n, bytes: 0x9e000n }
const HIGH: MadeSegment = { offset: 2n ** 62n + 0x104000n, virtual: 0xff11_0000_0010_0000n, physical: 0x100000n, bytes: 10n * 1048576n }
/** The text a second time, in other places of file and address space. */
const TEXT: MadeSegment = { offset: 2n ** 61n, virtual: 0xffff_ffff_8000_0000n, physical: 0x200000n, bytes: 0x100000n }
const VMALLOC: MadeSegment = { offset: 2n ** 60n, virtual: 0xffff_c900_0000_0000n, bytes: 2n ** 45n }

const PLANNED = 0x9e000 + 10 * MiB

/** Every page begins with its own physical address; 4 MiB from 5 MiB on are zeros. */
function memory(start: number, bytes: number): Buffer {
  const content = Buffer.alloc(bytes)
  for (let at = 0; at < bytes; at += PAGE) {
    const address = start + at
    if (address < 5 * MiB || address >= 9 * MiB) content.write(`page ${address.toString(16)}`, at)
  }
  return content
}

let root: string
let output: string
let caze: Case
let shown: Progress[]

beforeEach(() => {
  root = tmpfsDirectory()
  output = temporaryDirectory()
  shown = []
  fs.mkdirSync(path.join(root, 'proc'))
  fs.writeFileSync(path.join(root, 'proc/iomem'), IOMEM)
  writeParts(path.join(root, 'proc/kcore'), [
    { at: 0n, content: kcoreHeaders([TEXT, LOW, HIGH, VMALLOC]) },
    { at: LOW.offset, content: memory(0x1000, 0x9e000) },
    { at: HIGH.offset, content: memory(MiB, 10 * MiB) },
    { at: TEXT.offset, content: memory(2 * MiB, MiB) },
  ])
  caze = createCase({ output, id: 'ir-test-20260101T000000Z', host: openHost({ root }) })
})

afterEach(() => {
  fs.rmSync(root, { recursive: true })
  fs.rmSync(output, { recursive: true })
})

const KCORE = { source: 'kcore', from: '/proc/kcore', iomem: '/proc/iomem', to: 'memory.lime', reserve: 0 }

function context(options: JsonObject = KCORE, given: Partial<CollectorContext> = {}): CollectorContext {
  return {
    host: openHost({ root }),
    options,
    source: [],
    sink: [],
    case: caze,
    step: 'capture-mem',
    action: 'capture-mem/2',
    signal: new AbortController().signal,
    progress: figures => void shown.push(figures),
    onChange: () => {},
    ...given,
  }
}

/** The real source with some of its reads changed. */
function changed(change: (read: ReadAt) => ReadAt) {
  return physicalMemoryFrom(async (realPath, source) => {
    const opened = await openMemory(realPath, source)
    return { read: change(opened.read), close: opened.close }
  })
}

/** Reads of the second segment that touch this physical page fail. */
function failing(address: bigint, code: string, bytes = 4096n) {
  const at = HIGH.offset + address - 0x100000n
  return changed(read => (into, from) => {
    if (from < at + bytes && from + BigInt(into.length) > at) throw Object.assign(new Error(code), { code })
    return read(into, from)
  })
}

/** A case whose disk seems to have room, with what happens before the image is written and when writing fails. */
function squeezed(inner: Case, { before, behind }: { before: () => void; behind: () => void }): Case {
  return {
    id: inner.id,
    directory: output,
    get artifacts() {
      return inner.artifacts
    },
    get head() {
      return inner.head
    },
    open(step, name) {
      const file = inner.open(step, name)
      before()
      const write = file.write.bind(file)
      file.write = chunk => {
        try {
          write(chunk)
        } catch (error) {
          behind()
          throw error
        }
      }
      return file
    },
    adopt: (step, name, origin) => inner.adopt(step, name, origin),
    pathOf: (step, name) => inner.pathOf(step, name),
    tag: (name, content) => inner.tag(name, content),
    record: (event, detail) => inner.record(event, detail),
  }
}

const image = (): Buffer => fs.readFileSync(path.join(caze.directory, 'data/capture-mem/memory.lime'))
const records = (file: Buffer) => readLime((into, at) => file.copy(into, 0, at), file.length)
const expected = (): Buffer =>
  Buffer.concat([
    limeHeader({ start: 0x1000n, end: 0x9f000n }),
    memory(0x1000, 0x9e000),
    limeHeader({ start: 0x100000n, end: 0xb00000n }),
    memory(MiB, 10 * MiB),
  ])

describe('kcore', () => {
  it('becomes an image of all RAM, from offsets near 2^62', async () => {
    const result = await physicalMemory(context())
    expect(result).toMatchObject({ outcome: 'collected' })
    expect(image().equals(expected())).toBe(true)
    expect(records(image()).damage).toBeUndefined()
    expect(caze.artifacts).toEqual([
      {
        path: 'data/capture-mem/memory.lime',
        bytes: PLANNED + 64,
        sha256: createHash('sha256').update(image()).digest('hex'),
      },
    ])
    expect(result.facts).toMatchObject({
      source: 'kcore',
      image: 'memory.lime',
      bytes: PLANNED,
      plannedBytes: PLANNED,
      fileBytes: PLANNED + 64,
      completeTo: '0xafffff',
      rangeCount: 2,
      ranges: [
        { first: '0x1000', last: '0x9efff' },
        { first: '0x100000', last: '0xafffff' },
      ],
      gapBytes: 0xc00,
      gaps: [{ first: '0x9f000', last: '0x9fbff' }],
      unreadable: { bytes: 0, runs: 0, named: [] },
      // 5 to 9 MiB in reads of 4 MiB from 1 MiB on.
      zeroBytes: 4 * MiB,
      kernel: { machine: 'x86-64', pageSize: 4096, release: '6.1.0-test' },
    })
    expect(JSON.parse(JSON.stringify(result.facts))).toEqual(result.facts)
    expect(shown.at(0)).toEqual({ bytes: 0, totalBytes: PLANNED })
    expect(shown.at(-1)).toEqual({ bytes: PLANNED, totalBytes: PLANNED })
  })

  it('says what the capture is not, and what it did itself', async () => {
    fs.writeFileSync(path.join(root, 'proc/meminfo'), 'MemTotal: 225864 kB\nMemFree:     1000 kB\nDirty:   3 kB\nSwapTotal: 8 kB\n')
    const { facts } = await physicalMemory(context())
    expect(facts).toMatchObject({
      footprint: {
        pid: process.pid,
        before: { MemFree: 1_024_000, Dirty: 3072, SwapTotal: 8192 },
        after: { MemFree: 1_024_000, Dirty: 3072, SwapTotal: 8192 },
      },
      notes: [/zeros/, /swap/, /ran on/, /personal data/].map(text => expect.stringMatching(text)),
    })
    const ranges = facts?.ranges as { began: { at: string; mono: number }; ended: { at: string; mono: number } }[]
    expect(ranges).toHaveLength(2)
    let last = 0
    for (const { began, ended } of ranges) {
      expect(began.at).toMatch(/^\d{4}-\d\d-\d\dT.*Z$/)
      expect(began.mono).toBeGreaterThanOrEqual(last)
      expect(ended.mono).toBeGreaterThanOrEqual(began.mono)
      last = ended.mono
    }
    const origin = fs.readFileSync(path.join(caze.directory, 'artifacts.jsonl'), 'utf8')
    expect(origin).toMatch(/swap and zram/)
  })

  it('leaves zeros as holes of the file', async () => {
    await physicalMemory(context())
    const { size, blocks } = fs.statSync(path.join(caze.directory, 'data/capture-mem/memory.lime'))
    expect(size - blocks * 512).toBeGreaterThan(3 * MiB)
  })

  it('notes a page that cannot be read, and goes on', async () => {
    const result = await failing(0x345000n, 'EFAULT')(context())
    expect(result).toMatchObject({
      outcome: 'collected',
      facts: { unreadable: { bytes: PAGE, runs: 1, named: [{ first: '0x345000', last: '0x345fff', error: 'EFAULT' }] } },
    })
    const wanted = expected()
    const at = 32 + 0x9e000 + 32 + 0x345000 - MiB
    expect(wanted.toString('latin1', at, at + 11)).toBe('page 345000')
    expect(image().equals(wanted.fill(0, at, at + PAGE))).toBe(true)
  })

  it('reads on where the kernel gives less than was asked for', async () => {
    const result = await changed(read => (into, at) => read(into.subarray(0, 33_333), at))(context())
    expect(result.outcome).toBe('collected')
    expect(image().equals(expected())).toBe(true)
  })

  /** Reads that touch these physical addresses never come back. */
  const hanging = (...addresses: readonly bigint[]) =>
    physicalMemoryFrom(async (realPath, source) => {
      const opened = await openMemory(realPath, source)
      return {
        read: (into, from) => {
          const first = from - HIGH.offset + 0x100000n
          // What hangs writes to its buffer all the same, when everybody has forgotten it.
          if (!addresses.some(address => first <= address && address < first + BigInt(into.length))) return opened.read(into, from)
          return new Promise<number>(() => setTimeout(() => into.fill(0xff), 450))
        },
        close: opened.close,
      }
    }, 300)

  it('gives up a chunk whose read hangs, and goes on', async () => {
    const result = await hanging(0x2345678n >> 4n)(context())
    expect(result).toMatchObject({
      // 4 MiB of 10: too much to count as an image of this machine.
      outcome: 'failed',
      reason: expect.stringMatching(/^4\.0 MiB of 10\.6 MiB could not be read/),
      facts: {
        bytes: PLANNED,
        unreadable: { bytes: 4 * MiB, runs: 1, named: [{ first: '0x100000', last: '0x4fffff', error: 'stalled' }] },
      },
    })
    const wanted = expected()
    const at = 32 + 0x9e000 + 32
    expect(image().equals(wanted.fill(0, at, at + 4 * MiB))).toBe(true)
  })

  it('ends when nothing but reads that hang would be left', async () => {
    const result = await hanging(0x100000n, 0x500000n, 0x900000n)(context())
    expect(result).toMatchObject({ outcome: 'failed', reason: expect.stringMatching(/^3 reads hang/) })
  })

  it('counts a read that gives nothing as unreadable', async () => {
    const page = HIGH.offset + 0x7000n
    const result = await changed(read => (into, at) => {
      if (at === page) return 0
      const before = at < page && at + BigInt(into.length) > page
      return read(before ? into.subarray(0, Number(page - at)) : into, at)
    })(context())
    expect(result).toMatchObject({
      outcome: 'collected',
      facts: { unreadable: { named: [{ first: '0x107000', last: '0x107fff', error: 'no data' }] } },
    })
  })

  it('is not collected when more than a page here and there is unreadable', async () => {
    const result = await failing(0x400000n, 'EIO', 0x20000n)(context())
    expect(result).toMatchObject({
      outcome: 'failed',
      reason: expect.stringMatching(/^128\.0 KiB of 10\.6 MiB could not be read; the image is incomplete$/),
      facts: { unreadable: { bytes: 0x20000, runs: 1 } },
    })
    expect(caze.artifacts).toHaveLength(1)
  })

  it('ends where the kernel refuses more than a page, and says up to where it came', async () => {
    const result = await failing(0x600000n, 'EPERM', 0x100000n)(context())
    expect(result).toMatchObject({ outcome: 'failed', facts: { completeTo: '0x4fffff', image: 'memory.lime' } })
    expect(result.reason).toBe('/proc/kcore cannot be read behind 0x4fffff (EPERM); the image is incomplete')
    expect(records(image()).damage).toMatchObject({ kind: 'cut' })
    expect(fs.readFileSync(path.join(caze.directory, 'artifacts.jsonl'), 'utf8')).toContain('incomplete: /proc/kcore cannot be read')
  })

  it('is not collected when it lacks whole pages of RAM', async () => {
    fs.appendFileSync(path.join(root, 'proc/iomem'), '100000000-1001fffff : System RAM (virtio_mem)\n')
    const result = await physicalMemory(context())
    expect(result).toMatchObject({
      outcome: 'failed',
      reason: '/proc/kcore does not hold 2.0 MiB of the RAM that /proc/iomem names; the image is incomplete',
      facts: { gapBytes: 0xc00 + 2 * MiB },
    })
    expect(records(image()).damage).toBeUndefined()
  })

  it('is refused when text and direct map disagree: no byte is written', async () => {
    writeParts(path.join(root, 'proc/kcore'), [{ at: TEXT.offset, content: Buffer.from('another page') }])
    const result = await physicalMemory(context())
    expect(result.outcome).toBe('failed')
    expect(result.reason).toMatch(/cannot be believed: the page at 0x200000 reads differently/)
    expect(fs.existsSync(path.join(caze.directory, 'data/capture-mem'))).toBe(false)
  })

  it.each([
    [
      'is no ELF file',
      () => fs.writeFileSync(path.join(root, 'proc/kcore'), 'x'.repeat(100)),
      'failed',
      /cannot be used: it is no ELF file/,
    ],
    ['is not there', () => fs.rmSync(path.join(root, 'proc/kcore')), 'unavailable', /cannot be opened: ENOENT/],
  ])('that %s', async (_, change, outcome, reason) => {
    change()
    expect(await physicalMemory(context())).toMatchObject({ outcome, reason: expect.stringMatching(reason) })
  })

  it('needs the addresses of /proc/iomem', async () => {
    fs.writeFileSync(path.join(root, 'proc/iomem'), '00000000-00000000 : System RAM\n')
    await expect(physicalMemory(context())).rejects.toThrow(/hides the addresses/)
  })

  it('takes no options that it does not know', async () => {
    await expect(physicalMemory(context({ ...KCORE, sauce: 'kcore' }))).rejects.toThrow()
    await expect(physicalMemory(context({ source: 'crash' }))).rejects.toThrow()
  })
})

describe('an end before the end', () => {
  it('Ctrl-C: what is there is kept, marked, and said how far it reaches', async () => {
    const stop = new AbortController()
    let reads = 0
    const capture = changed(read => (into, at) => {
      if (into.length > MiB && ++reads === 2) stop.abort()
      return read(into, at)
    })
    const result = await capture(context(KCORE, { signal: stop.signal }))
    expect(result).toMatchObject({ outcome: 'interrupted', facts: { completeTo: '0x4fffff', bytes: 0x9e000 + 4 * MiB } })
    expect(records(image()).damage?.kind).toBe('cut')
    expect(image().equals(expected().subarray(0, image().length))).toBe(true)
    expect(caze.artifacts[0]?.sha256).toBe(createHash('sha256').update(image()).digest('hex'))
  })

  it.each([
    [
      'of the copy',
      (_: bigint, bytes: number) => bytes > MiB,
      { outcome: 'interrupted', facts: { completeTo: '0x9efff', bytes: 0x9e000 } },
    ],
    ['of the headers', (at: bigint) => at === 0n, { outcome: 'interrupted' }],
    ['that compares', (at: bigint, bytes: number) => at === TEXT.offset && bytes === PAGE, { outcome: 'interrupted' }],
  ])('Ctrl-C ends also a read %s that hangs', async (_, hangs, wanted) => {
    const stop = new AbortController()
    const capture = changed(read => (into, at) => {
      if (!hangs(at, into.length)) return read(into, at)
      setTimeout(() => stop.abort(), 10)
      return new Promise<number>(() => {})
    })
    expect(await capture(context(KCORE, { signal: stop.signal }))).toMatchObject(wanted)
  })

  it('Ctrl-C before the first byte leaves no file', async () => {
    const stop = new AbortController()
    const capture = changed(read => (into, at) => {
      if (into.length === 0x9e000) stop.abort()
      return read(into, at)
    })
    expect(await capture(context(KCORE, { signal: stop.signal }))).toMatchObject({ outcome: 'interrupted', facts: { bytes: 0 } })
    expect(caze.artifacts).toEqual([])
    expect(fs.readdirSync(path.join(caze.directory, 'data/capture-mem'))).toEqual([])
    expect(await physicalMemory(context(KCORE, { signal: AbortSignal.abort() }))).toEqual({ outcome: 'interrupted', reason: 'interrupted' })
  })

  it('stops before the disk is full', async () => {
    const result = await physicalMemory(context({ ...KCORE, reserve: 2 ** 50 }))
    expect(result).toMatchObject({
      outcome: 'failed',
      reason: expect.stringMatching(/^the disk has .* left, and .* are kept for log and seal/),
    })
    expect(caze.artifacts).toEqual([])
  })

  it('a disk that is full all the same: failed, and what is there is kept', async () => {
    // A real one, of 4 MiB. In this process and not in a namespace: the mount is ours, on a directory of ours.
    const small = temporaryDirectory()
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'ir-test', small])
    try {
      caze = createCase({ output: small, id: 'ir-test-20260101T000000Z', host: openHost({ root }) })
      const result = await physicalMemory(context())
      expect(result).toMatchObject({ outcome: 'failed', reason: expect.stringMatching(/^the disk has .* left/) })
      expect(records(image()).damage?.kind).toBe('cut')
      fs.rmSync(path.join(caze.directory, 'data/capture-mem/memory.lime'))

      // Somebody else takes the space between our look and our write, and gives it back.
      const fill = path.join(small, 'fill')
      const filled = createCase({ output: small, id: 'ir-test-20260101T000001Z', host: openHost({ root }) })
      const late = squeezed(filled, {
        before: () => fs.writeFileSync(fill, Buffer.alloc(2 * MiB)),
        behind: () => fs.rmSync(fill),
      })
      const full = await physicalMemory(context(KCORE, { case: late }))
      expect(full).toMatchObject({ outcome: 'failed', reason: 'the disk is full (ENOSPC); the image is incomplete' })
      const [artifact] = filled.artifacts
      const kept = fs.readFileSync(path.join(filled.directory, 'data/capture-mem/memory.lime'))
      expect(artifact).toMatchObject({ bytes: kept.length, sha256: createHash('sha256').update(kept).digest('hex') })
      expect(kept.length).toBeGreaterThan(0x9e000)
      expect(kept.equals(expected().subarray(0, kept.length))).toBe(true)

      // It stays full: not even the entry of the image can be written, and that stops the response.
      const stuck = createCase({ output: small, id: 'ir-test-20260101T000002Z', host: openHost({ root }) })
      const never = squeezed(stuck, { before: () => {}, behind: () => {} })
      await expect(physicalMemory(context(KCORE, { case: never }))).rejects.toThrow(EvidenceError)
    } finally {
      execFileSync('umount', ['-l', small])
      fs.rmdirSync(small)
    }
  })

  it('a case that cannot be written for another reason stops the response', async () => {
    const broken: Case = Object.create(caze, {
      open: {
        value: (step: string, name: string) =>
          Object.create(caze.open(step, name), {
            write: {
              value: () => {
                throw new EvidenceError('the disk reports an error', { cause: Object.assign(new Error('EIO'), { code: 'EIO' }) })
              },
            },
          }),
      },
      directory: { value: caze.directory },
    })
    await expect(physicalMemory(context(KCORE, { case: broken }))).rejects.toThrow(EvidenceError)
  })
})

describe('/dev/mem', () => {
  const MEM = { ...KCORE, source: 'mem', from: '/dev/mem' }

  it('is read range by range, every byte at its own address, and not between them', async () => {
    const asked: [bigint, number][] = []
    const capture = physicalMemoryFrom(async () => ({
      read: (into, at) => {
        asked.push([at, into.length])
        into.set(memory(0, 12 * MiB).subarray(Number(at), Number(at) + into.length))
        return into.length
      },
      close: async () => {},
    }))
    const result = await capture(context(MEM))
    expect(result).toMatchObject({ outcome: 'collected', facts: { source: 'mem', from: '/dev/mem', gapBytes: 0, rangeCount: 2 } })
    expect(asked[0]).toEqual([0x1000n, 0x9ec00])
    expect(asked[1]).toEqual([0x100000n, 4 * MiB])
    expect(records(image()).records.map(({ start, end }) => [start, end])).toEqual([
      [0x1000n, 0x9fc00n],
      [0x100000n, 0xb00000n],
    ])
  })

  it('must be the device', async () => {
    fs.mkdirSync(path.join(root, 'dev'))
    fs.writeFileSync(path.join(root, 'dev/mem'), memory(0, 12 * MiB))
    expect(await physicalMemory(context(MEM))).toMatchObject({
      outcome: 'failed',
      reason: '/dev/mem cannot be opened: it is not the device of physical memory',
    })
  })
})

describe('/dev/crash', () => {
  const CRASH = { ...KCORE, source: 'crash', from: '/dev/crash' }

  it('is read page by page, whole pages only, every byte at its own address', async () => {
    const asked: [bigint, number][] = []
    const driver: ReadAt = (into, at) => {
      asked.push([at, into.length])
      if (at / 4096n !== (at + BigInt(into.length) - 1n) / 4096n) throw Object.assign(new Error('EINVAL'), { code: 'EINVAL' })
      into.set(memory(0, 12 * MiB).subarray(Number(at), Number(at) + into.length))
      return into.length
    }
    const capture = physicalMemoryFrom(async () => ({ read: pageByPage(driver), close: async () => {} }))
    // As many reads as pages: a small machine is enough.
    fs.writeFileSync(path.join(root, 'proc/iomem'), '00001000-0009fbff : System RAM\n00100000-001fffff : System RAM\n')
    const result = await capture(context(CRASH))
    expect(result).toMatchObject({
      outcome: 'collected',
      facts: { source: 'crash', gapBytes: 0xc00, gaps: [{ first: '0x9f000', last: '0x9fbff' }], rangeCount: 2 },
    })
    for (const [at, bytes] of asked) expect([at % 4096n, bytes]).toEqual([0n, 4096])
    const wanted = [limeHeader({ start: 0x1000n, end: 0x9f000n }), memory(0x1000, 0x9e000)]
    expect(image().equals(Buffer.concat([...wanted, limeHeader({ start: 0x100000n, end: 0x200000n }), memory(MiB, MiB)]))).toBe(true)
  })

  it('must be a device', async () => {
    fs.mkdirSync(path.join(root, 'dev'))
    fs.writeFileSync(path.join(root, 'dev/crash'), memory(0, MiB))
    expect(await physicalMemory(context(CRASH))).toMatchObject({
      outcome: 'failed',
      reason: '/dev/crash cannot be opened: it is no device',
    })
  })
})

describe("the check of LiME's image", () => {
  const CHECK = { source: 'lime', iomem: '/proc/iomem', image: 'memory.lime' }
  /** As the module writes them: with the partial page, which it pads with zeros. */
  const low = Buffer.concat([limeHeader({ start: 0x1000n, end: 0x9fc00n }), Buffer.alloc(0x9ec00)])
  const high = Buffer.concat([limeHeader({ start: 0x100000n, end: 0xb00000n }), Buffer.alloc(10 * MiB)])
  const check = async (content?: Buffer) => {
    if (content !== undefined) fs.writeFileSync(caze.pathOf('capture-mem', 'memory.lime'), content)
    return physicalMemory(context(CHECK))
  }

  it('finds all RAM', async () => {
    expect(await check(Buffer.concat([low, high]))).toMatchObject({
      outcome: 'collected',
      facts: { source: 'lime', bytes: 0x9ec00 + 10 * MiB, plannedBytes: 0x9ec00 + 10 * MiB, rangeCount: 2, gapBytes: 0 },
    })
  })

  it.each([
    ['nothing was written', undefined, /wrote no memory\.lime \(ENOENT\)/],
    ['an empty file was written', Buffer.alloc(0), /damaged at byte 0: the file is empty/],
    ['a range is missing', high, /lacks 635\.0 KiB of the RAM/],
    ['the disk filled up', Buffer.concat([low, high]).subarray(0, 5 * MiB), /lacks \d+ bytes/],
    ['a write in the middle failed', Buffer.concat([low.subarray(0, 0x5000), high]), /damaged at byte 650272|damaged at byte \d+: magic/],
    ['something stands behind the last record', Buffer.concat([low, high, Buffer.alloc(100)]), /magic 0x0/],
  ])('tells that %s', async (_, content, reason) => {
    expect(await check(content)).toMatchObject({ outcome: 'failed', reason: expect.stringMatching(reason) })
  })
})
