/** What we make of /proc: this machine's own, and whatever bytes an attacker may have put there. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  bootClock,
  KERNEL_THREAD,
  linkedInode,
  listField,
  parseBootTime,
  parseClockTicks,
  parseMaps,
  parseStat,
  parseStatus,
  processIds,
  textField,
} from '../../../../src/collectors/proc/proc.js'
import { openHost } from '../../../../src/host.js'

const host = openHost()
const bytes = fc.uint8Array({ maxLength: 400 }).map(array => Buffer.from(array))
/** Bytes of which many are those that the parsers look for. */
const tricky = fc
  .array(fc.constantFrom(...'0123456789abcdef()[]:-/ \t\n\0\\xrwspSZ', 'ff', ' (', ') ', 'Uid:', 'Tgid:', '\u00ff'), { maxLength: 200 })
  .map(parts => Buffer.from(parts.join(''), 'latin1'))
const anyBytes = fc.oneof(bytes, tricky)

describe('text', () => {
  it('is kept without loss, whatever the bytes', () => {
    fc.assert(
      fc.property(bytes, any => {
        const { name, nameBase64 } = textField('name', any)
        expect(nameBase64 === undefined ? Buffer.from(name) : Buffer.from(nameBase64, 'base64')).toEqual(any)
      }),
    )
    expect(textField('comm', Buffer.from('sshd'))).toEqual({ comm: 'sshd' })
    expect(textField('comm', Buffer.from('ss\xff', 'latin1'))).toEqual({ comm: 'ss\ufffd', commBase64: 'c3P/' })
  })

  it('in lists is split at NUL, and kept whole where the text would lose bytes', () => {
    expect(listField('cmdline', Buffer.from('sleep\x0030\0'))).toEqual({ cmdline: ['sleep', '30'] })
    expect(listField('cmdline', Buffer.from('a\0\0b\0'))).toEqual({ cmdline: ['a', '', 'b'] })
    expect(listField('cmdline', Buffer.from('title without end'))).toEqual({ cmdline: ['title without end'] })
    expect(listField('cmdline', Buffer.alloc(0))).toEqual({ cmdline: [] })
    fc.assert(
      fc.property(bytes, any => {
        const { environ, environBase64 } = listField('environ', any)
        const terminated = any.at(-1) === 0 ? '\0' : ''
        const kept = environBase64 === undefined ? Buffer.from(environ.join('\0') + terminated) : Buffer.from(environBase64, 'base64')
        expect(kept).toEqual(any)
      }),
    )
  })
})

describe('/proc/PID/stat', () => {
  it('of this process is read as it is', () => {
    const stat = parseStat(fs.readFileSync('/proc/self/stat'))
    expect(stat).toMatchObject({ pid: process.pid, ppid: process.ppid, state: 'R' })
    expect(stat?.threads).toBeGreaterThan(1)
    expect((stat?.flags ?? 0) & KERNEL_THREAD).toBe(0)
  })

  it('of kernel threads has the flag that no name can fake', () => {
    const stats = processIds(host).flatMap(pid => {
      try {
        return [parseStat(fs.readFileSync(`/proc/${pid}/stat`))]
      } catch {
        return []
      }
    })
    expect(stats).not.toContain(undefined)
    const threads = stats.filter(stat => ((stat?.flags ?? 0) & KERNEL_THREAD) !== 0)
    // In a container there are none.
    for (const thread of threads) expect(fs.readFileSync(`/proc/${thread?.pid}/cmdline`, 'latin1')).toBe('')
  })

  it('is found behind any name', () => {
    const name = fc.uint8Array({ maxLength: 15 }).map(array => Buffer.from(array))
    const evil = fc.constantFrom(') S 1 (', '\n', ')', '(', ') R 0 0 0', '') as fc.Arbitrary<string>
    fc.assert(
      fc.property(fc.oneof(name, evil.map(Buffer.from)), fc.nat(4_194_304), fc.nat(), (comm, pid, start) => {
        const rest = `S 1 ${pid} ${pid} 0 -1 4194304 ${'0 '.repeat(8)}20 0 3 0 ${start} 0 0 18446744073709551615\n`
        const stat = parseStat(Buffer.concat([Buffer.from(`${pid} (`), comm, Buffer.from(`) ${rest}`)]))
        expect(stat).toMatchObject({ pid, state: 'S', ppid: 1, threads: 3, startTicks: start, flags: 4_194_304 })
        expect(stat?.comm).toEqual(comm)
      }),
    )
  })

  it('of any other form is none', () => {
    for (const text of ['', '1', '1 (a', '1 (a) ', 'x (a) S 1 1 1', '1 (a) S 1 1 1', `1 (a) 5 ${'1 '.repeat(40)}`]) {
      expect(parseStat(Buffer.from(text)), text).toBeUndefined()
    }
    fc.assert(fc.property(anyBytes, any => void parseStat(any)))
  })
})

describe('/proc/PID/status', () => {
  it('of this process has its ids', () => {
    const { tgid, uid, gid } = parseStatus(fs.readFileSync('/proc/self/status', 'latin1'))
    expect(tgid).toBe(process.pid)
    expect(uid).toEqual({ real: process.getuid?.(), effective: process.geteuid?.(), saved: 0, filesystem: 0 })
    expect(gid?.real).toBe(process.getgid?.())
  })

  it('keeps the four ids apart', () => {
    const { uid, gid } = parseStatus('Name:\tx\nTgid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n')
    expect(uid).toEqual({ real: 1, effective: 2, saved: 3, filesystem: 4 })
    expect(gid).toEqual({ real: 5, effective: 6, saved: 7, filesystem: 8 })
  })

  it('of any other form has none', () => {
    expect(parseStatus('')).toEqual({ tgid: undefined, uid: undefined, gid: undefined })
    expect(parseStatus('Name:\tUid:\t0 0 0 0\nUid:\t0\t0\n').uid).toBeUndefined()
    fc.assert(fc.property(anyBytes, any => void parseStatus(any.toString('latin1'))))
  })
})

describe('/proc/PID/maps', () => {
  it('of this process is read line by line', () => {
    const text = fs.readFileSync('/proc/self/maps', 'latin1')
    const mappings = [...parseMaps(text)]
    expect(mappings).toHaveLength(text.split('\n').length - 1)
    expect(mappings.some(({ path, permissions }) => path === process.execPath && permissions === 'r-xp')).toBe(true)
    for (const { start, end } of mappings) expect(end > start).toBe(true)
  })

  it('keeps addresses of 64 bits and names with blanks', () => {
    const lines = [
      'ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]',
      '7f0000000000-7f0000001000 r-xs 00001000 fe:01 18446744073709551615       /tmp/a b (deleted)',
      'not a mapping',
      '7f0000001000-7f0000002000 rw-p 00000000 00:00 0 ',
    ]
    expect([...parseMaps(lines.join('\n'))]).toEqual([
      {
        start: 0xffffffffff600000n,
        end: 0xffffffffff601000n,
        permissions: '--xp',
        offset: 0n,
        device: '00:00',
        inode: 0n,
        path: '[vsyscall]',
      },
      {
        start: 0x7f0000000000n,
        end: 0x7f0000001000n,
        permissions: 'r-xs',
        offset: 0x1000n,
        device: 'fe:01',
        inode: 18_446_744_073_709_551_615n,
        path: '/tmp/a b (deleted)',
      },
      { start: 0x7f0000001000n, end: 0x7f0000002000n, permissions: 'rw-p', offset: 0n, device: '00:00', inode: 0n, path: '' },
    ])
  })

  it('survives any bytes, and takes no longer for long lines', () => {
    fc.assert(fc.property(anyBytes, any => void [...parseMaps(any.toString('latin1'))]))
    const hostile = [' '.repeat(1 << 20), '0'.repeat(1 << 20), `0-0 r-xp 0 0:0 0${' '.repeat(1 << 20)}`, '\n'.repeat(1 << 16)]
    for (const text of hostile) expect([...parseMaps(text)].length).toBeLessThanOrEqual(1)
  })
})

describe('links', () => {
  it('of namespaces and sockets have an inode, others none', () => {
    expect(linkedInode('net:[4026531833]')).toBe(4_026_531_833)
    expect(linkedInode('socket:[12]')).toBe(12)
    for (const link of ['/tmp/socket:[1]', 'anon_inode:[eventpoll]', 'net:[]', 'net:[1] (deleted)', '', 'pipe:[99999999999999999]']) {
      expect(linkedInode(link), link).toBeUndefined()
    }
    fc.assert(fc.property(fc.string(), text => void linkedInode(text)))
  })
})

describe('time', () => {
  it('is counted in the ticks that the kernel tells', () => {
    const told = Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }))
    expect(parseClockTicks(fs.readFileSync('/proc/self/auxv'))).toBe(told)
    const big = Buffer.alloc(16)
    big.writeBigUInt64BE(17n, 0)
    big.writeBigUInt64BE(250n, 8)
    expect(parseClockTicks(big, 'BE')).toBe(250)
    expect(parseClockTicks(Buffer.alloc(0))).toBe(100)
    fc.assert(fc.property(bytes, any => parseClockTicks(any) > 0))
  })

  it('begins with the boot', () => {
    expect(parseBootTime('cpu 1 2\nbtime 1795464262\nprocesses 5\n')).toBe(1_795_464_262)
    expect(parseBootTime('cpu 1 2\n')).toBeUndefined()
    const clock = bootClock(host)
    const stat = parseStat(fs.readFileSync('/proc/self/stat'))
    const started = Date.parse(clock.stamp(stat?.startTicks ?? 0) as string)
    // btime is a whole second, and the clock may have been set since: within a few.
    expect(Math.abs(started - (Date.now() - process.uptime() * 1000))).toBeLessThan(5000)
    expect(clock.stamp(Number.MAX_VALUE)).toBeUndefined()
  })
})

it('processes are listed by their ids, ascending, ours among them', () => {
  const pids = processIds(host)
  expect(pids).toContain(process.pid)
  expect(pids).toEqual(pids.toSorted((a, b) => a - b))
})
