import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { isolate as step } from '../../playbooks/steps/isolate.js'
import { openHost } from '../../src/host.js'
import type { Change, Plan } from '../../src/step.js'
import { joinNamespaces, type Namespace, openNamespace } from '../helpers/namespace.js'
import { type Asked, collected, type Performed } from '../helpers/perform-step.js'
import { type Flow, startTraffic, type Traffic } from '../helpers/traffic.js'

const PERFORM = new URL('../helpers/perform-step.ts', import.meta.url)
const isolate = (namespace: Namespace, options: Asked['options'], more: Partial<Asked> = {}): Promise<Performed> =>
  namespace.call<Performed>(PERFORM, { step: 'isolate', name: 'isolate', options: { ...options }, ...more })
const release = (namespace: Namespace): Promise<Performed> => namespace.call<Performed>(PERFORM, { step: 'release', name: 'release' })

const HOST4 = '192.0.2.10'
const HOST6 = '2001:db8::10'
const RESPONDER4 = '192.0.2.7'
const RESPONDER6 = '2001:db8::7'
const EVIL4 = '192.0.2.66'
const EVIL6 = '2001:db8::66'
const CONTAINER4 = '198.51.100.2'
const CONTAINER6 = '2001:db8:1::2'

/** A firewall that tracks connections and lets through what is established: what makes a naive cut leave the attacker connected. */
const FIREWALL = `
table inet filter {
  set seen { type ipv4_addr; flags timeout; elements = { 203.0.113.9 timeout 1h }; }
  chain input { type filter hook input priority 0; policy accept; ct state established,related counter accept; }
  chain forward { type filter hook forward priority 0; policy accept; ct state established,related counter accept; }
  chain output { type filter hook output priority 0; policy accept; ct state established,related counter accept; }
}
`

describe('isolate', () => {
  let host: Namespace
  let peer: Namespace
  let container: Namespace
  let here: Traffic
  let there: Traffic
  let inside: Traffic
  const flows: Record<string, Flow | undefined> = {}

  beforeAll(async () => {
    host = await openNamespace()
    peer = await openNamespace()
    container = await openNamespace()
    const peers = [`${RESPONDER4}/24`, `${RESPONDER6}/64`, `${EVIL4}/24`, `${EVIL6}/64`]
    await joinNamespaces(host, [`${HOST4}/24`, `${HOST6}/64`], peer, peers)
    await joinNamespaces(host, ['198.51.100.1/24', '2001:db8:1::1/64'], container, [`${CONTAINER4}/24`, `${CONTAINER6}/64`], 'ctr0', 'eth0')
    for (const key of ['net.ipv4.ip_forward', 'net.ipv6.conf.all.forwarding']) await host.must(['sysctl', '-qw', `${key}=1`])
    await container.must(['ip', 'route', 'add', 'default', 'via', '198.51.100.1'])
    await container.must(['ip', '-6', 'route', 'add', 'default', 'via', '2001:db8:1::1'])
    await peer.must(['ip', 'route', 'add', '198.51.100.0/24', 'via', HOST4])
    await peer.must(['ip', '-6', 'route', 'add', '2001:db8:1::/64', 'via', HOST6])
    await host.must(['nft', '-f', '-'], { stdin: FIREWALL })
    ;[here, there, inside] = await Promise.all([startTraffic(host), startTraffic(peer), startTraffic(container)])
    for (const address of ['0.0.0.0', '::']) {
      for (const port of [22, 8080]) await here.listen(address === '::' ? HOST6 : HOST4, port)
      await here.listen(address === '::' ? '::1' : '127.0.0.1', 5432)
    }
    for (const address of [RESPONDER4, RESPONDER6, EVIL4, EVIL6]) {
      await there.listen(address, 4444)
      await there.listen(address, 53)
    }
    await inside.listen(CONTAINER4, 22)
    await inside.listen(CONTAINER6, 22)
  })

  afterAll(() => Promise.all([host?.close(), peer?.close(), container?.close()]))

  it('finds everything open before', async () => {
    Object.assign(flows, {
      'session of the responder, IPv4': await there.connect({ from: RESPONDER4, to: HOST4, port: 22 }),
      'session of the responder, IPv6': await there.connect({ from: RESPONDER6, to: HOST6, port: 22 }),
      'loopback, IPv4': await here.connect({ to: '127.0.0.1', port: 5432 }),
      'loopback, IPv6': await here.connect({ to: '::1', port: 5432 }),
      'command and control, IPv4': await here.connect({ to: EVIL4, port: 4444 }),
      'command and control, IPv6': await here.connect({ to: EVIL6, port: 4444 }),
      'SSH session of somebody else, IPv4': await there.connect({ from: EVIL4, to: HOST4, port: 22 }),
      'SSH session of somebody else, IPv6': await there.connect({ from: EVIL6, to: HOST6, port: 22 }),
      'responder on another port': await there.connect({ from: RESPONDER4, to: HOST4, port: 8080 }),
      'container to outside, IPv4': await inside.connect({ to: EVIL4, port: 4444 }),
      'container to outside, IPv6': await inside.connect({ to: EVIL6, port: 4444 }),
      'responder into the container': await there.connect({ from: RESPONDER4, to: CONTAINER4, port: 22 }),
    })
    for (const [name, flow] of Object.entries(flows)) expect([name, await flow?.works()]).toEqual([name, true])
    for (const to of [EVIL4, EVIL6, RESPONDER4, RESPONDER6]) expect(await here.datagram({ to, port: 53 })).toBe(true)
    expect(await (await here.connect({ fromPort: 2222, to: RESPONDER4, port: 4444 }))?.works()).toBe(true)
  })

  it('loads one table, twice without a second one', async () => {
    const options = { allow: [RESPONDER4, RESPONDER6], port: ['22', '2222', '2223'] }
    for (let time = 0; time < 2; time += 1) {
      const { results, verdicts, artifacts } = await isolate(host, options)
      expect(results.map(result => result.outcome)).toEqual(['collected', 'collected'])
      expect(verdicts).toEqual([
        {
          rule: 'host-isolated',
          clear: `The host is cut off: table inet ir_isolate is loaded, open for ${RESPONDER4}, ${RESPONDER6} on TCP port 22, 2222, 2223`,
        },
      ])
      expect(artifacts['nft_-s_list_ruleset.txt']?.match(/^table .*$/gm)).toEqual(['table inet filter {', 'table inet ir_isolate {'])
      expect(artifacts['nft_-s_list_ruleset.txt']).toContain('comment "ir isolate case=ir-host-20260101T000000Z"')
    }
  })

  it('keeps the responder and loopback', async () => {
    const kept = Object.entries(flows).filter(([name]) => /^(session of the responder|loopback)/.test(name))
    expect(kept).toHaveLength(4)
    for (const [name, flow] of kept) expect([name, await flow?.works()]).toEqual([name, true])
    for (const [from, to] of [
      [RESPONDER4, HOST4],
      [RESPONDER6, HOST6],
    ] as const) {
      expect(await (await there.connect({ from, to, port: 22 }))?.works()).toBe(true)
    }
    expect(await (await here.connect({ to: '127.0.0.1', port: 5432 }))?.works()).toBe(true)
    expect(await here.datagram({ to: '127.0.0.1', port: 5432 })).toBe(true)
  })

  it('still finds its neighbours, and is found', async () => {
    for (const namespace of [host, peer]) await namespace.must(['ip', 'neigh', 'flush', 'all'])
    for (const [from, to] of [
      [RESPONDER4, HOST4],
      [RESPONDER6, HOST6],
    ] as const) {
      expect(await (await there.connect({ from, to, port: 22 }))?.works()).toBe(true)
    }
  })

  it('cuts connections that were open, tracked ones included', async () => {
    const cut = Object.entries(flows).filter(([name]) => !/^(session of the responder|loopback)/.test(name))
    expect(cut).toHaveLength(8)
    expect(await Promise.all(cut.map(async ([name, flow]) => [name, await flow?.isDead()]))).toEqual(cut.map(([name]) => [name, true]))
  })

  it('lets nobody else in, and nothing out', async () => {
    const attempts = {
      'somebody else to SSH, IPv4': there.cannotConnect({ from: EVIL4, to: HOST4, port: 22 }),
      'somebody else to SSH, IPv6': there.cannotConnect({ from: EVIL6, to: HOST6, port: 22 }),
      'the responder to another port': there.cannotConnect({ from: RESPONDER4, to: HOST4, port: 8080 }),
      'the host to somebody, IPv4': here.cannotConnect({ to: EVIL4, port: 4444 }),
      'the host to somebody, IPv6': here.cannotConnect({ to: EVIL6, port: 4444 }),
      'the host to the responder, IPv4': here.cannotConnect({ to: RESPONDER4, port: 4444 }),
      'the host to the responder, IPv6': here.cannotConnect({ to: RESPONDER6, port: 4444 }),
      'the host to the responder from a port of SSH': here.cannotConnect({ fromPort: 2223, to: RESPONDER4, port: 4444 }),
      'a container to outside': inside.cannotConnect({ to: EVIL4, port: 4444 }),
      'the responder into a container': there.cannotConnect({ from: RESPONDER4, to: CONTAINER4, port: 22 }),
    }
    for (const [name, attempt] of Object.entries(attempts)) expect([name, await attempt]).toEqual([name, true])
    for (const to of [EVIL4, EVIL6, RESPONDER4, RESPONDER6]) expect(await here.datagram({ to, port: 53, timeout: 1500 })).toBe(false)
    expect(await there.datagram({ from: RESPONDER4, to: HOST4, port: 22, timeout: 1500 })).toBe(false)
  })

  it('opens again on release: what was cut goes on', async () => {
    const { results, verdicts } = await release(host)
    expect(results.map(result => result.outcome)).toEqual(['collected', 'collected', 'collected', 'collected'])
    const [verdict] = verdicts as readonly { clear: string }[]
    expect(verdict?.clear).toMatch(
      /^The isolation has ended, and nothing else changed \(packets while isolated: [1-9]\d* dropped arriving, [1-9]\d* dropped forwarded, [1-9]\d* dropped leaving\): \d+ other lines/,
    )
    for (const [name, flow] of Object.entries(flows)) expect([name, await flow?.works()]).toEqual([name, true])
    expect(await here.datagram({ to: EVIL4, port: 53 })).toBe(true)
  })

  it('keeps whoever came over SSH connected without being told', async () => {
    const session = await there.connect({ from: RESPONDER6, fromPort: 50_000, to: HOST6, port: 22 })
    const env = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', SSH_CONNECTION: `${RESPONDER6} 50000 ${HOST6} 22` }
    const { verdicts } = await host.call<Performed>(PERFORM, { step: 'isolate', name: 'isolate' }, { env })
    expect(verdicts).toEqual([{ rule: 'host-isolated', clear: expect.stringContaining(`open for ${RESPONDER6} on TCP port 22`) }])
    expect(await session?.works()).toBe(true)
    expect(await there.cannotConnect({ from: RESPONDER4, to: HOST4, port: 22 })).toBe(true)
    await release(host)
    const unknown = await isolate(host, {})
    expect(unknown.plan).toHaveProperty('refused')
    expect(await host.must(['nft', 'list', 'tables'])).toBe('table inet filter\n')
  })

  it('is taken back by its own undo, and loaded by an older nft', async () => {
    const undone = await isolate(host, { allow: ['none'] }, { undo: true })
    expect(undone.results[0]?.outcome).toBe('collected')
    expect(await host.must(['nft', 'list', 'tables'])).toBe('table inet filter\n')
    expect(undone.verdicts).toEqual([
      expect.objectContaining({ rule: 'host-isolated', notAssessed: expect.stringContaining('our table is not in the list') }),
    ])
    const plain = await isolate(host, { allow: ['none'] }, { fallback: 0 })
    expect(plain.verdicts).toEqual([{ rule: 'host-isolated', clear: expect.stringContaining('open for nobody') }])
    expect(await there.cannotConnect({ from: RESPONDER4, to: HOST4, port: 22 })).toBe(true)
    expect(await (await here.connect({ to: '::1', port: 5432 }))?.works()).toBe(true)
    await release(host)
  })
})

describe('isolate, with a path of a smaller MTU to the responder', () => {
  it('keeps a session with large packets alive', async () => {
    await using host = await openNamespace()
    await using router = await openNamespace()
    await using far = await openNamespace()
    await joinNamespaces(host, [`${HOST4}/24`, `${HOST6}/64`], router, ['192.0.2.1/24', '2001:db8::1/64'])
    await joinNamespaces(router, ['198.51.100.1/24', '2001:db8:1::1/64'], far, ['198.51.100.7/24', '2001:db8:1::7/64'], 'eth1', 'eth0')
    for (const key of ['net.ipv4.ip_forward', 'net.ipv6.conf.all.forwarding']) await router.must(['sysctl', '-qw', `${key}=1`])
    await router.must(['ip', 'link', 'set', 'eth1', 'mtu', '1400'])
    await far.must(['ip', 'link', 'set', 'eth0', 'mtu', '1400'])
    for (const [family, gateway] of [
      ['-4', '192.0.2.1'],
      ['-6', '2001:db8::1'],
    ] as const) {
      await host.must(['ip', family, 'route', 'add', 'default', 'via', gateway])
    }
    // A segment size that does not fit the path, as a server behind a tunnel would announce.
    await far.must(['ip', 'route', 'add', '192.0.2.0/24', 'via', '198.51.100.1', 'advmss', '1460'])
    await far.must(['ip', '-6', 'route', 'add', '2001:db8::/64', 'via', '2001:db8:1::1', 'advmss', '1440'])
    const [here, there] = await Promise.all([startTraffic(host), startTraffic(far)])
    await here.listen(HOST4, 22)
    await here.listen(HOST6, 22)
    await isolate(host, { allow: ['198.51.100.0/24', '2001:db8:1::/64'] })
    for (const [to, family] of [
      [HOST4, '-4'],
      [HOST6, '-6'],
    ] as const) {
      const session = await there.connect({ to, port: 22 })
      expect(await session?.works(100_000)).toBe(true)
      expect(await host.must(['ip', family, 'route', 'get', family === '-4' ? '198.51.100.7' : '2001:db8:1::7'])).toContain('mtu 1400')
    }
  })
})

describe('the plan of isolate', () => {
  let root: string

  beforeEach(() => {
    root = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-isolate-'))
    const session = fileURLToPath(new URL('../fixtures/responder/debian-12/ipv4', import.meta.url))
    fs.cpSync(session, root, { recursive: true, verbatimSymlinks: true })
    install('usr/sbin/nft')
  })

  afterEach(() => fs.rmSync(root, { recursive: true }))

  function install(name: string): void {
    fs.mkdirSync(path.dirname(path.join(root, name)), { recursive: true })
    fs.writeFileSync(path.join(root, name), '', { mode: 0o755 })
  }

  function plan(
    allow?: readonly string[],
    port?: readonly string[],
    directory = '/evidence/ir-web1-20260101T000000Z/data/isolate',
  ): Promise<Plan> {
    return step.plan({ host: openHost({ root }), options: { allow, port, 'cut-own': true }, directory, throughout: false })
  }

  async function change(...asked: Parameters<typeof plan>): Promise<Change> {
    const made = await plan(...asked)
    if (!('actions' in made) || made.actions[0]?.kind !== 'change') throw new Error(JSON.stringify(made))
    return made.actions[0]
  }

  it('keeps the SSH client connected without being told, by every port of SSH', async () => {
    const { stdin, effect, undo, argv, lasts } = await change()
    expect(stdin).toContain('elements = { 192.0.2.7 }')
    expect(stdin).toContain('elements = { 22, 2022 }')
    expect(effect).toBe(
      "Drops all packets in, out and forwarded, IPv4 and IPv6, open connections included; open for loopback and 192.0.2.7 (to TCP port 22, 2022). Stays until 'ir release'.",
    )
    expect(argv).toEqual(['/usr/sbin/nft', '-f', '-'])
    // One line, so that it can be typed as it is shown.
    expect(undo.map(run => [run.argv, run.stdin])).toEqual([
      [['/usr/sbin/nft', 'add table inet ir_isolate; delete table inet ir_isolate'], undefined],
    ])
    expect(lasts).toBe('case')
  })

  it('says that the own connection will be cut, and whose else', async () => {
    const other = '   3: 0A0200C0:0016 420200C0:C350 01 00000000:00000000 02:000AFC35 00000000     0        0 999999 2\n'
    fs.appendFileSync(path.join(root, 'proc/net/tcp'), other)
    expect((await change()).effect).toContain('Cuts other connections to these ports, from 192.0.2.66.')
    expect((await change(['198.51.100.7'])).effect).toContain('YOUR OWN CONNECTION from 192.0.2.7 to port 22 WILL BE CUT.')
    expect((await change(['192.0.2.0/26'])).effect).not.toContain('YOUR OWN')
    expect((await change(['192.0.2.7'], ['2022'])).effect).toContain('YOUR OWN CONNECTION')
    expect((await change(['none'])).effect).toContain('open for loopback and nobody.')
  })

  it('refuses a list that leaves out who is typing, unless they say that they mean it', async () => {
    const asked = (allow: string[], cutOwn: boolean) =>
      step.plan({
        host: openHost({ root }),
        options: { allow, port: undefined, 'cut-own': cutOwn },
        directory: '/e/ir-x/data/isolate',
        throughout: false,
      })
    expect(await asked(['198.51.100.7'], false)).toMatchObject({
      refused: expect.stringContaining('192.0.2.7'),
      remedy: expect.stringContaining('--cut-own'),
    })
    for (const made of [asked(['198.51.100.7'], true), asked(['none'], false), asked(['192.0.2.0/24'], false)])
      expect(await made).toHaveProperty('actions')
  })

  it("refuses this host's own addresses", async () => {
    fs.writeFileSync(path.join(root, 'proc/net/fib_trie'), 'Local:\n  +-- 0.0.0.0/0 2 0 2\n     |-- 198.51.100.9\n        /32 host LOCAL\n')
    fs.writeFileSync(path.join(root, 'proc/net/if_inet6'), '20010db8000000000000000000000009 02 40 00 80     eth0\n')
    for (const own of ['198.51.100.9', '2001:db8::9'])
      expect(await plan([own])).toMatchObject({ refused: expect.stringContaining('this host itself') })
    expect(await plan(['198.51.100.8'])).toHaveProperty('actions')
  })

  it('takes addresses and networks of both families, each once and in one form', async () => {
    const { stdin } = await change(['198.51.100.77/24', '2001:DB8:0:0::7', '::ffff:192.0.2.9'], ['2222', '22', '2222'])
    expect(stdin).toContain('set responder4 { type ipv4_addr; flags interval; auto-merge; elements = { 198.51.100.0/24, 192.0.2.9 }; }')
    expect(stdin).toContain('set responder6 { type ipv6_addr; flags interval; auto-merge; elements = { 2001:db8::7 }; }')
    expect(stdin).toContain('elements = { 22, 2222 }')
    const alone = (await change(['192.0.2.9'])).stdin
    expect(alone).not.toContain('responder6')
    expect((await change(['none'])).stdin).not.toMatch(/responder|@ports/)
  })

  it('refuses what it cannot understand, in one line that says what to type', async () => {
    const refused = async (...asked: Parameters<typeof plan>): Promise<string> => {
      const made = await plan(...asked)
      return 'refused' in made ? `${made.refused}: ${made.remedy}` : 'not refused'
    }
    expect(await refused(['bastion.example.org'])).toContain('is a name')
    expect(await refused(['bastion.example.org'])).toContain('type its address')
    expect(await refused(['192.0.2'])).toContain('no address')
    expect(await refused(['192.0.2.7; flush ruleset'])).toContain('no address')
    expect(await refused([''])).toContain('no address')
    expect(await refused(['none', '192.0.2.7'])).toContain('stands alone')
    expect(await refused(['127.0.0.1'])).toContain('this host itself')
    expect(await refused(['0.0.0.0/0'])).toContain('everybody')
    for (const port of ['0', '65536', '22x', '-1', '', '022', '22,23'])
      expect(await refused(['192.0.2.7'], [port])).toContain('no TCP port')
    for (const line of [await refused(['a\nb']), await refused(['192.0.2.7'], ['2\n2'])]) expect(line).not.toContain('\n')
  })

  it('refuses to guess who may stay, names both ways out, and can be asked', async () => {
    fs.rmSync(path.join(root, 'proc'), { recursive: true })
    expect(await plan()).toMatchObject({
      refused: 'who may stay connected is unknown: this terminal does not come over SSH',
      remedy: expect.stringMatching(/--allow ADDR .*--allow none/),
      ask: { option: 'allow' },
    })
    expect((await change(['192.0.2.7'])).stdin).toContain('192.0.2.7')
  })

  it('is unavailable without nft, whoever is connected', async () => {
    fs.rmSync(path.join(root, 'usr/sbin/nft'))
    install('usr/bin/apt-get')
    expect(await plan()).toEqual({ unavailable: 'nft is not installed', remedy: 'apt-get install nftables' })
    expect(await plan(['nonsense.example'])).toHaveProperty('refused')
  })

  it('writes nothing into the rules but what it made itself', async () => {
    await fc.assert(
      fc.asyncProperty(fc.string({ unit: 'binary', maxLength: 300 }), async name => {
        const { stdin = '', fallback } = await change(['none'], undefined, `/evidence/${name}/data/isolate`)
        expect(stdin).toMatch(/^ {2}comment "ir isolate case=[A-Za-z0-9._-]{0,100}"$/m)
        const plain = fallback?.[0]?.stdin
        expect(stdin.replace(/^ {2}comment .*\n/m, '')).toBe(plain)
        expect(plain).toBe((await change(['none'])).fallback?.[0]?.stdin)
      }),
      { numRuns: 200 },
    )
  })
})

describe('what isolate tells', () => {
  const LIST = 'nft_-s_list_ruleset.txt'
  const text = fs.readFileSync(new URL(`../fixtures/isolate/debian-12/${LIST}`, import.meta.url), 'utf8')
  const done = [
    { id: 'isolate/1', outcome: 'collected' },
    { id: 'isolate/2', outcome: 'collected' },
  ] as const

  it('is for whom the host is open', async () => {
    const networks = '192.0.2.7, 198.51.100.0/24, 203.0.113.64/27, 2001:db8::7, 2001:db8:1::/48'
    expect(await step.interpret?.(collected(done, { [LIST]: text }))).toEqual([
      { rule: 'host-isolated', clear: `The host is cut off: table inet ir_isolate is loaded, open for ${networks} on TCP port 22, 2022` },
    ])
  })

  it('is never that the host is cut off where that was not seen', async () => {
    const tell = async (actions: Parameters<typeof collected>[0], list: string): Promise<string> => {
      const [verdict] = (await step.interpret?.(collected(actions, { [LIST]: list }))) ?? []
      return verdict !== undefined && 'notAssessed' in verdict ? verdict.notAssessed : 'assessed'
    }
    expect(await tell([{ id: 'isolate/1', outcome: 'failed', reason: 'nft exited with 1: Operation not permitted' }], text)).toBe(
      'the host is not cut off: nft exited with 1: Operation not permitted',
    )
    expect(await tell([], text)).toContain('nothing was loaded')
    expect(await tell(done, '')).toContain('our table is not in the list')
    expect(await tell(done, text.replaceAll('ir_isolate', 'ir_else'))).toContain('our table is not in the list')
    expect(await tell(done, text.replace('hook forward priority -450', ''))).toContain('parts of our table are missing')
    expect(await tell([done[0], { id: 'isolate/2', outcome: 'timed-out', reason: 'nft was ended after 60 s' }], '')).toContain(
      'nft was ended after 60 s',
    )
  })
})
