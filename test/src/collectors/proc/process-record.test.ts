/** The record of a process from what was seen of it, whatever that is. */
import fc from 'fast-check'
import { expect, it } from 'vitest'
import type { ProcessStat } from '../../../../src/collectors/proc/proc.js'
import { type Parts, partsOf, processLooks, processRecord, recordLine } from '../../../../src/collectors/proc/process-record.js'

const clock = { ticks: 100, booted: 1000, stamp: (ticks: number) => new Date((1000 + ticks / 100) * 1000).toISOString() }
const stat: ProcessStat = {
  pid: 812,
  comm: Buffer.from('sshd'),
  state: 'S',
  ppid: 1,
  group: 812,
  session: 812,
  flags: 0x40_0000,
  threads: 1,
  startTicks: 250,
}
const seen = (text: string) => ({ cut: false, bytes: Buffer.from(text, 'latin1') })

it('looks at everything; or carefully, only at what no process can hold up', () => {
  const [all, careful] = [processLooks('/proc/7', false), processLooks('/proc/7', true)]
  expect(all.slice(0, careful.length)).toEqual(careful)
  expect(all.slice(careful.length).map(({ path }) => path)).toEqual(
    ['fdinfo', 'cmdline', 'environ', 'maps', 'io'].map(name => `/proc/7/${name}`),
  )
  expect(Object.keys(partsOf(careful.map(() => seen(''))))).toEqual(careful.map(({ path }) => path.slice('/proc/7/'.length)))
})

it('puts the parts together', () => {
  const parts: Parts = {
    status: seen('Name:\tsshd\nTgid:\t812\nUid:\t0\t1\t2\t3\nGid:\t0\t0\t0\t0\n'),
    loginuid: seen('4294967295'),
    sessionid: seen('7'),
    oom_score_adj: seen('-1000\n'),
    fd: { ...seen('10\0socket:[4]\x003\0/tmp/a b\0'), denied: 0 },
    fdinfo: seen('3\0pos:\t18\nflags:\t0100002\nmnt_id:\t27\n\0'),
    ns: seen('net\0net:[4026531833]\0mnt\0mnt:[4026531832]\0odd\0nothing\0'),
    maps: seen('1000-2000 r-xp 00000000 00:01 5 /memfd:x (deleted)\n2000-3000 rw-p 00000000 00:01 6 /a (deleted)\n'),
    io: seen('rchar: 5\nwrite_bytes: 7\n'),
    exe: { cut: false, error: 'EACCES', bytes: Buffer.alloc(0) },
    cwd: { cut: false, error: 'EACCES', bytes: Buffer.alloc(0) },
    environ: { ...seen('A=b\0'), cut: true },
    limits: { cut: false, error: 'ESRCH', bytes: Buffer.alloc(0) },
  }
  expect(processRecord(stat, parts, { exe: null, clock })).toMatchObject({
    pid: 812,
    tgid: 812,
    comm: 'sshd',
    kernelThread: false,
    started: '1970-01-01T00:16:42.500Z',
    uid: { real: 0, effective: 1, saved: 2, filesystem: 3 },
    loginuid: null,
    sessionid: 7,
    oomScore: null,
    oomScoreAdj: -1000,
    cwd: null,
    namespaces: { net: 4026531833, mnt: 4026531832 },
    files: [
      { fd: 3, link: '/tmp/a b', flags: '0100002', pos: 18 },
      { fd: 10, link: 'socket:[4]' },
    ],
    unlinkedCode: [{ start: '1000', end: '2000', path: '/memfd:x (deleted)' }],
    io: { rchar: 5, write_bytes: 7 },
    environ: ['A=b'],
    denied: ['exe', 'cwd'],
    cut: ['environ'],
    ended: true,
  })
})

it('is made of any bytes, and its line is one line of bounded length', () => {
  const any = fc.uint8Array({ maxLength: 300 }).map(array => ({ cut: false, bytes: Buffer.from(array) }))
  const names = processLooks('', false).map(({ path }) => path.slice(1))
  fc.assert(
    fc.property(fc.array(any, { minLength: names.length, maxLength: names.length }), parts => {
      const record = processRecord(stat, partsOf(parts), { exe: null, clock })
      const { line, full } = recordLine(record, 'large/812.json')
      expect(line).not.toContain('\n')
      expect(JSON.parse(line)).toEqual(JSON.parse(JSON.stringify(record)))
      expect(full).toBeUndefined()
    }),
  )
})

it('that is too long keeps its identity in the line and everything in the whole', () => {
  // Six bytes of JSON for each of these: the worst case.
  const parts = { environ: seen('\x01'.repeat(1 << 20)), cmdline: seen('\x01'.repeat(1 << 20)), maps: seen('\x01'.repeat(1 << 20)) }
  const record = processRecord(stat, parts, { exe: null, clock })
  const { line, full } = recordLine(record, 'large/812.json')
  expect(Buffer.byteLength(line)).toBeLessThan(1 << 20)
  expect(JSON.parse(line)).toMatchObject({ pid: 812, full: 'large/812.json', maps: '', environ: [] })
  expect(JSON.parse(line).cmdline[0]).toHaveLength(4096)
  expect(JSON.parse(full as string)).toEqual(JSON.parse(JSON.stringify(record)))
})
