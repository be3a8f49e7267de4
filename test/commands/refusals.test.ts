/** Bad input gets one clear line, the documented exit code, and nothing is touched. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { IR, ir, outputDirectory, removeDirectories } from '../helpers/ir.js'

let output: string
beforeAll(() => {
  output = outputDirectory()
  fs.chmodSync(output, 0o777)
})
afterAll(removeDirectories)

const NOBODY = ['/usr/bin/setpriv', '--reuid=65534', '--regid=65534', '--clear-groups']
const oneLine = (text: string): boolean => text.trimEnd().split('\n').length === 1

describe('who is not root', () => {
  it.each([
    'respond',
    'isolate',
    'release',
    'snapshot-connections',
    'snapshot-processes',
    'capture-mem',
    'capture-net',
    'audit-attrs',
    'drill',
  ])('cannot run %s: exit 4, one line, nothing touched', async command => {
    const allow = command === 'respond' || command === 'isolate' ? ['--allow', '198.51.100.7'] : []
    const found = await ir([command, ...(command === 'drill' ? [] : ['--yes']), ...allow, '--output', output], { prefix: NOBODY })
    expect(found).toMatchObject({ code: 4, stdout: '' })
    expect(found.stderr).toMatch(/root/)
    expect(found.stderr).toMatch(/sudo/)
    expect(oneLine(found.stderr)).toBe(true)
    expect(fs.readdirSync(output)).toEqual([])
  })

  it('may look at the plan', async () => {
    const found = await ir(['respond', '--dry-run', '--allow', '198.51.100.7', '--output', output], { prefix: NOBODY })
    expect(found.code).toBe(0)
    expect(found.stdout).toMatch(/no\s+root/)
    expect(fs.readdirSync(output)).toEqual([])
  })
})

describe('what is typed wrong', () => {
  it.each([
    [['respond', '--only', 'isolat', '--dry-run'], 2, "did you mean 'isolate'"],
    [['respond', '--skip', 'capture-memory', '--dry-run'], 2, "did you mean 'capture-mem'"],
    [['respond', 'golden-3', '--dry-run'], 2, "did you mean 'golden-30'"],
    [['respnd'], 2, "did you mean 'respond'"],
    [['capture-memm'], 2, "did you mean 'capture-mem'"],
    [['respond', '--budget', '30', '--dry-run'], 2, 'type it as 90s, 30m'],
    [['capture-net', '--files', 'many', '--dry-run'], 2, 'whole number of files'],
    [['capture-net', '--files', '0', '--dry-run'], 2, 'from 1'],
    [['respond', '--dry-run', '--no-such-flag'], 2, 'no-such-flag'],
    [['verify'], 2, 'archive'],
    [['verify', '/nonexistent.zip'], 2, '/nonexistent.zip'],
  ] as const)('%j: exit %d, says what to type', async (args, code, words) => {
    const found = await ir(args)
    expect(`${found.stderr}${found.stdout}`).toContain(words)
    expect(found.code).toBe(code)
  })

  it('is one JSON document with --json', async () => {
    const found = await ir(['respond', '--only', 'isolat', '--dry-run', '--json'])
    expect(found.code).toBe(2)
    expect(JSON.parse(found.stdout)).toMatchObject({ exit: 2, error: expect.stringContaining('isolate') })
  })
})

describe('where evidence cannot go', () => {
  const snapshot = (...more: string[]) => ir(['snapshot-connections', ...more])

  it('a directory that is not there', async () => {
    const found = await snapshot('--output', '/nonexistent/place')
    expect(found.code).toBe(4)
    expect(found.stderr).toContain('mkdir -p')
    expect(oneLine(found.stderr)).toBe(true)
  })

  it('a disk that is mounted read-only, or full: with the size needed', async () => {
    const script = [
      'set -e',
      'mount -t tmpfs -o size=8m,mode=700 small "$1"',
      'code=0; "$2" snapshot-connections --output "$1" || code=$?; echo "full $code $(ls -A "$1" | wc -l)"',
      'mount -o remount,ro "$1"',
      'code=0; "$2" snapshot-connections --output "$1" || code=$?; echo "read-only $code"',
    ].join('\n')
    const place = path.join(output, 'small')
    fs.mkdirSync(place)
    const text = execFileSync('unshare', ['--mount', 'sh', '-c', `exec 2>&1\n${script}`, 'sh', place, IR]).toString()
    fs.rmdirSync(place)
    expect(text).toContain('full 4 0')
    expect(text).toMatch(/\d+\.\d MiB needed, .* free/)
    expect(text).toContain('read-only 4')
  })
})

it.each([
  ['127.0.0.1', 'this host itself'],
  ['224.0.0.1', 'multicast'],
  ['0.0.0.0/1,128.0.0.0/1', 'no isolation'],
  ['2000::/3', 'no isolation'],
  ['gateway.example', 'is a name'],
])('--allow %s is refused: %s', async (allow, why) => {
  const found = await ir(['isolate', '--yes', '--allow', allow, '--output', output], { prefix: ['/usr/bin/unshare', '--net'] })
  expect(found.code).toBe(4)
  expect(found.stderr).toContain(why)
})

it('two cases in the same second both get a name', async () => {
  const place = outputDirectory()
  const found = await Promise.all([1, 2].map(() => ir(['snapshot-connections', '--output', place])))
  const last = await ir(['snapshot-connections', '--output', place])
  expect([...found, last].filter(one => one.code === 0).length).toBeGreaterThanOrEqual(2)
  expect(last.code).toBe(0)
})

it('a wrong flag with --json is one small document', async () => {
  for (const args of [
    ['drill', '--bogus', '--json'],
    ['verify', '--json'],
  ]) {
    const found = await ir(args)
    expect(found.code).toBe(2)
    expect(found.stdout.length).toBeLessThan(2000)
    expect(JSON.parse(found.stdout)).toMatchObject({ exit: 2, error: expect.any(String) })
  }
})

it('who cannot be asked is not isolated without a word', async () => {
  const found = await ir(['isolate', '--allow', '198.51.100.7', '--output', output], { prefix: ['/usr/bin/unshare', '--net'] })
  expect(found.code).toBe(4)
  expect(found.stderr).toContain('--yes')
  expect(fs.readdirSync(output)).toEqual([])
})

it('nobody to keep connected and nobody to ask: refused, with both ways out', async () => {
  const found = await ir(['respond', '--yes', '--output', output], { prefix: ['/usr/bin/unshare', '--net', '/usr/bin/setsid', '--wait'] })
  expect(found.code).toBe(4)
  expect(found.stderr).toContain('--allow ADDR')
  expect(found.stderr).toContain('--allow none')
  expect(fs.readdirSync(output)).toEqual([])
})
