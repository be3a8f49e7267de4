import fs from 'node:fs'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { EvidenceError, RefusedError, UsageError } from '../../../src/errors.js'
import { createCase } from '../../../src/evidence/case.js'
import { readCustody } from '../../../src/evidence/custody.js'
import { bundleCase, sealCase } from '../../../src/evidence/seal.js'
import { verify } from '../../../src/evidence/verify.js'
import { openArchive } from '../../../src/evidence/zip.js'
import { BESIDE, fill, ID, INFO, ORIGIN, pseudorandom, put, run, scratch, sealedCase, stillHost } from './cases.js'

const text = (directory: string, name: string): string => fs.readFileSync(path.join(directory, name), 'utf8')

/** What Python's own reader says of an archive. */
function python(archive: string): { bad: string | null; comment: string; entries: [name: string, method: number, bytes: number][] } {
  const script = `import json, sys, zipfile
z = zipfile.ZipFile(sys.argv[1])
print(json.dumps({"bad": z.testzip(), "comment": z.comment.decode(), "entries": [[i.filename, i.compress_type, i.file_size] for i in z.infolist()]}))`
  const { status, stdout, stderr } = run(['python3', '-c', script, archive])
  expect(stderr).toBe('')
  expect(status).toBe(0)
  return JSON.parse(stdout)
}

describe('a sealed case', () => {
  it('is a bag that sha256sum checks as it stands', async () => {
    const { directory } = await sealedCase(scratch())
    const { status, stdout } = run(['sha256sum', '-c', 'manifest-sha256.txt', 'tagmanifest-sha256.txt'], { cwd: directory })
    expect(status).toBe(0)
    expect(stdout.trimEnd().split('\n')).toHaveLength(5 + 7)
    expect(text(directory, 'bagit.txt')).toBe('BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n')
    const listed = text(directory, 'tagmanifest-sha256.txt').trimEnd().split('\n')
    expect(listed.map(line => line.slice(66))).toEqual([
      'artifacts.jsonl',
      'bag-info.txt',
      'bagit.txt',
      'fetch.txt',
      'findings.json',
      'manifest-sha256.txt',
      'plan.json',
    ])
  })

  it('says whose it is, in lines that nobody can break', async () => {
    const { directory } = await sealedCase(scratch(), {
      examiner: 'A\nPayload-Oxum: 0.0\r\x1b[2J\u2028B',
      authority: '',
      label: 'CASE-7',
      clockOffset: '+0.35 s (chrony)',
    })
    const files = fs.readdirSync(path.join(directory, 'data'), { recursive: true, withFileTypes: true }).filter(entry => entry.isFile())
    const bytes = files.reduce((sum, file) => sum + fs.statSync(path.join(file.parentPath, file.name)).size, 0)
    expect(text(directory, 'bag-info.txt')).toBe(`External-Identifier: ${ID}
Internal-Sender-Identifier: CASE-7
External-Description: Evidence of the host web1
Contact-Name: A Payload-Oxum: 0.0 [2J B
Bagging-Date: 2026-06-11
Payload-Oxum: ${bytes}.5
Bag-Software-Agent: ir-toolkit 0.1.0
X-Host: web1
X-Started: 2026-06-11T14:22:33.000Z
X-Sealed: 2026-06-11T14:22:33.120Z
X-Time-Zone: UTC
X-Clock-Offset: +0.35 s (chrony)
`)
  })

  it('ends its custody log with the hash of the tagmanifest', async () => {
    const { directory, sealed } = await sealedCase(scratch())
    const { lines, head } = readCustody(fs.readFileSync(path.join(directory, 'custody.jsonl')))
    const hash = run(['sha256sum', path.join(directory, 'tagmanifest-sha256.txt')]).stdout.slice(0, 64)
    expect(lines.at(-1)).toMatchObject({ event: 'seal', detail: { tagmanifest: hash, artifacts: 5 } })
    expect(sealed.head).toBe(head)
  })
})

describe('the archive', () => {
  it('is read whole by unzip and Python, metadata first, without what lies beside it', async () => {
    const { sealed, directory } = await sealedCase(scratch())
    expect(sealed.archive).toBe(`${directory}.zip`)
    expect(fs.statSync(sealed.archive).mode & 0o7777).toBe(0o600)
    expect(run(['unzip', '-tq', sealed.archive]).status).toBe(0)
    const { bad, entries } = python(sealed.archive)
    expect(bad).toBeNull()
    const [stored, deflated] = [0, 8]
    const inCase = entries.map(([name, method]) => [name.slice(ID.length + 1), method] as const)
    const tags = [
      'bagit.txt',
      'bag-info.txt',
      'manifest-sha256.txt',
      'tagmanifest-sha256.txt',
      'fetch.txt',
      'custody.jsonl',
      'artifacts.jsonl',
    ]
    expect(inCase.slice(0, 9).map(([name]) => name)).toEqual([...tags, 'findings.json', 'plan.json'])
    expect(inCase.slice(9)).toEqual([
      ['data/capture-mem/memory.isf.json.gz', stored],
      ['data/snapshot-connections/empty.txt', stored],
      ['data/snapshot-connections/ss_-tunap.txt', deflated],
      [`data/snapshot-processes/executables/${'ab'.repeat(32)}`, deflated],
    ])
    expect(sealed.beside).toEqual([path.join(directory, BESIDE)])
    expect(fs.readdirSync(path.dirname(directory)).sort()).toEqual([ID, `${ID}.zip`])
  })

  it('carries the hash of all before its comment, and tells the hash of all', async () => {
    const { sealed } = await sealedCase(scratch())
    const bytes = fs.readFileSync(sealed.archive)
    const before = run(['sh', '-c', 'head -c -71 "$1" | sha256sum', 'sh', sealed.archive]).stdout.slice(0, 64)
    expect(python(sealed.archive).comment).toBe(`sha256:${before}`)
    expect(bytes.subarray(-71).toString()).toBe(`sha256:${before}`)
    expect(sealed).toMatchObject({ bytes: bytes.length, sha256: run(['sha256sum', sealed.archive]).stdout.slice(0, 64) })
  })

  it('unpacks to the same bag, complete with the file that lies beside it', async () => {
    const { sealed, directory } = await sealedCase(scratch())
    const elsewhere = scratch()
    expect(run(['unzip', '-q', sealed.archive], { cwd: elsewhere }).status).toBe(0)
    const unpacked = path.join(elsewhere, ID)
    const check = (): number | null =>
      run(['sha256sum', '--quiet', '-c', 'manifest-sha256.txt', 'tagmanifest-sha256.txt'], { cwd: unpacked }).status
    expect(check()).toBe(1)
    fs.copyFileSync(path.join(directory, BESIDE), path.join(unpacked, BESIDE))
    expect(check()).toBe(0)
    expect(await verify(unpacked)).toMatchObject({ intact: true, differences: [] })
    expect(text(unpacked, 'fetch.txt')).toBe(`file://web1${directory}/${BESIDE} ${(2 << 20) + 7} ${BESIDE}\n`)
  })

  it('escapes in fetch.txt what a URL does not hold', async () => {
    const output = path.join(scratch(), "a b%\n'(ä)")
    fs.mkdirSync(output)
    const { directory } = await sealedCase(output, { host: 'web 1\n/../x' })
    expect(text(directory, 'fetch.txt')).toBe(
      `file://web%201%0A%2F..%2Fx${path.dirname(output)}/a%20b%25%0A%27%28%C3%A4%29/${ID}/${BESIDE} ${(2 << 20) + 7} ${BESIDE}\n`,
    )
  })

  it('is the same bytes for the same case', async () => {
    const [one, other] = [scratch(), scratch()]
    // Without fetch.txt, which names the directory.
    const first = await sealedCase(one, { inlineLimit: 1 << 30 })
    const second = await sealedCase(other, { inlineLimit: 1 << 30 })
    expect(first.sealed.sha256).toBe(second.sealed.sha256)
    expect(first.sealed.beside).toEqual([])
  })

  it('never replaces a file of its name, and can be made again from the sealed case', async () => {
    const output = scratch()
    const caze = createCase({ output, id: ID, host: stillHost() })
    fill(caze)
    fs.writeFileSync(path.join(output, `${ID}.zip`), 'somebody was faster')
    await expect(sealCase(caze, INFO)).rejects.toThrow(EvidenceError)
    expect(text(output, `${ID}.zip`)).toBe('somebody was faster')
    expect(fs.readdirSync(output).sort()).toEqual([ID, `${ID}.zip`])
    await expect(bundleCase(caze.directory, { date: new Date() })).rejects.toThrow(RefusedError)
    fs.rmSync(path.join(output, `${ID}.zip`))
    const before = text(caze.directory, 'custody.jsonl')
    const sealed = await bundleCase(caze.directory, { date: new Date() })
    expect(await verify(sealed.archive)).toMatchObject({ intact: true, differences: [], head: sealed.head })
    expect(text(caze.directory, 'custody.jsonl')).toBe(before)
  })

  it('is not made of a case that is not sealed, nor of none', async () => {
    const caze = createCase({ output: scratch(), id: ID, host: stillHost() })
    await expect(bundleCase(caze.directory, { date: new Date() })).rejects.toThrow(RefusedError)
    await expect(bundleCase(scratch(), { date: new Date() })).rejects.toThrow(UsageError)
  })
})

describe('what nobody entered', () => {
  it('is entered by the seal, under a name that harms nobody', async () => {
    const caze = createCase({ output: scratch(), id: ID, host: stillHost() })
    fill(caze)
    const folder = path.dirname(caze.pathOf('triage', 'x'))
    const hostile = ['$(reboot)', '-rf', 'a\nb', '\x1b[2J', 'ä', '..;', ' ', '%0A', '\\x', 'x'.repeat(255), 'ü'.repeat(120)]
    for (const name of hostile) fs.writeFileSync(path.join(folder, name), name)
    fs.writeFileSync(Buffer.concat([Buffer.from(`${folder}/`), Buffer.from([0xff, 0xfe, 0x0a])]), 'bytes')
    fs.mkdirSync(path.join(folder, 'a b/c'), { recursive: true })
    fs.writeFileSync(path.join(folder, 'a b/c/d'), 'deep')
    caze.open('capture-net', 'capture-0001.pcap').write('packets')

    const sealed = await sealCase(caze, INFO)
    const names = caze.artifacts.map(artifact => artifact.path)
    expect(names.filter(name => name.startsWith('data/triage/'))).toHaveLength(hostile.length + 2)
    expect(names).toContain('data/triage/=24=28reboot=29')
    expect(names).toContain('data/triage/=FF=FE=0A')
    expect(names).toContain('data/triage/a=20b/c/d')
    expect(names).toContain('data/capture-net/capture-0001.pcap')
    const origins = text(caze.directory, 'artifacts.jsonl')
      .trimEnd()
      .split('\n')
      .map(line => JSON.parse(line))
    expect(origins.find(({ path }) => path === 'data/triage/a=0Ab').notes).toContain('its name was a\\x0ab')
    const { lines } = readCustody(fs.readFileSync(path.join(caze.directory, 'custody.jsonl')))
    expect(lines.at(-2)).toMatchObject({ event: 'gap', detail: { lateCount: hostile.length + 3, leftOut: [], differs: [] } })
    for (const target of [caze.directory, sealed.archive]) expect(await verify(target)).toMatchObject({ intact: true, differences: [] })
    expect(run(['unzip', '-tq', sealed.archive]).status).toBe(0)
    expect(run(['sha256sum', '--quiet', '-c', 'manifest-sha256.txt'], { cwd: caze.directory }).status).toBe(0)
  })

  it('is left out and named when no archive can hold it', async () => {
    const caze = createCase({ output: scratch(), id: ID, host: stillHost() })
    fill(caze)
    fs.symlinkSync('/etc/shadow', caze.pathOf('triage', 'link'))
    run(['mkfifo', caze.pathOf('triage', 'fifo')])
    run(['ln', path.join(caze.directory, 'plan.json'), path.join(caze.directory, 'data/triage/second')])
    fs.mkdirSync(path.join(caze.directory, 'extra'))
    const sealed = await sealCase(caze, INFO)
    const { lines } = readCustody(fs.readFileSync(path.join(caze.directory, 'custody.jsonl')))
    expect((lines.at(-2) as unknown as { detail: { leftOut: { what: string }[] } }).detail.leftOut.map(({ what }) => what).sort()).toEqual([
      'data/triage/fifo',
      'data/triage/link',
      'data/triage/second',
      'extra',
      'plan.json',
    ])
    expect(await verify(sealed.archive)).toMatchObject({ intact: true })
    const { intact, differences } = await verify(caze.directory)
    expect(intact).toBe(false)
    expect(differences.map(({ path }) => path)).toEqual(expect.arrayContaining(['data/triage/link', 'data/triage/fifo', 'extra']))
  })
})

describe('an artifact that is not as it was entered', () => {
  it('is sealed as far as it goes when it has grown', async () => {
    const caze = createCase({ output: scratch(), id: ID, host: stillHost() })
    fill(caze)
    fs.appendFileSync(path.join(caze.directory, 'data/snapshot-connections/ss_-tunap.txt'), 'late')
    const sealed = await sealCase(caze, INFO)
    expect(sealed.damaged).toEqual([])
    for (const target of [caze.directory, sealed.archive]) expect(await verify(target)).toMatchObject({ intact: true, differences: [] })
    const { lines } = readCustody(fs.readFileSync(path.join(caze.directory, 'custody.jsonl')))
    expect(lines.at(-2)?.detail.differs).toEqual([{ path: 'data/snapshot-connections/ss_-tunap.txt', how: 'longer' }])
  })

  it('does not keep the rest from being sealed, and is told', async () => {
    const caze = createCase({ output: scratch(), id: ID, host: stillHost() })
    fill(caze)
    const [gone, shorter] = ['data/snapshot-connections/ss_-tunap.txt', 'data/capture-mem/memory.isf.json.gz']
    fs.rmSync(path.join(caze.directory, gone))
    fs.truncateSync(path.join(caze.directory, shorter), 10)
    const sealed = await sealCase(caze, INFO)
    expect([...sealed.damaged].sort()).toEqual([shorter, gone])
    for (const target of [caze.directory, sealed.archive]) {
      const { intact, differences } = await verify(target)
      expect(intact).toBe(false)
      expect(differences).toContainEqual({ path: gone, what: 'is missing' })
      expect(differences).toContainEqual({ path: shorter, what: expect.stringContaining('has the hash') })
    }
  })
})

describe('the owner', () => {
  it('gets case and archive, and nothing that a link leads to', async () => {
    const output = scratch()
    const outside = path.join(output, 'outside')
    fs.writeFileSync(outside, '')
    const caze = createCase({ output, id: ID, host: stillHost() })
    fill(caze)
    fs.symlinkSync(outside, caze.pathOf('triage', 'link'))
    const sealed = await sealCase(caze, { ...INFO, owner: { uid: 12345, gid: 54321 } })
    expect(sealed.warnings).toEqual([])
    const all = fs.readdirSync(caze.directory, { recursive: true, encoding: 'utf8' }).map(name => path.join(caze.directory, name))
    for (const name of [caze.directory, sealed.archive, ...all]) expect(fs.lstatSync(name)).toMatchObject({ uid: 12345, gid: 54321 })
    expect(fs.statSync(outside)).toMatchObject({ uid: 0, gid: 0 })
  })
})

it('seals twenty thousand small files', async () => {
  // In memory: a disk needs longer to remove them again than all the rest takes.
  const output = scratch('/dev/shm')
  const caze = createCase({ output, id: ID, host: stillHost() })
  for (let n = 0; n < 20_000; n += 1) {
    const file = caze.open('snapshot-processes', `${n % 4}/${n}.txt`)
    file.write(`process ${n}\n`)
    file.close(ORIGIN)
  }
  const sealed = await sealCase(caze, INFO)
  const archive = openArchive(sealed.archive)
  expect(archive.names()).toHaveLength(20_000 + 6)
  expect(archive.read('data/snapshot-processes/3/19999.txt').toString()).toBe('process 19999\n')
  archive.close()
  expect(await verify(sealed.archive)).toMatchObject({ intact: true, differences: [] })
  expect(run(['unzip', '-tqq', sealed.archive]).status).toBe(0)
}, 240_000)

it('takes only cases of the evidence room', async () => {
  const caze = createCase({ output: scratch(), id: ID, host: stillHost() })
  put(caze, 'triage', 'a.txt', pseudorandom(1, 10))
  await expect(sealCase({ ...caze, directory: caze.directory, artifacts: [], head: '' } as never, INFO)).rejects.toThrow(TypeError)
})
