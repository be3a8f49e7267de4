import fs from 'node:fs'
import path from 'node:path'
import { Readable } from 'node:stream'
import { expect, it } from 'vitest'
import { EvidenceError } from '../../../src/errors.js'
import { type ArchiveMember, writeArchive } from '../../../src/evidence/archive.js'
import { openArchive, readStructure } from '../../../src/evidence/zip.js'
import { ID, pseudorandom, run, scratch } from './cases.js'

const DATE = new Date('2026-06-11T14:22:33Z')

async function written(members: Iterable<ArchiveMember>, stall?: number): Promise<string> {
  const file = path.join(scratch(), `${ID}.zip`)
  const fd = fs.openSync(file, 'wx+')
  try {
    await writeArchive(fd, members, { date: DATE, ...(stall === undefined ? {} : { stall }) })
  } finally {
    fs.closeSync(fd)
  }
  return file
}

const member = (name: string, open: () => Buffer | Readable, stored = false): ArchiveMember => ({ name: `${ID}/${name}`, stored, open })

it('writes buffers and streams, stored and deflated, and reads them back', async () => {
  const noise = pseudorandom(5, 300_000)
  const large = Buffer.concat([Buffer.alloc(3 << 20, 'abc'), noise, Buffer.alloc(2 << 20)])
  const contents: Record<string, Buffer> = {
    'a.txt': Buffer.from('text'),
    'data/e/empty': Buffer.alloc(0),
    'data/n/noise.gz': noise,
    'data/l/large': large,
    'data/l/large.zst': large,
  }
  const file = await written(
    Object.entries(contents).map(([name, content]) =>
      member(
        name,
        () => (content.length > 1 << 20 ? Readable.from([content.subarray(0, 100), content.subarray(100)]) : content),
        /gz|zst/.test(name),
      ),
    ),
  )
  expect(run(['unzip', '-tqq', file]).status).toBe(0)
  const archive = openArchive(file)
  expect(archive.id).toBe(ID)
  expect(archive.names()).toEqual(Object.keys(contents))
  for (const [name, content] of Object.entries(contents)) {
    expect(archive.size(name)).toBe(content.length)
    expect(archive.read(name).equals(content)).toBe(true)
    const pieces: Buffer[] = []
    for await (const piece of archive.chunks(name)) pieces.push(piece)
    expect(Buffer.concat(pieces).equals(content)).toBe(true)
  }
  expect(() => archive.read('data/l/large', 1 << 20)).toThrow(EvidenceError)
  expect(() => archive.read('nothing')).toThrow(EvidenceError)
  archive.close()
})

it('gives up on a member that never ends, one that fails, and one that cannot be opened', async () => {
  const silent = new Readable({ read() {} })
  await expect(written([member('a', () => silent)], 0.3)).rejects.toThrow(/stalled: nothing was read or written for 0.3 s/)
  expect(silent.destroyed).toBe(true)
  const failing = new Readable({
    read() {
      this.destroy(Object.assign(new Error('lost'), { code: 'EIO' }))
    },
  })
  await expect(written([member('a', () => failing)])).rejects.toThrow('cannot write the archive: the disk reports an error (EIO)')
  const closed = (): Buffer => {
    throw Object.assign(new Error('gone'), { code: 'ENOENT' })
  }
  await expect(written([member('a', closed)])).rejects.toThrow(EvidenceError)
})

it('counts past 65535 entries, as zip64', async () => {
  const count = 65_600
  const nothing = Buffer.alloc(0)
  function* members(): Generator<ArchiveMember> {
    for (let n = 0; n < count; n += 1) yield member(`data/n/${n}`, () => nothing, true)
  }
  const file = await written(members())
  const archive = openArchive(file)
  expect(archive.names()).toHaveLength(count)
  archive.close()
  const bytes = fs.readFileSync(file)
  // zip64 end record and its locator, before the end record.
  expect(bytes.readUInt32LE(bytes.length - 93 - 20)).toBe(0x07064b50)
  expect(run(['python3', '-c', 'import sys, zipfile; print(len(zipfile.ZipFile(sys.argv[1]).infolist()))', file]).stdout).toBe(`${count}\n`)
}, 240_000)

/** With one bit changed, and changed back. */
function faultsWith(file: string, at: number): readonly unknown[] {
  const fd = fs.openSync(file, 'r+')
  const byte = Buffer.alloc(1)
  fs.readSync(fd, byte, 0, 1, at)
  try {
    fs.writeSync(fd, Buffer.from([(byte[0] as number) ^ 2]), 0, 1, at)
    return readStructure(fd, fs.fstatSync(fd).size).faults
  } finally {
    fs.writeSync(fd, byte, 0, 1, at)
    fs.closeSync(fd)
  }
}

/**
 * The layout that archiver writes for a stored file above 4 GiB (checked once with a real one, see docs/formats.md), the
 * data a hole: a local header without sizes, a descriptor with 64 bits, all three values in the extra of the directory.
 */
it('reads entries above 4 GiB, and offsets behind them', () => {
  const file = path.join(scratch(), `${ID}.zip`)
  const fd = fs.openSync(file, 'wx+')
  const huge = 2 ** 32 + 5
  const name = Buffer.from(`${ID}/data/m/huge.gz`)
  const small = Buffer.from(`${ID}/data/m/small`)
  const head = local(name, 8)
  const descriptor = Buffer.alloc(24)
  descriptor.writeUInt32LE(0x08074b50, 0)
  descriptor.writeBigUInt64LE(BigInt(huge), 8)
  descriptor.writeBigUInt64LE(BigInt(huge), 16)
  const second = head.length + huge + descriptor.length
  const after = Buffer.concat([local(small, 0), directory(name, 8, huge, 0), directory(small, 0, 0, second)])
  const end = Buffer.concat([Buffer.from([0x50, 0x4b, 5, 6, 0, 0, 0, 0, 2, 0, 2, 0]), Buffer.alloc(8, 0xff), Buffer.from([71, 0])])
  const start = second + local(small, 0).length
  const [end64, locator] = [Buffer.alloc(56), Buffer.alloc(20)]
  end64.writeUInt32LE(0x06064b50, 0)
  end64.writeBigUInt64LE(44n, 4)
  end64.writeUInt32LE(0x002d002d, 12)
  for (const at of [24, 32]) end64.writeBigUInt64LE(2n, at)
  end64.writeBigUInt64LE(BigInt(after.length - local(small, 0).length), 40)
  end64.writeBigUInt64LE(BigInt(start), 48)
  locator.writeUInt32LE(0x07064b50, 0)
  locator.writeBigUInt64LE(BigInt(second + after.length), 8)
  locator.writeUInt32LE(1, 16)
  for (const at of [8, 10]) end.writeUInt16LE(0xffff, at)
  fs.writeSync(fd, head, 0, head.length, 0)
  const tail = Buffer.concat([descriptor, after, end64, locator, end, Buffer.from(`sha256:${'0'.repeat(64)}`)])
  fs.writeSync(fd, tail, 0, tail.length, head.length + huge)

  const { entries, faults } = readStructure(fd, fs.fstatSync(fd).size)
  expect(faults).toEqual([])
  expect(entries).toEqual([
    { name: name.toString(), method: 0, crc: 0, compressed: huge, bytes: huge, data: head.length },
    { name: small.toString(), method: 0, crc: 0, compressed: 0, bytes: 0, data: second + 30 + small.length },
  ])
  fs.closeSync(fd)
  const end64At = head.length + huge + tail.length - 93 - 20 - 56
  for (const at of [0, 4, 12, 24, 32, 40, 48]) expect(faultsWith(file, end64At + at), `zip64 end + ${at}`).not.toEqual([])
  for (const at of [0, 4, 8, 16]) expect(faultsWith(file, end64At + 56 + at), `locator + ${at}`).not.toEqual([])
  const listed = run(['python3', '-c', 'import sys, zipfile; print([i.file_size for i in zipfile.ZipFile(sys.argv[1]).infolist()])', file])
  expect(listed.stdout).toBe(`[${huge}, 0]\n`)
})

function local(name: Buffer, flags: number): Buffer {
  const header = Buffer.alloc(30)
  header.writeUInt32LE(0x04034b50, 0)
  header.writeUInt16LE(flags === 0 ? 10 : 20, 4)
  header.writeUInt16LE(flags, 6)
  header.writeUInt16LE(name.length, 26)
  return Buffer.concat([header, name])
}

function directory(name: Buffer, flags: number, size: number, offset: number): Buffer {
  const header = Buffer.alloc(46, 0)
  header.writeUInt32LE(0x02014b50, 0)
  header.writeUInt16LE(0x032d, 4)
  header.writeUInt16LE(45, 6)
  header.writeUInt16LE(flags, 8)
  for (const at of [20, 24, 42]) header.writeUInt32LE(0xffffffff, at)
  header.writeUInt16LE(name.length, 28)
  header.writeUInt16LE(28, 30)
  header.writeUInt32LE(0x81800020, 38)
  const extra = Buffer.alloc(28)
  extra.writeUInt16LE(1, 0)
  extra.writeUInt16LE(24, 2)
  for (const [index, value] of [size, size, offset].entries()) extra.writeBigUInt64LE(BigInt(value), 4 + 8 * index)
  return Buffer.concat([header, name, extra])
}
