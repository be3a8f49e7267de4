/** The main job, end to end: the real command in a namespace, an attacker and a responder in another. */
import fs from 'node:fs'
import path from 'node:path'
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest'
import { caseIn, checkWithStandardTools, custodyOf, IR, ir, outputDirectory, removeDirectories } from '../helpers/ir.js'
import { joinNamespaces, type Namespace, openNamespace } from '../helpers/namespace.js'

const ATTACKER = '203.0.113.66'
const RESPONDER = '198.51.100.7'

let host: Namespace
let peer: Namespace
let output: string
let audited: string

beforeEach(async () => {
  output = outputDirectory()
  audited = outputDirectory()
  host = await openNamespace()
  peer = await openNamespace()
  await joinNamespaces(host, ['192.0.2.10/24', '2001:db8:1::10/64'], peer, ['192.0.2.1/24', `${ATTACKER}/32`, `${RESPONDER}/32`])
  await host.must(['ip', 'route', 'add', 'default', 'via', '192.0.2.1'])
})
afterEach(async () => {
  await host.close()
  await peer.close()
})
afterAll(removeDirectories)

/** A flow that sends a beat and counts answers: `beats()` tells how many came so far. */
async function conversation(server: Namespace, listen: string, client: Namespace, port: number, from?: string): Promise<() => number> {
  const serve = `require('net').createServer(s=>{s.on('error',()=>{});s.on('data',d=>s.write(d))}).listen(${port},'${listen}',()=>console.log('up'))`
  const serving = server.start([process.execPath, '-e', serve])
  await new Promise(resolve => serving.stdout?.once('data', resolve))
  const talk = `const s=require('net').connect({host:'${listen}',port:${port}${from ? `,localAddress:'${from}'` : ''}});s.on('error',()=>{});s.on('data',()=>console.log('beat'));setInterval(()=>s.write('x'),100)`
  const talking = client.start([process.execPath, '-e', talk])
  let beats = 0
  talking.stdout?.on('data', chunk => {
    beats += String(chunk).split('beat').length - 1
  })
  while (beats === 0) await new Promise(resolve => setTimeout(resolve, 50))
  return () => beats
}

const after = (milliseconds: number) => new Promise(resolve => setTimeout(resolve, milliseconds))

const respond = (...more: string[]) =>
  host.run([IR, 'respond', '--yes', '--allow', RESPONDER, '--output', output, '--path', audited, ...more], { timeout: 120_000 })

describe('ir respond', () => {
  it('cuts the attacker off, keeps the responder, and leaves one sealed archive', async () => {
    const before = await host.must(['nft', 'list', 'ruleset'])
    const beacon = await conversation(peer, ATTACKER, host, 4444)
    const session = await conversation(host, '192.0.2.10', peer, 22, RESPONDER)
    const found = await respond('--examiner', 'Eve', '--authority', 'CISO', '--case', 'INC-42')
    // No source of physical memory here: sealed, but something is missing.
    expect(found.code, found.stderr + found.stdout).toBe(3)

    const [beats, heard] = [beacon(), session()]
    await after(1000)
    expect(beacon()).toBe(beats)
    expect(session()).toBeGreaterThan(heard)

    const directory = caseIn(output)
    const bag = checkWithStandardTools(`${directory}.zip`)
    expect(fs.readFileSync(path.join(bag, 'bag-info.txt'), 'utf8')).toMatch(/INC-42/)
    expect(fs.readFileSync(path.join(bag, 'bag-info.txt'), 'utf8')).toMatch(/Eve/)
    expect((await ir(['verify', `${directory}.zip`])).code).toBe(0)
    expect((await ir(['verify', directory])).code).toBe(0)

    const custody = custodyOf(directory)
    const outcomes = Object.fromEntries(custody.filter(line => line.event === 'step').map(line => [line.step, line.outcome]))
    expect(outcomes).toEqual({
      isolate: 'collected',
      'snapshot-connections': expect.stringMatching(/collected|unavailable/),
      'snapshot-processes': 'collected',
      'capture-mem': 'unavailable',
      'audit-attrs': 'collected',
      'capture-net': 'collected',
    })
    expect(fs.readFileSync(path.join(directory, 'custody.jsonl'), 'utf8')).toContain('"step":"capture-mem"')
    expect(custody.at(-1)?.event).toBe('seal')
    // The way back stands in the log before the rules are loaded.
    const [announced, loaded] = [
      custody.findIndex(line => line.event === 'change' && line.action === 'isolate/1'),
      custody.findIndex(line => line.event === 'finish' && line.action === 'isolate/1'),
    ]
    expect(announced).toBeGreaterThan(0)
    expect(announced).toBeLessThan(loaded)

    const sockets = fs.readFileSync(path.join(directory, 'data/snapshot-connections/sockets.jsonl'), 'utf8')
    expect(sockets).toContain(ATTACKER)
    expect(fs.readdirSync(path.join(directory, 'data/capture-net')).filter(name => name.endsWith('.pcap')).length).toBeGreaterThan(0)

    // The way back, by hand.
    const undone = await host.run(['sh', path.join(directory, 'undo.sh')])
    expect(undone.code, undone.stderr).toBe(0)
    expect(await host.must(['nft', 'list', 'ruleset'])).toBe(before)
  })

  it('prints in a dry run what it then does: the plan is the same but for its time', async () => {
    const args = [
      'respond',
      '--allow',
      RESPONDER,
      '--output',
      output,
      '--path',
      audited,
      '--only',
      'isolate,snapshot-connections,audit-attrs',
      '--json',
    ]
    const dry = await host.must([IR, ...args, '--dry-run'])
    await host.run([IR, ...args, '--yes'])
    const real = fs.readFileSync(path.join(caseIn(output), 'plan.json'), 'utf8')
    const timeless = (text: string): string => text.replaceAll(/\d{8}T\d{6}Z/g, 'STAMP').replaceAll(/"planned": "[^"]+"/g, '"planned"')
    expect(timeless(dry)).toBe(timeless(real))
  })

  it('is one JSON document with --json, everything else on stderr', async () => {
    const found = await respond('--only', 'snapshot-connections', '--json')
    const document = JSON.parse(found.stdout)
    expect(document).toMatchObject({ exit: found.code, archive: `${caseIn(output)}.zip`, head: expect.stringMatching(/^[0-9a-f]{64}$/) })
    expect(found.stderr).toContain('snapshot-connections')
  })

  it('without a program seals what there is, names the package, and exits 3', async () => {
    const empty = path.join(outputDirectory(), 'empty')
    fs.writeFileSync(empty, '', { mode: 0o644 })
    const hide = 'mount --bind "$1" "$(readlink -f "$(command -v tcpdump)")" && shift && exec "$@"'
    const only = ['--only', 'capture-net,isolate', '--allow', RESPONDER, '--output', output, '--yes']
    const found = await host.run(['unshare', '--mount', 'sh', '-c', hide, 'sh', empty, IR, 'respond', ...only])
    expect(found.code, found.stderr).toBe(3)
    expect(found.stdout).toMatch(/capture-net {2}unavailable.*tcpdump is not installed.*install tcpdump/)
    checkWithStandardTools(`${caseIn(output)}.zip`)
  })

  it('finds changed, truncated and extended archives: exit 5, and what differs', async () => {
    await respond('--only', 'snapshot-connections')
    const archive = `${caseIn(output)}.zip`
    const whole = fs.readFileSync(archive)
    const tampered = path.join(outputDirectory(), path.basename(archive))
    const at = whole.indexOf('data/snapshot-connections/sockets.jsonl') + 60
    const changed = Buffer.from(whole)
    changed.writeUInt8((changed.readUInt8(at) + 1) % 256, at)
    const cases = { changed, truncated: whole.subarray(0, -100), extended: Buffer.concat([whole, Buffer.from('x')]) }
    for (const [how, bytes] of Object.entries(cases)) {
      fs.writeFileSync(tampered, bytes)
      const found = await ir(['verify', tampered])
      expect(found.code, `${how}: ${found.stdout}`).toBe(5)
      expect(found.stdout).toMatch(/^differs: \S+/m)
      expect(found.stdout).toContain('NOT intact')
      const document = JSON.parse((await ir(['verify', '--json', tampered])).stdout)
      expect(document.intact).toBe(false)
    }
    fs.writeFileSync(path.join(caseIn(output), 'data/snapshot-connections/planted.txt'), 'x')
    expect((await ir(['verify', caseIn(output)])).code).toBe(5)
  })

  it('leaves out what --skip names', async () => {
    await respond('--skip', 'capture-net,capture-mem,snapshot-processes,snapshot-connections')
    const steps = custodyOf(caseIn(output)).flatMap(line => (line.event === 'step' ? [line.step] : []))
    expect(steps).toEqual(['isolate', 'audit-attrs'])
  })

  it('takes flags as IR_ variables', async () => {
    const found = await host.run([IR, 'respond', '--only', 'audit-attrs'], {
      env: { PATH: '/usr/bin:/bin', IR_OUTPUT: output, IR_PATH: audited, IR_YES: 'true', IR_CASE: 'INC-43' },
    })
    expect(found.code, found.stderr).toBe(0)
    expect(fs.readFileSync(path.join(caseIn(output), 'bag-info.txt'), 'utf8')).toContain('INC-43')
  })

  it('isolates, stays isolated when isolated again, and releases exactly', async () => {
    await host.must(['nft', '-f', '-'], {
      stdin:
        'table inet site {\n set banned { type ipv4_addr; elements = { 192.0.2.99 }; }\n chain input { type filter hook input priority 0; policy accept; ip saddr @banned counter drop; }\n}\n',
    })
    const before = await host.must(['nft', '-s', 'list', 'ruleset'])
    for (const _ of [1, 2]) {
      const found = await host.run([IR, 'isolate', '--yes', '--allow', RESPONDER, '--output', outputDirectory()])
      expect(found.code, found.stderr).toBe(0)
      expect(found.stderr).toContain('undo:')
    }
    expect((await host.must(['nft', 'list', 'tables'])).match(/ir_isolate/g)).toHaveLength(1)
    const released = await host.run([IR, 'release', '--yes', '--output', output])
    expect(released.code, released.stderr).toBe(0)
    expect(released.stdout).toMatch(/nothing else/i)
    expect(await host.must(['nft', '-s', 'list', 'ruleset'])).toBe(before)
  })

  describe('with an nft that lies', () => {
    /** Runs `ir isolate` where a script stands in for nft; REAL in it is the real one. */
    const isolateWith = async (script: string) => {
      const directory = outputDirectory()
      const [fake, real] = [path.join(directory, 'nft'), path.join(directory, 'real')]
      fs.copyFileSync(fs.realpathSync('/usr/sbin/nft'), real)
      fs.chmodSync(real, 0o755)
      fs.writeFileSync(fake, `#!/bin/sh\n${script.replaceAll('REAL', real)}\n`, { mode: 0o755 })
      const over = 'mount --bind "$1" "$(readlink -f /usr/sbin/nft)" && shift && exec "$@"'
      return host.run([
        'unshare',
        '--mount',
        'sh',
        '-c',
        over,
        'sh',
        fake,
        IR,
        'isolate',
        '--yes',
        '--allow',
        RESPONDER,
        '--output',
        outputDirectory(),
      ])
    }

    it.each([
      ['does nothing', 'exit 0'],
      ['loads something else', '[ "$1" = -f ] && exec sed s/"counter drop"/"counter accept"/ | REAL -f -; exec REAL "$@"'],
      [
        'adds a way through',
        '[ "$1" = -f ] && { REAL -f - || exit 1; exec REAL insert rule inet ir_isolate leaving accept; }; exec REAL "$@"',
      ],
    ])('that %s: not isolated, and said so', async (_how, script) => {
      const found = await isolateWith(script)
      expect(found.code, found.stdout).toBe(3)
      expect(found.stdout).toContain('not verified')
      expect(found.stdout).not.toContain('still in force')
      expect(found.stdout).not.toContain('The host is cut off: ')
    })

    it('a second isolation that is doubted does not lift the first', async () => {
      expect((await host.run([IR, 'isolate', '--yes', '--allow', 'none', '--output', output])).code).toBe(0)
      const found = await isolateWith('case "$*" in "-s list table"*) exit 1;; esac; exec REAL "$@"')
      expect(found.code).toBe(3)
      expect(found.stdout).toContain('nothing was undone')
      expect(await host.must(['nft', 'list', 'tables'])).toContain('ir_isolate')
    })
  })

  it('with a tool that floods goes on, seals, and says what was cut', async () => {
    const flood = path.join(outputDirectory(), 'ss')
    fs.writeFileSync(flood, '#!/bin/sh\nexec cat /dev/zero\n', { mode: 0o755 })
    const script = [
      'mount -t tmpfs -o size=150m,mode=700 small "$1" && mount --bind "$2" "$(readlink -f "$(command -v ss)")"',
      'shift 2; "$@"; code=$?; ls "$IR_OUTPUT"/*.zip >&2; exit $code',
    ].join('\n')
    const only = ['--yes', '--allow', RESPONDER, '--only', 'isolate,snapshot-connections,snapshot-processes']
    const found = await host.run(['unshare', '--mount', 'sh', '-c', script, 'sh', output, flood, IR, 'respond', ...only], {
      env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', IR_OUTPUT: output },
      timeout: 120_000,
    })
    expect(found.code, found.stdout + found.stderr).toBe(3)
    expect(found.stdout).toMatch(/snapshot-connections {2}failed.*wrote more than it may/)
    expect(found.stdout).toMatch(/snapshot-processes {2}collected/)
    expect(found.stderr).toContain('.zip')
  })
})
