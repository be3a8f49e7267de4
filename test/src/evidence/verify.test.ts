import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { EvidenceError, UsageError } from '../../../src/errors.js'
import { createCase } from '../../../src/evidence/case.js'
import { sealCase } from '../../../src/evidence/seal.js'
import { type Verification, verify } from '../../../src/evidence/verify.js'
import { openArchive, readStructure } from '../../../src/evidence/zip.js'
import { BESIDE, dice, fill, ID, INFO, run, scratch, sealedCase, stillHost } from './cases.js'

const SS = 'data/snapshot-connections/ss_-tunap.txt'
const sha256 = (content: string | Uint8Array): string => createHash('sha256').update(content).digest('hex')
const paths = ({ differences }: Verification): string[] => differences.map(difference => difference.path)
const failed = ({ checks }: Verification): string[] => checks.filter(check => !check.ok).map(check => check.what)

/** Where each entry begins in the file and how long its packed data is, as Python reads it; the directory follows the last. */
interface Layout {
  entries: { name: string; start: number; dataStart: number; dataEnd: number; end: number }[]
  directory: number
}

let archive: Buffer
let map: Layout
let output: string
let contents: Map<string, string>

/** An archive of its own for each test, with the artifact that lies beside it. */
beforeAll(async () => {
  const made = scratchForAll()
  const { sealed } = await sealedCase(made)
  archive = fs.readFileSync(sealed.archive)
  output = made
  const read = openArchive(sealed.archive)
  contents = new Map(read.names().map(name => [name, sha256(read.read(name))]))
  read.close()
  const script = `import json, sys, zipfile
z = zipfile.ZipFile(sys.argv[1])
print(json.dumps([[i.filename, i.header_offset, i.compress_size] for i in z.infolist()] + [z.start_dir]))`
  const listed = JSON.parse(run(['python3', '-c', script, sealed.archive]).stdout)
  const directory: number = listed.pop()
  map = {
    directory,
    entries: listed.map(([name, start, packed]: [string, number, number], index: number) => ({
      name: name.slice(ID.length + 1),
      start,
      dataStart: start + 30 + name.length,
      dataEnd: start + 30 + name.length + packed,
      end: listed[index + 1]?.[1] ?? directory,
    })),
  }
  return () => fs.rmSync(made, { recursive: true, force: true })
})

function scratchForAll(): string {
  return fs.mkdtempSync(path.join(os.tmpdir(), 'ir-verify-'))
}

/** Verifies changed bytes in the place of the archive. */
async function verifyBytes(bytes: Uint8Array): Promise<Verification> {
  fs.writeFileSync(path.join(output, `${ID}.zip`), bytes)
  return verify(path.join(output, `${ID}.zip`))
}

/** As unzip reads it, whatever it thinks of its CRC. */
function unzipped(name: string): string {
  return sha256(spawnSync('unzip', ['-p', path.join(output, `${ID}.zip`), `${ID}/${name}`]).stdout)
}

const entryAt = (at: number): Layout['entries'][number] | undefined => map.entries.find(({ start, end }) => at >= start && at < end)

describe('an archive', () => {
  it('is intact as it was written', async () => {
    const verification = await verifyBytes(archive)
    expect(verification).toMatchObject({ intact: true, differences: [] })
    expect(failed(verification)).toEqual([])
    expect(verification.checks.map(check => check.what)).toEqual([
      'archive',
      'structure',
      'custody chain',
      'seal',
      'tag files',
      'artifacts',
      'bag-info.txt',
      'origins',
      'custody artifacts',
    ])
    expect(verification.notChecked).toEqual([expect.stringContaining('nobody has signed'), expect.stringContaining(verification.head)])
    expect(verification.head).toMatch(/^[0-9a-f]{64}$/)
  })

  it('shows any byte that was changed, and which file it belongs to', async () => {
    const next = dice(20260611)
    for (let n = 0; n < 200; n += 1) {
      const at = next(archive.length)
      const changed = Buffer.from(archive)
      changed[at] = (changed[at] as number) ^ (1 + next(255))
      const verification = await verifyBytes(changed)
      expect(verification.intact, `byte ${at}`).toBe(false)
      const entry = entryAt(at)
      if (entry === undefined || paths(verification).includes(entry.name)) continue
      // Padding between the blocks of a deflate stream says nothing: only the hash of the archive knows it.
      expect(unzipped(entry.name), `byte ${at}`).toEqual(contents.get(entry.name))
    }
  }, 120_000)

  it('has no byte outside of its contents that could be changed without a fault in its structure', async () => {
    const file = path.join(output, `${ID}.zip`)
    fs.writeFileSync(file, archive)
    const fd = fs.openSync(file, 'r+')
    const packed = map.entries.map(({ dataStart, dataEnd }) => [dataStart, dataEnd] as const)
    for (let at = 0; at < archive.length - 71; at += 1) {
      if (packed.some(([start, end]) => at >= start && at < end)) continue
      fs.writeSync(fd, Buffer.from([(archive[at] as number) ^ 0x20]), 0, 1, at)
      expect(readStructure(fd, archive.length).faults, `byte ${at}`).not.toEqual([])
      fs.writeSync(fd, archive, at, 1, at)
    }
    expect(readStructure(fd, archive.length).faults).toEqual([])
    fs.closeSync(fd)
  }, 120_000)

  it('shows where bytes came in or got lost', async () => {
    const next = dice(4)
    for (let n = 0; n < 100; n += 1) {
      const at = next(map.directory)
      const [put, taken] = n % 2 === 0 ? [1 + next(40), 0] : [0, 1 + next(20)]
      const changed = Buffer.concat([archive.subarray(0, at), Buffer.alloc(put, next(256)), archive.subarray(at + taken)])
      const verification = await verifyBytes(changed)
      expect(verification.intact).toBe(false)
      expect(failed(verification)).toContain('structure')
      // At the seam between two entries it may be told of either.
      const near = [entryAt(at)?.name, entryAt(at - 1)?.name, entryAt(at + taken)?.name, at === 0 ? `${ID}.zip` : undefined]
      expect(
        paths(verification).some(name => near.includes(name)),
        `${put || -taken} bytes at ${at}: ${paths(verification)}`,
      ).toBe(true)
    }
  }, 120_000)

  it('shows that it was truncated', async () => {
    const next = dice(5)
    for (const length of [
      0,
      1,
      3,
      4,
      22,
      archive.length - 1,
      archive.length - 71,
      archive.length - 93,
      ...Array.from({ length: 40 }, () => next(archive.length)),
    ]) {
      const verification = await verifyBytes(archive.subarray(0, length))
      expect(verification.intact, `${length} bytes`).toBe(false)
      expect(paths(verification)).toContain(`${ID}.zip`)
      expect(verification.differences.map(difference => difference.what).join()).toMatch(/truncated/)
    }
  }, 120_000)

  it('shows that it was extended, and by how much', async () => {
    const next = dice(6)
    for (const length of [1, 22, 71, 93, 5000]) {
      const verification = await verifyBytes(Buffer.concat([archive, Buffer.alloc(length, next(256))]))
      expect(verification.differences).toContainEqual({ path: `${ID}.zip`, what: `${length} bytes were appended` })
      expect(verification.intact).toBe(false)
    }
    const before = await verifyBytes(Buffer.concat([Buffer.from('#!/bin/sh\n'), archive]))
    expect(before.differences).toContainEqual({ path: `${ID}.zip`, what: '10 bytes too many before its directory' })
  })

  it.each([
    [
      'an extra file',
      'z.writestr(sys.argv[2] + "/data/triage/extra.txt", "extra")',
      'data/triage/extra.txt',
      'is not in manifest-sha256.txt',
    ],
    ['an extra tag file', 'z.writestr(sys.argv[2] + "/extra.txt", "extra")', 'extra.txt', 'is not in tagmanifest-sha256.txt'],
    ['a second file of a name', `z.writestr(sys.argv[2] + "/${SS}", "other")`, SS, 'is in the archive twice'],
    ['a name that leads up', 'z.writestr(sys.argv[2] + "/../../etc/cron.d/x", "x")', '../../etc/cron.d/x', 'has an unsafe name'],
    ['a folder', 'z.writestr(sys.argv[2] + "/data/", "")', 'data/', 'has an unsafe name'],
    [
      'a link',
      'i = zipfile.ZipInfo(sys.argv[2] + "/data/triage/l"); i.external_attr = 0o120777 << 16; z.writestr(i, "/etc/shadow")',
      'data/triage/l',
      'has another mode than ir gives',
    ],
    ['a file of another case', 'z.writestr("ir-other/data/x/y", "x")', 'ir-other/data/x/y', 'belongs to another case'],
  ])('shows %s that was added', async (_what, add, name, what) => {
    const file = path.join(output, `${ID}.zip`)
    fs.writeFileSync(file, archive)
    const script = `import sys, warnings, zipfile
warnings.simplefilter("ignore")
z = zipfile.ZipFile(sys.argv[1], "a")
${add}
z.close()`
    expect(run(['python3', '-c', script, file, ID]).stderr).toBe('')
    const verification = await verify(file)
    expect(verification.intact).toBe(false)
    expect(verification.differences).toContainEqual({ path: name, what })
    expect(() => openArchive(file)).toThrow(EvidenceError)
  })

  it('shows a file that was taken out', async () => {
    const file = path.join(output, `${ID}.zip`)
    fs.writeFileSync(file, archive)
    expect(run(['zip', '-q', '-d', file, `${ID}/${SS}`]).status).toBe(0)
    const verification = await verify(file)
    expect(verification.intact).toBe(false)
    expect(verification.differences).toContainEqual({ path: SS, what: 'is missing' })
  })

  it('does not unpack more than an entry claims, and believes no claim that its data cannot hold', async () => {
    const bomb = path.join(scratch(), 'bomb.zip')
    const script = `import sys, zipfile
z = zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED)
z.writestr(sys.argv[2] + "/data/x/bomb", b"\\0" * (256 << 20))
z.comment = b"sha256:" + b"0" * 64
z.close()
raw = bytearray(open(sys.argv[1], "rb").read())
at = raw.rindex(b"PK\\1\\2")
for place, size in ((at + 24, 1000), (22, 1000)):
    raw[place:place + 4] = size.to_bytes(4, "little")
open(sys.argv[1], "wb").write(raw)`
    run(['python3', '-c', script, bomb, ID])
    const before = process.memoryUsage().rss
    const verification = await verify(bomb)
    expect(verification.intact).toBe(false)
    expect(verification.differences.map(difference => difference.what)).toContain('is not in manifest-sha256.txt')
    expect(process.memoryUsage().rss - before).toBeLessThan(128 << 20)
    const raw = fs.readFileSync(bomb)
    raw.writeUInt32LE(0xfffffff0, raw.lastIndexOf(Buffer.from('PK\x01\x02')) + 24)
    fs.writeFileSync(bomb, raw)
    expect((await verify(bomb)).differences).toContainEqual({ path: 'data/x/bomb', what: 'claims more than its data can hold' })
  })

  it('needs what lies beside it, unchanged', async () => {
    const elsewhere = scratch()
    const file = path.join(elsewhere, `${ID}.zip`)
    fs.writeFileSync(file, archive)
    const without = await verify(file)
    expect(without.intact).toBe(false)
    expect(without.differences).toContainEqual({
      path: BESIDE,
      what: `is missing: it is not in the archive but beside it, as ${ID}/${BESIDE}`,
    })
    const side = path.join(elsewhere, ID, BESIDE)
    fs.mkdirSync(path.dirname(side), { recursive: true })
    fs.copyFileSync(path.join(output, ID, BESIDE), side)
    expect(await verify(file)).toMatchObject({ intact: true })
    const fd = fs.openSync(side, 'r+')
    fs.writeSync(fd, 'X', 1_000_000)
    fs.closeSync(fd)
    expect((await verify(file)).differences).toEqual([{ path: BESIDE, what: expect.stringContaining('has the hash') }])
  })
})

describe('a case directory', () => {
  const changed = async (name: string, change: (content: string) => string | undefined): Promise<Verification> => {
    const { directory } = await sealedCase(scratch())
    const file = path.join(directory, name)
    const content = change(fs.existsSync(file) ? fs.readFileSync(file, 'latin1') : '')
    if (content === undefined) fs.rmSync(file)
    else fs.writeFileSync(file, content, 'latin1')
    return verify(directory)
  }

  it.each([
    SS,
    'plan.json',
    'findings.json',
    'artifacts.jsonl',
    'bag-info.txt',
    'bagit.txt',
    'manifest-sha256.txt',
    'fetch.txt',
    'tagmanifest-sha256.txt',
    'custody.jsonl',
  ])('shows a change in %s, and that it is gone', async name => {
    const flipped = await changed(name, content => content.replace(/[0-9a-z]/, character => (character === '1' ? '2' : '1')))
    expect(flipped.intact).toBe(false)
    expect(paths(flipped)).toContain(name === 'tagmanifest-sha256.txt' ? 'custody.jsonl' : name)
    const gone = await changed(name, () => undefined)
    expect(gone.intact).toBe(false)
    expect(paths(gone)).toContain(name)
  })

  it('shows what was added', async () => {
    for (const name of ['data/triage.txt', 'extra.txt']) {
      const verification = await changed(name, () => 'x')
      expect(verification.intact).toBe(false)
      expect(paths(verification)).toContain(name)
    }
  })

  it('shows a custody log that was cut, extended or rewritten', async () => {
    const lines = (content: string): string[] => content.trimEnd().split('\n')
    for (const rewrite of [
      (content: string) => `${lines(content).slice(0, -1).join('\n')}\n`,
      (content: string) => `${lines(content).toSpliced(1, 1).join('\n')}\n`,
      (content: string) => content.slice(0, -1),
      (content: string) =>
        `${content}{"seq":8,"at":"2026-06-11T14:22:33.120Z","mono":1,"event":"seal","prev":"${sha256(lines(content).at(-1) as string)}"}\n`,
      () => '',
    ]) {
      const verification = await changed('custody.jsonl', rewrite)
      expect(verification.intact).toBe(false)
      expect(paths(verification)).toContain('custody.jsonl')
    }
  })

  it('shows a forger who makes the manifests agree, by the custody log', async () => {
    const { directory } = await sealedCase(scratch())
    forgeArtifact(directory)
    expect(run(['sha256sum', '--quiet', '-c', 'manifest-sha256.txt', 'tagmanifest-sha256.txt'], { cwd: directory }).status).toBe(0)
    const verification = await verify(directory)
    expect(failed(verification)).toEqual(['seal', 'custody artifacts'])
    expect(verification.differences).toContainEqual({ path: SS, what: expect.stringContaining('another hash in line 2 of custody.jsonl') })
  })

  it('shows a forger who seals again, by the finish line', async () => {
    const { directory, sealed } = await sealedCase(scratch())
    forgeArtifact(directory)
    resealed(directory, line => line)
    const verification = await verify(directory)
    expect(failed(verification)).toEqual(['custody artifacts'])
    expect(verification.head).not.toBe(sealed.head)
  })

  it('cannot show a forger who rewrites all of it: the head does', async () => {
    const { directory, sealed } = await sealedCase(scratch())
    const [before, after] = forgeArtifact(directory)
    resealed(directory, line => line.replace(before, after))
    const verification = await verify(directory)
    expect(verification.intact).toBe(true)
    expect(verification.head).not.toBe(sealed.head)
    expect(verification.notChecked.join()).toContain(`compare the head ${verification.head}`)
  })

  /** Changes an artifact and every hash of it outside of the custody log; gives the old and the new hash. */
  function forgeArtifact(directory: string): [before: string, after: string] {
    const file = path.join(directory, SS)
    const before = sha256(fs.readFileSync(file))
    fs.writeFileSync(file, fs.readFileSync(file, 'utf8').replace('198.51.100.7', '198.51.100.8'))
    const after = sha256(fs.readFileSync(file))
    for (const name of ['manifest-sha256.txt', 'artifacts.jsonl'])
      rewrite(path.join(directory, name), content => content.replace(before, after))
    rewrite(path.join(directory, 'tagmanifest-sha256.txt'), content =>
      content.replace(
        /^[0-9a-f]{64} {2}(.*)$/gm,
        (_line, name: string) => `${sha256(fs.readFileSync(path.join(directory, name)))}  ${name}`,
      ),
    )
    return [before, after]
  }

  /** Writes the custody log again with a chain that holds and a last line that seals what is there now. */
  function resealed(directory: string, change: (line: string) => string): void {
    const tagmanifest = sha256(fs.readFileSync(path.join(directory, 'tagmanifest-sha256.txt')))
    let prev = '0'.repeat(64)
    rewrite(path.join(directory, 'custody.jsonl'), content =>
      content
        .trimEnd()
        .split('\n')
        .map(line => {
          const parsed = JSON.parse(change(line))
          const fresh = JSON.stringify({ ...parsed, ...(parsed.event === 'seal' ? { tagmanifest } : {}), prev })
          prev = sha256(fresh)
          return `${fresh}\n`
        })
        .join(''),
    )
  }

  function rewrite(file: string, change: (content: string) => string): void {
    fs.writeFileSync(file, change(fs.readFileSync(file, 'utf8')))
  }

  it('says that it was renamed, and that it was not sealed', async () => {
    const { directory } = await sealedCase(scratch())
    fs.renameSync(directory, `${directory}-copy`)
    const renamed = await verify(`${directory}-copy`)
    expect(renamed.intact).toBe(true)
    expect(renamed.notChecked).toContainEqual(`its name: it lies in ${ID}-copy, and was sealed as ${ID}`)

    const caze = createCase({ output: scratch(), id: ID, host: stillHost() })
    fill(caze)
    const open = await verify(caze.directory)
    expect(open.intact).toBe(false)
    expect(open.checks).toContainEqual({
      what: 'sealed',
      ok: false,
      detail: `not sealed: the run was interrupted; ir seal ${caze.directory}`,
    })
    expect(open.notChecked).toContainEqual(expect.stringContaining('no manifest yet'))
    await sealCase(caze, INFO)
    expect((await verify(caze.directory)).intact).toBe(true)
  })
})

it('is no verification where there is no case', async () => {
  const directory = scratch()
  const file = path.join(directory, 'notes.txt')
  fs.writeFileSync(file, 'no archive')
  for (const target of [directory, file, path.join(directory, 'nowhere'), '/dev/null']) {
    await expect(verify(target)).rejects.toThrow(UsageError)
  }
  for (const target of [directory, path.join(directory, 'nowhere')]) expect(() => openArchive(target)).toThrow(UsageError)
  expect(() => openArchive(file)).toThrow(EvidenceError)
})
