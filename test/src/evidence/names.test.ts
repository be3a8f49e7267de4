import fc from 'fast-check'
import { expect, it } from 'vitest'
import { isArtifactPath, isCaseId, isSafeName, safePart } from '../../../src/evidence/names.js'

it.each([
  '',
  '.',
  '..',
  '../x',
  'a/../b',
  '/etc/passwd',
  'a//b',
  'a/',
  'a\\b',
  'a b',
  'a\nb',
  'a\0b',
  'a%0Ab',
  'ä',
  '\x1b[2J',
  '$(id)',
  '*',
  '~',
  ':',
  'x'.repeat(256),
])('refuses the name %j', name => {
  expect(isSafeName(name)).toBe(false)
  expect(isArtifactPath(`data/step/${name}`)).toBe(false)
})

it.each(['ss_-tunap.txt', 'executables/0f3a', 'a,b@c+d=e', '-x', '.hidden', 'x'.repeat(255)])('takes the name %j', name => {
  expect(isSafeName(name)).toBe(true)
})

it.each(['', '-x', '.x', 'a/b', '..', 'a b', 'x'.repeat(201)])('refuses the case %j', id => {
  expect(isCaseId(id)).toBe(false)
})

it('gives every name of bytes a safe one, and different ones to different bytes', () => {
  const bytes = fc.uint8Array({ maxLength: 300 })
  fc.assert(
    fc.property(bytes, bytes, (one, other) => {
      expect(isSafeName(safePart(one))).toBe(true)
      if (!Buffer.from(one).equals(Buffer.from(other))) expect(safePart(one)).not.toBe(safePart(other))
    }),
  )
})
