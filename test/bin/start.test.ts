/** What bin/run.js starts: the build in dist/. `npm test` builds first. */
import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { describe, expect, it } from 'vitest'

const CHECKOUT = path.resolve(import.meta.dirname, '../..')
const IR = path.join(CHECKOUT, 'bin/ir')
const NODE = path.join(CHECKOUT, 'node_modules', `node-linux-${process.arch}`, 'bin/node')

describe('ir --help', () => {
  it('shows every command, loads none, and opens nothing to write', () => {
    const temp = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-start-'))
    try {
      const trace = path.join(temp, 'trace')
      const calls = 'trace=open,openat,creat,mkdir,unlink,rename,link,symlink,socket,execve'
      const env = { XDG_CONFIG_HOME: temp, XDG_CACHE_HOME: temp, PATH: process.env.PATH ?? '' }
      const help = execFileSync('strace', ['-f', '-qq', '-e', calls, '-o', trace, IR, '--help'], { env, encoding: 'utf8' })
      const { commands } = JSON.parse(fs.readFileSync(path.join(CHECKOUT, 'dist/manifest.json'), 'utf8')) as { commands: object }
      for (const id of Object.keys(commands)) expect(help).toMatch(new RegExp(`^  ${id} `, 'm'))
      const seen = fs.readFileSync(trace, 'utf8').split('\n')
      expect(seen.filter(line => line.includes('dist/oclif.cjs'))).toHaveLength(1)
      expect(seen.filter(line => line.includes('dist/commands'))).toEqual([])
      expect(seen.filter(line => /O_WRONLY|O_RDWR|O_CREAT|creat\(|mkdir|unlink|rename|link\(|socket/.test(line))).toEqual([])
      expect(seen.filter(line => line.includes(temp) || line.includes('nsswitch'))).toEqual([])
    } finally {
      fs.rmSync(temp, { recursive: true })
    }
  })

  it('ends well when nobody reads it to its end', () => {
    const { status, stderr } = spawnSync('bash', ['-c', '"$0" --help | true; exit "$PIPESTATUS"', IR], { encoding: 'utf8' })
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  })
})

describe('the code caches', () => {
  it('are taken by the Node that bin/ir starts, with its flags', () => {
    const flags = /^exec "\$node" (.*) "\$home/m.exec(fs.readFileSync(IR, 'utf8'))?.[1]?.split(' ') ?? []
    expect(flags.length).toBeGreaterThan(0)
    const look = `import { load, scripts } from ${JSON.stringify(path.join(CHECKOUT, 'bin/start.js'))}
      load('commands')
      console.log(JSON.stringify([...scripts].map(([name, script]) => [name, script.cachedDataRejected])))`
    const seen = execFileSync(NODE, [...flags, '--input-type=module', '-e', look], { encoding: 'utf8' })
    expect(Object.fromEntries(JSON.parse(seen))).toEqual({ oclif: false, commands: false })
  })
})

describe('a command that there is not', () => {
  it('ends with 2', () => {
    const { status, stderr } = spawnSync(IR, ['no-such-command'], { encoding: 'utf8' })
    expect(status).toBe(2)
    expect(stderr).toContain('no-such-command')
  })
})
