/** Looks through a child that can be killed: what they see, and that nothing they meet stops us. */
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { entries, HungError, openReader, type Reader } from '../../../src/collectors/reader.js'

let directory: string
let reader: Reader

beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-reader-'))
  reader = openReader()
})
afterEach(() => {
  reader.close()
  fs.rmSync(directory, { recursive: true, force: true })
})

const file = (name: string, content: string | Buffer): string => {
  const full = path.join(directory, name)
  fs.writeFileSync(full, content)
  return full
}
const child = (): number => reader.pids.at(-1) as number
const alive = (pid: number): boolean => {
  try {
    return !/^State:\tZ/m.test(fs.readFileSync(`/proc/${pid}/status`, 'utf8'))
  } catch {
    return false
  }
}

describe('a look', () => {
  it('at a file gives its bytes, and says when there are more', async () => {
    const content = Buffer.from(Array.from({ length: 700_000 }, (_, index) => index % 251))
    const path = file('big', content)
    const [whole, exact, less, none] = await reader.look([
      { op: 'file', path, max: 1 << 20 },
      { op: 'file', path, max: content.length },
      { op: 'file', path, max: 1000 },
      { op: 'file', path: `${path}-no`, max: 10 },
    ])
    expect(whole).toEqual({ cut: false, bytes: content })
    expect(exact).toEqual({ cut: false, bytes: content })
    expect(less).toEqual({ cut: true, bytes: content.subarray(0, 1000) })
    expect(none).toEqual({ cut: false, error: 'ENOENT', bytes: Buffer.alloc(0) })
  })

  it('at a file can hand its bytes over piece by piece', async () => {
    const content = Buffer.alloc(900_000, 'piece')
    const hash = createHash('sha256')
    const [seen] = await reader.look([{ op: 'file', path: file('big', content), max: 1 << 20 }], bytes => void hash.update(bytes))
    expect(seen?.bytes).toHaveLength(0)
    expect(hash.digest('hex')).toBe(createHash('sha256').update(content).digest('hex'))
  })

  it('leaves the access time of a file as it was', async () => {
    const path = file('old', 'content')
    fs.utimesSync(path, 1000, 2000)
    await reader.look([
      { op: 'file', path, max: 100 },
      { op: 'hash', path, max: 100 },
    ])
    expect(fs.statSync(path).atimeMs).toBe(1_000_000)
  })

  it('at links and directories keeps names that are no text', async () => {
    const name = Buffer.from('li\xffnk', 'latin1')
    fs.mkdirSync(path.join(directory, 'links'))
    for (const [link, target] of [
      ['1', Buffer.from('socket:[7]')],
      ['2', name],
      ['3', Buffer.from('/a\nb')],
    ] as const)
      fs.symlinkSync(target, path.join(directory, 'links', link))
    const at = path.join(directory, 'links')
    const [link, all, some, few, no] = await reader.look([
      { op: 'link', path: `${at}/2` },
      { op: 'links', path: at, max: 10 },
      { op: 'links', path: at, max: 10, only: ['socket:['] },
      { op: 'links', path: at, max: 2 },
      { op: 'links', path: `${at}/none`, max: 2 },
    ])
    const read = (seen: typeof all): unknown => (seen === undefined ? [] : [...entries(seen)].map(([n, c]) => [n, c.toString('latin1')]))
    expect(link?.bytes).toEqual(name)
    expect(read(all)).toEqual([
      ['1', 'socket:[7]'],
      ['2', 'li\xffnk'],
      ['3', '/a\nb'],
    ])
    expect(all).toMatchObject({ total: 3, denied: 0, cut: false })
    expect(read(some)).toEqual([['1', 'socket:[7]']])
    expect(few).toMatchObject({ total: 3, cut: true })
    expect(read(few)).toHaveLength(2)
    expect(no?.error).toBe('ENOENT')
  })

  it('at the files of a directory takes so much of each', async () => {
    file('a', 'first')
    file('b', '')
    const [seen] = await reader.look([{ op: 'files', path: directory, max: 10, each: 3 }])
    expect(seen === undefined ? [] : [...entries(seen)].map(([name, content]) => [name, String(content)])).toEqual([
      ['a', 'fir'],
      ['b', ''],
    ])
  })

  it('at a status gives all of its 64 bits, at a hash the SHA-256 of a regular file that is not too large', async () => {
    const path = file('program', 'x'.repeat(5000))
    const { ino, mtimeNs } = fs.statSync(path, { bigint: true })
    const [status, hash, large, device] = await reader.look([
      { op: 'status', path },
      { op: 'hash', path, max: 5000 },
      { op: 'hash', path, max: 4999 },
      { op: 'hash', path: '/dev/zero', max: 5000 },
    ])
    expect(status?.status).toMatchObject({ inode: String(ino), modified: String(mtimeNs), size: '5000', regular: true, links: '1' })
    expect(hash?.sha256).toBe(createHash('sha256').update('x'.repeat(5000)).digest('hex'))
    expect(large).toMatchObject({ cut: true })
    expect(large?.sha256).toBeUndefined()
    expect(device?.status?.regular).toBe(false)
    expect(device?.sha256).toBeUndefined()
  })

  it('finds a path of any letters', async () => {
    const path = file('\u00fc \u2603 \u{1f600}\n', 'content')
    expect((await reader.look([{ op: 'file', path, max: 100 }]))[0]?.bytes).toEqual(Buffer.from('content'))
  })

  it('is answered in order, many at a time', async () => {
    const paths = Array.from({ length: 300 }, (_, index) => file(`f${index}`, `content ${index}`))
    const seen = await Promise.all(paths.map(path => reader.look([{ op: 'file', path, max: 100 }])))
    expect(seen.map(([one]) => String(one?.bytes))).toEqual(paths.map((_, index) => `content ${index}`))
  })
})

describe('the child', () => {
  it('is apart, has nothing of our environment, and ends when it is closed', async () => {
    await reader.look([])
    const pid = child()
    expect(reader.apart).toBe(true)
    expect(fs.readFileSync(`/proc/${pid}/environ`, 'utf8')).toBe('')
    expect(fs.readlinkSync(`/proc/${pid}/cwd`)).toBe('/')
    reader.close()
    await expect.poll(() => alive(pid)).toBe(false)
    await expect(reader.look([])).rejects.toThrow(HungError)
  })

  it('that does not answer is given up with that look, and the next one answers the others', async () => {
    reader.close()
    reader = openReader({ patience: 0.3 })
    const path = file('a', 'content')
    await reader.look([])
    const stopped = child()
    process.kill(stopped, 'SIGSTOP')
    const lost = reader.look([{ op: 'file', path, max: 10 }])
    const after = [reader.look([{ op: 'file', path, max: 10 }]), reader.look([{ op: 'link', path: '/proc/self/exe' }])]
    await expect(lost).rejects.toThrow('no answer within 0.3 s')
    expect((await after[0])?.[0]?.bytes).toEqual(Buffer.from('content'))
    expect((await after[1])?.[0]?.error).toBeUndefined()
    expect(reader.hung).toBe(1)
    expect(reader.pids).toHaveLength(2)
    await expect.poll(() => alive(stopped)).toBe(false)
  })

  it('that is killed once costs nothing', async () => {
    const path = file('a', 'content')
    await reader.look([])
    process.kill(child(), 'SIGSTOP')
    const seen = reader.look([{ op: 'file', path, max: 10 }])
    process.kill(child(), 'SIGKILL')
    expect((await seen)[0]?.bytes).toEqual(Buffer.from('content'))
    expect(reader.hung).toBe(0)
  })

  it('that cannot be started is done without', async () => {
    reader.close()
    reader = openReader({ program: path.join(directory, 'no-such-node') })
    const seen = await reader.look([{ op: 'file', path: file('a', 'content'), max: 10 }])
    expect(seen[0]?.bytes).toEqual(Buffer.from('content'))
    expect(reader.apart).toBe(false)
    expect(reader.pids).toEqual([])
  })

  it('is lost no more than so often', async () => {
    reader.close()
    reader = openReader({ program: '/bin/false' })
    await expect(reader.look([{ op: 'status', path: '/' }])).rejects.toThrow(HungError)
    for (let more = 0; more < 40; more += 1) await expect(reader.look([])).rejects.toThrow(HungError)
    expect(reader.pids.length).toBeLessThanOrEqual(24)
  })

  it('passes what a receiver throws to who asked, and goes on', async () => {
    const path = file('big', Buffer.alloc(1 << 20))
    const broken = reader.look([{ op: 'file', path, max: 1 << 21 }], () => {
      throw new Error('the disk is full')
    })
    await expect(broken).rejects.toThrow('the disk is full')
    expect((await reader.look([{ op: 'status', path }]))[0]?.status?.size).toBe(String(1 << 20))
  })
})
