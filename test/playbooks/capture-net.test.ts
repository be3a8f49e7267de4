import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { captureNet as step } from '../../playbooks/steps/capture-net.js'
import { openHost } from '../../src/host.js'
import type { Collect, Plan } from '../../src/step.js'
import { openNamespace } from '../helpers/namespace.js'

const DEFAULTS = { rotate: 300, files: 5, snaplen: 0, filter: undefined, interface: 'any', duration: 1500 }
const DIRECTORY = '/evidence/ir-web1-20260101T000000Z/data/capture-net'

describe('the plan of capture-net', () => {
  let root: string

  beforeEach(() => {
    root = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-capture-net-'))
    for (const name of ['usr/bin/tcpdump', 'usr/sbin/ip', 'proc/net/dev']) {
      fs.mkdirSync(path.dirname(path.join(root, name)), { recursive: true })
      fs.writeFileSync(path.join(root, name), '', { mode: 0o755 })
    }
    const heading = 'Inter-|   Receive  |  Transmit\n face |bytes |bytes\n'
    fs.writeFileSync(path.join(root, 'proc/net/dev'), `${heading}    lo:       0       0\n  eth0: 1500 12\nveth1f2:99 1\n`)
  })

  afterEach(() => fs.rmSync(root, { recursive: true }))

  function plan(options: Partial<typeof DEFAULTS> | { filter: string } = {}, throughout = false): Promise<Plan> {
    return step.plan({ host: openHost({ root }), options: { ...DEFAULTS, ...options }, directory: DIRECTORY, throughout })
  }

  async function collect(...asked: Parameters<typeof plan>): Promise<Collect> {
    const made = await plan(...asked)
    if (!('actions' in made) || made.actions[1]?.kind !== 'collect') throw new Error(JSON.stringify(made))
    return made.actions[1]
  }

  it('reads what tcpdump writes, into a ring', async () => {
    const { source, options, collector, limit, expectedSeconds } = await collect()
    expect(source?.[0]?.argv).toEqual(['/usr/bin/tcpdump', '-i', 'any', '-n', '-p', '-U', '-s', '0', '-w', '-'])
    expect(collector).toBe('packet-ring')
    expect(options).toEqual({ rotateSeconds: 300, files: 5, segmentBytes: Math.floor((2 * 1024 ** 3) / 6), seconds: 1500 })
    expect(limit).toBeGreaterThan(1500)
    expect(expectedSeconds).toBe(1500)
    expect(source?.[0]?.limit).toBe(limit)
  })

  it('does not end by itself beside other steps', async () => {
    const { options, limit, expectedSeconds } = await collect({}, true)
    expect(options).not.toHaveProperty('seconds')
    expect(expectedSeconds).toBeUndefined()
    expect(limit).toBeGreaterThan(12 * 3600)
  })

  it('hands a filter on as one argument that cannot be an option', async () => {
    expect((await collect({ filter: 'not port 22 and (udp or tcp)' })).source?.[0]?.argv.slice(-3)).toEqual([
      '-',
      '--',
      'not port 22 and (udp or tcp)',
    ])
    expect((await collect({ filter: '-z/tmp/evil' })).source?.[0]?.argv.slice(-2)).toEqual(['--', '-z/tmp/evil'])
    expect((await collect({ filter: ' ' })).source?.[0]?.argv.at(-1)).toBe('-')
  })

  it('takes only an interface that is there', async () => {
    expect((await collect({ interface: 'veth1f2', snaplen: 128 })).source?.[0]?.argv.slice(1, 8)).toEqual([
      '-i',
      'veth1f2',
      '-n',
      '-p',
      '-U',
      '-s',
      '128',
    ])
    for (const name of ['eth1', '', '-z', '../lo', 'eth0 ', '4']) {
      const made = await plan({ interface: name })
      expect(made).toEqual({
        refused: `there is no interface ${JSON.stringify(name)}`,
        remedy: '--interface any, or one of: lo, eth0, veth1f2',
      })
    }
  })

  it('saves which number is which interface, by what there is', async () => {
    const first = async () => {
      const made = await plan()
      return 'actions' in made ? made.actions[0] : undefined
    }
    expect(await first()).toMatchObject({ kind: 'observe', argv: ['/usr/sbin/ip', '-o', 'link'], stdout: 'ip_-o_link.txt' })
    fs.rmSync(path.join(root, 'usr/sbin/ip'))
    expect(await first()).toMatchObject({ kind: 'copy', from: '/proc/net/dev' })
  })

  it('is unavailable without tcpdump', async () => {
    fs.rmSync(path.join(root, 'usr/bin/tcpdump'))
    expect(await plan()).toMatchObject({ unavailable: 'tcpdump is not installed' })
  })

  it('is what the tcpdump of this machine takes', async () => {
    await using host = await openNamespace()
    const made = await step.plan({
      host: openHost(),
      options: { ...DEFAULTS, filter: 'not port 22' },
      directory: DIRECTORY,
      throughout: false,
    })
    const collecting = 'actions' in made ? made.actions[1] : undefined
    const argv = collecting?.kind === 'collect' ? (collecting.source?.[0]?.argv ?? []) : []
    const header = await host.run(['timeout', '--signal=TERM', '2', ...argv])
    expect(header.stderr).toContain('listening on any')
    expect(Buffer.from(header.stdout, 'utf8').length).toBeGreaterThan(0)
  })
})
