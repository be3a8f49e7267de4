/** The doctor, on trees that show one host or another, and on this machine. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { examineClock } from '../../src/doctor/clock.js'
import { examineDisks, examineOutput } from '../../src/doctor/disks.js'
import type { Examination, Fact, MemoryOffer, Questions } from '../../src/doctor/examination.js'
import { examine } from '../../src/doctor/examine.js'
import { examineMemory } from '../../src/doctor/memory.js'
import { examineHost, examineRights } from '../../src/doctor/rights.js'
import { examinationLines } from '../../src/doctor/table.js'
import { examineTools } from '../../src/doctor/tools.js'
import { type Host, openHost } from '../../src/host.js'

let root: string
beforeEach(() => {
  root = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-doctor-'))
})
afterEach(() => {
  fs.rmSync(root, { recursive: true, force: true })
})

/** Puts files (text) and links ({ link }) into the tree, and opens it as a host. */
function hostWith(files: Readonly<Record<string, string | { readonly link: string }>>): Host {
  for (const [name, content] of Object.entries(files)) {
    const file = path.join(root, name)
    fs.mkdirSync(path.dirname(file), { recursive: true })
    if (typeof content === 'string') fs.writeFileSync(file, content)
    else fs.symlinkSync(content.link, file)
  }
  return openHost({ root, hostname: 'web1', clock: () => new Date('2026-06-11T14:22:33Z') })
}

const ALL = '000001ffffffffff'
const status = (uid: number, capabilities: string): string =>
  `Name:\tnode\nUid:\t${uid}\t${uid}\t${uid}\t${uid}\nCapEff:\t${capabilities}\n`
const INITIAL = { '/proc/self/ns/pid': { link: 'pid:[4026531836]' }, '/proc/2/comm': 'kthreadd\n' }

const brief = (facts: readonly Fact[]): unknown[] => facts.map(({ what, state }) => [what, state])
const fact = (facts: readonly Fact[], what: string): Fact => {
  const found = facts.filter(one => one.what === what)
  expect(found.length, `facts about ${what}`).toBe(1)
  return found[0] as Fact
}
const remedy = (one: Fact): string => ('remedy' in one ? one.remedy : '')

describe('rights', () => {
  it('root with everything', () => {
    const host = hostWith({ '/proc/self/status': status(0, ALL), '/proc/self/uid_map': '         0          0 4294967295\n' })
    expect(brief(examineRights(host))).toEqual([
      ['root', 'ok'],
      ['capabilities', 'ok'],
    ])
  })

  it('nobody: each capability with its use, and how to get it', () => {
    const facts = examineRights(hostWith({ '/proc/self/status': status(1000, '0000000000000000') }))
    expect(facts.length).toBe(10)
    expect(facts.every(one => one.state === 'lack' && remedy(one) === 'sudo ir doctor')).toBe(true)
    expect(fact(facts, 'CAP_NET_RAW').found).toBe('not ours; needed for capturing packets')
  })

  it('root of a container of Docker: what its default set lacks', () => {
    // The default of Docker: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot ...
    const facts = examineRights(hostWith({ '/proc/self/status': status(0, '00000000a80425fb') }))
    expect(facts.filter(({ state }) => state === 'lack').map(({ what }) => what)).toEqual([
      'CAP_DAC_READ_SEARCH',
      'CAP_LINUX_IMMUTABLE',
      'CAP_NET_ADMIN',
      'CAP_SYS_MODULE',
      'CAP_SYS_RAWIO',
      'CAP_SYS_PTRACE',
      'CAP_SYS_ADMIN',
      'CAP_SYSLOG',
    ])
  })

  it('root of a user namespace, and a Yama that forbids tracing', () => {
    const host = hostWith({
      '/proc/self/status': status(0, ALL),
      '/proc/self/uid_map': '         0     100000      65536\n',
      '/proc/sys/kernel/yama/ptrace_scope': '3\n',
    })
    const facts = examineRights(host)
    expect(fact(facts, 'user namespace')).toMatchObject({ state: 'lack', found: expect.stringContaining('0 100000 65536') })
    expect(fact(facts, 'ptrace').state).toBe('lack')
  })

  it('no /proc', () => {
    expect(brief(examineRights(hostWith({})))).toEqual([['root', 'unknown']])
  })
})

describe('host', () => {
  it('the host itself', () => {
    const facts = examineHost(
      hostWith({ ...INITIAL, '/proc/sys/kernel/osrelease': '6.1.0-21-amd64\n', '/etc/os-release': 'ID=debian\nPRETTY_NAME="Debian 12"\n' }),
    )
    expect(brief(facts)).toEqual([
      ['kernel', 'note'],
      ['container', 'ok'],
      ['processes', 'ok'],
    ])
    expect(fact(facts, 'kernel').found).toBe('Linux 6.1.0-21-amd64, Debian 12')
  })

  it.each([
    ['/run/systemd/container', 'docker\n', '/run/systemd/container says docker'],
    ['/.dockerenv', '', 'there is /.dockerenv'],
    ['/run/.containerenv', '', 'there is /run/.containerenv'],
    ['/proc/1/environ', 'PATH=/bin\0container=podman\0', 'process 1 has container=podman'],
    ['/proc/self/cgroup', '0::/kubepods/pod1/abc\n', 'our cgroup is of kubepods'],
  ])('a container, by %s', (file, content, sign) => {
    const facts = examineHost(hostWith({ [file]: content, '/proc/self/ns/pid': { link: 'pid:[4026532477]' }, '/proc/2/comm': 'sh\n' }))
    expect(fact(facts, 'container')).toMatchObject({
      state: 'lack',
      found: expect.stringContaining(sign),
      remedy: 'run ir on the host itself',
    })
    expect(fact(facts, 'processes')).toMatchObject({ state: 'lack', found: expect.stringContaining('pid:[4026532477]') })
  })

  it('a file system made for a container, on a whole machine', () => {
    const facts = examineHost(hostWith({ ...INITIAL, '/.dockerenv': '' }))
    expect(fact(facts, 'container').state).toBe('note')
  })

  it('/proc that hides processes from whoever is not root', () => {
    const mountinfo = '22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw,hidepid=invisible\n'
    const asUser = hostWith({ ...INITIAL, '/proc/self/mountinfo': mountinfo, '/proc/self/status': status(1000, ALL) })
    expect(fact(examineHost(asUser), 'hidepid').state).toBe('lack')
    fs.writeFileSync(path.join(root, 'proc/self/status'), status(0, ALL))
    expect(examineHost(asUser).map(({ what }) => what)).not.toContain('hidepid')
  })
})

describe('memory', () => {
  const none: MemoryOffer = {
    chosen: [],
    rejected: [
      { what: '/proc/kcore', why: 'no', remedy: 'sudo ir doctor' },
      { what: 'LiME module', why: 'none is given', remedy: '--lime-module FILE' },
      { what: '/dev/mem', why: 'none', remedy: 'sudo ir doctor' },
    ],
  }
  const kcore: MemoryOffer = { ...none, chosen: [{ title: 'Copy physical memory from /proc/kcore', bytes: 2 * 1024 ** 3 }] }
  const open = { '/sys/kernel/security/lockdown': '[none] integrity confidentiality\n', '/proc/modules': '' }

  it('a source that works: what the others lack is no lack', () => {
    const facts = examineMemory(hostWith(open), kcore)
    expect(facts.filter(({ state }) => state === 'lack')).toEqual([])
    expect(fact(facts, 'capture')).toMatchObject({ state: 'ok', found: 'Copy physical memory from /proc/kcore, 2.0 GiB' })
    expect(fact(facts, 'modules').found).toBe('can be loaded')
  })

  it('none: each remedy once', () => {
    const facts = examineMemory(hostWith(open), none)
    expect(facts.filter(({ state }) => state === 'lack').map(one => [one.what, remedy(one)])).toEqual([
      ['capture', 'sudo ir doctor'],
      ['LiME module', '--lime-module FILE'],
    ])
    expect(fact(facts, '/dev/mem').found).toBe('none')
  })

  it.each([
    [{ '/sys/kernel/security/lockdown': '[none] integrity confidentiality\n' }, 'ok', 'none'],
    [{ '/sys/kernel/security/lockdown': 'none [integrity] confidentiality\n' }, 'note', 'integrity'],
    [{ '/sys/kernel/security/lockdown': 'none integrity [confidentiality]\n' }, 'lack', 'confidentiality'],
    [{ '/proc/self/mountinfo': '1 2 0:7 / /sys/kernel/security rw - securityfs securityfs rw\n' }, 'ok', 'this kernel has no lockdown'],
    [{ '/proc/self/mountinfo': '1 2 8:1 / / rw - ext4 /dev/sda1 rw\n' }, 'unknown', 'securityfs is not mounted'],
  ])('lockdown %j is %s', (files, state, found) => {
    expect(fact(examineMemory(hostWith(files), none), 'lockdown')).toMatchObject({ state, found: expect.stringContaining(found) })
  })

  it.each([
    [{}, 'lack', 'no loadable modules'],
    [{ '/proc/modules': '', '/proc/sys/kernel/modules_disabled': '1\n' }, 'lack', 'until the next boot'],
    [{ '/proc/modules': '', '/sys/module/module/parameters/sig_enforce': 'Y\n' }, 'note', 'only signed modules'],
    [{ '/proc/modules': '', '/proc/sys/kernel/modules_disabled': '0\n' }, 'ok', 'can be loaded'],
  ])('modules %j is %s', (files, state, found) => {
    expect(fact(examineMemory(hostWith(files), none), 'modules')).toMatchObject({ state, found: expect.stringContaining(found) })
  })

  it('swap in use is not in the image', () => {
    const swaps =
      'Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/sda2                               partition\t4194300\t\t1048576\t\t-2\n'
    expect(fact(examineMemory(hostWith({ ...open, '/proc/swaps': swaps }), kcore), 'swap')).toMatchObject({
      state: 'note',
      found: '1.0 GiB of the memory of processes is in /dev/sda2, not in an image',
    })
  })
})

describe('disks', () => {
  it('of this machine, with their attributes; a file system without them is named', async () => {
    const facts = await examineDisks(openHost())
    expect(fact(facts, '/')).toMatchObject({ state: 'ok', detail: { type: 'ext4', attributes: true, remote: false } })
    expect(fact(facts, '/dev/shm')).toMatchObject({ detail: { type: 'tmpfs', attributes: true } })
    expect(facts.map(({ what }) => what)).not.toContain('/proc')
  })

  it('network mounts by name, without a look at them', async () => {
    const real = openHost()
    const looked: string[] = []
    const host: Host = {
      ...real,
      read: (name, max) =>
        name === '/proc/self/mountinfo'
          ? '1 0 8:1 / / rw - ext4 /dev/vda rw\n2 1 0:9 / /home rw - nfs4 192.0.2.9:/home rw\n3 1 0:8 / /mnt/c rw - fuse.sshfs me@192.0.2.8: rw\n'
          : real.read(name, max),
      lstat: name => {
        looked.push(name)
        return real.lstat(name)
      },
      statfs: name => {
        looked.push(name)
        return real.statfs(name)
      },
    }
    const facts = await examineDisks(host)
    expect(brief(facts)).toEqual([
      ['/', 'ok'],
      ['/home', 'note'],
      ['/mnt/c', 'note'],
    ])
    expect(fact(facts, '/home').found).toContain('nfs4 from 192.0.2.9:/home: hangs once the host is cut off')
    expect(new Set(looked)).toEqual(new Set(['/']))
  })

  it('a file system that keeps no attributes, in a mount namespace of its own', () => {
    const script = `
      const { examineDisks } = await import(${JSON.stringify(path.resolve('src/doctor/disks.js'))})
      const { openHost } = await import(${JSON.stringify(path.resolve('src/host.js'))})
      process.stdout.write(JSON.stringify(await examineDisks(openHost())))`
    const inside = path.join(root, 'inside.mjs')
    fs.writeFileSync(inside, script)
    const where = path.join(root, 'plain')
    fs.mkdirSync(where)
    const argv = ['--mount', '--propagation', 'private', '--', 'sh', '-c', 'mount -t ramfs plain "$1" && shift && exec "$@"', 'sh', where]
    const node = [process.execPath, '--import', path.resolve('test/helpers/sources.mjs'), inside]
    const facts = JSON.parse(execFileSync('unshare', [...argv, ...node], { encoding: 'utf8', timeout: 30_000 })) as Fact[]
    expect(fact(facts, fs.realpathSync(where))).toMatchObject({
      state: 'note',
      found: expect.stringContaining('keeps no attributes: audit-attrs cannot assess it'),
      detail: { type: 'ramfs', attributes: false },
    })
  })

  it('no /proc', async () => {
    expect(await examineDisks(hostWith({}))).toMatchObject([{ state: 'unknown', remedy: 'mount -t proc proc /proc' }])
  })
})

describe('output', () => {
  const real = openHost()
  const memory = (kibibytes: number): Host => ({
    ...real,
    read: (name, max) => (name === '/proc/meminfo' ? `MemTotal:       ${kibibytes} kB\n` : real.read(name, max)),
  })

  it('large enough, too small, unknown', () => {
    expect(examineOutput(memory(1024), root)).toMatchObject([{ state: 'ok', detail: { ramBytes: 1024 ** 2 } }])
    expect(examineOutput(memory(1024 ** 4), root)).toMatchObject([
      { state: 'lack', remedy: 'give a directory on another disk with --output' },
    ])
    const blind: Host = { ...real, read: (name, max) => (name === '/proc/meminfo' ? '' : real.read(name, max)) }
    expect(examineOutput(blind, root)).toMatchObject([{ state: 'unknown' }])
  })

  it('in memory, missing, no directory', () => {
    expect(brief(examineOutput(memory(1024), '/dev/shm'))).toEqual([
      ['/dev/shm', 'lack'],
      ['/dev/shm', 'ok'],
    ])
    expect(examineOutput(real, path.join(root, 'gone'))).toMatchObject([{ state: 'lack', found: 'does not exist' }])
    fs.writeFileSync(path.join(root, 'file'), '')
    expect(examineOutput(real, path.join(root, 'file'))).toMatchObject([{ state: 'lack', found: 'is no directory' }])
  })

  it('on a network mount', () => {
    const remote: Host = {
      ...real,
      read: (name, max) => (name === '/proc/self/mountinfo' ? '1 0 0:9 / / rw - nfs4 192.0.2.9:/all rw\n' : real.read(name, max)),
    }
    expect(examineOutput(remote, root)[0]).toMatchObject({ state: 'lack', found: expect.stringContaining('nfs4 (192.0.2.9:/all)') })
  })
})

describe('clock', () => {
  /** Stands in place of a program of the host; the tree's path is the machine's, for it is run for real. */
  function withProgram(name: string, script: string): Host {
    const program = path.join(root, name)
    fs.writeFileSync(program, `#!/bin/sh\n${script}\n`, { mode: 0o755 })
    const host = hostWith({})
    return { ...host, which: wanted => (wanted === name ? program : undefined) }
  }

  it('zone by the link, by the file, by nothing', async () => {
    const link = hostWith({ '/etc/localtime': { link: '/usr/share/zoneinfo/Europe/Berlin' } })
    expect(fact(await examineClock(link), 'time zone').found).toBe('Europe/Berlin; it is 2026-06-11T14:22:33.000Z')
    fs.rmSync(path.join(root, 'etc/localtime'))
    expect(fact(await examineClock(link), 'time zone').detail).toEqual({ zone: 'UTC' })
    fs.writeFileSync(path.join(root, 'etc/localtime'), 'TZif2')
    expect(fact(await examineClock(link), 'time zone').state).toBe('unknown')
    fs.writeFileSync(path.join(root, 'etc/timezone'), 'Asia/Tokyo\n')
    expect(fact(await examineClock(link), 'time zone').detail).toEqual({ zone: 'Asia/Tokyo' })
  })

  it('set by systemd-timesyncd', async () => {
    const host = hostWith({ '/run/systemd/timesync/synchronized': '' })
    fs.utimesSync(path.join(root, 'run/systemd/timesync/synchronized'), 0, 1_780_000_000)
    const found = fact(await examineClock(host), 'synchronised')
    expect(found).toMatchObject({ state: 'ok', found: 'systemd-timesyncd set the clock at 2026-05-28T20:26:40.000Z' })
  })

  it.each([
    ['Normal', 'ok'],
    ['Not synchronised', 'lack'],
  ])('chrony: %s', async (leap, state) => {
    const host = withProgram('chronyc', `printf 'System time     : 0.000012 seconds slow of NTP time\\nLeap status     : ${leap}\\n'`)
    expect(fact(await examineClock(host), 'synchronised')).toMatchObject({
      state,
      found: `chrony: ${leap}, 0.000012 seconds slow of NTP time`,
    })
  })

  it.each([
    ['yes', 'ok'],
    ['no', 'lack'],
  ])('timedatectl: %s', async (answer, state) => {
    const host = withProgram('timedatectl', `printf 'Timezone=Etc/UTC\\nNTPSynchronized=${answer}\\n'`)
    expect(fact(await examineClock(host), 'synchronised').state).toBe(state)
  })

  it('nobody tells, or fails to', async () => {
    expect(fact(await examineClock(hostWith({})), 'synchronised')).toMatchObject({
      state: 'unknown',
      remedy: expect.stringContaining('date -u'),
    })
    expect(fact(await examineClock(withProgram('timedatectl', 'exit 1')), 'synchronised').state).toBe('unknown')
  })
})

describe('tools', () => {
  const tool = (name: string, version: readonly string[] = ['--version']) => ({ name, version, install: `apt-get install ${name}` })

  it('of this machine', async () => {
    const facts = await examineTools(openHost(), [tool('lsattr', ['-V']), tool('tcpdump'), tool('no-such-program')])
    expect(facts).toMatchObject([
      { what: 'lsattr', state: 'ok', found: expect.stringMatching(/^\/usr\/bin\/lsattr {2}lsattr 1\.\d/) },
      { what: 'tcpdump', state: 'ok', found: expect.stringMatching(/tcpdump version 4/) },
      { what: 'no-such-program', state: 'lack', found: 'not installed', remedy: 'apt-get install no-such-program' },
    ])
  })

  it('one that does not start, one that fails, one that hangs, one that floods, one without a version', async () => {
    const programs: Record<string, string> = {
      broken: '#!/nonexistent/interpreter\n',
      failing: '#!/bin/sh\necho cannot open shared object file >&2; exit 127\n',
      hanging: '#!/bin/sh\nexec sleep 60\n',
      flooding: '#!/bin/sh\nexec yes 1.2\n',
      silent: '#!/bin/sh\nexit 0\n',
      loader: `#!/bin/sh\necho "ERROR: ld.so: object '/x.so.1' from /etc/ld.so.preload cannot be preloaded" >&2; echo v2.5\n`,
    }
    for (const [name, content] of Object.entries(programs)) fs.writeFileSync(path.join(root, name), content, { mode: 0o755 })
    const host: Host = { ...openHost(), which: name => path.join(root, name) }
    const facts = await examineTools(
      host,
      Object.keys(programs).map(name => tool(name)),
    )
    expect(brief(facts)).toEqual([
      ['broken', 'lack'],
      ['failing', 'lack'],
      ['hanging', 'lack'],
      ['flooding', 'lack'],
      ['silent', 'ok'],
      ['loader', 'ok'],
    ])
    expect(fact(facts, 'failing').found).toContain('exited with 127: cannot open shared object file')
    expect(fact(facts, 'hanging').found).toContain('ended after 5 s')
    expect(fact(facts, 'loader').found).toMatch(/ {2}v2\.5$/)
  })
})

describe('the whole', () => {
  const questions: Questions = {
    tools: [{ name: 'lsattr', version: ['-V'], install: 'apt-get install e2fsprogs' }],
    memory: { chosen: [], rejected: [] },
    connection: { why: 'this terminal does not come over SSH', ports: [22] },
    output: os.tmpdir(),
  }

  it('counts, and every lack and every unknown has a remedy', async () => {
    const examination = await examine(openHost(), questions)
    const poor = examination.facts.filter(({ state }) => state === 'lack' || state === 'unknown')
    expect(poor.length).toBe(examination.lacks + examination.unknown)
    for (const one of poor) expect(remedy(one), one.what).not.toBe('')
    expect(JSON.parse(JSON.stringify(examination))).toEqual(examination)
    expect(new Set(examination.facts.map(({ topic }) => topic)).size).toBe(8)
  })

  it('an empty host is no exception', async () => {
    const examination = await examine(hostWith({}), questions)
    expect(examination).toMatchObject({ hostname: 'web1', examined: '2026-06-11T14:22:33.000Z', kernel: '' })
    expect(examination.lacks + examination.unknown).toBeGreaterThan(5)
  })

  it('names the responder', async () => {
    const connection = { responder: '198.51.100.7 port 50222', ports: [22, 2222] }
    const { facts } = await examine(hostWith({}), { ...questions, connection })
    expect(fact(facts, 'responder')).toMatchObject({
      state: 'ok',
      found: '198.51.100.7 port 50222 over SSH; isolating leaves this address in',
    })
    expect(fact(facts, 'ports').found).toBe('SSH is reached at ports 22, 2222')
  })

  it('as text: what lacks with its remedy below, what the host says made visible', () => {
    const examination: Examination = {
      hostname: 'web1\u001b[31m',
      examined: '2026-06-11T14:22:33.000Z',
      kernel: '6.1.0',
      facts: [
        { topic: 'tools', what: 'nft', state: 'ok', found: '/usr/sbin/nft  nftables v1.0.6' },
        { topic: 'tools', what: 'tcpdump', state: 'lack', found: 'not installed', remedy: 'apt-get install tcpdump' },
        { topic: 'disks', what: '/mnt/\u202eevil', state: 'note', found: 'ext4\n' },
      ],
      lacks: 1,
      unknown: 0,
    }
    expect(examinationLines(examination)).toEqual([
      'web1\\u{1b}[31m, Linux 6.1.0, 2026-06-11T14:22:33.000Z',
      '',
      'TOOLS',
      '  ok    nft      /usr/sbin/nft  nftables v1.0.6',
      '  LACK  tcpdump  not installed',
      '                 -> apt-get install tcpdump',
      '',
      'DISKS',
      '  -     /mnt/\\u{202e}evil  ext4\\u{a}',
      '',
      '1 lacking. A response works without them and collects less; -> says what fixes each.',
    ])
    expect(examinationLines({ ...examination, facts: [], lacks: 0, unknown: 0 }).at(-1)).toBe('Nothing is lacking.')
  })
})
