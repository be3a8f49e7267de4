/** bin/setup: the real thing on a machine that has everything, and stand-ins for the machines that have not. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { TOOLS } from '../../playbooks/tools.js'

const CHECKOUT = path.resolve(import.meta.dirname, '../..')
const SETUP = path.join(CHECKOUT, 'bin/setup')
const NOBODY = 65534

let temp: string

beforeAll(() => {
  temp = fs.mkdtempSync(path.join(os.tmpdir(), 'ir setup '))
  fs.chmodSync(temp, 0o755)
})

afterAll(() => fs.rmSync(temp, { recursive: true, force: true }))

/** A program that logs how it was called, then does what `then` says. */
function standIn(directory: string, name: string, then = ''): void {
  const log = path.join(temp, `${path.basename(directory)}.log`)
  if (!fs.existsSync(log)) fs.writeFileSync(log, '', { mode: 0o666 })
  fs.chmodSync(log, 0o666)
  fs.writeFileSync(path.join(directory, name), `#!/bin/sh\necho "${name} $*" >>'${log}'\n${then}\n`, { mode: 0o755 })
}

function calls(directory: string): string[] {
  const log = path.join(temp, `${path.basename(directory)}.log`)
  return fs.existsSync(log) ? fs.readFileSync(log, 'utf8').split('\n').slice(0, -1) : []
}

describe('the programs that bin/setup installs', () => {
  it('are those of playbooks/tools.ts', () => {
    const table = /^tools='\n([\s\S]*?)'$/m.exec(fs.readFileSync(SETUP, 'utf8'))?.[1] ?? ''
    const rows = table.trimEnd().split('\n')
    expect(rows).toEqual(Object.entries(TOOLS).map(([program, { apt, dnf, apk }]) => `${program} ${apt} ${dnf} ${apk}`))
  })
})

describe('bin/setup on a machine that has every program', () => {
  it('installs nothing, and builds', () => {
    const copy = path.join(temp, 'check out')
    fs.mkdirSync(copy)
    for (const name of ['bin', 'commands', 'playbooks', 'src', 'package.json', 'package-lock.json', 'tsconfig.json']) {
      fs.cpSync(path.join(CHECKOUT, name), path.join(copy, name), { recursive: true })
    }
    // Hard links where the file system allows: half a gigabyte that nobody writes to.
    const linked = spawnSync('cp', ['-al', path.join(CHECKOUT, 'node_modules'), copy])
    if (linked.status !== 0) fs.cpSync(path.join(CHECKOUT, 'node_modules'), path.join(copy, 'node_modules'), { recursive: true })
    const stamp = path.join(copy, 'node_modules/.installed-lock.json')
    fs.rmSync(stamp, { force: true })
    fs.copyFileSync(path.join(copy, 'package-lock.json'), stamp)
    const managers = path.join(temp, 'managers')
    fs.mkdirSync(managers)
    for (const name of [...Object.keys(TOOLS), 'apt-get', 'dnf', 'apk', 'sudo']) standIn(managers, name, 'exit 1')

    const env = { PATH: `${managers}:${process.env.PATH}`, HOME: temp }
    const setup = spawnSync(path.join(copy, 'bin/setup'), [], { env, encoding: 'utf8' })
    expect(setup.stdout).toContain('setup: node_modules is as the lock file has it')
    expect(setup.stdout).toContain(`setup: ready: ${copy}/bin/ir`)
    expect(setup.status).toBe(0)
    expect(calls(managers)).toEqual([])

    const { status, stdout } = spawnSync(path.join(copy, 'bin/ir'), ['--version'], { encoding: 'utf8' })
    const { name, version } = JSON.parse(fs.readFileSync(path.join(CHECKOUT, 'package.json'), 'utf8')) as Record<string, string>
    expect({ status, stdout }).toEqual({ status: 0, stdout: expect.stringContaining(`${name}/${version} `) })
  })
})

/**
 * bin/setup in an empty checkout, on a machine whose programs are these stand-ins and the few that a shell script needs; what lies in
 * /usr/sbin is hidden by a mount of its own.
 */
function onMachine(
  name: string,
  {
    programs = {},
    uid = 0,
    npm = '',
    args = [],
  }: { programs?: Record<string, string>; uid?: number; npm?: string | null; args?: string[] },
): { status: number | null; stdout: string; stderr: string; calls: string[] } {
  const checkout = path.join(temp, `${name} checkout`)
  const bin = path.join(temp, name)
  fs.mkdirSync(path.join(checkout, 'bin'), { recursive: true })
  fs.mkdirSync(bin)
  fs.chownSync(checkout, uid, uid)
  fs.copyFileSync(SETUP, path.join(checkout, 'bin/setup'))
  fs.writeFileSync(path.join(checkout, 'package-lock.json'), '{}\n')
  for (const tool of ['dirname', 'cat', 'cut', 'sort', 'tr', 'id', 'cp', 'env', 'timeout', 'mkdir', 'ln']) {
    const found = ['/usr/bin', '/bin'].map(directory => path.join(directory, tool)).find(file => fs.existsSync(file)) as string
    fs.symlinkSync(found, path.join(bin, tool))
  }
  for (const [program, then] of Object.entries(programs)) standIn(bin, program, then)
  const bringsNode = `if [ "$1" = ci ]; then mkdir -p node_modules/.bin; ln -s '${process.execPath}' node_modules/.bin/node; fi`
  if (npm !== null) standIn(bin, 'npm', `${npm}\n${bringsNode}`)
  const { status, stdout, stderr } = spawnSync(
    'unshare',
    [
      ...['--mount', 'sh', '-c', 'mount -t tmpfs tmpfs /usr/sbin && exec "$@"', 'sh'],
      ...['/usr/bin/setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups'],
      ...['/usr/bin/env', '-i', `PATH=${bin}`, `HOME=${temp}`, path.join(checkout, 'bin/setup'), ...args],
    ],
    { encoding: 'utf8' },
  )
  return { status, stdout, stderr, calls: calls(bin) }
}

describe('bin/setup where something is missing', () => {
  it('names the programs and goes on when there is no package manager', () => {
    const { status, stdout, calls } = onMachine('bare', { uid: NOBODY })
    expect(stdout).toContain('setup: no apt-get, dnf or apk here')
    for (const [program, { apt }] of Object.entries(TOOLS)) expect(stdout).toContain(`setup: missing: ${program} (package ${apt})\n`)
    expect(calls.map(call => call.split(' ').slice(0, 2).join(' '))).toEqual(['npm ci', 'npm run'])
    expect(calls[0]).toContain('--ignore-scripts')
    expect(status).toBe(0)
  })

  it('names them and goes on when sudo wants a password', () => {
    const { status, stdout, calls } = onMachine('no rights', { uid: NOBODY, programs: { 'apt-get': 'exit 1', sudo: 'exit 1' } })
    expect(stdout).toContain('setup: neither root nor sudo without a password')
    expect(stdout).toContain('setup: missing: nft (package nftables)')
    expect(calls.filter(call => call.startsWith('apt-get'))).toEqual([])
    expect(status).toBe(0)
  })

  it('fetches the package lists only after packages could not be had, and asks nothing', () => {
    const apt =
      'case "$*" in *update*) : >"$HOME/updated" ;; *install*) [ -e "$HOME/updated" ] || exit 100 ;; esac; [ "$DEBIAN_FRONTEND" = noninteractive ]'
    const { status, calls } = onMachine('apt', { programs: { 'apt-get': apt } })
    const kinds = calls.filter(call => call.startsWith('apt-get')).map(call => /(install|update)/.exec(call)?.[1])
    expect(kinds).toEqual(['install', 'update', 'install'])
    expect(calls[0]).toContain(' -y ')
    expect(calls[0]).toMatch(/ nftables( |$)/)
    expect(status).toBe(0)
  })

  it('uses dnf with its own package names, through sudo', () => {
    const { status, calls } = onMachine('dnf', {
      uid: NOBODY,
      programs: { dnf: '', sudo: 'shift; [ "$1" = true ] || "$@"' },
      args: ['--dev'],
    })
    const [line] = calls.filter(call => call.startsWith('dnf'))
    expect(line).toMatch(/ install .*\bconntrack-tools\b.* iproute .*strace/)
    expect(status).toBe(0)
  })

  it('tries the packages one by one when not all can be had', () => {
    const { status, stdout, calls } = onMachine('apk', { programs: { apk: 'for one; do [ "$one" != conntrack-tools ] || exit 1; done' } })
    expect(calls).toContain('apk add --no-cache nftables')
    expect(stdout).toContain('setup: conntrack-tools could not be installed')
    expect(status).toBe(0)
  })
})

describe('bin/setup fails with one line', () => {
  it.each([
    ['no npm', null, 'npm is missing: install Node.js'],
    ['npm ci', '[ "$1" != ci ] || exit 1', 'npm ci failed'],
    ['build', '[ "$1" != run ] || exit 1', 'the build failed'],
  ])('%s', (name, npm, message) => {
    const { status, stderr } = onMachine(name, { npm })
    expect(status).toBe(1)
    expect(stderr).toMatch(new RegExp(`^setup: ${message}.*\n$`))
  })

  it('when it is called wrongly, with its usage', () => {
    const { status, stderr, calls } = onMachine('usage', { args: ['--develop'] })
    expect(stderr).toContain('usage: bin/setup')
    expect({ status, calls }).toEqual({ status: 2, calls: [] })
  })
})
