import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import fc from 'fast-check'
import { afterEach, describe, expect, it } from 'vitest'
import { moduleInfo } from '../../playbooks/elf.js'
import { debugPackage } from '../../playbooks/kernel-symbols.js'
import { captureMem } from '../../playbooks/steps/capture-mem.js'
import { type Host, openHost } from '../../src/host.js'
import type { ActionResult, Change, Collect, Copy, FileStatus, HostView, Plan, Rejected } from '../../src/step.js'
import { collectedFrom } from '../helpers/collected.js'
import { kcoreHeaders, recordedHost, temporaryDirectory } from '../helpers/kcore.js'
import { kernelModule } from '../helpers/kernel-module.js'

const DIRECTORY = '/evidence/ir-test-20260101T000000Z/data/capture-mem'
const RELEASE = '6.1.0-56-amd64'
/** Of the recorded machine: 0x1000-0x9fbff and 0x100000-0xffdffff. */
const RAM = 0x9ec00 + 0xfee0000

const roots: string[] = []
afterEach(() => {
  for (const root of roots.splice(0)) fs.rmSync(root, { recursive: true })
})

/** A recorded boot; files of it can be replaced, and programs added. */
function boot(name: string, files: Readonly<Record<string, string | Buffer | null>> = {}): Host {
  const root = recordedHost(`debian-12/${name}`)
  roots.push(root)
  return openHost({ root: change(root, files) })
}

function bare(files: Readonly<Record<string, string | Buffer | null>> = {}): Host {
  const root = temporaryDirectory()
  roots.push(root)
  return openHost({ root: change(root, files) })
}

function change(root: string, files: Readonly<Record<string, string | Buffer | null>>): string {
  for (const [name, content] of Object.entries(files)) {
    const file = path.join(root, name)
    if (content === null) fs.rmSync(file, { force: true })
    else {
      fs.mkdirSync(path.dirname(file), { recursive: true })
      fs.writeFileSync(file, content, { mode: 0o755 })
    }
  }
  return root
}

/** The host with some of its answers replaced: what no file of a test can say. */
function answering(host: Host, answers: Partial<HostView>): HostView {
  return { ...host, ...answers }
}

function errno(code: string): Error {
  return Object.assign(new Error(code), { code })
}

/** Every look into one file fails. */
const refusing = (host: Host, refused: string, code: string): HostView =>
  answering(host, {
    peek: (file, at, bytes) => {
      if (file === refused) throw errno(code)
      return host.peek(file, at, bytes)
    },
  })

/** A /dev/mem whose pages can be read up to an address, as files of tests cannot be devices. */
const withMem = (host: Host, readable: bigint, code = 'EPERM'): HostView =>
  answering(host, {
    lstat: file => (file === '/dev/mem' ? ({ kind: 'character', size: 0n } as FileStatus) : host.lstat(file)),
    peek: (file, at, bytes) => {
      if (file !== '/dev/mem') return host.peek(file, at, bytes)
      if (at + BigInt(bytes) > readable) throw errno(code)
      return new Uint8Array(bytes)
    },
  })

interface Given {
  source?: string
  'lime-module'?: string
  pid?: readonly string[]
  suspicious?: boolean
  'max-process'?: number
}

function plan(host: HostView, given: Given = {}, directory = DIRECTORY): Promise<Plan> {
  const options = { source: 'auto', 'lime-module': undefined, pid: undefined, suspicious: false, 'max-process': 2 ** 32, ...given }
  return captureMem.plan({ host, options, directory, throughout: false })
}

async function planned(host: HostView, given?: Given, directory?: string) {
  const found = await plan(host, given, directory)
  if (!('actions' in found)) throw new Error(JSON.stringify(found))
  expect(JSON.parse(JSON.stringify(found))).toEqual(found)
  return found
}

/** What makes the image, without what is laid beside it. */
async function imaging(host: HostView, given?: Given, directory?: string) {
  const found = await planned(host, given, directory)
  const first = found.actions.findIndex(action => action.kind === 'copy' && action.to !== 'iomem.txt')
  const rejected = found.rejected?.filter(({ what }) => what !== 'memory.isf.json.gz')
  return { ...found, actions: found.actions.slice(0, first === -1 ? undefined : first), rejected }
}

async function unavailable(host: HostView, given?: Given, directory?: string) {
  const found = await plan(host, given, directory)
  if (!('unavailable' in found)) throw new Error(JSON.stringify(found))
  return found
}

const why = (rejected: readonly Rejected[] | undefined, what: string): string | undefined => rejected?.find(one => one.what === what)?.why
const remedy = (rejected: readonly Rejected[] | undefined, what: string): string | undefined =>
  rejected?.find(one => one.what === what)?.remedy

const KCORE_ACTIONS = [
  { kind: 'copy', from: '/proc/iomem', to: 'iomem.txt' },
  {
    kind: 'collect',
    collector: 'physical-memory',
    title: 'Copy physical memory from /proc/kcore',
    options: { source: 'kcore', from: '/proc/kcore', iomem: '/proc/iomem', to: 'memory.lime' },
    writes: ['memory.lime'],
    expectedBytes: RAM,
    expectedSeconds: 3,
  },
]

describe('/proc/kcore', () => {
  it.each(['kaslr', 'five-level', 'integrity'])('is taken on the boot %s, and every other source is named with why not', async name => {
    const found = await imaging(boot(name), { pid: ['1'], 'lime-module': '/nowhere' })
    expect(found.actions).toMatchObject(KCORE_ACTIONS)
    expect(found.rejected).toEqual(
      ['LiME module', '/dev/crash', '/dev/mem', 'process memory'].map(what => ({
        what,
        why: 'not needed: /proc/kcore can be read',
        remedy: '',
      })),
    )
    expect(found.missing).toBeUndefined()
  })

  it('is looked at in three places of RAM, beyond 2^53 too', async () => {
    const host = boot('five-level')
    const asked: bigint[] = []
    // All three fail, so all three are tried.
    const view = answering(host, {
      peek: (file, at, bytes) => {
        if (bytes === 4096) {
          asked.push(at)
          throw errno('EFAULT')
        }
        return host.peek(file, at, bytes)
      },
    })
    const found = await unavailable(view, { source: 'kcore' })
    expect(asked).toHaveLength(3)
    for (const at of asked) expect(at).toBeGreaterThan(BigInt(Number.MAX_SAFE_INTEGER))
    expect(why(found.rejected, '/proc/kcore')).toBe('it opens, but no page can be read (EFAULT)')
  })

  it('is still taken when one of the places cannot be read', async () => {
    const host = boot('kaslr')
    let pages = 0
    const view = answering(host, {
      peek: (file, at, bytes) => {
        if (bytes === 4096 && ++pages === 1) throw errno('EIO')
        return host.peek(file, at, bytes)
      },
    })
    expect((await imaging(view)).actions).toMatchObject(KCORE_ACTIONS)
  })

  it.each([
    ['confidentiality, lockdown', 'confidentiality', {}, 'EPERM', "kernel lockdown is 'confidentiality' (EPERM)", /hypervisor/],
    [
      'no capability',
      'kaslr',
      { 'proc/self/status': 'Uid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\n' },
      'EPERM',
      'CAP_SYS_RAWIO is missing (EPERM), as in a container',
      /on the host itself/,
    ],
    ['nothing that explains it', 'kaslr', {}, 'EPERM', 'the kernel refuses it (EPERM)', /lime-module/],
    [
      'securityfs not mounted',
      'kaslr',
      { 'sys/kernel/security/lockdown': null },
      'EPERM',
      'the kernel refuses it (EPERM); lockdown is not known, securityfs is not mounted',
      /lime-module/,
    ],
    [
      'a user namespace',
      'kaslr',
      {},
      'EACCES',
      'not allowed even for root (EACCES): a user namespace, or a security module',
      /on the host itself/,
    ],
    ['a failing read', 'kaslr', {}, 'EIO', 'it cannot be read (EIO)', /lime-module/],
  ])('refused: %s', async (_, name, files, code, reason, help) => {
    // The recorded boot with lockdown has no headers: it could not be opened.
    const host = name === 'confidentiality' ? boot(name, { ...files, 'proc/kcore': 'not to be opened' }) : boot(name, files)
    const found = await unavailable(refusing(host, '/proc/kcore', code))
    expect(why(found.rejected, '/proc/kcore')).toBe(reason)
    expect(remedy(found.rejected, '/proc/kcore')).toMatch(help)
  })

  it.each([
    ['an empty file', { 'proc/kcore': '' }, 'an empty file stands in its place: a container runtime masks it'],
    ['no core file', { 'proc/kcore': 'x'.repeat(200) }, 'it is no 64-bit little-endian core file'],
    ['absent', { 'proc/kcore': null }, 'none (kernel built without CONFIG_PROC_KCORE)'],
    [
      'without physical addresses',
      {
        'proc/kcore': kcoreHeaders([
          { offset: 4096n, virtual: 4096n, physical: 0n, bytes: 4096n },
          { offset: 8192n, virtual: 8192n, physical: 0n, bytes: 4096n },
        ]),
      },
      'it gives no physical addresses (kernel before 4.11): an image of it would hold wrong data',
    ],
    [
      'without physical memory',
      { 'proc/kcore': kcoreHeaders([{ offset: 4096n, virtual: 4096n, bytes: 4096n }]) },
      'it names no physical memory',
    ],
    [
      'cut in its headers',
      { 'proc/kcore': kcoreHeaders([{ offset: 4096n, virtual: 4096n, physical: 4096n, bytes: 4096n }]).subarray(0, 70) },
      'it names no physical memory',
    ],
  ])('not usable: %s', async (_, files, reason) => {
    const found = await unavailable(boot('kaslr', files as Record<string, Buffer>), { source: 'kcore' })
    expect(why(found.rejected, '/proc/kcore')).toBe(reason)
    expect(found.unavailable).toBe(`no source of memory works here. /proc/kcore: ${reason}`)
  })

  it('masked by a device or an empty directory', async () => {
    for (const [kind, words] of [
      ['character', 'a character device'],
      ['directory', 'a directory'],
    ] as const) {
      const host = boot('kaslr')
      const view = answering(host, { lstat: file => (file === '/proc/kcore' ? ({ kind, size: 0n } as FileStatus) : host.lstat(file)) })
      expect(why((await unavailable(view)).rejected, '/proc/kcore')).toBe(`${words} stands in its place: a container runtime masks it`)
    }
  })

  it('not root: plans what root would do, and says that it was not tried', async () => {
    const user = {
      'proc/self/status': 'Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n',
      'proc/iomem': '00000000-00000000 : Reserved\n00000000-00000000 : System RAM\n00000000-00000000 : System RAM\n',
      'proc/meminfo': 'MemTotal:         225864 kB\nMemFree:          100000 kB\n',
    }
    const found = await imaging(refusing(boot('kaslr', user), '/proc/kcore', 'EACCES'))
    expect(found.actions[1]).toMatchObject({
      title: 'Copy physical memory from /proc/kcore, not tried: only root may open it',
      expectedBytes: 225864 * 1024,
    })
  })
})

describe('/dev/mem', () => {
  const noKcore = { 'proc/kcore': null }

  it('is taken when RAM above 1 MiB can be read', async () => {
    const found = await imaging(withMem(boot('kaslr', noKcore), 2n ** 40n))
    expect(found.actions[1]).toMatchObject({
      collector: 'physical-memory',
      options: { source: 'mem', from: '/dev/mem' },
      expectedBytes: RAM,
    })
    expect(found.rejected?.map(({ what }) => what)).toEqual(['/proc/kcore', 'LiME module', '/dev/crash', 'process memory'])
  })

  it.each([
    ['STRICT_DEVMEM', 1n << 20n, 'EPERM', 'nothing above 1 MiB can be read (EPERM): the kernel is built with CONFIG_STRICT_DEVMEM'],
    ['refused at once', 0n, 'EPERM', 'the kernel refuses it (EPERM)'],
    ['not allowed', 0n, 'EACCES', 'not allowed even for root (EACCES): a user namespace, or a security module'],
  ])('is not: %s', async (_, readable, code, reason) => {
    const found = await unavailable(withMem(boot('kaslr', noKcore), readable, code))
    expect(why(found.rejected, '/dev/mem')).toBe(reason)
  })

  it('is not: lockdown, no device, no addresses', async () => {
    const locked = await unavailable(withMem(boot('confidentiality'), 0n))
    expect(why(locked.rejected, '/dev/mem')).toBe("kernel lockdown is 'confidentiality' (EPERM)")
    const file = await unavailable(boot('kaslr', { ...noKcore, 'dev/mem': 'RAM' }))
    expect(why(file.rejected, '/dev/mem')).toBe('a file stands in its place')
    const hidden = await unavailable(withMem(boot('kaslr', { ...noKcore, 'proc/iomem': '00000000-00000000 : System RAM\n' }), 2n ** 40n))
    expect(why(hidden.rejected, '/dev/mem')).toBe('/proc/iomem names no RAM above 1 MiB')
  })
})

describe('/dev/crash', () => {
  const noKcore = { 'proc/kcore': null }
  const withCrash = (host: Host, peek: (at: bigint, bytes: number) => Uint8Array): HostView =>
    answering(host, {
      lstat: file => (file === '/dev/crash' ? ({ kind: 'character', size: 0n } as FileStatus) : host.lstat(file)),
      peek: (file, at, bytes) => (file === '/dev/crash' ? peek(at, bytes) : host.peek(file, at, bytes)),
    })

  it('is taken before /dev/mem, looked at page by page', async () => {
    const asked: (readonly [bigint, number])[] = []
    const found = await imaging(
      withCrash(boot('kaslr', noKcore), (at, bytes) => {
        asked.push([at, bytes])
        return new Uint8Array(bytes)
      }),
    )
    expect(found.actions[1]).toMatchObject({
      title: 'Copy physical memory from /dev/crash',
      options: { source: 'crash', from: '/dev/crash' },
      expectedBytes: RAM,
    })
    for (const [at, bytes] of asked) expect([at % 4096n, bytes]).toEqual([0n, 4096])
    expect(why(found.rejected, '/dev/mem')).toBe('not needed: /dev/crash can be read')
  })

  it.each([
    ['EFAULT', 'no page can be read (EFAULT)'],
    ['EPERM', 'the kernel refuses it (EPERM)'],
    ['EACCES', 'not allowed even for root (EACCES): a user namespace, or a security module'],
  ])('is not: %s', async (code, reason) => {
    const host = withCrash(boot('kaslr', noKcore), () => {
      throw errno(code)
    })
    expect(why((await unavailable(host, { source: 'crash' })).rejected, '/dev/crash')).toBe(reason)
  })

  it('is not: no driver, no device, no addresses', async () => {
    const none = await unavailable(boot('kaslr', noKcore))
    expect(why(none.rejected, '/dev/crash')).toBe('none (only kernels of Red Hat have its driver, as a module)')
    const file = await unavailable(boot('kaslr', { ...noKcore, 'dev/crash': 'RAM' }))
    expect(why(file.rejected, '/dev/crash')).toBe('a file stands in its place')
    const hidden = boot('kaslr', { ...noKcore, 'proc/iomem': '00000000-00000000 : System RAM\n' })
    const found = await unavailable(withCrash(hidden, (_, bytes) => new Uint8Array(bytes)))
    expect(why(found.rejected, '/dev/crash')).toBe('/proc/iomem names no RAM above 1 MiB')
  })
})

describe('LiME', () => {
  const info = [
    'license=GPL',
    'parmtype=path:charp',
    'parmtype=timeout:long',
    'name=lime',
    `vermagic=${RELEASE} SMP preempt mod_unload modversions `,
  ]
  const tools = { 'usr/sbin/insmod': '', 'usr/sbin/rmmod': '' }
  const lime = (files: Readonly<Record<string, string | Buffer | null>> = {}, name = 'kaslr') =>
    boot(name, { ...tools, ...(name === 'confidentiality' ? {} : { 'proc/kcore': null }), 'root/lime.ko': kernelModule(info), ...files })
  const given = { 'lime-module': '/root/lime.ko' }

  it('is loaded for as long as it copies, checked, and removed', async () => {
    const { actions } = await imaging(lime(), given)
    expect(actions.map(({ kind }) => kind)).toEqual(['copy', 'change', 'collect'])
    const change = actions[1] as Change
    expect(change).toMatchObject({
      argv: ['/usr/sbin/insmod', '/root/lime.ko', `path=${DIRECTORY}/memory.lime`, 'format=lime', 'timeout=0'],
      writes: ['memory.lime'],
      undo: [{ argv: ['/usr/sbin/rmmod', 'lime'] }],
      lasts: 'step',
    })
    expect(change.effect).toMatch(/taints the kernel/)
    expect(actions[2]).toMatchObject({
      collector: 'physical-memory',
      options: { source: 'lime', iomem: '/proc/iomem', image: 'memory.lime' },
      writes: [],
      expectedBytes: RAM,
    })
    expect((actions[2] as Collect).expectedSeconds).toBeGreaterThan(10)
  })

  it('is found in a directory by the name of the kernel', async () => {
    const host = lime({ [`opt/lime/lime-${RELEASE}.ko`]: kernelModule(info) })
    const { actions } = await imaging(host, { 'lime-module': '/opt/lime/' })
    expect((actions[1] as Change).argv[1]).toBe(`/opt/lime/lime-${RELEASE}.ko`)
  })

  it('gets no option that it does not know', async () => {
    const old = lime({ 'root/lime.ko': kernelModule(info.filter(text => !text.startsWith('parmtype=timeout'))) })
    const { actions } = await imaging(old, given)
    expect((actions[1] as Change).argv).not.toContain('timeout=0')
  })

  it.each<[string, Readonly<Record<string, string | Buffer | null>>, Given, RegExp]>([
    ['none is given', {}, {}, /^none given, and a kernel module is never loaded unasked$/],
    ['the path is relative', {}, { 'lime-module': 'lime.ko' }, /'lime\.ko' is no absolute path/],
    ['there is no such file', {}, { 'lime-module': '/root/other.ko' }, /\/root\/other\.ko cannot be read \(ENOENT\)/],
    [
      'the directory has none for this kernel',
      { 'opt/a': '' },
      { 'lime-module': '/opt' },
      /\/opt\/lime-6\.1\.0-56-amd64\.ko cannot be read \(ENOENT\)/,
    ],
    [
      'it is for another kernel',
      { 'root/lime.ko': kernelModule(['name=lime', 'vermagic=6.1.0-55-amd64 SMP ']) },
      given,
      /is built for 6\.1\.0-55-amd64, this kernel is 6\.1\.0-56-amd64/,
    ],
    ['its kernel is not known', { 'root/lime.ko': kernelModule(['name=lime']) }, given, /is built for an unknown kernel/],
    ['it is compressed', { 'root/lime.ko': '\u00fd7zXZ' }, given, /is no kernel module/],
    ['it is a program', { 'root/lime.ko': kernelModule(info, { type: 2 }) }, given, /is no kernel module/],
    ['its name is not one', { 'root/lime.ko': kernelModule(['name=-f lime', `vermagic=${RELEASE} `]) }, given, /no usable module name/],
    [
      'one is loaded already',
      { 'proc/modules': 'lime 20480 0 - Live 0xffffffffc0449000 (OE)\n' },
      given,
      /a module lime is loaded already/,
    ],
    ['modules are shut off', { 'proc/sys/kernel/modules_disabled': '1\n' }, given, /modules_disabled is 1/],
    ['the kernel has none', { 'proc/modules': null }, given, /takes no modules/],
    [
      'the capability is missing',
      { 'proc/self/status': 'Uid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\n' },
      given,
      /CAP_SYS_MODULE is missing/,
    ],
    ['only signed ones are taken', { 'sys/module/module/parameters/sig_enforce': 'Y\n' }, given, /takes only signed modules/],
    ['insmod is missing', { 'usr/sbin/insmod': null }, given, /insmod is not installed/],
    ['rmmod is missing', { 'usr/sbin/rmmod': null }, given, /rmmod is not installed/],
  ])('is refused: %s', async (_, files, options, reason) => {
    const found = await unavailable(lime(files), options)
    expect(why(found.rejected, 'LiME module')).toMatch(reason)
  })

  it('under lockdown only when it is signed', async () => {
    for (const name of ['integrity', 'confidentiality']) {
      const refused = await unavailable(lime({}, name), given)
      expect(why(refused.rejected, 'LiME module')).toBe(`kernel lockdown is '${name}', and /root/lime.ko is not signed`)
      const signed = await imaging(lime({ 'root/lime.ko': kernelModule(info, { signed: true }) }, name), given)
      expect(signed.actions[1]?.kind).toBe('change')
    }
  })

  it('is not told to write to a path that the kernel would split', async () => {
    const found = await unavailable(lime(), given, '/evi dence/x')
    expect(why(found.rejected, 'LiME module')).toMatch(/cannot be told to write to \/evi dence\/x/)
  })

  it('a module file may hold anything', () => {
    const whole = kernelModule(info)
    const host = bare()
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { maxLength: 30 }), changes => {
        const damaged = Buffer.from(whole)
        for (const [at, byte] of changes) damaged[at] = byte
        const view = answering(host, {
          peek: (_, at, bytes) => (at > BigInt(damaged.length) ? new Uint8Array() : damaged.subarray(Number(at), Number(at) + bytes)),
        })
        for (const values of moduleInfo(view, '/x')?.values() ?? []) expect(values.length).toBeGreaterThan(0)
      }),
    )
  })
})

describe('process memory', () => {
  it('is the last resort, only for processes that are given, and leaves physical memory missing', async () => {
    const found = await planned(bare({ 'proc/12/stat': '', 'proc/7/stat': '' }), { pid: ['12', '7', '12'] })
    expect(found.actions).toMatchObject([
      {
        collector: 'process-memory',
        title: expect.stringMatching(/not physical memory/),
        options: { pids: [7, 12], maxBytes: 2 ** 32 },
        writes: ['process-7.maps.txt', 'process-7.core', 'process-12.maps.txt', 'process-12.core'],
      },
    ])
    expect(found.missing).toMatchObject([{ what: 'physical memory', why: expect.stringMatching(/^\/proc\/kcore: none/) }])
  })

  it('that was asked for leaves nothing missing', async () => {
    const found = await planned(boot('kaslr', { 'proc/12/stat': '' }), { source: 'process', pid: ['12'] })
    expect(found.missing).toBeUndefined()
    expect(found.rejected?.map(({ why }) => why)).toEqual(Array(4).fill('not asked for (--source process)'))
  })

  it.each([
    [['abc'], "'abc' is no process id"],
    [['0'], "'0' is no process id"],
    [['1;reboot'], "'1;reboot' is no process id"],
    [['99'], 'no such process: 99'],
    [[], 'no process given'],
  ])('of %j is refused', async (pid, reason) => {
    const found = await unavailable(bare(), { source: 'process', pid })
    expect(why(found.rejected, 'process memory')).toBe(reason)
  })
})

describe('suspicious processes', () => {
  const running = (executables: Readonly<Record<string, string>>): HostView => {
    const files = Object.fromEntries(Object.keys(executables).map(pid => [`proc/${pid}/stat`, '']))
    const host = bare(files)
    return answering(host, {
      readlink: file => {
        if (file === '/proc/self') return '99'
        const found = executables[/^\/proc\/(\d+)\/exe$/.exec(file)?.[1] ?? '']
        if (found === undefined) throw errno('ENOENT')
        return found
      },
    })
  }

  it('are those without an installed executable; not ourselves', async () => {
    const host = running({
      1: '/usr/lib/systemd/systemd',
      20: '/usr/sbin/sshd (deleted)',
      21: '/memfd:x (deleted)',
      22: '/tmp/.x/miner',
      23: '/dev/shm/a',
      24: '/var/tmpfiles/a',
      99: '/tmp/ir/node',
    })
    const found = await planned(host, { suspicious: true, pid: ['1', '20'] })
    expect(found.actions).toMatchObject([
      {
        options: {
          pids: [1, 20, 21, 22, 23],
          why: {
            1: 'asked for',
            20: 'its executable is deleted',
            21: 'runs from memory, without a file',
            22: 'its executable lies below /tmp/',
            23: 'its executable lies below /dev/shm/',
          },
        },
      },
    ])
  })

  it('none: said, and nothing is planned', async () => {
    const found = await unavailable(running({ 1: '/usr/lib/systemd/systemd' }), { source: 'process', suspicious: true })
    expect(why(found.rejected, 'process memory')).toMatch(/^no process runs an executable that is deleted/)
  })

  it('are found among those that run here', async () => {
    const copy = path.join(fs.mkdtempSync('/tmp/ir-test-'), 'sleeper')
    fs.copyFileSync('/usr/bin/sleep', copy)
    const child = spawn(copy, ['60'])
    try {
      await once(child, 'spawn')
      const host = openHost()
      const view = answering(host, { lstat: file => (file === '/proc/kcore' ? host.lstat('/nowhere') : host.lstat(file)) })
      const { actions } = await planned(view, { source: 'process', suspicious: true })
      expect((actions[0] as Collect).options.why).toMatchObject({ [String(child.pid)]: 'its executable lies below /tmp/' })
    } finally {
      child.kill()
      fs.rmSync(path.dirname(copy), { recursive: true })
    }
  })
})

describe('a host without any source', () => {
  it('is told in one line what was tried and what would help', async () => {
    const found = await unavailable(bare())
    expect(found.rejected?.map(({ what }) => what)).toEqual(['/proc/kcore', 'LiME module', '/dev/crash', '/dev/mem', 'process memory'])
    for (const one of found.rejected ?? []) {
      expect(found.unavailable).toContain(`${one.what}: ${one.why}`)
      expect(one.remedy).not.toBe('')
    }
    expect(found.unavailable).not.toContain('\n')
    expect(found.remedy).toMatch(/hypervisor .*, or --pid LIST/)
  })

  it('is told of modules where they would work', async () => {
    const found = await unavailable(bare({ 'proc/modules': '', 'proc/sys/kernel/osrelease': `${RELEASE}\n` }))
    expect(found.remedy).toContain(`--lime-module FILE, built elsewhere for exactly ${RELEASE}`)
  })
})

describe('interpret', () => {
  const facts = {
    source: 'kcore',
    from: '/proc/kcore',
    bytes: 267_878_400,
    rangeCount: 2,
    gapBytes: 3072,
    unreadable: { bytes: 8192, runs: 1, named: [] },
  }
  const all = async (actions: readonly ActionResult[], files: Readonly<Record<string, string>> = {}) =>
    (await captureMem.interpret?.(collectedFrom('capture-mem/none', { actions, files }))) ?? []
  const verdicts = async (actions: readonly ActionResult[], files: Readonly<Record<string, string>> = {}) =>
    (await all(actions, files)).filter(({ rule }) => rule !== 'memory-symbols')
  const symbols = async (facts: ActionResult['facts'], ended: Partial<ActionResult> = {}) =>
    (await all([{ id: 'capture-mem/9', outcome: 'collected', ...(facts === undefined ? {} : { facts }), ...ended }])).filter(
      ({ rule }) => rule === 'memory-symbols',
    )

  it('a whole image: what was measured', async () => {
    const copy = { id: 'capture-mem/1', outcome: 'collected' } as const
    expect(await verdicts([copy, { id: 'capture-mem/2', outcome: 'collected', facts }])).toEqual([
      {
        rule: 'memory-captured',
        clear:
          'memory.lime holds 255.5 MiB of physical memory in 2 ranges; read from /proc/kcore; 8192 bytes of it could not be read and are zeros; 3072 bytes in partial pages at the borders of ranges are not in it',
      },
    ])
  })

  it('part of an image is not assessed', async () => {
    const failed = { id: 'capture-mem/2', outcome: 'failed', reason: 'the disk is full (ENOSPC); the image is incomplete', facts } as const
    expect(await verdicts([failed], { 'memory.lime': 'EMiL' })).toEqual([
      {
        rule: 'memory-captured',
        notAssessed:
          'Physical memory was not captured: the disk is full (ENOSPC); the image is incomplete; what there is of it is in memory.lime, marked as incomplete',
        remedy: 'The plan names each source with what would help against its refusal',
      },
    ])
  })

  it('LiME: neither a module that was refused nor an image that was not checked is clear', async () => {
    const insmod = { id: 'capture-mem/2', outcome: 'failed', reason: '/usr/sbin/insmod exited with 1' } as const
    const check = {
      id: 'capture-mem/3',
      outcome: 'failed',
      reason: 'the LiME module wrote no memory.lime (ENOENT)',
      facts: { source: 'lime' },
    } as const
    expect(await verdicts([insmod, check])).toMatchObject([{ notAssessed: expect.stringMatching(/insmod exited with 1$/) }])
    expect(await verdicts([{ id: 'capture-mem/2', outcome: 'collected' }])).toMatchObject([{ notAssessed: expect.anything() }])
    const good = {
      id: 'capture-mem/3',
      outcome: 'collected',
      facts: { source: 'lime', bytes: 2 ** 31, rangeCount: 3, gapBytes: 0 },
    } as const
    expect(await verdicts([good])).toEqual([
      {
        rule: 'memory-captured',
        clear: 'memory.lime holds 2.0 GiB of physical memory in 3 ranges; written by the LiME module and checked against /proc/iomem',
      },
    ])
  })

  it('processes are never taken for physical memory', async () => {
    const processes = { source: 'process', bytes: 17 << 20, processes: [{ pid: 7 }, { pid: 12 }] }
    expect(await verdicts([{ id: 'capture-mem/1', outcome: 'collected', facts: processes }])).toMatchObject([
      { rule: 'memory-captured', notAssessed: expect.anything() },
      { rule: 'process-memory-captured', clear: '17.0 MiB of memory of 2 processes; this is not physical memory' },
    ])
    const lost = { id: 'capture-mem/1', outcome: 'failed', reason: 'process 7: it ended while it was read', facts: processes } as const
    expect(await verdicts([lost])).toMatchObject([
      { notAssessed: expect.anything() },
      { rule: 'process-memory-captured', notAssessed: expect.anything() },
    ])
  })

  it('nothing at all', async () => {
    expect(await verdicts([])).toMatchObject([
      { rule: 'memory-captured', notAssessed: expect.anything(), remedy: expect.stringMatching(/\w/) },
    ])
  })

  const kit = {
    release: RELEASE,
    debugPackage: `linux-image-${RELEASE}-dbg`,
    symbols: { file: 'memory.isf.json.gz', types: 10242, symbols: 88582 },
  }

  it('symbols: how to use them', async () => {
    expect(await symbols(kit)).toEqual([
      {
        rule: 'memory-symbols',
        clear:
          'memory.isf.json.gz holds 10242 types and 88582 symbols of 6.1.0-56-amd64: vol -s DIRECTORY -f memory.lime linux.pslist, with both in DIRECTORY',
      },
    ])
  })

  it.each([
    ['not made at all', undefined, {}, /it was not made/, /the debug package of this kernel/],
    [
      'no BTF',
      { ...kit, symbols: {}, noSymbols: 'this kernel has no BTF' },
      {},
      /this kernel has no BTF$/,
      /linux-image-6\.1\.0-56-amd64-dbg$/,
    ],
    ['failed', { ...kit, symbols: {} }, { outcome: 'failed', reason: 'it is cut' } as const, /it is cut$/, /dwarf2json/],
    ['5-level paging', { ...kit, fiveLevelPaging: true }, {}, /5-level paging, which no released version of Volatility/, /crash or drgn/],
  ])('symbols that do not help are not clear: %s', async (_, facts, ended, why, help) => {
    expect(await symbols(facts, ended)).toEqual([
      { rule: 'memory-symbols', notAssessed: expect.stringMatching(why), remedy: expect.stringMatching(help) },
    ])
  })
})

describe('the symbol kit', () => {
  const kitOf = async (files: Readonly<Record<string, string | null>> = {}) => {
    const { actions, rejected } = await planned(boot('kaslr', files))
    return { actions: actions.slice(2), rejected }
  }

  it('is made behind the image, of the files that are there', async () => {
    const files = ['/proc/version', '/proc/kallsyms', '/sys/kernel/btf/vmlinux', `/boot/config-${RELEASE}`]
    const { actions, rejected } = await kitOf(Object.fromEntries(files.map(file => [file.slice(1), 'x'])))
    expect(actions.slice(0, -1).map(action => (action as Copy).from)).toEqual(
      expect.arrayContaining([...files, '/proc/modules', '/proc/meminfo']),
    )
    expect(actions.slice(0, -1).map(action => (action as Copy).to)).toContain('sys_kernel_btf_vmlinux')
    expect(actions.at(-1)).toMatchObject({
      collector: 'kernel-symbols',
      options: { to: 'memory.isf.json.gz', release: RELEASE, debugPackage: `the package with the debug information of ${RELEASE}` },
      writes: ['memory.isf.json.gz', 'vmcoreinfo.txt', 'modules.jsonl', 'btf/'],
    })
    expect(why(rejected, 'memory.isf.json.gz')).toBeUndefined()
  })

  it('says before that a kernel without BTF gives no symbol file, and what does', async () => {
    const { rejected } = await kitOf({ 'etc/os-release': 'ID=debian\n' })
    expect(why(rejected, 'memory.isf.json.gz')).toMatch(/no \/sys\/kernel\/btf\/vmlinux/)
    expect(remedy(rejected, 'memory.isf.json.gz')).toMatch(/linux-image-6\.1\.0-56-amd64-dbg$/)
  })

  it('takes no path from the name of a kernel', async () => {
    const { actions } = await kitOf({ 'proc/sys/kernel/osrelease': '../../etc/shadow\n', 'boot/config-': 'x' })
    expect(actions.filter(action => action.kind === 'copy' && action.from.startsWith('/boot'))).toEqual([])
  })

  it('is not made of a host whose physical memory cannot be had', async () => {
    const found = await planned(boot('kaslr', { 'proc/12/stat': '' }), { source: 'process', pid: ['12'] })
    expect(found.actions).toHaveLength(1)
  })

  it.each([
    ['ID=debian', 'linux-image-6.1.0-56-amd64-dbg'],
    ['ID=linuxmint\nID_LIKE="ubuntu debian"', 'linux-image-unsigned-6.1.0-56-amd64-dbgsym (of ddebs.ubuntu.com)'],
    ['ID="rocky"\nID_LIKE="rhel centos fedora"', 'kernel-debuginfo-6.1.0-56-amd64'],
    ['ID="opensuse-leap"\nID_LIKE="suse opensuse"', 'kernel-amd64-debuginfo for 6.1.0-56-amd64'],
    ['', 'the package with the debug information of 6.1.0-56-amd64'],
  ])('names the debug package of %j', (text, name) => {
    expect(debugPackage(text, RELEASE)).toBe(name)
  })
})
