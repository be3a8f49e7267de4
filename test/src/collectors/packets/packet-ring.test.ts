import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { CollectorContext, CollectorResult, Progress } from '../../../../src/collectors/collector.js'
import { packetRing } from '../../../../src/collectors/packets/packet-ring.js'
import { EvidenceError } from '../../../../src/errors.js'
import { type Case, createCase } from '../../../../src/evidence/case.js'
import { type Host, openHost } from '../../../../src/host.js'
import type { Argv } from '../../../../src/step.js'
import { joinNamespaces, type Namespace, openNamespace } from '../../../helpers/namespace.js'
import { startTraffic } from '../../../helpers/traffic.js'

const FEED = fileURLToPath(new URL('../../../helpers/pcap-feed.mjs', import.meta.url))
const TCPDUMP = openHost().which('tcpdump') ?? 'tcpdump is not installed'
const NSENTER = openHost().which('nsenter') ?? 'nsenter is not installed'

let folder: string
let caze: Case

beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-packet-ring-'))
  caze = createCase({ output: folder, id: 'ir-test', host: openHost() })
})

afterEach(() => fs.rmSync(folder, { recursive: true }))

/** A wall clock behind that of every packet here. */
const BEFORE_ALL = new Date(0)

interface Run {
  readonly argv: Argv
  readonly options?: { readonly rotateSeconds?: number; readonly files?: number; readonly segmentBytes?: number; readonly seconds?: number }
  readonly host?: Partial<Host>
  readonly limit?: number
}

/** A collector at work, with what the engine would hand to it. */
function start({ argv, options = {}, host = {}, limit = 60 }: Run) {
  const stop = new AbortController()
  const figures: Progress[] = []
  let listening: () => void = () => {}
  const ready = new Promise<void>(resolve => {
    listening = resolve
  })
  let changing: (change: { action: string; phase: 'before' | 'after' }) => void = () => {}
  const context: CollectorContext = {
    host: { ...openHost(), now: () => BEFORE_ALL, ...host },
    options: { rotateSeconds: 300, files: 5, segmentBytes: 1 << 20, ...options },
    source: [{ title: 'Capture packets', argv, limit }],
    sink: [],
    case: caze,
    step: 'capture-net',
    action: 'capture-net/2',
    signal: stop.signal,
    progress: figure => {
      figures.push(figure)
      listening()
    },
    onChange: callback => {
      changing = callback
    },
  }
  const result = packetRing(context)
  const until = async (packets: number): Promise<void> => {
    while ((figures.at(-1)?.packets ?? 0) < packets) await sleep(20)
  }
  return { result, stop: () => stop.abort(), ready, until, change: (phase: 'before' | 'after') => changing({ action: 'isolate/1', phase }) }
}

const feed = (...what: object[]): Argv => [process.execPath, FEED, JSON.stringify([{ header: true }, ...what])]

/** Numbers of the fed packets in a file, as tcpdump reads them. */
function packetsIn(name: string): number[] {
  const text = execFileSync(TCPDUMP, ['-n', '-xx', '-r', locate(name)], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
  return [...text.matchAll(/0x0000: {2}([0-9a-f]{4}) ([0-9a-f]{4})/g)].map(found =>
    Buffer.from(`${found[1]}${found[2]}`, 'hex').readUInt32LE(),
  )
}

/** Packets in a file of a real capture; fails when tcpdump finds it damaged. */
function read(name: string): string[] {
  return execFileSync(TCPDUMP, ['-n', '-r', locate(name)], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
    .trim()
    .split('\n')
}

interface Kept {
  readonly name: string
  readonly pinned: boolean
}

const locate = (name: string): string => path.join(caze.directory, 'data', 'capture-net', name)
const filesOnDisk = (): string[] => fs.readdirSync(path.join(caze.directory, 'data', 'capture-net')).sort()
const entered = (): string[] => caze.artifacts.map(artifact => path.basename(artifact.path))
const keptOf = (result: CollectorResult): Kept[] => (result.facts?.kept ?? []) as unknown as Kept[]
const range = (from: number, to: number): number[] => Array.from({ length: to - from + 1 }, (_, index) => from + index)

describe('the packet ring', () => {
  it('begins a new file before one grows too large, and keeps the newest', async () => {
    // 24 bytes of header and 9 records of 116 bytes fit into 1100.
    const { result } = start({ argv: feed({ packets: 45 }), options: { segmentBytes: 1100, files: 3 } })
    const ended = await result
    expect(filesOnDisk()).toEqual(['capture-0003.pcap', 'capture-0004.pcap', 'capture-0005.pcap'])
    expect(entered()).toEqual(filesOnDisk())
    expect(filesOnDisk().map(packetsIn)).toEqual([range(19, 27), range(28, 36), range(37, 45)])
    for (const { path: name, sha256, bytes } of caze.artifacts) {
      const content = fs.readFileSync(path.join(caze.directory, name))
      expect([bytes, sha256]).toEqual([content.length, createHash('sha256').update(content).digest('hex')])
      expect(bytes).toBeLessThanOrEqual(1100)
    }
    expect(ended.facts).toMatchObject({
      packets: 45,
      linkType: 'ETHERNET',
      evicted: { segments: 2, packets: 18, bytes: 2 * (24 + 9 * 116), first: '2026-01-01T00:00:01.000Z', last: '2026-01-01T00:00:18.000Z' },
    })
    expect(keptOf(ended)[2]).toMatchObject({ name: 'capture-0005.pcap', packets: 9, last: '2026-01-01T00:00:45.000Z', pinned: false })
  })

  it('counts as failed when the capture ends by itself, whatever it says', async () => {
    const { result } = start({ argv: feed({ packets: 2 }, { say: 'tcpdump: pcap_loop: The interface disappeared\n' }, { exit: 1 }) })
    const ended = await result
    expect(ended.outcome).toBe('failed')
    expect(ended.reason).toContain('exited with 1: tcpdump: pcap_loop: The interface disappeared')
    expect(ended.reason).toContain('2 packets')
    expect(entered()).toEqual(['capture-0001.pcap'])
  })

  it('begins a new file when its time is over, also when nothing comes any more', async () => {
    const run = start({ argv: feed({ packets: 3 }, { wait: 1500 }, { packets: 2 }, { stay: true }), options: { rotateSeconds: 0.3 } })
    await run.until(5)
    run.stop()
    const ended = await run.result
    expect(ended.outcome).toBe('collected')
    expect(filesOnDisk().map(packetsIn)).toEqual([range(1, 3), range(4, 5)])
  })

  it('never gives up the file that is open during the cut', async () => {
    const burst = [{ packets: 9 }, { wait: 100 }]
    const run = start({
      argv: feed({ packets: 3 }, { wait: 1500 }, ...Array.from({ length: 12 }, () => burst).flat(), { stay: true }),
      options: { segmentBytes: 1100, files: 2 },
    })
    await run.until(3)
    run.change('before')
    run.change('after')
    await run.until(111)
    run.stop()
    const kept = keptOf(await run.result)
    expect(kept.map(segment => segment.pinned)).toEqual([true, false, false])
    expect(filesOnDisk()).toHaveLength(3)
    expect(packetsIn('capture-0001.pcap').slice(0, 3)).toEqual([1, 2, 3])
    expect(packetsIn(filesOnDisk()[2] as string).at(-1)).toBe(111)
  })

  it('keeps the last packets before a cut and the first after it where the link is quiet', async () => {
    const later = Array.from({ length: 6 }, () => [{ packets: 9 }, { wait: 50 }]).flat()
    const run = start({
      argv: feed({ packets: 3 }, { wait: 2500 }, { packets: 4 }, { wait: 800 }, ...later, { stay: true }),
      options: { segmentBytes: 1100, files: 2, rotateSeconds: 0.2 },
    })
    await run.until(3)
    await sleep(1000)
    run.change('before')
    run.change('after')
    await run.until(61)
    run.stop()
    const kept = keptOf(await run.result)
    expect(kept.filter(segment => segment.pinned).map(segment => packetsIn(segment.name))).toEqual([range(1, 3), range(4, 7)])
    expect(kept).toHaveLength(4)
  })

  it('never gives up packets from before the cut that tcpdump handed on after it', async () => {
    // The packets are numbered by seconds from 2026-01-01: the host is cut off in the 12th second, and tells before they come.
    const now = (): Date => new Date('2026-01-01T00:00:12Z')
    const run = start({
      argv: feed({ wait: 1500 }, { packets: 45 }, { stay: true }),
      host: { now },
      options: { segmentBytes: 1100, files: 1 },
    })
    await run.ready
    run.change('before')
    run.change('after')
    await run.until(45)
    run.stop()
    expect(keptOf(await run.result).map(({ pinned, name }) => [pinned, packetsIn(name)])).toEqual([
      [true, range(1, 9)],
      [true, range(10, 18)],
      [false, range(37, 45)],
    ])
  })

  it('pins a bounded number of files when a change never ends', async () => {
    const run = start({
      argv: feed({ wait: 1500 }, ...Array.from({ length: 10 }, () => [{ packets: 9 }, { wait: 20 }]).flat(), { stay: true }),
      options: { segmentBytes: 1100, files: 2 },
    })
    await run.ready
    run.change('before')
    await run.until(90)
    run.stop()
    expect(keptOf(await run.result).map(segment => segment.pinned)).toEqual([true, true, true, true, false, false])
  })

  it('writes no record that is not whole', async () => {
    const torn = Buffer.alloc(60)
    torn.writeUInt32LE(100, 8)
    const { result } = start({ argv: feed({ packets: 2 }, { raw: torn.toString('base64') }) })
    expect((await result).facts).toMatchObject({ packets: 2, incompleteBytes: 60 })
    expect(packetsIn('capture-0001.pcap')).toEqual([1, 2])
    expect(fs.statSync(locate('capture-0001.pcap')).size).toBe(24 + 2 * 116)
  })

  it('stops at what is no pcap, and keeps what came before', async () => {
    const broken = Buffer.alloc(16, 0xff)
    const run = start({ argv: feed({ packets: 2 }, { raw: broken.toString('base64') }, { stay: true }) })
    const ended = await run.result
    expect(ended).toMatchObject({ outcome: 'failed', facts: { packets: 2 } })
    expect(ended.reason).toContain('a record claims to be 4294967295 bytes long')
    expect(packetsIn('capture-0001.pcap')).toEqual([1, 2])
    const text = await start({ argv: ['/bin/echo', 'this is what a replaced tcpdump might print'] }).result
    expect(text.outcome).toBe('failed')
    expect(text.reason).toContain('not a pcap stream')
  })

  it('says that there was nothing, and makes no file', async () => {
    const run = start({ argv: feed({ stay: true }), options: { seconds: 1 } })
    const ended = await run.result
    expect(ended.outcome).toBe('empty')
    expect(ended.reason).toContain('no packet')
    expect(fs.existsSync(path.join(caze.directory, 'data', 'capture-net'))).toBe(false)
  })

  it('stops before the disk is full, with a file that can be read', async () => {
    let freeBytes = 8 * 1024 ** 3
    const statfs: Host['statfs'] = () => ({ type: 0n, totalBytes: 100 * 1024 ** 3, freeBytes })
    const run = start({ argv: feed({ packets: 5 }, { stay: true }), host: { statfs } })
    await run.until(5)
    freeBytes = 4 * 1024 ** 3
    const ended = await run.result
    expect(ended.outcome).toBe('failed')
    expect(ended.reason).toMatch(/^stopped: only 4\.0 GiB are free .* below the floor of 5\.0 GiB; kept .* 5 packets$/)
    expect(packetsIn('capture-0001.pcap')).toEqual(range(1, 5))
    const again = await start({ argv: feed({ packets: 1 }), host: { statfs } }).result
    expect(again.reason).toMatch(/^not started: only 4\.0 GiB/)
  })

  it('lets a disk that refuses stop the response', async () => {
    caze.open('capture-net', 'capture-0001.pcap').close({ action: 'capture-net/1', how: 'collector' })
    await expect(start({ argv: feed({ packets: 1 }, { stay: true }) }).result).rejects.toThrow(EvidenceError)
  })

  it('tells in its own words why tcpdump cannot capture', async () => {
    const none = await start({ argv: [TCPDUMP, '-i', 'nosuch0', '-n', '-w', '-'] }).result
    expect(none.outcome).toBe('failed')
    expect(none.reason).toMatch(/exited with 1: .*nosuch0: .*No such device exists.*nothing was captured/)
    const setpriv = openHost().which('setpriv') ?? ''
    const argv: Argv = [setpriv, '--reuid=65534', '--clear-groups', '--', TCPDUMP, '-i', 'lo', '-n', '-w', '-']
    expect((await start({ argv }).result).reason).toMatch(/permission/i)
    const gone = await start({ argv: ['/nonexistent/tcpdump', '-w', '-'] }).result
    expect(gone).toMatchObject({
      outcome: 'failed',
      reason: '/nonexistent/tcpdump could not be started (ENOENT); nothing was captured until then',
    })
  })

  it('stops when it was told to before it began', async () => {
    const run = start({ argv: feed({ stay: true }) })
    run.stop()
    expect((await run.result).outcome).not.toBe('collected')
    expect(entered()).toEqual([])
  })
})

describe('the packet ring with a real tcpdump', () => {
  let host: Namespace
  let peer: Namespace

  beforeEach(async () => {
    host = await openNamespace()
    peer = await openNamespace()
    await joinNamespaces(host, ['192.0.2.10/24'], peer, ['192.0.2.7/24'])
  })

  afterEach(() => Promise.all([host.close(), peer.close()]))

  const tcpdump = (...filter: string[]): Argv => [
    NSENTER,
    `--net=/proc/${host.pid}/ns/net`,
    '--',
    ...[TCPDUMP, '-i', 'any', '-n', '-p', '-U', '-s', '0', '-w', '-', ...filter],
  ]

  it('captures, counts and closes when it is told to end', async () => {
    const run = start({ argv: tcpdump('--', 'udp port 4000') })
    await run.ready
    const [here, there] = [await startTraffic(host), await startTraffic(peer)]
    await there.listen('192.0.2.7', 4000)
    for (let count = 0; count < 20; count += 1) expect(await here.datagram({ to: '192.0.2.7', port: 4000 })).toBe(true)
    await run.until(40)
    run.stop()
    const ended = await run.result
    expect(ended.outcome).toBe('collected')
    expect(ended.facts).toMatchObject({ packets: 40, linkType: 'LINUX_SLL2', snapshotLength: 262_144, kernel: { dropped: 0 } })
    expect(read('capture-0001.pcap')).toHaveLength(40)
    expect(caze.artifacts).toHaveLength(1)
  })

  it('rotates a busy capture without losing a packet', async () => {
    const run = start({ argv: tcpdump('--', 'udp port 4000'), options: { segmentBytes: 20_000, files: 100 } })
    await run.ready
    const [here, there] = [await startTraffic(host), await startTraffic(peer)]
    await there.listen('192.0.2.7', 4000)
    for (let batch = 0; batch < 25; batch += 1) {
      await Promise.all(Array.from({ length: 20 }, () => here.datagram({ to: '192.0.2.7', port: 4000 })))
    }
    await run.until(1000)
    run.stop()
    const ended = await run.result
    expect(ended.facts).toMatchObject({ packets: 1000 })
    const counts = filesOnDisk().map(name => read(name).length)
    expect(counts.length).toBeGreaterThan(3)
    expect(counts.reduce((sum, count) => sum + count)).toBe(1000)
  })

  it('keeps a file that can be read when tcpdump is killed', async () => {
    const run = start({ argv: tcpdump() })
    await run.ready
    const [here, there] = [await startTraffic(host), await startTraffic(peer)]
    await there.listen('192.0.2.7', 4000)
    await here.datagram({ to: '192.0.2.7', port: 4000 })
    await run.until(2)
    process.kill(tcpdumpIn(host), 'SIGKILL')
    const ended = await run.result
    expect(ended.outcome).toBe('failed')
    expect(ended.reason).toMatch(
      /was killed by SIGKILL \(after .*, without being told to\); kept what was captured until then, \d+ packets/,
    )
    expect(read('capture-0001.pcap').length).toBe(ended.facts?.packets)
  })

  it('notices when somebody else ends tcpdump politely', async () => {
    const run = start({ argv: tcpdump() })
    await run.ready
    process.kill(tcpdumpIn(host), 'SIGTERM')
    expect((await run.result).reason).toMatch(/exited with 0 \(after .*, without being told to\)/)
  })

  it('says what is wrong with a filter', async () => {
    expect((await start({ argv: tcpdump('--', 'port 22 or (') }).result).reason).toContain('syntax error')
    expect((await start({ argv: tcpdump('--', '-z/bin/true') }).result).reason).toMatch(/exited with 1: tcpdump: /)
  })
})

/** The process of that name in a namespace. */
function tcpdumpIn(namespace: Namespace): number {
  for (const name of fs.readdirSync('/proc').filter(name => /^\d+$/.test(name))) {
    try {
      const here = fs.readlinkSync(`/proc/${name}/ns/net`) === namespace.id
      if (here && fs.readFileSync(`/proc/${name}/comm`, 'utf8') === 'tcpdump\n') return Number(name)
    } catch {
      // Gone.
    }
  }
  throw new Error('there is no tcpdump')
}
