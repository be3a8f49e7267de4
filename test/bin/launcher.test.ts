/** The launcher: which Node it starts, with what, and that it starts nothing else. */
import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'

const CHECKOUT = path.resolve(import.meta.dirname, '../..')
const NODE = path.join(CHECKOUT, 'node_modules', `node-linux-${process.arch}`, 'bin/node')
const NOBODY = 65534

/** What the launcher starts in place of bin/run.js: it tells how it was started. */
const PROBE = `console.log(JSON.stringify({
  execPath: process.execPath, execArgv: process.execArgv, args: process.argv.slice(2), cwd: process.cwd(), env: process.env }))`

interface Started {
  readonly execPath: string
  readonly execArgv: readonly string[]
  readonly args: readonly string[]
  readonly cwd: string
  readonly env: Readonly<Record<string, string>>
}

let temp: string
let home: string
let poison: string

beforeAll(() => {
  temp = fs.mkdtempSync(path.join(os.tmpdir(), 'ir launcher '))
  fs.chmodSync(temp, 0o755)
  home = path.join(temp, 'a home')
  fs.mkdirSync(path.join(home, 'bin'), { recursive: true })
  fs.mkdirSync(path.join(home, 'dist'))
  fs.copyFileSync(path.join(CHECKOUT, 'bin/ir'), path.join(home, 'bin/ir'))
  fs.writeFileSync(path.join(home, 'bin/run.js'), PROBE)
  fs.writeFileSync(path.join(home, 'dist/manifest.json'), '{}')
  const beside = path.join(home, 'node_modules', `node-linux-${process.arch}`, 'bin')
  fs.mkdirSync(beside, { recursive: true })
  fs.copyFileSync(NODE, path.join(beside, 'node'), fs.constants.COPYFILE_FICLONE)
  poison = poisonedPrograms(path.join(temp, 'poison'))
})

afterAll(() => fs.rmSync(temp, { recursive: true, force: true }))

/** A directory for PATH whose programs leave a mark beside it when somebody runs them. */
function poisonedPrograms(directory: string): string {
  fs.mkdirSync(directory)
  for (const name of ['node', 'sh', 'env', 'uname', 'id', 'dirname', 'basename', 'readlink', 'realpath', 'sed', 'sudo', 'printf']) {
    fs.writeFileSync(path.join(directory, name), `#!/bin/sh\necho ${name} >>'${directory}.marks'\n`, { mode: 0o755 })
  }
  return directory
}

function run(program: string, args: readonly string[] = [], options: { cwd?: string; env?: Record<string, string>; uid?: number } = {}) {
  const argv = options.uid === undefined ? [program, ...args] : ['setpriv', `--reuid=${options.uid}`, '--clear-groups', program, ...args]
  const { status, stdout, stderr } = spawnSync(argv[0] as string, argv.slice(1), {
    cwd: options.cwd ?? temp,
    env: { PATH: process.env.PATH ?? '', ...options.env },
    encoding: 'utf8',
  })
  return { status, stdout, stderr }
}

function started(...call: Parameters<typeof run>): Started {
  const { status, stdout, stderr } = run(...call)
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  return JSON.parse(stdout) as Started
}

describe('bin/ir starts the Node beside it', () => {
  it('with the arguments as they were typed, in the directory that we are in', () => {
    const args = ['triage', '', 'two words', '*', '$(id)', 'a\nline', '--', "it's"]
    const cwd = path.join(temp, 'poison')
    const seen = started(path.join(home, 'bin/ir'), args, { cwd })
    expect(seen).toMatchObject({ args, cwd, execPath: path.join(home, 'node_modules', `node-linux-${process.arch}`, 'bin/node') })
    expect(seen.execArgv).toContain('--openssl-config=/dev/null')
    expect(seen.execArgv).toContain('--disable-sigusr1')
  })

  it('by a relative path and through links', () => {
    expect(started('./ir', [], { cwd: path.join(home, 'bin') }).cwd).toBe(path.join(home, 'bin'))
    expect(started('bin/ir', [], { cwd: home }).cwd).toBe(home)
    const links = path.join(temp, 'links')
    fs.mkdirSync(links)
    fs.symlinkSync('../a home/bin/ir', path.join(links, 'relative'))
    fs.symlinkSync(path.join(links, 'relative'), path.join(links, 'ir'))
    fs.symlinkSync(path.join(home, 'bin'), path.join(links, 'directory'))
    for (const link of ['ir', 'relative', 'directory/ir']) {
      expect(started(path.join(links, link), ['doctor']).args).toEqual(['doctor'])
    }
    expect(started('ir', ['doctor'], { env: { PATH: `${links}:/usr/bin:/bin`, CDPATH: temp } }).args).toEqual(['doctor'])
  })

  it.each([
    ['sh', '/bin/sh'],
    ['bash, which is sh on some systems', '/bin/bash'],
  ])('without what would make it run other code: %s', (_, shell) => {
    const evil = path.join(temp, 'evil.cjs')
    fs.writeFileSync(evil, `require('node:fs').writeFileSync(${JSON.stringify(`${evil}.mark`)}, '')`)
    const kept = {
      TERM: 'dumb',
      IR_CASE: "it's\nexport IR_SHADOW='1'\n",
      MULTI: 'one\ntwo NODE_OPTIONS=x\nexport NODE_BAD-NAME=3\nexport LD_$(id)=4',
    }
    const env = {
      ...kept,
      PATH: `${poison}:/usr/bin`,
      NODE_OPTIONS: `--require "${evil}"`,
      NODE_PATH: temp,
      NODE_EXTRA_CA_CERTS: '/none',
      LD_PRELOAD: '/nonexistent/hook.so',
      LD_LIBRARY_PATH: 'a\nb',
      LD_AUDIT: '',
      OPENSSL_CONF: '/none',
      GLIBC_TUNABLES: 'glibc.malloc.check=0',
    }
    const { status, stdout, stderr } = run(shell, [path.join(home, 'bin/ir')], { env })
    expect(status).toBe(0)
    // The shell itself was still started with it; that Node was not is what counts.
    expect(stderr.match(/cannot be preloaded/g)).toHaveLength(1)
    const { env: seen } = JSON.parse(stdout) as Started
    expect(seen).toMatchObject(kept)
    expect(Object.keys(seen).filter(name => /^(NODE|LD|OPENSSL)_|^G/.test(name))).toEqual([])
    expect(fs.existsSync(`${evil}.mark`)).toBe(false)
    expect(fs.existsSync(`${poison}.marks`)).toBe(false)
  })
})

describe('bin/ir starts no other program', () => {
  it.each([
    ['as root', undefined],
    ['as somebody else', NOBODY],
  ])('%s', (_, uid) => {
    const trace = path.join(temp, `trace-${uid}`)
    fs.writeFileSync(trace, '', { mode: 0o666 })
    fs.chmodSync(trace, 0o666)
    const ir = path.join(home, 'bin/ir')
    const env = { PATH: `${poison}:/usr/bin:/usr/sbin` }
    run('/usr/bin/strace', ['-f', '-qq', '-e', 'trace=execve,execveat', '-o', trace, ir, 'respond'], { env, ...(uid ? { uid } : {}) })
    const programs = [...fs.readFileSync(trace, 'utf8').matchAll(/exec\w+\("([^"]+)"/g)].map(match => match[1])
    expect(programs).toEqual([ir, path.join(home, 'node_modules', `node-linux-${process.arch}`, 'bin/node')])
    expect(fs.existsSync(`${poison}.marks`)).toBe(false)
  })
})

describe('bin/ir says what is missing', () => {
  const incomplete = (missing: string) => {
    const copy = path.join(temp, `without ${path.basename(missing)}`)
    fs.cpSync(home, copy, { recursive: true })
    fs.rmSync(path.join(copy, missing), { recursive: true })
    return { copy, ...run(path.join(copy, 'bin/ir'), ['--help']) }
  }

  it('when npm has not brought Node', () => {
    const { copy, status, stderr } = incomplete('node_modules')
    expect({ status, stderr }).toEqual({ status: 4, stderr: `ir: no Node beside me: run ${copy}/bin/setup first\n` })
  })

  it('when nothing is built', () => {
    const { copy, status, stderr } = incomplete('dist/manifest.json')
    expect({ status, stderr }).toEqual({ status: 4, stderr: `ir: not built yet: run ${copy}/bin/setup first\n` })
  })
})

/**
 * In a mount namespace with a /usr/bin/sudo that prints how it was called; on a terminal of its own, as a user or as root.
 * The overlay is there because the host may have no sudo to mount another one over.
 */
const UNDER_SUDO = `
import os, pty, subprocess, sys
layers, uid, terminal, *argv = sys.argv[1:]
subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', layers], check=True)
os.mkdir(layers + '/up'); os.mkdir(layers + '/scratch')
with open(layers + '/up/sudo', 'w') as file:
    file.write('#!/bin/sh\\nprintf "SUDO\\\\n"; for one in "$@"; do printf "<%s>\\\\n" "$one"; done\\n')
os.chmod(layers + '/up', 0o755); os.chmod(layers + '/up/sudo', 0o755)
subprocess.run(['mount', '-t', 'overlay', 'overlay', '-o', f'lowerdir=/usr/bin,upperdir={layers}/up,workdir={layers}/scratch', '/usr/bin'], check=True)
def drop():
    os.setgroups([]); os.setresgid(int(uid), int(uid), int(uid)); os.setresuid(int(uid), int(uid), int(uid))
if terminal == 'no':
    sys.exit(subprocess.run(argv, stdin=subprocess.DEVNULL, preexec_fn=drop).returncode)
pid, fd = pty.fork()
if pid == 0:
    drop()
    os.execv(argv[0], argv)
out = b''
while True:
    try: got = os.read(fd, 65536)
    except OSError: break
    if not got: break
    out += got
os.write(1, out)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
`

describe('bin/ir asks sudo for root', () => {
  const call = (args: readonly string[], how: { uid?: number; terminal?: boolean; env?: Record<string, string> } = {}): string[] => {
    const layers = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-layers-'))
    try {
      const { uid = NOBODY, terminal = true, env = {} } = how
      const argv = [
        '--mount',
        'python3',
        '-c',
        UNDER_SUDO,
        layers,
        String(uid),
        terminal ? 'yes' : 'no',
        path.join(home, 'bin/ir'),
        ...args,
      ]
      const stdout = execFileSync('unshare', argv, { encoding: 'utf8', env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', ...env } })
      return stdout.replaceAll('\r', '').trimEnd().split('\n')
    } finally {
      fs.rmdirSync(layers)
    }
  }
  const asked = (lines: readonly string[]): boolean => lines[0] === 'SUDO'

  it('where a command needs it, and hands the flags of the environment on', () => {
    const lines = call(['respond', '--budget', '10m', 'a b'], { env: { IR_CASE: 'two\nlines', IR_YES: '1', LD_X: 'no', OTHER: 'no' } })
    const [sudo, ...args] = lines
    expect(sudo).toBe('SUDO')
    const preserved = args.splice(4, 1)[0] ?? ''
    expect(args).toEqual([
      '<-u>',
      '<root>',
      '<-p>',
      '<ir respond needs root, password for %p: >',
      '<-->',
      `<${path.join(home, 'bin/ir')}>`,
      '<respond>',
      '<--budget>',
      '<10m>',
      '<a b>',
    ])
    const names = /^<--preserve-env=(.*)>$/.exec(preserved)?.[1]?.split(',').sort()
    expect(names).toEqual(['IR_CASE', 'IR_YES'])
  })

  it.each(['isolate', 'release', 'confirm', 'drill', 'seal', 'snapshot-processes', 'capture-mem', 'audit-attrs', 'collect-logs'])(
    'for %s',
    command => {
      expect(asked(call([command]))).toBe(true)
    },
  )

  it('but not where no root is needed', () => {
    for (const args of [['triage'], ['verify', 'respond'], ['doctor'], ['report'], [], ['--help'], ['isolate', '--help']]) {
      expect(asked(call(args)), args.join(' ')).toBe(false)
    }
  })

  it('and not for a dry run, for root, or where nobody could type a password', () => {
    expect(asked(call(['respond', '--dry-run']))).toBe(false)
    expect(asked(call(['respond'], { env: { IR_DRY_RUN: '1' } }))).toBe(false)
    expect(asked(call(['respond'], { uid: 0 }))).toBe(false)
    expect(asked(call(['respond'], { terminal: false }))).toBe(false)
  })
})
