/** The output of lsattr is matched to the names that it was asked about, whatever the names hold. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { matchDirectories, matchNames, type Reading } from '../../../src/collectors/lsattr-output.js'

const listed = (attributes: string): Reading => ({ state: 'listed', attributes })
const names = (...texts: string[]): Buffer[] => texts.map(text => Buffer.from(text))

describe('lsattr -d', () => {
  it('reads what e2fsprogs 1.47 prints', () => {
    const stdout = '----i---------e------- /a\n-----a--------e------- /b c\n'
    const stderr =
      '/usr/bin/lsattr: No such file or directory while trying to stat /gone\n' +
      '/usr/bin/lsattr: Operation not supported While reading flags on /proc/self/status\n' +
      '/usr/bin/lsattr: Permission denied While reading flags on /root/x\n'
    expect(matchNames(names('/a', '/gone', '/proc/self/status', '/b c', '/root/x'), Buffer.from(stdout), Buffer.from(stderr))).toEqual([
      listed('----i---------e-------'),
      { state: 'gone', reason: 'No such file or directory' },
      { state: 'not-supported', reason: 'Operation not supported' },
      listed('-----a--------e-------'),
      { state: 'failed', reason: 'Permission denied' },
    ])
  })

  it('reads what BusyBox prints (e2fsprogs/lsattr.c of its source)', () => {
    const stderr =
      'lsattr: stat /gone: No such file or directory\nlsattr: reading /dev/shm/x: Inappropriate ioctl for device\nlsattr: reading /y: Not a tty\n'
    expect(matchNames(names('/a', '/gone', '/dev/shm/x', '/y'), Buffer.from('--------------e--- /a\n'), Buffer.from(stderr))).toEqual([
      listed('--------------e---'),
      { state: 'gone', reason: 'No such file or directory' },
      { state: 'not-supported', reason: 'Inappropriate ioctl for device' },
      { state: 'not-supported', reason: 'Not a tty' },
    ])
  })

  it('is not fooled by a name that looks like output', () => {
    const liar = '/t/x\n----i----------------- /etc/passwd'
    const stdout = `---------------------- ${liar}\n---------------------- /etc/passwd\n`
    expect(matchNames(names(liar, '/etc/passwd'), Buffer.from(stdout), Buffer.alloc(0))).toEqual([
      listed('----------------------'),
      listed('----------------------'),
    ])
  })

  it('is not fooled by a name that looks like an error', () => {
    const liar = '/t/x\n/usr/bin/lsattr: Operation not supported While reading flags on /t/x'
    const stderr = `/usr/bin/lsattr: Permission denied While reading flags on ${liar}\n`
    expect(matchNames(names(liar, '/t/y'), Buffer.from('---------------------- /t/y\n'), Buffer.from(stderr))).toEqual([
      { state: 'failed', reason: 'Permission denied' },
      listed('----------------------'),
    ])
  })

  it('gives up where two meanings fit', () => {
    // '/t/x' was refused, and the next name begins with it and a newline.
    const next = '/t/x\n---------------------- /t/y'
    const stdout = `----i----------------- ${next}\n---------------------- /t/y\n`
    const stderr = '/usr/bin/lsattr: Permission denied While reading flags on /t/x\n'
    expect(matchNames(names('/t/x', next, '/t/y'), Buffer.from(stdout), Buffer.from(stderr))).toBeUndefined()
  })

  it.each([
    ['nothing', '', ''],
    ['a name too few', '---------------------- /a\n', ''],
    ['a name too many', '---------------------- /a\n---------------------- /b\n---------------------- /c\n', ''],
    ['another order', '---------------------- /b\n---------------------- /a\n', ''],
    ['a cut line', '---------------------- /a\n---------------------- /', ''],
    ['no attributes', ' /a\n /b\n', ''],
    ['words', 'Everything is fine /a\n /b\n', ''],
  ])('gives up on %s', (_, stdout, stderr) => {
    expect(matchNames(names('/a', '/b'), Buffer.from(stdout), Buffer.from(stderr))).toBeUndefined()
  })
})

/** Names out of pieces that make trouble together. */
const piece = fc.constantFrom(
  'a',
  'b',
  '/',
  '\n',
  ' ',
  '-',
  '----i----------------- ',
  '---------------------- /t/a\n',
  '/t/a',
  ': ',
  'lsattr: reading /t/a: No such file or directory\n',
  '/usr/bin/lsattr: Permission denied While reading flags on ',
  '/proc/7/fd/3/',
  '\u001b[2J',
  'é',
)
const hostile = fc.array(piece, { minLength: 1, maxLength: 5 }).map(pieces => `/t/${pieces.join('')}`)
const outcome = fc.constantFrom<Reading>(
  listed('----------------------'),
  listed('----i---------e-------'),
  listed('-----a----------------'),
  { state: 'not-supported', reason: 'Operation not supported' },
  { state: 'failed', reason: 'Permission denied' },
  { state: 'gone', reason: 'No such file or directory' },
)

describe('whatever the names are', () => {
  it('a reading is the true one, or there is none', () => {
    let matched = 0
    fc.assert(
      fc.property(fc.uniqueArray(fc.tuple(hostile, outcome), { maxLength: 6, selector: ([name]) => name }), asked => {
        let stdout = ''
        let stderr = ''
        for (const [name, reading] of asked) {
          if (reading.state === 'listed') stdout += `${reading.attributes} ${name}\n`
          else if (reading.state === 'gone') stderr += `/usr/bin/lsattr: ${reading.reason} while trying to stat ${name}\n`
          else stderr += `/usr/bin/lsattr: ${reading.reason} While reading flags on ${name}\n`
        }
        const found = matchNames(
          asked.map(([name]) => Buffer.from(name)),
          Buffer.from(stdout),
          Buffer.from(stderr),
        )
        if (found !== undefined) {
          matched++
          expect(found).toEqual(asked.map(([, reading]) => reading))
        }
      }),
      { numRuns: 3000 },
    )
    expect(matched).toBeGreaterThan(2000)
  })

  it('one name alone is always matched', () => {
    fc.assert(
      fc.property(hostile, outcome, (name, reading) => {
        const stdout = reading.state === 'listed' ? `${reading.attributes} ${name}\n` : ''
        const stderr = reading.state === 'listed' ? '' : `/usr/bin/lsattr: ${reading.reason} While reading flags on ${name}\n`
        expect(matchNames(names(name), Buffer.from(stdout), Buffer.from(stderr))).toEqual([reading])
      }),
    )
  })

  it('any bytes at all throw nothing', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ minLength: 1 })), fc.uint8Array(), fc.uint8Array(), (asked, stdout, stderr) => {
        matchNames(asked.map(Buffer.from), Buffer.from(stdout), Buffer.from(stderr))
        matchDirectories(7, new Map([[3, new Set(['a'])]]), Buffer.from(stdout))
      }),
    )
  })
})

describe('lsattr -a of directories by descriptor', () => {
  const inDirectory = fc
    .array(piece, { minLength: 1, maxLength: 4 })
    .map(pieces => pieces.join('').replaceAll('/', '').slice(0, 255) || 'x')
    .map(name => Buffer.from(name).toString('latin1'))

  it('reads bytes that are not UTF-8', () => {
    const stdout = Buffer.from(
      '---------------------- /proc/7/fd/3/.\n---------------------- /proc/7/fd/3/..\n----i----------------- /proc/7/fd/3/\xff\xfe\n',
      'latin1',
    )
    const found = matchDirectories(7, new Map([[3, new Set(['\xff\xfe'])]]), stdout)
    expect(found.get(3)?.get('\xff\xfe')).toEqual(listed('----i-----------------'))
  })

  it('gives a name its own attributes, or none', () => {
    const attributes = fc.constantFrom('----------------------', '----i-----------------', '-----a----------------')
    const directory = fc.uniqueArray(fc.tuple(inDirectory, attributes), { maxLength: 5, selector: ([name]) => name })
    let told = 0
    fc.assert(
      fc.property(directory, directory, (first, second) => {
        const all = new Map([
          [3, first],
          [4, second],
        ])
        let stdout = ''
        for (const [fd, entries] of all) {
          for (const name of ['.', '..']) stdout += `---------------------- /proc/7/fd/${fd}/${name}\n`
          for (const [name, letters] of entries) stdout += `${letters} /proc/7/fd/${fd}/${name}\n`
        }
        const known = new Map([...all].map(([fd, entries]) => [fd, new Set(entries.map(([name]) => name))]))
        const found = matchDirectories(7, known, Buffer.from(stdout, 'latin1'))
        for (const [fd, entries] of all) {
          for (const [name, letters] of entries) {
            const reading = found.get(fd)?.get(name)
            if (reading === undefined) continue
            told++
            expect(reading).toEqual(listed(letters))
          }
        }
      }),
      { numRuns: 2000 },
    )
    expect(told).toBeGreaterThan(2000)
  })
})
