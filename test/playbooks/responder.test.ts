import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { formatNetwork } from '../../playbooks/address.js'
import { connectedTo, findResponder, type Responder, sshPorts, tcpSockets } from '../../playbooks/responder.js'
import { openHost } from '../../src/host.js'
import type { Found } from '../helpers/find-responder.js'
import { joinNamespaces, openNamespace } from '../helpers/namespace.js'
import { startTraffic } from '../helpers/traffic.js'

const FIXTURES = fileURLToPath(new URL('../fixtures/responder/debian-12/', import.meta.url))
const FIND = new URL('../helpers/find-responder.ts', import.meta.url)

let folder: string

beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-responder-'))
})

afterEach(() => fs.rmSync(folder, { recursive: true }))

/** The recorded session, to be changed: listening sshd, sshd of the session, its shell, and a program without environment. */
class Session {
  readonly root: string
  readonly pids: readonly number[]

  constructor(family: 'ipv4' | 'ipv6') {
    this.root = fs.mkdtempSync(path.join(folder, 'session-'))
    fs.cpSync(path.join(FIXTURES, family), this.root, { recursive: true, verbatimSymlinks: true })
    const numbers = fs.readdirSync(path.join(this.root, 'proc')).filter(name => /^\d+$/.test(name))
    this.pids = numbers.map(Number).sort((one, other) => one - other)
  }

  get listener(): number {
    return this.pids[0] as number
  }

  get sshd(): number {
    return this.pids[1] as number
  }

  get shell(): number {
    return this.pids[2] as number
  }

  get self(): number {
    return this.pids[3] as number
  }

  edit(name: string, change: (text: string) => string): void {
    const file = path.join(this.root, name)
    fs.mkdirSync(path.dirname(file), { recursive: true })
    fs.writeFileSync(file, change(fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : ''))
  }

  environment(pid: number, ...pairs: readonly string[]): void {
    this.edit(`proc/${pid}/environ`, () => pairs.map(pair => `${pair}\0`).join(''))
  }

  find(): Responder {
    const host = openHost({ root: this.root })
    return findResponder(host, tcpSockets(host))
  }

  text(): string {
    const found = this.find()
    return found.found ? `${formatNetwork(found.peer.address)} at ${found.server.port} by ${found.by} of ${found.pid}` : found.why
  }

  ports(): readonly number[] {
    const host = openHost({ root: this.root })
    return sshPorts(host, tcpSockets(host))
  }
}

describe('the responder', () => {
  it('is found by the environment of the login shell, behind what dropped our own', () => {
    for (const [family, address] of [
      ['ipv4', '192.0.2.7'],
      ['ipv6', '2001:db8::7'],
    ] as const) {
      const session = new Session(family)
      expect(session.text()).toBe(`${address} at 22 by environment of ${session.shell}`)
    }
  })

  it('is found by the only connection of its sshd where no environment tells', () => {
    const session = new Session('ipv4')
    session.environment(session.shell)
    expect(session.text()).toBe(`192.0.2.7 at 22 by connection of ${session.sshd}`)
  })

  it('is found by a mapped address in the table of IPv6 sockets', () => {
    const session = new Session('ipv4')
    session.edit('proc/net/tcp6', text => {
      const line = fs.readFileSync(path.join(session.root, 'proc/net/tcp'), 'utf8').split('\n')[3] as string
      return `${text}${line.replaceAll(/([0-9A-F]{8}):/g, (found, hex, at) => (at > 60 ? found : `0000000000000000FFFF0000${hex}:`))}\n`
    })
    session.edit('proc/net/tcp', text => `${text.split('\n')[0]}\n`)
    expect(session.text()).toBe(`192.0.2.7 at 22 by environment of ${session.shell}`)
  })

  it('is not the one whose connection has ended: tmux and screen remember an older session', () => {
    const session = new Session('ipv4')
    session.environment(session.shell, 'SSH_CONNECTION=198.51.100.99 50000 192.0.2.10 22')
    session.edit(`proc/${session.shell}/stat`, text => text.replace(/^(\d+ \(bash\) S) \d+/, '$1 1'))
    expect(session.text()).toBe('the SSH connection from 198.51.100.99 that this terminal remembers is no longer open')
  })

  it('is the nearest session whose connection is open, not an older one that is remembered', () => {
    const session = new Session('ipv4')
    session.environment(session.self, 'SSH_CONNECTION=198.51.100.99 50000 192.0.2.10 22')
    expect(session.text()).toBe(`192.0.2.7 at 22 by environment of ${session.shell}`)
  })

  it('is nobody where the terminal does not come over SSH', () => {
    const session = new Session('ipv4')
    session.environment(session.shell)
    session.edit(`proc/${session.shell}/stat`, text => text.replace(/^(\d+ \(bash\) S) \d+/, '$1 1'))
    expect(session.text()).toBe('this terminal does not come over SSH')
    expect(findResponder(openHost({ root: folder }), [])).toEqual({ found: false, why: 'this terminal does not come over SSH' })
  })

  it('is not guessed where sshd holds two connections to its port', () => {
    const session = new Session('ipv4')
    session.environment(session.shell)
    const second = '   3: 0A0200C0:0016 4200 01 00000000:00000000 02:000AFC35 00000000     0        0 999999 2'.replace(
      '4200',
      '420200C0:B9D1',
    )
    session.edit('proc/net/tcp', text => `${text}${second}\n`)
    fs.symlinkSync('socket:[999999]', path.join(session.root, `proc/${session.sshd}/fd/20`))
    expect(session.text()).toBe('this terminal does not come over SSH')
    // A port that the session forwards is none of its ways in.
    session.edit('proc/net/tcp', text => text.replace('0A0200C0:0016 420200C0', '0A0200C0:C001 420200C0'))
    expect(session.text()).toBe(`192.0.2.7 at 22 by connection of ${session.sshd}`)
  })

  it('is not this host itself', () => {
    const session = new Session('ipv4')
    const local = '   3: 0100007F:0016 0100007F:C350 01 00000000:00000000 02:000AFC35 00000000     0        0 999999 2\n'
    session.edit('proc/net/tcp', text => text + local)
    session.environment(session.self, 'SSH_CONNECTION=127.0.0.1 50000 127.0.0.1 22')
    expect(session.text()).toBe(
      'this terminal comes from this host itself (127.0.0.1), through a tunnel or an agent whose outer address must stay open',
    )
    const own = local.replaceAll('0100007F', '0A0200C0')
    session.edit('proc/net/tcp', text => text + own)
    session.environment(session.self, 'SSH_CONNECTION=192.0.2.10 50000 192.0.2.10 22')
    expect(session.text()).toContain('this host itself (192.0.2.10)')
  })

  it('is found past processes with hostile names', () => {
    for (const name of ['a) S 1 (b', 'sshd) S 1', '\n) R 0 0 (', ')', '']) {
      const session = new Session('ipv4')
      session.edit(`proc/${session.self}/stat`, text => text.replace('(MainThread)', `(${name})`))
      expect([name, session.text()]).toEqual([name, `192.0.2.7 at 22 by environment of ${session.shell}`])
    }
  })

  it('is not invented from hostile environments and tables', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 100 }), fc.string({ unit: 'binary', maxLength: 200 }), (environment, table) => {
        const host = {
          ...openHost({ root: folder }),
          readlink: () => '7',
          list: () => ['7', environment],
          read: (name: string): string =>
            name.endsWith('environ') ? `SSH_CONNECTION=${environment}` : name.includes('/net/') ? `\n${table}` : `7 (${table}) S 7`,
        }
        const sockets = tcpSockets(host)
        expect(findResponder(host, sockets).found).toBe(false)
        expect(sshPorts(host, sockets)).toContain(22)
      }),
      { numRuns: 1000 },
    )
  })

  it('ends with a chain of parents that goes round', () => {
    const session = new Session('ipv4')
    session.environment(session.shell)
    session.edit(`proc/${session.shell}/stat`, text => text.replace(/^(\d+ \(bash\) S) \d+/, `$1 ${session.self}`))
    expect(session.text()).toBe('this terminal does not come over SSH')
  })

  it('can come by the ports that SSH servers listen on or are configured for, and 22', () => {
    const session = new Session('ipv4')
    expect(session.ports()).toEqual([22, 2022])
    const lines = [
      '#Port 1',
      'Port 2200',
      '  port=2201',
      'ListenAddress 0.0.0.0:2202',
      'ListenAddress [2001:db8::1]:2203',
      'ListenAddress 2001:db8::1',
      'Port 99999',
    ]
    session.edit('etc/ssh/sshd_config', () => lines.join('\n'))
    session.edit('etc/ssh/sshd_config.d/10-port.conf', () => 'Port "2204"\n')
    session.edit('etc/ssh/sshd_config.d/old.conf.bak', () => 'Port 1')
    expect(session.ports()).toEqual([22, 2022, 2200, 2201, 2202, 2203, 2204])
    expect(sshPorts(openHost({ root: folder }), [])).toEqual([22])
  })

  it('is told apart from others who are connected to these ports', () => {
    const session = new Session('ipv4')
    const others = ['420200C0', '430200C0', '420200C0', '0100007F'].map(
      (address, index) =>
        `   ${index + 3}: 0A0200C0:0016 ${address}:C35${index} 01 00000000:00000000 02:000AFC35 00000000     0        0 99999${index} 2\n`,
    )
    session.edit('proc/net/tcp', text => text + others.join(''))
    const sockets = tcpSockets(openHost({ root: session.root }))
    expect(connectedTo(sockets, [22], address => formatNetwork(address) === '192.0.2.7')).toEqual(['192.0.2.66', '192.0.2.67'])
    expect(connectedTo(sockets, [2022], () => false)).toEqual([])
  })
})

describe('the responder of a real connection', () => {
  it('is found through a chain of processes, and only while the connection lasts', async () => {
    await using host = await openNamespace()
    await using peer = await openNamespace()
    await joinNamespaces(host, ['192.0.2.10/24', '2001:db8::10/64'], peer, ['192.0.2.7/24', '2001:db8::7/64'])
    const [here, there] = await Promise.all([startTraffic(host), startTraffic(peer)])
    // Both families behind one socket, as a server on '::' has them: IPv4 peers stand in tcp6 as mapped addresses.
    await here.listen('::', 22)
    const ask = (connection: string, behind: boolean): Promise<Found> =>
      host.call<Found>(FIND, { behind }, { env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', SSH_CONNECTION: connection } })
    for (const [from, to] of [
      ['192.0.2.7', '192.0.2.10'],
      ['2001:db8::7', '2001:db8::10'],
    ] as const) {
      expect(await (await there.connect({ from, fromPort: 50_000, to, port: 22 }))?.works()).toBe(true)
      for (const behind of [false, true])
        expect(await ask(`${from} 50000 ${to} 22`, behind)).toEqual({ responder: `${from} by environment`, ports: [22] })
    }
    expect((await ask('192.0.2.7 50001 192.0.2.10 22', true)).responder).toContain('no longer open')
    there.stop()
    const ended = async (): Promise<string> => (await ask('192.0.2.7 50000 192.0.2.10 22', true)).responder
    await vi.waitUntil(async () => (await ended()).includes('no longer open'), { timeout: 30_000, interval: 200 })
  })
})
