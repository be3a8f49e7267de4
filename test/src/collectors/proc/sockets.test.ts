/** Our own reading of sockets, against sockets that are really there. Needs root. */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { type SocketRecord, sockets } from '../../../../src/collectors/proc/sockets.js'
import { openHost } from '../../../../src/host.js'
import { collecting } from '../../../helpers/collecting.js'
import { openNamespace } from '../../../helpers/namespace.js'
import { planted, plantPython, pythonArgv } from '../../../helpers/planted.js'

const OPTIONS = { tableBytes: 64 * 1024 ** 2, descriptors: 65_536, ownerSeconds: 30 }
const own = Number(/\d+/.exec(fs.readlinkSync('/proc/self/ns/net'))?.[0])

type Inet = Extract<SocketRecord, { local: unknown }>
const inet = (records: readonly SocketRecord[]): Inet[] => records.filter((record): record is Inet => 'local' in record)

async function listening(host: string): Promise<net.Server> {
  const server = net.createServer(() => {})
  await new Promise<void>(resolve => void server.listen(0, host, resolve))
  return server
}
const portOf = (server: net.Server): number => (server.address() as net.AddressInfo).port

describe('sockets of this process', () => {
  it('are listed with both ends, state and owner', async () => {
    const server = await listening('127.0.0.1')
    const client = net.connect(portOf(server), '127.0.0.1')
    await new Promise(resolve => client.once('connect', resolve))
    try {
      using ended = await collecting(sockets, OPTIONS)
      expect(ended.result.outcome).toBe('collected')
      expect(ended.names).toEqual(['sockets.jsonl'])
      const mine = inet(ended.records<SocketRecord>('sockets.jsonl')).filter(({ owners }) => owners.some(({ pid }) => pid === process.pid))
      const [listen] = mine.filter(({ state }) => state === 'LISTEN')
      expect(listen).toMatchObject({
        namespace: own,
        own: true,
        protocol: 'tcp',
        local: { address: '127.0.0.1', port: portOf(server) },
        remote: { address: '0.0.0.0', port: 0 },
        uid: 0,
        owners: [{ pid: process.pid, exe: process.execPath, comm: fs.readFileSync('/proc/self/comm', 'utf8').trim() }],
      })
      expect(fs.readlinkSync(`/proc/self/fd/${listen?.owners[0]?.fd}`)).toBe(`socket:[${listen?.inode}]`)
      const [ours] = mine.filter(({ local }) => local.port === client.localPort)
      expect(ours).toMatchObject({ state: 'ESTABLISHED', remote: { address: '127.0.0.1', port: portOf(server) } })
      expect(ended.facts).toMatchObject({ hung: 0, readApart: true, notUnderstood: 0, bounds: [], self: [process.pid, expect.any(Number)] })
    } finally {
      client.destroy()
      server.close()
    }
  })

  it('of IPv6 show an IPv4 peer by its own address', async () => {
    const server = await listening('::')
    const client = net.connect(portOf(server), '127.0.0.1')
    await new Promise(resolve => client.once('connect', resolve))
    try {
      using ended = await collecting(sockets, OPTIONS)
      const found = inet(ended.records<SocketRecord>('sockets.jsonl'))
      expect(found.find(({ local, state }) => local.port === portOf(server) && state === 'LISTEN')).toMatchObject({
        protocol: 'tcp6',
        local: { address: '::' },
      })
      expect(found.find(({ local, state }) => local.port === portOf(server) && state === 'ESTABLISHED')).toMatchObject({
        protocol: 'tcp6',
        remote: { address: '::ffff:127.0.0.1', port: client.localPort },
      })
    } finally {
      client.destroy()
      server.close()
    }
  })

  it('of the unix family keep names that are no text', async () => {
    const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-unix-'))
    await using holder = await plantPython(`
import os, socket, time
one = socket.socket(socket.AF_UNIX)
one.bind(os.fsencode('${directory}') + b'/so\\xffcket with blanks')
one.listen()
print('ready', flush=True)
time.sleep(600)
`)
    try {
      using ended = await collecting(sockets, OPTIONS)
      const mine = ended.records<SocketRecord>('sockets.jsonl').filter(({ owners }) => owners.some(({ pid }) => pid === holder.pid))
      const listen = mine.find(({ protocol, state }: SocketRecord & { state?: string }) => protocol === 'unix' && state === 'LISTEN') as
        | (SocketRecord & { pathBase64?: string })
        | undefined
      expect(Buffer.from(listen?.pathBase64 ?? '', 'base64').toString('latin1')).toBe(`${directory}/so\xffcket with blanks`)
    } finally {
      fs.rmSync(directory, { recursive: true, force: true })
    }
  })
})

describe('network namespaces', () => {
  it('are all read, each once, with the owners of their sockets', async () => {
    await using namespace = await openNamespace()
    const script = `
import socket, sys
one = socket.create_server(('127.0.0.1', 4444))
print('ready', flush=True)
sys.stdin.read()
`
    await using holder = await planted(namespace.start(pythonArgv(script)))
    using ended = await collecting(sockets, OPTIONS)
    const inode = Number(/\d+/.exec(namespace.id)?.[0])
    const there = ended.records<SocketRecord>('sockets.jsonl').filter(record => record.namespace === inode)
    const listen = inet(there).filter(({ state }) => state === 'LISTEN')
    expect(listen).toHaveLength(1)
    expect(listen[0]).toMatchObject({
      own: false,
      local: { address: '127.0.0.1', port: 4444 },
      owners: [{ pid: holder.pid, comm: 'python3' }],
    })
    expect(ended.facts.namespaces).toEqual(
      expect.arrayContaining([
        expect.objectContaining({ inode: own, own: true }),
        { inode, own: false, members: 2, sockets: there.length },
      ]),
    )
  })

  it('of a single thread are read too, and what it holds apart from its process', async () => {
    await using hider = await plantPython(`
import ctypes, os, socket, threading, time
libc = ctypes.CDLL(None)
CLONE_FILES, CLONE_NEWNET = 0x400, 0x40000000
done = []
def apart(flags, port):
    assert libc.unshare(flags) == 0
    if flags & CLONE_NEWNET:
        os.system('exit 0')
    one = socket.socket()
    one.bind(('0.0.0.0', port))
    one.listen()
    done.append(threading.get_native_id())
    time.sleep(600)
threading.Thread(target=apart, args=(CLONE_FILES | CLONE_NEWNET, 4445), daemon=True).start()
while len(done) < 1: time.sleep(0.01)
print(done[0], flush=True)
time.sleep(600)
`)
    using ended = await collecting(sockets, OPTIONS)
    const thread = Number(hider.said)
    const namespace = Number(/\d+/.exec(fs.readlinkSync(`/proc/${hider.pid}/task/${thread}/ns/net`))?.[0])
    expect(namespace).not.toBe(own)
    const found = inet(ended.records<SocketRecord>('sockets.jsonl')).filter(record => record.namespace === namespace)
    expect(found).toEqual([
      expect.objectContaining({
        state: 'LISTEN',
        local: { address: '0.0.0.0', port: 4445 },
        owners: [expect.objectContaining({ pid: hider.pid, thread })],
      }),
    ])
  })

  it('that are only held open are named, since they cannot be read', async () => {
    await using holder = await plantPython(`
import ctypes, os, time
libc = ctypes.CDLL(None)
back = os.open('/proc/self/ns/net', os.O_RDONLY)
assert libc.unshare(0x40000000) == 0
held = os.open('/proc/self/ns/net', os.O_RDONLY)
name = os.readlink('/proc/self/ns/net')
assert libc.setns(back, 0x40000000) == 0
os.close(back)
print(name[5:-1], held, flush=True)
time.sleep(600)
`)
    const [inode, fd] = holder.said.split(' ').map(Number)
    using ended = await collecting(sockets, OPTIONS)
    expect(ended.facts.unreachable).toEqual(expect.arrayContaining([{ inode, path: `/proc/${holder.pid}/fd/${fd}` }]))
  })
})

describe('bounds', () => {
  it('of time for owners leave the sockets on disk, and are told', async () => {
    using ended = await collecting(sockets, { ...OPTIONS, ownerSeconds: 1e-9 })
    expect(ended.result.outcome).toBe('collected')
    expect(ended.records('sockets.jsonl').length).toBe(ended.facts.sockets)
    expect(ended.facts.bounds).toEqual([expect.stringMatching(/^owners were searched for 1e-9 s: \d+ of \d+ were not looked at$/)])
    const [artifact] = fs.readFileSync(path.join(ended.case.directory, 'artifacts.jsonl'), 'utf8').trim().split('\n')
    expect(artifact).toContain('owners were searched for')
  })

  it('of bytes and of descriptors are told', async () => {
    const held = Array.from({ length: 8 }, () => fs.openSync('/dev/null', 'r'))
    try {
      using ended = await collecting(sockets, { ...OPTIONS, tableBytes: 1, descriptors: 5 })
      const bounds = ended.facts.bounds as string[]
      expect(bounds[0]).toBe('tables were read up to 1 bytes: later sockets are missing')
      expect(bounds).toContainEqual(expect.stringMatching(/^\/proc\/\d+ has \d+ descriptors: 5 were looked at$/))
    } finally {
      for (const fd of held) fs.closeSync(fd)
    }
  })

  it('an interruption keeps what is there', async () => {
    const stop = new AbortController()
    let items = 0
    using ended = await collecting(sockets, OPTIONS, {
      signal: stop.signal,
      progress: () => {
        items += 1
        if (items === 2) stop.abort()
      },
    })
    expect(ended.result).toMatchObject({ outcome: 'interrupted', facts: { sockets: expect.any(Number) } })
    expect(ended.records('sockets.jsonl').length).toBeGreaterThan(0)
  })

  it('an interruption before anything was read is told', async () => {
    using ended = await collecting(sockets, OPTIONS, { signal: AbortSignal.abort() })
    expect(ended.result.outcome).toBe('interrupted')
    expect(ended.names).toEqual([])
  })

  it('options of any other form are refused', async () => {
    await expect(collecting(sockets, {})).rejects.toThrow('tableBytes')
  })
})

describe('a recorded tree', () => {
  it('without any table is a failure, not an empty host', async () => {
    const root = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-tree-'))
    try {
      fs.mkdirSync(path.join(root, 'proc/self/ns'), { recursive: true })
      fs.symlinkSync('net:[4026531833]', path.join(root, 'proc/self/ns/net'))
      using ended = await collecting(sockets, OPTIONS, { host: openHost({ root }) })
      expect(ended.result).toEqual({ outcome: 'failed', reason: 'no socket table of /proc could be read' })
    } finally {
      fs.rmSync(root, { recursive: true, force: true })
    }
  })
})

it('without the right to look, counts what was denied', async () => {
  // Root without capabilities may not look into a process that has some.
  const module = JSON.stringify(path.resolve(import.meta.dirname, '../../../helpers/collecting.ts'))
  const collector = JSON.stringify(path.resolve(import.meta.dirname, '../../../../src/collectors/proc/sockets.ts'))
  const script = `
const { collecting } = await import(${module})
const { sockets } = await import(${collector})
const ended = await collecting(sockets, ${JSON.stringify(OPTIONS)})
console.log(JSON.stringify(ended.facts.denied))
ended[Symbol.dispose]()
`
  const sources = path.resolve(import.meta.dirname, '../../../helpers/sources.mjs')
  const less = ['--bounding-set=-sys_ptrace', '--inh-caps=-sys_ptrace', '--']
  await using weak = await planted(
    spawn('setpriv', [...less, process.execPath, '--import', sources, '--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'pipe'],
    }),
  )
  expect(JSON.parse(weak.said)).toEqual({ namespaces: expect.any(Number), descriptors: expect.any(Number) })
  expect(JSON.parse(weak.said).descriptors).toBeGreaterThan(0)
})
