import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import type { Readable } from 'node:stream'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { CollectorContext } from '../../../../src/collectors/collector.js'
import { coreHeaders, MAX_SEGMENTS } from '../../../../src/collectors/memory/elf-core.js'
import { processMemory } from '../../../../src/collectors/memory/process-memory.js'
import { parseMaps } from '../../../../src/collectors/proc/proc.js'
import { type Case, createCase } from '../../../../src/evidence/case.js'
import { openHost } from '../../../../src/host.js'
import type { JsonObject } from '../../../../src/step.js'
import { temporaryDirectory } from '../../../helpers/kcore.js'

const MiB = 1 << 20

/** Inert: a stamped buffer of 3 pages, 64 MiB that it never touches, memory that nobody may read, a memfd; then it waits. */
const CANARY = `
import ctypes, mmap, os, sys
buffer = ctypes.create_string_buffer(b'ir canary ' + b'\\xa5' * 12000, 12288)
untouched = mmap.mmap(-1, 64 << 20)
secret = mmap.mmap(-1, 8192, prot=mmap.PROT_READ | mmap.PROT_WRITE)
ctypes.CDLL(None).mprotect(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(secret))), 8192, 0)
fd = os.memfd_create('canary')
os.write(fd, b'in a memfd' + bytes(8182))
shared = mmap.mmap(fd, 8192)
assert shared[0:2] == b'in'
print(ctypes.addressof(buffer), flush=True)
sys.stdin.read()
`

let output: string
let caze: Case
let child: ChildProcess | undefined

beforeEach(() => {
  output = temporaryDirectory()
  caze = createCase({ output, id: 'ir-test-20260101T000000Z', host: openHost() })
})

afterEach(() => {
  child?.kill('SIGKILL')
  child = undefined
  fs.rmSync(output, { recursive: true })
})

function context(options: JsonObject, given: Partial<CollectorContext> = {}): CollectorContext {
  return {
    host: openHost(),
    options: { maxBytes: 2 ** 32, reserve: 0, ...options },
    source: [],
    sink: [],
    case: caze,
    step: 'capture-mem',
    action: 'capture-mem/1',
    signal: new AbortController().signal,
    progress: () => {},
    onChange: () => {},
    ...given,
  }
}

async function plant(): Promise<{ pid: number; address: bigint }> {
  child = spawn('python3', ['-c', CANARY], { stdio: ['pipe', 'pipe', 'inherit'] })
  const [line] = (await once(child.stdout as Readable, 'data')) as [Buffer]
  return { pid: child.pid as number, address: BigInt(line.toString().trim()) }
}

const artifact = (name: string): string => path.join(caze.directory, 'data/capture-mem', name)

interface Load {
  readonly offset: number
  readonly start: bigint
  readonly bytes: number
  readonly flags: string
}

/** The segments as binutils see them. */
function readelf(core: string): { text: string; loads: Load[] } {
  const text = execFileSync('readelf', ['-lW', core], { encoding: 'utf8', maxBuffer: 64 * MiB, stdio: ['ignore', 'pipe', 'pipe'] })
  const lines = text.matchAll(/^ +LOAD +(0x[0-9a-f]+) (0x[0-9a-f]+) 0x0+ (0x[0-9a-f]+) (0x[0-9a-f]+) ([R ][W ][E ]) 0x1000$/gm)
  const loads = [...lines].map(([, offset, start, bytes, memory, flags]) => {
    expect(memory).toBe(bytes)
    return { offset: Number(offset), start: BigInt(start as string), bytes: Number(bytes), flags: flags as string }
  })
  return { text, loads }
}

function at(core: string, loads: readonly Load[], address: bigint, bytes: number): Buffer {
  const load = loads.find(({ start, bytes }) => start <= address && address < start + BigInt(bytes))
  if (load === undefined) throw new Error(`no segment holds ${address}`)
  const from = load.offset + Number(address - load.start)
  return fs.readFileSync(core).subarray(from, from + bytes)
}

function residentKiB(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(fs.readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1])
}

describe('a running process', () => {
  it('becomes a core file that holds its memory at its addresses', async () => {
    const { pid, address } = await plant()
    const before = residentKiB(pid)
    const result = await processMemory(context({ pids: [pid] }))
    expect(result).toMatchObject({ outcome: 'collected', facts: { source: 'process', note: expect.stringMatching(/not physical memory/) } })
    expect(caze.artifacts.map(one => one.path)).toEqual([
      `data/capture-mem/process-${pid}.maps.txt`,
      `data/capture-mem/process-${pid}.core`,
    ])

    const core = artifact(`process-${pid}.core`)
    const { text, loads } = readelf(core)
    expect(text).toContain('Elf file type is CORE')
    const canary = Buffer.concat([Buffer.from('ir canary '), Buffer.alloc(12000, 0xa5)])
    expect(at(core, loads, address, canary.length).equals(canary)).toBe(true)

    const mappings = [...parseMaps(fs.readFileSync(artifact(`process-${pid}.maps.txt`), 'latin1'))]
    const memfd = mappings.find(one => one.path.startsWith('/memfd:canary'))
    expect(at(core, loads, memfd?.start as bigint, 10).toString()).toBe('in a memfd')

    // Every readable region is there with its rights, and the file ends with the last of them.
    const wanted = mappings.filter(one => one.permissions.startsWith('r') && !/^\[(vvar.*|vsyscall)\]$/.test(one.path))
    expect(loads.map(({ start, flags }) => [start, flags])).toEqual(
      wanted.map(({ start, permissions }) => [start, `R${permissions[1] === 'w' ? 'W' : ' '}${permissions[2] === 'x' ? 'E' : ' '}`]),
    )
    const last = loads.at(-1) as Load
    expect(fs.statSync(core).size).toBe(last.offset + last.bytes)

    // What it never touched is neither read into its memory nor written to the disk.
    expect(residentKiB(pid) - before).toBeLessThan(8 * 1024)
    expect(fs.statSync(core).blocks * 512).toBeLessThan(fs.statSync(core).size - 60 * MiB)
    const [facts] = (result.facts as { processes: { absentBytes: number; leftOut: { why: string; path: string }[] }[] }).processes
    expect(facts?.absentBytes).toBeGreaterThanOrEqual(64 * MiB)
    const whys = new Set(facts?.leftOut.map(({ why }) => why))
    expect(whys).toContain('not readable')
    expect(JSON.parse(JSON.stringify(result.facts))).toEqual(result.facts)
  })

  it('names the mapped files as debuggers expect them', async () => {
    const { pid } = await plant()
    await processMemory(context({ pids: [pid] }))
    const notes = execFileSync('readelf', ['-nW', artifact(`process-${pid}.core`)], { encoding: 'utf8' })
    expect(notes).toMatch(/NT_AUXV/)
    expect(notes).toMatch(/NT_FILE/)
  })

  it('above its limit: what no file holds comes first, the rest is named, and it is not collected', async () => {
    const { pid, address } = await plant()
    const result = await processMemory(context({ pids: [pid], maxBytes: 16 * MiB }))
    expect(result).toMatchObject({
      outcome: 'failed',
      reason: expect.stringMatching(/^process \d+: \d+ regions \(.* MiB\) above the limit of 16\.0 MiB$/),
    })
    const core = artifact(`process-${pid}.core`)
    const { loads } = readelf(core)
    expect(loads.reduce((sum, { bytes }) => sum + bytes, 0)).toBeLessThanOrEqual(16 * MiB)
    expect(at(core, loads, address, 10).toString()).toBe('ir canary ')
    const [facts] = (result.facts as { processes: { leftOut: { why: string }[] }[] }).processes
    expect(facts?.leftOut.some(({ why }) => why === 'above the limit of 16.0 MiB')).toBe(true)
  })

  it('that is one of several costs the others nothing', async () => {
    const { pid } = await plant()
    const gone = spawn('true')
    await once(gone, 'exit')
    const result = await processMemory(context({ pids: [gone.pid as number, pid, process.pid] }))
    expect(result).toMatchObject({
      outcome: 'unavailable',
      reason: `process ${gone.pid}: there is no such process any more; process ${process.pid}: that is this program itself`,
      facts: { processes: [{ outcome: 'unavailable' }, { pid, outcome: 'collected' }, { outcome: 'unavailable' }] },
    })
    expect(caze.artifacts).toHaveLength(2)
  })

  it('Ctrl-C: what is there is kept and marked, the next one is not begun', async () => {
    const { pid } = await plant()
    const stop = new AbortController()
    const result = await processMemory(context({ pids: [pid, 1] }, { signal: stop.signal, progress: () => stop.abort() }))
    expect(result).toMatchObject({
      outcome: 'interrupted',
      facts: {
        processes: [
          { pid, outcome: 'interrupted' },
          { pid: 1, outcome: 'interrupted', reason: 'not started' },
        ],
      },
    })
    expect(fs.readFileSync(path.join(caze.directory, 'artifacts.jsonl'), 'utf8')).toContain('incomplete: interrupted')
  })

  it('stops before the disk is full', async () => {
    const { pid } = await plant()
    const result = await processMemory(context({ pids: [pid], reserve: 2 ** 50 }))
    expect(result).toMatchObject({ outcome: 'failed', reason: expect.stringMatching(/the disk has .* left/) })
    expect(caze.artifacts.map(one => one.path)).toEqual([`data/capture-mem/process-${pid}.maps.txt`])
  })
})

describe('a recorded process', () => {
  /** Region addresses so low that `mem` is an ordinary file. */
  function tree(maps: string, memory: Buffer, pagemap?: Buffer): string {
    const root = path.join(output, 'root')
    fs.mkdirSync(path.join(root, 'proc/77'), { recursive: true })
    const files = { mem: memory, maps, auxv: '', stat: `77 (a b) c) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 ${'0 '.repeat(30)}` }
    for (const [name, content] of Object.entries(files)) fs.writeFileSync(path.join(root, 'proc/77', name), content)
    if (pagemap !== undefined) fs.writeFileSync(path.join(root, 'proc/77/pagemap'), pagemap)
    return root
  }
  const line = (start: number, end: number, rest = 'rw-p 00000000 00:00 0 ') =>
    `${start.toString(16).padStart(8, '0')}-${end.toString(16).padStart(8, '0')} ${rest}\n`
  const run = (root: string, given: Partial<CollectorContext> = {}) =>
    processMemory(context({ pids: [77] }, { host: openHost({ root }), ...given }))

  it('that ends while it is read is not collected', async () => {
    const result = await run(tree(line(0x1000, 0x400000), Buffer.alloc(2 * MiB, 7)))
    expect(result).toMatchObject({ outcome: 'failed', reason: 'process 77: it ended while it was read' })
    expect(fs.statSync(artifact('process-77.core')).size).toBe(4096 + MiB)
  })

  it('leaves devices, pages of the kernel and what is not readable alone, and lists them', async () => {
    const maps = [
      line(0x1000, 0x2000, 'r--p 00000000 00:00 0 [vvar]'),
      line(0x2000, 0x3000, 'rw-s 00000000 00:05 9 /dev/dri/card0'),
      line(0x3000, 0x4000, '---p 00000000 00:00 0 '),
      line(0x4000, 0x5000, 'rw-s 00000000 00:05 9 /dev/shm/queue (deleted)'),
      line(0x5000, 0x6000, 'rw-p 00000000 fe:00 12 /tmp/a\\012b "c" \u001b[31m (deleted)'),
      'no mapping at all\n',
    ]
    const result = await run(tree(maps.join(''), Buffer.alloc(0x6000, 7)))
    expect(result).toMatchObject({
      outcome: 'collected',
      facts: {
        processes: [
          {
            regions: 2,
            startTicks: 4711,
            residency: false,
            leftOut: [
              { first: '0x1000', last: '0x1fff', path: '[vvar]', why: 'pages of the kernel' },
              { first: '0x2000', path: '/dev/dri/card0', why: 'a device' },
              { first: '0x3000', path: '', why: 'not readable' },
            ],
          },
        ],
      },
    })
    expect(readelf(artifact('process-77.core')).loads.map(({ start }) => start)).toEqual([0x4000n, 0x5000n])
  })

  it('reads only what is in memory or in swap', async () => {
    const pagemap = Buffer.alloc(8 * 8)
    pagemap.writeBigUInt64LE(1n << 63n, 8 * 2)
    pagemap.writeBigUInt64LE(1n << 62n, 8 * 4)
    const result = await run(tree(line(0x1000, 0x6000), Buffer.alloc(0x6000, 7), pagemap))
    expect(result).toMatchObject({ outcome: 'collected', facts: { processes: [{ absentBytes: 3 * 4096, residency: true }] } })
    const core = fs.readFileSync(artifact('process-77.core'))
    const pages = [0, 1, 2, 3, 4].map(page => core[4096 + page * 4096])
    expect(pages).toEqual([0, 7, 0, 7, 0])
  })

  it('without memory of its own is empty', async () => {
    expect(await run(tree('', Buffer.alloc(0)))).toMatchObject({ outcome: 'empty', reason: expect.stringMatching(/thread of the kernel/) })
  })
})

describe('core headers', () => {
  const segment = { readable: true, writable: false, executable: false }

  it('hold any number of segments that a core file can have, and refuse more', () => {
    const segments = Array.from({ length: MAX_SEGMENTS }, (_, index) => ({
      ...segment,
      start: BigInt(index) * 0x2000n,
      end: BigInt(index) * 0x2000n + 0x1000n,
    }))
    const headers = coreHeaders({ machine: 'arm64', segments, auxiliaryVector: new Uint8Array(5) })
    expect(headers.length % 4096).toBe(0)
    expect(headers.readUInt16LE(18)).toBe(183)
    expect(headers.readUInt16LE(56)).toBe(MAX_SEGMENTS + 1)
    expect(() =>
      coreHeaders({ machine: 'arm64', segments: [...segments, segments[0] as never], auxiliaryVector: new Uint8Array() }),
    ).toThrow(RangeError)
  })
})
