/** Names of files made visible, and read back by a real shell. */
import { execFileSync } from 'node:child_process'
import fc from 'fast-check'
import { expect, it } from 'vitest'
import { quoted } from '../../../playbooks/rules/attributes.js'
import { escapeName, plainJson } from '../../../src/collectors/names.js'

it.each([
  ['plain.txt', 'plain.txt'],
  ['with space', 'with space'],
  ['Übermut 文件 🙂', 'Übermut 文件 🙂'],
  ['back\\slash', 'back\\\\slash'],
  ['new\nline\ttab', 'new\\nline\\ttab'],
  ['\u001b[2Jcleared', '\\x1b[2Jcleared'],
  ['c1\u009b31m', 'c1\\xc2\\x9b31m'],
  ['gpj.\u202eexe', 'gpj.\\xe2\\x80\\xaeexe'],
  ['zero\u200bwidth', 'zero\\xe2\\x80\\x8bwidth'],
  ['ends in a blank ', 'ends in a blank\\x20'],
  ['no\u00a0break', 'no\\xc2\\xa0break'],
])('%j is shown as %s', (name, shown) => {
  expect(escapeName(Buffer.from(name))).toBe(shown)
})

it('shows bytes that are not UTF-8 as their codes', () => {
  expect(escapeName(Buffer.from([0x61, 0xff, 0xc3, 0x28, 0x0a, 0x7f]))).toBe('a\\xff\\xc3(\\n\\x7f')
})

const bytes = fc.uint8Array({ minLength: 1, maxLength: 40 }).map(array => Buffer.from(array.map(byte => (byte === 0 ? 1 : byte))))
const text = fc.string({ unit: 'binary', minLength: 1, maxLength: 20 }).map(string => Buffer.from(string.replaceAll('\0', '_')))

it('never lets through a control, a format character or a byte that is not UTF-8', () => {
  fc.assert(
    fc.property(fc.oneof(bytes, text), name => {
      expect(escapeName(name)).not.toMatch(/[\p{C}\p{Zl}\p{Zp}\ufffd]/u)
    }),
  )
})

it('writes JSON that steers no terminal and reads back the same', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), name => {
      const json = plainJson({ name })
      expect(json).not.toMatch(/[\p{C}\p{Zl}\p{Zp}]/u)
      expect(JSON.parse(json)).toEqual({ name })
    }),
  )
})

it('loses nothing: different names are shown differently', () => {
  fc.assert(
    fc.property(fc.oneof(bytes, text), fc.oneof(bytes, text), (a, b) => {
      expect(escapeName(a) === escapeName(b)).toBe(a.equals(b))
    }),
  )
})

it('quoted for a shell, bash reads the same bytes back', () => {
  const names = fc.sample(fc.oneof(bytes, text), { numRuns: 150, seed: 7 })
  const odd = ["it's", '$(id)', '`id`', '-rf', '*', '!!', "a\\'b", '\u001b]0;x\u0007', ' ', '"', '$HOME', '\\', "'\n'"].map(name =>
    Buffer.from(name),
  )
  const all = [...names, ...odd].map(name => Buffer.concat([Buffer.from('/'), name]))
  const script = `printf '%s\\0' ${all.map(name => quoted(escapeName(name))).join(' ')}`
  // The C locale: bytes are bytes.
  const printed = execFileSync('bash', ['--norc', '--noprofile', '-c', script], { env: { LC_ALL: 'C', PATH: '/usr/bin:/bin' } })
  expect(printed.toString('latin1').split('\0').slice(0, -1)).toEqual(all.map(name => name.toString('latin1')))
})
