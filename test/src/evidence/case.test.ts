import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { EvidenceError, RefusedError, UsageError } from '../../../src/errors.js'
import { type Case, createCase, isSealed, openCase } from '../../../src/evidence/case.js'
import { readCustody } from '../../../src/evidence/custody.js'
import { sealCase } from '../../../src/evidence/seal.js'
import { verify } from '../../../src/evidence/verify.js'
import { openHost } from '../../../src/host.js'
import type { FileStatus } from '../../../src/step.js'
import { fill, ID, INFO, ORIGIN, pseudorandom, run, scratch, stillHost } from './cases.js'

const SOURCES = fileURLToPath(new URL('../../helpers/sources.mjs', import.meta.url))

const made = (output = scratch()): Case => createCase({ output, id: ID, host: stillHost() })
const mode = (file: string): number => fs.lstatSync(file).mode & 0o7777
const sha256sum = (file: string): string => run(['sha256sum', file]).stdout.slice(0, 64)
const inCase = (caze: Case, name: string): string => path.join(caze.directory, name)

function lastArtifact(caze: Case): Record<string, unknown> {
  return JSON.parse(fs.readFileSync(inCase(caze, 'artifacts.jsonl'), 'utf8').trimEnd().split('\n').at(-1) as string)
}

describe('a new case', () => {
  it('is for its owner alone', () => {
    const caze = made()
    caze.open('triage', 'a/b/c.txt').close(ORIGIN)
    expect(fs.readdirSync(caze.directory).sort()).toEqual(['artifacts.jsonl', 'custody.jsonl', 'data'])
    for (const folder of ['', 'data', 'data/triage', 'data/triage/a', 'data/triage/a/b']) expect(mode(inCase(caze, folder))).toBe(0o700)
    for (const file of ['custody.jsonl', 'artifacts.jsonl', 'data/triage/a/b/c.txt']) expect(mode(inCase(caze, file))).toBe(0o600)
    expect(caze.head).toBe('0'.repeat(64))
  })

  it('is refused where one, its archive, or a link of its name is', () => {
    const output = scratch()
    made(output)
    expect(() => made(output)).toThrow(RefusedError)
    const second = scratch()
    fs.writeFileSync(path.join(second, `${ID}.zip`), '')
    expect(() => made(second)).toThrow(RefusedError)
    const third = scratch()
    fs.symlinkSync(scratch(), path.join(third, ID))
    expect(() => made(third)).toThrow(RefusedError)
    expect(() => made(path.join(third, 'nowhere'))).toThrow(RefusedError)
  })

  it.each(['', '..', '../x', 'a/b', '-rf', 'a b', 'x\n'])('is refused under the name %j', id => {
    expect(() => createCase({ output: scratch(), id, host: stillHost() })).toThrow(UsageError)
  })

  it('stays where it was made, even when its name is swapped for a link', () => {
    const output = scratch()
    const elsewhere = scratch()
    const caze = made(output)
    fs.renameSync(caze.directory, path.join(output, 'moved'))
    fs.symlinkSync(elsewhere, caze.directory)
    caze.open('triage', 'x.txt').close(ORIGIN)
    caze.record('step', {})
    caze.tag('plan.json', '{}')
    expect(fs.readdirSync(elsewhere)).toEqual([])
    expect(fs.readdirSync(path.join(output, 'moved')).sort()).toEqual(['artifacts.jsonl', 'custody.jsonl', 'data', 'plan.json'])
  })
})

describe('an artifact', () => {
  it('is hashed while it is written', () => {
    const caze = made()
    const file = caze.open('triage', 'a.bin')
    file.write('äb')
    file.write(pseudorandom(1, 3 << 20))
    const artifact = file.close(ORIGIN)
    expect(artifact).toEqual({ path: 'data/triage/a.bin', bytes: 3 + (3 << 20), sha256: sha256sum(inCase(caze, artifact.path)) })
    expect(caze.artifacts).toEqual([artifact])
  })

  it('has holes that take no room and hash as zeros', () => {
    const caze = made()
    const file = caze.open('capture-mem', 'memory.lime')
    file.hole(5 << 20)
    file.write('x')
    file.hole((32 << 20) + 17)
    file.write('y')
    file.hole(3 << 20)
    const artifact = file.close(ORIGIN)
    const real = inCase(caze, artifact.path)
    const { size, blocks } = fs.statSync(real)
    expect([artifact.bytes, size]).toEqual([(40 << 20) + 19, (40 << 20) + 19])
    expect(blocks * 512).toBeLessThan(1 << 20)
    expect(artifact.sha256).toBe(sha256sum(real))
  })

  it('is never replaced', () => {
    const caze = made()
    caze.open('triage', 'a.txt').close(ORIGIN)
    expect(() => caze.open('triage', 'a.txt')).toThrow(EvidenceError)
    fs.symlinkSync('/etc/hostname', inCase(caze, 'data/triage/link'))
    expect(() => caze.open('triage', 'link')).toThrow(EvidenceError)
    fs.symlinkSync(scratch(), inCase(caze, 'data/other'))
    expect(() => caze.open('other', 'a.txt')).toThrow(EvidenceError)
    expect(() => caze.pathOf('other', 'a.txt')).toThrow(EvidenceError)
  })

  it.each(['../x', '..', 'a/../../b', '/etc/x', 'a b', 'a\nb', '', 'ä', '\x1b[31m'])('is refused under the name %j', name => {
    const caze = made()
    expect(() => caze.open('triage', name)).toThrow(EvidenceError)
    expect(() => caze.open(name, 'x')).toThrow(EvidenceError)
    expect(() => caze.pathOf('triage', name)).toThrow(EvidenceError)
    expect(fs.readdirSync(inCase(caze, 'data'))).toEqual([])
  })

  it('leaves nothing when it is discarded, and stays when it is closed first', () => {
    const caze = made()
    const file = caze.open('triage', 'a.txt')
    file.write('x')
    file.discard()
    const kept = caze.open('triage', 'b.txt')
    kept.close(ORIGIN)
    kept.discard()
    expect(fs.readdirSync(inCase(caze, 'data/triage'))).toEqual(['b.txt'])
    expect(caze.artifacts.map(artifact => artifact.path)).toEqual(['data/triage/b.txt'])
    expect(() => kept.write('y')).toThrow(EvidenceError)
    expect(() => kept.close(ORIGIN)).toThrow(EvidenceError)
  })

  it('says where it comes from', () => {
    const caze = made()
    const status: FileStatus = {
      kind: 'file',
      mode: 0o4755,
      uid: 0,
      gid: 1000,
      size: 2n ** 60n,
      device: 66306n,
      inode: 2n ** 63n,
      links: 2,
      accessed: Date.UTC(2026, 5, 11, 14, 22, 33) + 120.345,
      modified: -1.5,
      // touch -d @99999999999999 works on tmpfs; no Date can say it.
      changed: 99999999999999 * 1000,
      born: 0,
    }
    caze.open('collect-logs', 'x').close({
      action: 'collect-logs/3',
      how: 'copy',
      path: '/tmp/a\nb\x1b[31m',
      status,
      link: '../evil',
      notes: ['cut at 64 MiB'],
    })
    expect(lastArtifact(caze)).toEqual({
      path: 'data/collect-logs/x',
      bytes: 0,
      sha256: 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',
      closed: '2026-06-11T14:22:33.120Z',
      action: 'collect-logs/3',
      how: 'copy',
      original: '/tmp/a\nb\x1b[31m',
      kind: 'file',
      mode: '4755',
      uid: 0,
      gid: 1000,
      size: '1152921504606846976',
      device: '66306',
      inode: '9223372036854775808',
      links: 2,
      accessed: '2026-06-11T14:22:33.120345Z',
      modified: '1969-12-31T23:59:59.998500Z',
      changed: '@99999999999999',
      born: null,
      link: '../evil',
      notes: ['cut at 64 MiB'],
    })
  })

  it('tells of a file of the host what stat tells', () => {
    const caze = made()
    const file = path.join(scratch(), 'f')
    fs.writeFileSync(file, 'x')
    run(['touch', '-d', '2001-02-03T04:05:06.789012Z', file])
    caze.open('collect-logs', 'f').close({ action: 'collect-logs/1', how: 'copy', path: file, status: openHost().lstat(file) })
    expect(lastArtifact(caze)).toMatchObject({ modified: '2001-02-03T04:05:06.789012Z', accessed: '2001-02-03T04:05:06.789012Z' })
  })
})

describe('a file that a program wrote', () => {
  it('is adopted, through our descriptor or by its path', async () => {
    const caze = made()
    const file = caze.open('triage', 'date.txt')
    const child = spawn('echo', ['hello'], { stdio: ['ignore', file.fd, 'ignore'] })
    await once(child, 'exit')
    const first = await caze.adopt('triage', 'date.txt', ORIGIN)
    expect(first).toEqual({ path: 'data/triage/date.txt', bytes: 6, sha256: sha256sum(inCase(caze, first.path)) })
    expect(() => file.write('late')).toThrow(EvidenceError)

    expect(run(['dd', 'if=/dev/urandom', `of=${caze.pathOf('triage', 'r/random')}`, 'bs=64K', 'count=40']).status).toBe(0)
    fs.chmodSync(inCase(caze, 'data/triage/r/random'), 0o644)
    fs.chownSync(inCase(caze, 'data/triage/r/random'), 65534, 65534)
    const second = await caze.adopt('triage', 'r/random', ORIGIN)
    expect(second).toEqual({ path: 'data/triage/r/random', bytes: 40 << 16, sha256: sha256sum(inCase(caze, second.path)) })
    expect(fs.statSync(inCase(caze, second.path))).toMatchObject({ uid: 0, gid: 0 })
    expect(mode(inCase(caze, second.path))).toBe(0o600)
    await expect(caze.adopt('triage', 'r/random', ORIGIN)).rejects.toThrow(EvidenceError)
  })

  it('counts as it lies there when it is closed like one of ours', async () => {
    const caze = made()
    const file = caze.open('triage', 'date.txt')
    await once(spawn('echo', ['hello'], { stdio: ['ignore', file.fd, 'ignore'] }), 'exit')
    expect(file.close(ORIGIN)).toMatchObject({ bytes: 6, sha256: sha256sum(inCase(caze, 'data/triage/date.txt')) })
  })

  it('is no reason to stop when it is missing, a link, a FIFO, or a second name of a file elsewhere', async () => {
    const caze = made()
    const outside = path.join(scratch(), 'outside')
    fs.writeFileSync(outside, 'secret', { mode: 0o644 })
    fs.symlinkSync(outside, caze.pathOf('triage', 'link'))
    run(['mkfifo', caze.pathOf('triage', 'fifo')])
    run(['ln', outside, caze.pathOf('triage', 'second')])
    for (const name of ['missing', 'link', 'fifo', 'second']) {
      const error: unknown = await caze.adopt('triage', name, ORIGIN).catch(error => error)
      expect(error).toBeInstanceOf(Error)
      expect(error).not.toBeInstanceOf(EvidenceError)
      expect((error as Error).message).toContain(`data/triage/${name}`)
    }
    expect(mode(outside)).toBe(0o644)
    expect(caze.artifacts).toEqual([])
  })

  it('is cut where it was hashed when somebody still writes it', async () => {
    const caze = made()
    const file = caze.pathOf('triage', 'growing')
    // More than is waited for: a sparse end far behind what we hash.
    fs.writeFileSync(file, 'begin')
    const adopting = caze.adopt('triage', 'growing', ORIGIN)
    fs.truncateSync(file, 64 << 20)
    const artifact = await adopting
    expect(artifact.bytes).toBe(5 + (16 << 20))
    expect(artifact.sha256).toBe(sha256sum(file))
    expect(lastArtifact(caze).notes).toEqual([`still being written: cut at ${artifact.bytes} bytes`])
  })
})

describe('a tag file', () => {
  it('may be written again, and never takes a name of ours', () => {
    const caze = made()
    caze.tag('undo.sh', 'one')
    caze.tag('undo.sh', 'two')
    expect(fs.readFileSync(inCase(caze, 'undo.sh'), 'utf8')).toBe('two')
    expect(mode(inCase(caze, 'undo.sh'))).toBe(0o600)
    for (const name of [
      'bagit.txt',
      'manifest-sha256.txt',
      'manifest-md5.txt',
      'tagmanifest-sha256.txt',
      'custody.jsonl',
      'custody.sig',
      'artifacts.jsonl',
      'data',
      'fetch.txt',
      '.x',
      '../x',
      'a/b',
    ]) {
      expect(() => caze.tag(name, '')).toThrow(EvidenceError)
    }
  })

  it('does not follow a link of its name', () => {
    const caze = made()
    const outside = path.join(scratch(), 'outside')
    fs.writeFileSync(outside, 'before')
    fs.symlinkSync(outside, inCase(caze, 'plan.json'))
    fs.symlinkSync(outside, inCase(caze, '.plan.json.new'))
    caze.tag('plan.json', '{}')
    expect(fs.readFileSync(outside, 'utf8')).toBe('before')
    expect(fs.lstatSync(inCase(caze, 'plan.json')).isFile()).toBe(true)
  })
})

describe('an interrupted case', () => {
  /** As kill -9 in the middle of a write leaves it. */
  function interrupted(): { directory: string; whole: number } {
    const caze = made()
    fill(caze)
    caze.open('capture-net', 'capture-0001.pcap').write(pseudorandom(3, 100_000))
    const custody = inCase(caze, 'custody.jsonl')
    const whole = readCustody(fs.readFileSync(custody)).lines.length
    fs.appendFileSync(custody, `{"seq":${whole + 1},"at":"2026-06-11T14:2`)
    fs.appendFileSync(inCase(caze, 'artifacts.jsonl'), '{"path":"data/capture-net/ca')
    return { directory: caze.directory, whole }
  }

  it('is opened, sealed and verified', async () => {
    const { directory, whole } = interrupted()
    expect(isSealed(directory)).toBe(false)
    expect((await verify(directory)).checks).toContainEqual({ what: 'sealed', ok: false, detail: expect.stringContaining('not sealed') })

    const caze = openCase(directory, stillHost())
    expect(caze.artifacts.map(artifact => artifact.path)).toContain('data/capture-mem/memory.lime')
    expect(fs.readFileSync(path.join(directory, 'custody.torn'), 'utf8')).toBe(`{"seq":${whole + 1},"at":"2026-06-11T14:2`)
    expect(fs.readFileSync(path.join(directory, 'artifacts.torn'), 'utf8')).toBe('{"path":"data/capture-net/ca')
    const { lines, problems } = readCustody(fs.readFileSync(path.join(directory, 'custody.jsonl')))
    expect(problems).toEqual([])
    expect(lines.at(-1)).toMatchObject({ seq: whole + 1, event: 'gap', detail: { tornBytes: 30, artifactsTornBytes: 28, chain: [] } })

    const sealed = await sealCase(caze, INFO)
    expect(isSealed(directory)).toBe(true)
    expect(caze.artifacts).toContainEqual(expect.objectContaining({ path: 'data/capture-net/capture-0001.pcap', bytes: 100_000 }))
    for (const target of [directory, sealed.archive])
      expect(await verify(target)).toMatchObject({ intact: true, differences: [], head: sealed.head })
    expect(run(['sha256sum', '--quiet', '-c', 'manifest-sha256.txt', 'tagmanifest-sha256.txt'], { cwd: directory }).status).toBe(0)
  })

  it('is what kill -9 leaves, and can be sealed', async () => {
    const output = scratch()
    const writer = spawn(process.execPath, ['--import', SOURCES, fileURLToPath(new URL('endless-writer.ts', import.meta.url)), output, ID])
    await once(writer.stdout, 'data')
    writer.kill('SIGKILL')
    await once(writer, 'exit')
    const caze = openCase(path.join(output, ID), stillHost())
    const entered = caze.artifacts.length
    const sealed = await sealCase(caze, INFO)
    expect(entered).toBeGreaterThan(0)
    // The file that was being written is there as well.
    expect(caze.artifacts.length).toBeGreaterThan(entered)
    expect(await verify(sealed.archive)).toMatchObject({ intact: true, differences: [] })
  })

  it('can be torn again and again, and loses nothing', () => {
    const { directory } = interrupted()
    openCase(directory, stillHost())
    fs.appendFileSync(path.join(directory, 'custody.jsonl'), 'torn again')
    openCase(directory, stillHost())
    expect(fs.readFileSync(path.join(directory, 'custody.torn.2'), 'utf8')).toBe('torn again')
    expect(readCustody(fs.readFileSync(path.join(directory, 'custody.jsonl'))).problems).toEqual([])
  })

  it('goes on behind a chain that was broken, and says where', () => {
    const { directory } = interrupted()
    const file = path.join(directory, 'custody.jsonl')
    fs.writeFileSync(file, fs.readFileSync(file, 'utf8').replace('"case":', '"CASE":'))
    openCase(directory, stillHost())
    const { lines, problems } = readCustody(fs.readFileSync(file))
    expect(lines.at(-1)?.detail.chain).toEqual(['line 2 does not carry the hash of the line before it'])
    expect(problems).toEqual([{ line: 2, what: 'does not carry the hash of the line before it' }])
  })

  it('is refused while another process writes it, not while one reads it', async () => {
    const { directory } = interrupted()
    const custody = path.join(directory, 'custody.jsonl')
    const writer = spawn('sh', ['-c', 'exec 9>>"$1"; echo open; exec sleep 60', 'sh', custody])
    const reader = spawn('sh', ['-c', 'exec 9<"$1"; echo open; exec sleep 60', 'sh', custody])
    try {
      await Promise.all([once(writer.stdout, 'data'), once(reader.stdout, 'data')])
      expect(() => openCase(directory, openHost())).toThrow(new RegExp(`being written by process ${writer.pid}$`))
      writer.kill()
      await once(writer, 'exit')
      expect(openCase(directory, openHost()).directory).toBe(directory)
    } finally {
      writer.kill()
      reader.kill()
    }
  })

  it('is no case where there is none', () => {
    const empty = scratch()
    for (const target of [empty, path.join(empty, 'nowhere'), '/etc/hostname']) {
      expect(() => openCase(target, stillHost())).toThrow(UsageError)
      expect(() => isSealed(target)).toThrow(UsageError)
    }
  })
})

it('is never written again once it is sealed', async () => {
  const caze = made()
  fill(caze)
  const open = caze.open('triage', 'still-open.txt')
  open.write('x')
  await sealCase(caze, INFO)
  const before = fs.readdirSync(caze.directory, { recursive: true })
  expect(() => caze.open('triage', 'x')).toThrow(EvidenceError)
  expect(() => caze.record('step', {})).toThrow(EvidenceError)
  expect(() => caze.tag('report.html', '')).toThrow(EvidenceError)
  expect(() => caze.pathOf('triage', 'x')).toThrow(EvidenceError)
  expect(() => open.write('y')).toThrow(EvidenceError)
  await expect(caze.adopt('triage', 'x', ORIGIN)).rejects.toThrow(EvidenceError)
  await expect(sealCase(caze, INFO)).rejects.toThrow(EvidenceError)
  expect(() => openCase(caze.directory, stillHost())).toThrow(RefusedError)
  expect(fs.readdirSync(caze.directory, { recursive: true })).toEqual(before)
  expect((await verify(caze.directory)).intact).toBe(true)
})
