/** Words and numbers at the border between people and the tool: durations, sizes, names, hostile text. */
import { execFileSync } from 'node:child_process'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { UsageError } from '../../src/errors.js'
import { openHost } from '../../src/host.js'
import { mountOf, readMounts } from '../../src/mounts.js'
import { nearest } from '../../src/nearest.js'
import { visible } from '../../src/print.js'
import { typed, undoScript } from '../../src/response/undo.js'
import { formatBytes, formatDuration, parseDuration, parseSize, stamp, typedDuration, typedSize } from '../../src/time.js'

describe('durations and sizes', () => {
  it.each([
    ['90s', 90],
    ['30m', 1800],
    ['2h', 7200],
    ['1d', 86_400],
    ['0.5s', 0.5],
  ])('%s is %d seconds', (text, seconds) => {
    expect(parseDuration(text)).toBe(seconds)
  })

  it.each([
    ['512MiB', 512 * 1024 ** 2],
    ['2GiB', 2 * 1024 ** 3],
    ['10B', 10],
  ])('%s is %d bytes', (text, bytes) => {
    expect(parseSize(text)).toBe(bytes)
  })

  it.each(['', '30', 'm', '-5m', '0s', '5 minutes', '1e9s', '2GB'])("'%s' is refused with what to type instead", text => {
    expect(() => parseDuration(text)).toThrow(UsageError)
    expect(() => parseSize(text)).toThrow(/512MiB/)
  })

  it('what is printed as typed reads back as the same', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 1e9 }),
        value => parseDuration(typedDuration(value)) === value && parseSize(typedSize(value)) === value,
      ),
    )
  })

  it('prints what a person reads at a glance', () => {
    expect([0.42, 12, 200, 3900].map(formatDuration)).toEqual(['0.4 s', '12 s', '3 min 20 s', '1 h 05 min'])
    expect([512, 1536, 5 * 1024 ** 3].map(formatBytes)).toEqual(['512 B', '1.5 KiB', '5.0 GiB'])
    expect(stamp(new Date('2026-06-11T14:22:33.120Z'))).toBe('20260611T142233Z')
  })
})

describe('the nearest name', () => {
  const steps = ['isolate', 'snapshot-connections', 'snapshot-processes', 'capture-mem', 'capture-net', 'audit-attrs']
  it.each([
    ['isolat', 'isolate'],
    ['capture-memm', 'capture-mem'],
    ['snapshot-proc', 'snapshot-processes'],
    ['audit', 'audit-attrs'],
  ])('%s -> %s', (typedName, meant) => {
    expect(nearest(typedName, steps)).toBe(meant)
  })
  it('is nothing where nothing is near', () => {
    expect(nearest('zzzzzz', steps)).toBeUndefined()
  })
})

describe('text from the host', () => {
  it('cannot steer the terminal or reorder a line', () => {
    expect(visible('a\u001b[2Jb\u202ec\nd\u009b\u200e')).toBe('a\\u{1b}[2Jb\\u{202e}c\\u{a}d\\u{9b}\\u{200e}')
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), text => !/[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/.test(visible(text))),
    )
  })

  it('stays one word when typed into a shell', () => {
    const hostile = fc.string({ unit: 'binary', maxLength: 40 }).filter(text => !text.includes('\0') && !/[\ud800-\udfff]/.test(text))
    fc.assert(
      fc.property(hostile, text => {
        const line = typed({ title: 't', argv: ['/usr/bin/printf', '%s', text], limit: 1 })
        return execFileSync('/bin/sh', ['-c', line]).toString() === text
      }),
      { numRuns: 50 },
    )
  })

  it('cannot leave its comment in the undo script', () => {
    const change = {
      kind: 'change',
      title: 't',
      argv: ['/bin/true'],
      limit: 1,
      effect: 'x\nrm -rf /',
      undo: [{ title: 'u', argv: ['/bin/echo', 'back'], limit: 1 }],
      lasts: 'case',
    } as const
    const script = undoScript([change])
    expect(script.split('\n').filter(line => line !== '' && !line.startsWith('#'))).toEqual(['/bin/echo back'])
    expect(execFileSync('/bin/sh', ['-c', script]).toString()).toBe('back\n')
  })
})

describe('mounts', () => {
  const host = openHost({ root: new URL('../fixtures/mounts/synthetic', import.meta.url).pathname })
  it('finds the mount that a path lies on, and whether the cut would take it away', () => {
    const mounts = readMounts(host)
    expect(mountOf(mounts, '/var/tmp')).toMatchObject({ point: '/', type: 'ext4', remote: false })
    expect(mountOf(mounts, '/home/eve/case')).toMatchObject({ point: '/home', type: 'nfs4', remote: true })
    expect(mountOf(mounts, '/homework')).toMatchObject({ point: '/' })
    expect(mountOf(mounts, '/mnt/a b/x')).toMatchObject({ type: 'fuse.sshfs', remote: true })
    expect(mountOf(mounts, '/mnt/usb/x')).toMatchObject({ type: 'ext4', readOnly: true })
  })
})
