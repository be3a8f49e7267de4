/** Every process in one pass: real ones that hide, lie, change and hang. Needs root. */
import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { ProcessRecord } from '../../../../src/collectors/proc/process-record.js'
import { processes } from '../../../../src/collectors/proc/processes.js'
import { openHost } from '../../../../src/host.js'
import { collecting, type Ended } from '../../../helpers/collecting.js'
import { planted, plantPython } from '../../../helpers/planted.js'

const OPTIONS = { hashBytes: 4 * 1024 ** 3, hashSeconds: 60, copyFileBytes: 256 * 1024 ** 2, copyBytes: 1024 ** 3 }
const SLEEP = '/usr/bin/sleep'
const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')
const sleepHash = sha256(fs.readFileSync(SLEEP))

let directory: string
beforeEach(() => {
  directory = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), 'ir-processes-')))
})
afterEach(() => fs.rmSync(directory, { recursive: true, force: true }))

const recordOf = (ended: Ended, pid: number): ProcessRecord => {
  const found = ended.records<ProcessRecord>('processes.jsonl').filter(record => record.pid === pid)
  expect(found, `records of ${pid}`).toHaveLength(1)
  return found[0] as ProcessRecord
}

/** A program that sleeps, from a copy of its own. */
async function plantCopy(name: string): Promise<AsyncDisposable & { readonly pid: number; readonly file: string }> {
  const file = path.join(directory, name)
  fs.copyFileSync(SLEEP, file)
  fs.chmodSync(file, 0o755)
  const child = spawn(file, ['600'], { stdio: 'ignore', env: {} })
  const pid = child.pid as number
  await expect.poll(() => fs.readlinkSync(`/proc/${pid}/exe`)).toBe(file)
  return {
    pid,
    file,
    async [Symbol.asyncDispose]() {
      const gone = new Promise(resolve => child.once('exit', resolve))
      child.kill('SIGKILL')
      await gone
    },
  }
}

describe('a process', () => {
  it('is told as it is', async () => {
    await using plant = await plantPython(`
import os, time
os.chdir('/usr')
file = open('/etc/passwd'); file.seek(7); os.lseek(file.fileno(), 7, 0)
print(file.fileno(), flush=True)
time.sleep(600)
`)
    using ended = await collecting(processes, OPTIONS)
    expect(ended.result.outcome).toBe('collected')
    const record = recordOf(ended, plant.pid)
    const python = fs.realpathSync('/usr/bin/python3')
    expect(record).toMatchObject({
      pid: plant.pid,
      ppid: process.pid,
      tgid: plant.pid,
      comm: 'python3',
      state: 'S',
      kernelThread: false,
      threads: 1,
      uid: { real: 0, effective: 0, saved: 0, filesystem: 0 },
      cwd: '/usr',
      root: '/',
      environ: ['PATH=/usr/bin:/bin'],
      exe: {
        link: python,
        deleted: false,
        memfd: false,
        size: fs.statSync(python).size,
        inode: String(fs.statSync(python, { bigint: true }).ino),
        mode: '0755',
        sha256: sha256(fs.readFileSync(python)),
      },
      unlinkedCode: [],
      oomScoreAdj: expect.any(Number),
      io: { rchar: expect.any(Number), write_bytes: expect.any(Number) },
    })
    expect(record.cmdline.slice(0, 2)).toEqual(['/usr/bin/python3', '-c'])
    expect(record.files.find(({ fd }) => fd === Number(plant.said))).toEqual({
      fd: Number(plant.said),
      link: '/etc/passwd',
      flags: expect.stringMatching(/^0\d+$/),
      pos: 7,
    })
    expect(record.namespaces.net).toBe(Number(/\d+/.exec(fs.readlinkSync(`/proc/${plant.pid}/ns/net`))?.[0]))
    expect(record.maps).toContain(python)
    expect(record.stat.startsWith(`${plant.pid} (python3) S `)).toBe(true)
    expect(record.status).toContain('Uid:\t0\t0\t0\t0')
    expect(record.limits).toContain('Max open files')
    expect(record.cgroup).toBe(fs.readFileSync(`/proc/${plant.pid}/cgroup`, 'utf8'))
    expect(Math.abs(Date.parse(record.started ?? '') - Date.now())).toBeLessThan(120_000)
    expect(record).not.toHaveProperty('denied')
    // The device of the file system that it lies on, as the kernel names it in mountinfo.
    expect(record.exe?.device).toMatch(/^\d+:\d+$/)
  })

  it('is listed once, ourselves and our reader marked', async () => {
    using ended = await collecting(processes, OPTIONS)
    const records = ended.records<ProcessRecord>('processes.jsonl')
    expect(new Set(records.map(({ pid }) => pid)).size).toBe(records.length)
    expect(ended.facts.processes).toBe(records.length)
    const own = records.filter(record => record.own)
    expect(own.map(({ pid }) => pid)).toContain(process.pid)
    expect(own.every(({ pid }) => (ended.facts.self as number[]).includes(pid))).toBe(true)
    expect(own.find(({ pid }) => pid !== process.pid)?.comm ?? 'ir-reader').toBe('ir-reader')
  })

  it('keeps arguments, environment and names that are no text', async () => {
    await using plant = await plantPython(`
import os, sys
open('/proc/self/comm', 'wb').write(b'a)\\n(b\\xff')
code = b'import time; open("/proc/self/comm", "wb").write(b"a)\\\\n(b\\\\xff"); print("ready", flush=True); time.sleep(600)'
os.execve(b'/usr/bin/python3', [b'/usr/bin/python3', b'-c', code, b'\\xff\\xfe', b''], {b'PATH': b'/usr/bin:/bin', b'X': b'\\xe9'})
`)
    using ended = await collecting(processes, OPTIONS)
    const record = recordOf(ended, plant.pid)
    expect(Buffer.from(record.commBase64 ?? '', 'base64').toString('latin1')).toBe('a)\n(b\xff')
    expect(
      Buffer.from(record.cmdlineBase64 ?? '', 'base64')
        .toString('latin1')
        .endsWith('\0\xff\xfe\0\0'),
    ).toBe(true)
    expect(record.cmdline.slice(-2)).toEqual(['\ufffd\ufffd', ''])
    expect(Buffer.from(record.environBase64 ?? '', 'base64').toString('latin1')).toContain('X=\xe9\0')
    expect(record.startTicks).toBeGreaterThan(0)
  })

  it('whose first thread has ended is read through another one', async () => {
    await using plant = await plantPython(`
import ctypes, threading, time
def stay():
    time.sleep(0.3)
    print(threading.get_native_id(), flush=True)
    time.sleep(600)
threading.Thread(target=stay).start()
ctypes.CDLL(None).pthread_exit(None)
`)
    await expect.poll(() => fs.readFileSync(`/proc/${plant.pid}/stat`, 'latin1')).toContain(') Z ')
    using ended = await collecting(processes, OPTIONS)
    const record = recordOf(ended, plant.pid)
    expect(record).toMatchObject({
      state: 'Z',
      through: Number(plant.said),
      comm: 'python3',
      exe: { link: fs.realpathSync('/usr/bin/python3') },
    })
    expect(record.cmdline[0]).toBe('/usr/bin/python3')
    expect(record.files.map(({ fd }) => fd)).toEqual(expect.arrayContaining([0, 1, 2]))
    expect(record.maps).not.toBe('')
  })

  it('with a record too long for a line has the whole of it beside', async () => {
    const long = 'x'.repeat(100_000)
    const child = spawn('/usr/bin/python3', ['-c', 'import time; print("ready", flush=True); time.sleep(600)'], {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: Object.fromEntries(Array.from({ length: 12 }, (_, index) => [`LONG${index}`, long])),
    })
    await using plant = await planted(child)
    using ended = await collecting(processes, OPTIONS)
    const record = recordOf(ended, plant.pid)
    expect(record).toMatchObject({ full: `large/${plant.pid}.json`, environ: [], maps: '', comm: 'python3', cut: ['environ'] })
    const whole = JSON.parse(ended.bytes(record.full as string).toString('utf8')) as ProcessRecord
    expect(whole.environ.length).toBeGreaterThan(9)
    expect(whole.environ[0]).toContain(long)
    expect(whole.maps).not.toBe('')
    for (const line of ended.bytes('processes.jsonl').toString('utf8').split('\n')) expect(Buffer.byteLength(line)).toBeLessThan(1 << 20)
    expect(ended.facts.bounds).toContain(`environ of process ${plant.pid} was longer than what is read of it`)
  })
})

describe('a program', () => {
  it('whose file is deleted is told and saved, once for all its processes', async () => {
    await using one = await plantCopy('gone')
    const other = spawn(one.file, ['600'], { stdio: 'ignore', env: {} })
    await expect.poll(() => fs.readlinkSync(`/proc/${other.pid}/exe`)).toBe(one.file)
    fs.unlinkSync(one.file)
    try {
      using ended = await collecting(processes, OPTIONS)
      for (const pid of [one.pid, other.pid as number]) {
        expect(recordOf(ended, pid).exe).toMatchObject({
          link: `${one.file} (deleted)`,
          deleted: true,
          memfd: false,
          links: 0,
          sha256: sleepHash,
          artifact: `executables/${sleepHash}`,
        })
        expect(recordOf(ended, pid).exe).not.toHaveProperty('replaced')
      }
      expect(ended.bytes(`executables/${sleepHash}`)).toEqual(fs.readFileSync(SLEEP))
      expect(ended.names.filter(name => name === `executables/${sleepHash}`)).toHaveLength(1)
      // Before the others: what goes with its process comes first.
      const order = ended.records<ProcessRecord>('processes.jsonl')
      const first = order.findIndex(({ exe }) => !exe?.link.endsWith(' (deleted)'))
      expect(order.findIndex(({ pid }) => pid === one.pid)).toBeLessThan(first)
    } finally {
      other.kill('SIGKILL')
    }
  })

  it('that lies in a memfd is told and saved', async () => {
    await using plant = await plantPython(`
import os
fd = os.memfd_create('inert')
os.write(fd, open('/usr/bin/python3', 'rb').read())
os.execve(f'/proc/self/fd/{fd}', ['[kworker/0:1]', '-c', 'import time; print("ready", flush=True); time.sleep(600)'], {'PYTHONHOME': '/usr'})
`)
    using ended = await collecting(processes, OPTIONS)
    const python = fs.readFileSync('/usr/bin/python3')
    const { exe, cmdline, kernelThread } = recordOf(ended, plant.pid)
    expect(exe).toMatchObject({ link: '/memfd:inert (deleted)', deleted: true, memfd: true, sha256: sha256(python) })
    expect(ended.bytes(exe?.artifact as string).equals(python)).toBe(true)
    expect(cmdline[0]).toBe('[kworker/0:1]')
    expect(kernelThread).toBe(false)
  })

  it('that is only named as if it were deleted is not', async () => {
    await using plant = await plantCopy('kept (deleted)')
    using ended = await collecting(processes, OPTIONS)
    const { exe } = recordOf(ended, plant.pid)
    expect(exe).toMatchObject({ link: plant.file, deleted: false, memfd: false, sha256: sleepHash })
    expect(exe).not.toHaveProperty('artifact')
  })

  it('that was replaced, as by an upgrade, is deleted and replaced', async () => {
    await using plant = await plantCopy('upgraded')
    fs.copyFileSync(SLEEP, `${plant.file}.new`)
    fs.renameSync(`${plant.file}.new`, plant.file)
    using ended = await collecting(processes, OPTIONS)
    expect(recordOf(ended, plant.pid).exe).toMatchObject({ deleted: true, replaced: true, sha256: sleepHash })
  })

  it('that still has another name is deleted all the same', async () => {
    await using plant = await plantCopy('first')
    fs.linkSync(plant.file, `${plant.file}-second`)
    fs.unlinkSync(plant.file)
    using ended = await collecting(processes, OPTIONS)
    expect(recordOf(ended, plant.pid).exe).toMatchObject({ deleted: true, links: 1 })
  })

  it('is hashed within its bounds, and what they left out is told', async () => {
    await using plant = await plantCopy('gone')
    fs.unlinkSync(plant.file)
    using noHash = await collecting(processes, { ...OPTIONS, hashBytes: 1 })
    expect(recordOf(noHash, plant.pid).exe).toMatchObject({ notes: ['not hashed: 1 B for all executables were used up'] })
    expect(recordOf(noHash, plant.pid).exe).not.toHaveProperty('sha256')
    using noCopy = await collecting(processes, { ...OPTIONS, copyFileBytes: 1 })
    expect(recordOf(noCopy, plant.pid).exe).toMatchObject({
      sha256: sleepHash,
      notes: [expect.stringMatching(/^not saved: its .* are above the bound of 1 B for one$/)],
    })
    using noTime = await collecting(processes, { ...OPTIONS, hashSeconds: 1e-9 })
    expect(noTime.facts.executables).toMatchObject({ hashed: 1 })
  })

  it('keeps its access time', async () => {
    await using plant = await plantCopy('old')
    fs.utimesSync(plant.file, 1000, 2000)
    using ended = await collecting(processes, OPTIONS)
    expect(recordOf(ended, plant.pid).exe?.sha256).toBe(sleepHash)
    expect(fs.statSync(plant.file).atimeMs).toBe(1_000_000)
  })

  it('on a disk that no longer answers does not stop us', async () => {
    const script = path.resolve(import.meta.dirname, '../../../helpers/silent-fuse.py')
    const child = spawn('unshare', ['--mount', '/usr/bin/python3', script, directory], { stdio: ['pipe', 'pipe', 'pipe'] })
    await using server = await planted(child)
    const pid = Number(server.said)
    try {
      using ended = await collecting(processes, OPTIONS)
      expect(ended.result.outcome).toBe('collected')
      const { exe, cmdline } = recordOf(ended, pid)
      expect(exe).toEqual({
        link: path.join(directory, 'program'),
        deleted: false,
        memfd: false,
        notes: ['its file system did not answer'],
      })
      expect(cmdline).toEqual(['program', '300'])
      expect(ended.facts.executables).toMatchObject({ notAsked: 1 })
      expect((ended.facts.self as number[]).length).toBeGreaterThan(2)
      expect(recordOf(ended, process.pid).exe?.sha256).toMatch(/^[0-9a-f]{64}$/)
    } finally {
      child.stdin.end()
      await expect.poll(() => child.exitCode, { timeout: 20_000 }).not.toBeNull()
    }
  })
})

describe('what comes and goes', () => {
  it('while we read is looked at as well', async () => {
    let late: ChildProcess | undefined
    using ended = await collecting(processes, OPTIONS, {
      progress: ({ items }) => {
        if (items === 1) late ??= spawn(SLEEP, ['600'], { stdio: 'ignore', env: {} })
      },
    })
    late?.kill('SIGKILL')
    expect(recordOf(ended, late?.pid as number).ppid).toBe(process.pid)
    expect(ended.facts.appeared).toBeGreaterThan(0)
  })

  it('is counted, not failed: processes that vanished, and those of a form we do not know', async () => {
    const root = path.join(directory, 'tree')
    for (const pid of ['7', '8', '9']) fs.mkdirSync(path.join(root, 'proc', pid), { recursive: true })
    fs.writeFileSync(path.join(root, 'proc/8/stat'), 'no such form')
    fs.writeFileSync(path.join(root, 'proc/9/stat'), `9 (x) S 1 9 9 0 -1 2097152 ${'0 '.repeat(8)}20 0 1 0 5 0 0\n`)
    fs.writeFileSync(path.join(root, 'proc/stat'), 'btime 1000\n')
    using ended = await collecting(processes, OPTIONS, { host: openHost({ root }) })
    expect(ended.facts).toMatchObject({ processes: 1, listed: 3, vanished: 1, notUnderstood: 1, kernelThreads: 1 })
    expect(recordOf(ended, 9)).toMatchObject({ kernelThread: true, exe: null, uid: null, started: '1970-01-01T00:16:40.050Z', cmdline: [] })
  })

  it('without any process is a failure', async () => {
    fs.mkdirSync(path.join(directory, 'tree/proc'), { recursive: true })
    using ended = await collecting(processes, OPTIONS, { host: openHost({ root: path.join(directory, 'tree') }) })
    expect(ended.result).toMatchObject({ outcome: 'failed', reason: 'no process of /proc could be read' })
  })

  it('an interruption keeps what was read', async () => {
    const stop = new AbortController()
    let items: number | undefined
    using ended = await collecting(processes, OPTIONS, {
      signal: stop.signal,
      progress: figures => {
        items = figures.items
        if (items === 3) stop.abort()
      },
    })
    expect(ended.result).toMatchObject({ outcome: 'interrupted', reason: expect.stringMatching(/^stopped after 3 of \d+ processes$/) })
    expect(ended.records('processes.jsonl')).toHaveLength(3)
  })

  it('leaves the event loop its turns', async () => {
    let turns = 0
    const timer = setInterval(() => {
      turns += 1
    }, 1)
    using ended = await collecting(processes, OPTIONS)
    clearInterval(timer)
    expect(ended.result.outcome).toBe('collected')
    expect(turns).toBeGreaterThan(1)
  })
})

it('without the right to look, names what was denied', async () => {
  await using plant = await plantCopy('others')
  const module = JSON.stringify(path.resolve(import.meta.dirname, '../../../helpers/collecting.ts'))
  const collector = JSON.stringify(path.resolve(import.meta.dirname, '../../../../src/collectors/proc/processes.ts'))
  const script = `
const { collecting } = await import(${module})
const { processes } = await import(${collector})
const ended = await collecting(processes, ${JSON.stringify(OPTIONS)})
console.log(JSON.stringify([ended.facts.denied, ended.records('processes.jsonl').find(one => one.pid === ${plant.pid})]))
ended[Symbol.dispose]()
`
  const sources = path.resolve(import.meta.dirname, '../../../helpers/sources.mjs')
  const less = ['--bounding-set=-sys_ptrace', '--inh-caps=-sys_ptrace', '--']
  const argv = [...less, process.execPath, '--import', sources, '--input-type=module', '-e', script]
  await using weak = await planted(spawn('setpriv', argv, { stdio: ['ignore', 'pipe', 'pipe'] }))
  const [denied, record] = JSON.parse(weak.said) as [Record<string, number>, ProcessRecord]
  expect(denied.exe).toBeGreaterThan(0)
  // Which of the others are refused depends on the kernel; what is refused is empty, and named.
  expect(record).toMatchObject({ pid: plant.pid, comm: 'others', exe: null, cwd: null, files: [], namespaces: {} })
  expect(record.denied).toEqual(expect.arrayContaining(['exe', 'cwd', 'root', 'fd', 'ns']))
})
