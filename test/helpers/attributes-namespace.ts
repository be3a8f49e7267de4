/**
 * The audit of attributes over planted files, in a mount namespace of its own: /etc, /home, /root, /tmp and others are empty
 * tmpfs there, so that paths are those of a real host and the machine's own files are neither seen nor touched. Everything goes
 * with the namespace.
 *
 *     const recorded = recordAttributes()          // needs root
 *     node --import ./test/helpers/sources.mjs test/helpers/attributes-namespace.ts DIRECTORY      // records a fixture
 */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { auditAttrs } from '../../playbooks/steps/audit-attrs.js'
import { attributes } from '../../src/collectors/attributes.js'
import { createCase } from '../../src/evidence/case.js'
import { openHost } from '../../src/host.js'
import type { ActionResult, Collect } from '../../src/step.js'

const SOURCES = fileURLToPath(new URL('sources.mjs', import.meta.url))
const SELF = fileURLToPath(import.meta.url)

const COVERED = ['/etc', '/home', '/root', '/tmp', '/var/tmp', '/var/spool', '/dev/shm', '/mnt']
const AUDITED = ['/etc', '/root', '/home', '/tmp', '/var/tmp', '/dev/shm', '/var/spool/cron', '/srv/absent', '/home/user/proc']

/** Artifacts by name, and 'actions.json'. */
export type Recorded = Readonly<Record<string, string>>

/** Plants, audits, and returns what the step collected. @throws when it takes longer than `timeout` milliseconds. */
export function recordAttributes(timeout = 50_000): Recorded {
  const argv = ['--mount', '--propagation', 'private', '--', process.execPath, '--import', SOURCES, SELF, '--inside', ownMounts()]
  return JSON.parse(execFileSync('unshare', argv, { encoding: 'utf8', timeout, killSignal: 'SIGKILL' }))
}

async function inside(outer: string): Promise<Recorded> {
  if (ownMounts() === outer) throw new Error('not in a mount namespace of its own')
  for (const directory of COVERED) run('mount', '-t', 'tmpfs', '-o', 'size=16m,mode=755', 'plain', directory)
  const fuse = plant()
  try {
    const host = openHost({ clock: () => new Date(0) })
    const plan = await auditAttrs.plan({
      host,
      options: { path: AUDITED, 'max-entries': 100_000, 'max-time': 60 },
      directory: '/mnt',
      throughout: false,
    })
    if (!('actions' in plan)) throw new Error(JSON.stringify(plan))
    const action = plan.actions[0] as Collect
    const caze = createCase({ output: '/mnt', id: 'planted', host })
    const result = await attributes({
      host,
      options: action.options,
      source: action.source ?? [],
      sink: [],
      case: caze,
      step: auditAttrs.id,
      action: `${auditAttrs.id}/1`,
      signal: new AbortController().signal,
      progress: () => {},
      onChange: () => {},
    })
    const actions: ActionResult[] = [{ id: `${auditAttrs.id}/1`, ...result }]
    const artifacts = action.writes.map(name => [name, fs.readFileSync(caze.pathOf(auditAttrs.id, name), 'utf8')])
    return { ...Object.fromEntries(artifacts), 'actions.json': `${JSON.stringify(actions, null, 2)}\n` }
  } finally {
    fs.closeSync(fuse)
  }
}

/** What an intruder leaves, what an administrator does, and what is only there to confuse. Returns the end of a FUSE mount. */
function plant(): number {
  const file = (name: string | Buffer, mode = 0o644): void => {
    fs.writeFileSync(name, 'inert\n', { mode })
  }
  const directory = (name: string | Buffer): void => {
    fs.mkdirSync(name, { recursive: true, mode: 0o755 })
  }
  const set = (attributes: string, ...names: string[]): void => {
    run('chattr', attributes, ...names)
  }
  for (const name of ['/etc/cron.d', '/etc/ssh', '/root/.ssh', '/home/user', '/tmp/.x', '/tmp/odd', '/var/spool/cron/crontabs'])
    directory(name)
  for (const name of ['passwd', 'resolv.conf', 'ld.so.preload', 'hosts', 'cron.d/update', 'ssh/sshd_config']) file(`/etc/${name}`)
  for (const name of ['/root/.ssh/authorized_keys', '/root/.bash_history', '/var/spool/cron/crontabs/root', '/tmp/.x/config']) file(name)
  file('/dev/shm/kworker', 0o755)
  file("/home/user/it's mine")
  set('+i', '/etc/passwd', '/etc/resolv.conf', '/etc/cron.d/update', '/root/.ssh/authorized_keys', '/var/spool/cron/crontabs/root')
  set('+ia', '/etc/ld.so.preload')
  set('+i', '/dev/shm/kworker', "/home/user/it's mine")
  set('+a', '/root/.bash_history', '/tmp/.x')

  // Names that pass for output, steer terminals, or are no UTF-8.
  for (const name of ['x\n----i----------------- ', 'clear\u001b[2J', 'txt.\u202eexe']) file(`/tmp/odd/${name}`)
  set('+i', '/tmp/odd/clear\u001b[2J')
  const odd = Buffer.concat([Buffer.from('/tmp/odd/'), Buffer.from([0xff, 0xfe])])
  file(odd)
  const oddDirectory = Buffer.concat([odd, Buffer.from('.d')])
  directory(oddDirectory)
  file(Buffer.concat([oddDirectory, Buffer.from('/inner')]))
  run('bash', '--norc', '--noprofile', '-c', "chattr +i $'/tmp/odd/\\xff\\xfe' $'/tmp/odd/\\xff\\xfe.d/inner'")

  // Left alone: links, a FIFO, and mounts that are no disk, that hang, and that show something twice.
  fs.symlinkSync('/tmp', '/tmp/loop')
  fs.symlinkSync('/etc/passwd', '/tmp/passwd')
  run('mkfifo', '/tmp/fifo')
  for (const name of ['/home/user/proc', '/home/user/dead', '/home/shared', '/tmp/etc']) directory(name)
  run('mount', '-t', 'proc', 'proc', '/home/user/proc')
  run('mount', '--bind', '/etc', '/tmp/etc')
  // ramfs keeps no attributes.
  run('mount', '-t', 'ramfs', 'ramfs', '/home/shared')
  file('/home/shared/report')
  // Nobody answers behind this descriptor: whoever touches the mount waits until it is closed.
  const fuse = fs.openSync('/dev/fuse', 'r+')
  execFileSync('mount', ['-i', '-t', 'fuse', '-o', 'fd=3,rootmode=40000,user_id=0,group_id=0', 'dead', '/home/user/dead'], {
    stdio: ['ignore', 'pipe', 'pipe', fuse],
    timeout: 10_000,
  })
  return fuse
}

/** The loader complains about our ld.so.preload on standard error: kept for the error message of a program that fails. */
function run(program: string, ...args: string[]): void {
  execFileSync(program, args, { stdio: ['ignore', 'pipe', 'pipe'], timeout: 10_000 })
}

function ownMounts(): string {
  return fs.readlinkSync('/proc/self/ns/mnt')
}

if (process.argv[1] === SELF) {
  const [first, second] = process.argv.slice(2)
  if (first === '--inside') {
    process.stdout.write(JSON.stringify(await inside(second ?? '')))
  } else {
    const target = path.resolve(first ?? '.')
    const recorded = recordAttributes()
    fs.mkdirSync(target, { recursive: true })
    for (const [name, content] of Object.entries(recorded)) fs.writeFileSync(path.join(target, name), content)
  }
}
