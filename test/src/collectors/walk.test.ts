/** The walk over real directories: what it sees, what it leaves alone, where it stops. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { isLocal, startWalk, type Walk, type WalkBounds } from '../../../src/collectors/walk.js'
import { type Host, openHost } from '../../../src/host.js'
import { mountOf, readMounts } from '../../../src/mounts.js'

const host = openHost()
const ample: WalkBounds = { entries: 1_000_000, seconds: 60 }
let top: string

beforeEach(() => {
  top = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), 'ir-walk-')))
})
afterEach(() => {
  fs.rmSync(top, { recursive: true, force: true })
})

const at = (...parts: string[]): string => path.join(top, ...parts)
const file = (name: string): void => fs.writeFileSync(at(name), '')
const directory = (name: string): void => void fs.mkdirSync(at(name), { recursive: true })

/** Paths relative to `top`, sorted; '' is `top`. */
function seen(walk: Walk): string[] {
  return [...walk.entries].map(entry => entry.path.toString().slice(top.length + 1)).sort()
}

describe('what it sees', () => {
  it('regular files and directories, hidden ones included, the root itself first', () => {
    directory('.hidden/deep')
    directory('open')
    file('.hidden/deep/.file')
    file('open/file')
    const walk = startWalk(host, [top], ample)
    const entries = [...walk.entries]
    expect(entries[0]?.path.toString()).toBe(top)
    expect(entries.map(entry => [entry.path.toString().slice(top.length + 1), entry.kind]).sort()).toEqual([
      ['', 'directory'],
      ['.hidden', 'directory'],
      ['.hidden/deep', 'directory'],
      ['.hidden/deep/.file', 'file'],
      ['open', 'directory'],
      ['open/file', 'file'],
    ])
    expect(walk.roots).toMatchObject([{ asked: top, path: top, state: 'walked', files: 2, directories: 4, others: 0, notReached: 0 }])
    expect(walk.hit.size).toBe(0)
    expect(entries.find(entry => entry.path.toString().endsWith('/.file'))?.parent.toString()).toBe(at('.hidden/deep'))
  })

  it('names of any bytes', () => {
    const odd = Buffer.concat([Buffer.from(`${top}/`), Buffer.from([0xff, 0x0a, 0x1b])])
    fs.mkdirSync(odd)
    fs.writeFileSync(Buffer.concat([odd, Buffer.from('/inner')]), '')
    const paths = [...startWalk(host, [top], ample).entries].map(entry => entry.path.toString('latin1'))
    expect(paths).toEqual([top, odd.toString('latin1'), `${odd.toString('latin1')}/inner`])
  })

  it('a root that is a file, a missing one, and one that another root holds', () => {
    directory('a/b')
    file('a/b/c')
    const walk = startWalk(host, [at('a/b/c'), at('nothing'), at('a'), at('a/b'), at('a')], ample)
    expect(seen(walk)).toEqual(['a', 'a/b', 'a/b/c', 'a/b/c'])
    expect(walk.roots.map(root => root.state)).toEqual(['walked', 'missing', 'walked', 'walked', 'covered'])
  })
})

describe('what it leaves alone', () => {
  it('links, loops of them, FIFOs and sockets', async () => {
    directory('real')
    file('real/file')
    fs.symlinkSync(top, at('real/up'))
    fs.symlinkSync('self', at('self'))
    fs.symlinkSync('/etc', at('etc'))
    execFileSync('mkfifo', [at('fifo')])
    const server = net.createServer().listen(at('socket'))
    await new Promise(resolve => server.once('listening', resolve))
    const walk = startWalk(host, [top], ample)
    expect(seen(walk)).toEqual(['', 'real', 'real/file'])
    expect(walk.roots[0]?.others).toBe(5)
    await new Promise(resolve => server.close(resolve))
  })

  it('file systems of the kernel, as a root or on the way to one', () => {
    fs.symlinkSync('/proc/self', at('magic'))
    const walk = startWalk(host, ['/proc', at('magic', 'fd'), '/sys/kernel/../fs'], ample)
    expect([...walk.entries]).toEqual([])
    expect(walk.roots).toMatchObject([
      { state: 'not-entered', reason: 'no file system of a disk (proc)' },
      { state: 'not-entered', path: expect.stringMatching(/^\/proc/) },
      { state: 'not-entered', reason: 'no file system of a disk (sysfs)' },
    ])
  })

  it('mounts inside a root that lie elsewhere, without a look at them', () => {
    directory('home/nfs')
    directory('home/ok')
    file('home/nfs/far')
    const table = readMounts(host)
    const under = mountOf(table, top)
    const recorded: Host = {
      ...host,
      read: (name, max) =>
        name === '/proc/self/mountinfo'
          ? `1 0 0:1 / / rw - ${under?.type} x rw\n2 1 0:2 / ${at('home/nfs')} rw - nfs4 192.0.2.9:/far rw\n`
          : host.read(name, max),
    }
    const walk = startWalk(recorded, [top, at('home/nfs')], ample)
    expect(seen(walk)).toEqual(['', 'home', 'home/ok'])
    expect(walk.mounts.map(({ path, why }) => [path.toString(), why])).toEqual([[at('home/nfs'), 'network or FUSE file system (nfs4)']])
    expect(walk.roots[1]).toMatchObject({ state: 'not-entered', reason: 'network or FUSE file system (nfs4)' })
  })

  it('anything at all, when the mounts are unknown', () => {
    const blind: Host = { ...host, read: () => '' }
    const walk = startWalk(blind, [top], ample)
    expect([...walk.entries]).toEqual([])
    expect(walk.roots[0]).toMatchObject({ state: 'not-entered', reason: 'lies on no known mount' })
  })

  it('knows this machine: a disk and a tmpfs are local, proc is not', () => {
    const mounts = readMounts(host)
    expect(isLocal(mountOf(mounts, '/'))).toBe(true)
    expect(isLocal(mountOf(mounts, '/dev/shm'))).toBe(true)
    expect(isLocal(mountOf(mounts, '/proc/1'))).toBe(false)
    expect(isLocal(undefined)).toBe(false)
  })
})

describe('a root that is reached through links', () => {
  it('is where they lead', () => {
    directory('data/home')
    file('data/home/file')
    fs.symlinkSync('data', at('var'))
    fs.symlinkSync(at('var/home'), at('home'))
    const walk = startWalk(host, [at('home')], ample)
    expect(seen(walk)).toEqual(['data/home', 'data/home/file'])
    expect(walk.roots[0]).toMatchObject({ asked: at('home'), path: at('data/home'), state: 'walked' })
  })

  it('is refused when they lead nowhere or in a circle', () => {
    fs.symlinkSync('b', at('a'))
    fs.symlinkSync('a', at('b'))
    fs.symlinkSync('gone', at('dangling'))
    const walk = startWalk(host, [at('a'), at('dangling'), at('dangling', 'x')], ample)
    expect(walk.roots.map(root => [root.state, root.reason])).toEqual([
      ['not-entered', 'is a loop of links'],
      ['missing', 'ENOENT'],
      ['missing', 'ENOENT'],
    ])
  })
})

describe('bounds', () => {
  it('entries, told by the directories that were not read', () => {
    for (const name of ['a', 'b', 'c']) {
      directory(name)
      for (let number = 0; number < 50; number++) file(`${name}/${number}`)
    }
    const walk = startWalk(host, [top], { ...ample, entries: 60 })
    expect(seen(walk).length).toBe(61)
    expect(walk.seen).toBe(60)
    expect([...walk.hit]).toEqual(['entries'])
    // One in its middle, one not begun.
    expect(walk.roots[0]?.notReached).toBe(2)
  })

  it('a huge root does not keep the small ones unseen', () => {
    directory('huge/deep/deeper')
    directory('small')
    for (let number = 0; number < 40; number++) file(`huge/deep/deeper/${number}`)
    file('small/file')
    const walk = startWalk(host, [at('huge'), at('small')], { ...ample, entries: 10 })
    expect(seen(walk)).toContain('small/file')
    expect(walk.roots[1]?.notReached).toBe(0)
    expect(walk.roots[0]?.notReached).toBe(1)
  })

  it('time', () => {
    directory('a')
    let now = 0
    const slow: Host = { ...host, monotonic: () => (now += 1000) }
    const walk = startWalk(slow, [top], { ...ample, seconds: 0.5 })
    expect(seen(walk)).toEqual([''])
    expect([...walk.hit]).toEqual(['seconds'])
    expect(walk.roots[0]?.notReached).toBe(1)
  })

  it('depth', () => {
    let deep = top
    for (let level = 0; level < 300; level++) deep = path.join(deep, 'd')
    fs.mkdirSync(deep, { recursive: true })
    const walk = startWalk(host, [top], ample)
    expect(seen(walk).length).toBe(257)
    expect([...walk.hit]).toEqual(['depth'])
    expect(walk.roots[0]?.notReached).toBe(1)
  })

  it('the signal', () => {
    directory('a/b')
    const stop = new AbortController()
    const walk = startWalk(host, [top], { ...ample, signal: stop.signal })
    const paths: string[] = []
    for (const entry of walk.entries) {
      paths.push(entry.path.toString())
      if (paths.length === 2) stop.abort()
    }
    expect(paths).toEqual([top, at('a')])
    expect(walk.roots[0]?.notReached).toBe(1)
    expect(walk.hit.size).toBe(0)
  })
})

it('sees each of 3,000 directories once, and lets go of those it has read', () => {
  for (let number = 0; number < 3000; number++) directory(`${number % 50}/${number}`)
  const paths = seen(startWalk(host, [top], ample))
  expect(paths.length).toBe(1 + 50 + 3000)
  expect(new Set(paths).size).toBe(paths.length)
})

it('leaves no descriptor open when it is left early', () => {
  for (let number = 0; number < 20; number++) file(`${number}`)
  const before = fs.readdirSync('/proc/self/fd').length
  for (const entry of startWalk(host, [top], ample).entries) if (entry.kind === 'file') break
  expect(fs.readdirSync('/proc/self/fd').length).toBe(before)
})
