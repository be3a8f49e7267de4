/** The rehearsal: real, confined, and gone afterwards. The machine's own network is looked at before and after, never touched. */
import { execFileSync, spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { afterAll, expect, it } from 'vitest'
import { networkNamespace } from '../../src/confinement.js'
import { debrief } from '../../src/drill/debrief.js'
import { caseIn, checkWithStandardTools, custodyOf, IR, ir, outputDirectory, removeDirectories } from '../helpers/ir.js'

afterAll(removeDirectories)

/** Rules, addresses and routes of the machine: what a drill must not touch. Reading only. */
const machine = (): string =>
  [
    ['nft', '-s', 'list', 'ruleset'],
    ['ip', '-o', 'addr'],
    ['ip', 'route'],
  ]
    .map(([program, ...args]) => execFileSync(program as string, args).toString())
    .join('\n')
    .replaceAll(/valid_lft \S+ preferred_lft \S+/g, '')

/** Network namespaces that processes are in, those of other tests included. */
const namespaces = (): Set<string> => {
  const pids = fs.readdirSync('/proc').filter(name => /^\d+$/.test(name))
  return new Set(pids.flatMap(pid => networkNamespace(Number(pid)) ?? []))
}

/** A process and all its descendants, by the parents that /proc names. */
function family(pid: number): number[] {
  const parents = fs.readdirSync('/proc').flatMap(name => {
    try {
      return /^\d+$/.test(name)
        ? [
            [
              Number(name),
              Number(
                fs
                  .readFileSync(`/proc/${name}/stat`, 'utf8')
                  .replace(/^.*\) . /s, '')
                  .split(' ')[0],
              ),
            ] as const,
          ]
        : []
    } catch {
      return []
    }
  })
  const found = [pid]
  for (const one of found) found.push(...parents.filter(([, parent]) => parent === one).map(([child]) => child))
  return found
}

const exists = (pid: number): boolean => fs.existsSync(`/proc/${pid}`)

it('cuts, sees and saves for real, and leaves the machine as it was', async () => {
  const output = outputDirectory()
  const before = machine()
  const found = await ir(['drill', '--output', output, '--json'])
  expect(found.code, found.stderr).toBe(0)
  expect(machine()).toBe(before)
  const sockets = fs.readFileSync(path.join(caseIn(output), 'data/snapshot-connections/sockets.jsonl'), 'utf8')
  const own = JSON.parse(sockets.split('\n').find(line => line.includes('"own":true')) as string).namespace
  expect(`net:[${own}]`).not.toBe(networkNamespace())
  expect(namespaces()).not.toContain(`net:[${own}]`)

  const document = JSON.parse(found.stdout)
  expect(document.drill.intact).toBe(true)
  const attackers = document.drill.cut.filter((flow: { port: number }) => flow.port === 4444)
  expect(attackers.map((flow: { address: string }) => flow.address).toSorted()).toEqual(['2001:db8:66::66', '203.0.113.66'])
  for (const flow of attackers) {
    expect(flow.silenced).toBe(true)
    expect(flow.sentBefore).toBeGreaterThan(0)
    expect(flow.owners.join()).toContain('beacon')
  }
  expect(document.drill.responder.length).toBe(2)
  for (const flow of document.drill.responder) expect(flow.alive).toBe(true)
  expect(Object.values(document.drill.dropped as Record<string, number>).reduce((sum, count) => sum + count, 0)).toBeGreaterThan(0)
  const seen = JSON.stringify(document.drill.seen)
  expect(seen).toContain('dbus-update')
  expect(seen).toContain('id_rsa.lock')
  expect(document.drill.saved.executables).toBeGreaterThan(0)
  expect(document.drill.saved.memoryBytes).toBeGreaterThan(0)

  const directory = caseIn(output)
  checkWithStandardTools(`${directory}.zip`)
  expect((await ir(['verify', `${directory}.zip`])).code).toBe(0)
})

it('reports from the archive alone: what is not in it is not reported', async () => {
  const output = outputDirectory()
  const found = await ir(['drill', '--output', output, '--json'])
  const archive = JSON.parse(found.stdout).archive
  const whole = await debrief(archive)
  expect(whole).toEqual(JSON.parse(found.stdout).drill)
  execFileSync('zip', ['-q', '-d', archive, '*/sockets.jsonl', '*/findings.json', '*/capture-0001.pcap'])
  const rest = await debrief(archive)
  expect(rest).toMatchObject({ intact: false, cut: [], responder: [], seen: [], saved: { packets: 0 } })
})

it('killed at any moment leaves no namespace and no process', async () => {
  const output = outputDirectory()
  const child = spawn(IR, ['drill', '--output', output], { stdio: 'ignore' })
  const log = (): boolean => fs.readdirSync(output).some(name => name.endsWith('Z'))
  for (let tries = 0; tries < 3000 && !log(); tries++) await new Promise(resolve => setTimeout(resolve, 10))
  await new Promise(resolve => setTimeout(resolve, 1500))
  const members = family(child.pid as number)
  const own = new Set(members.flatMap(pid => networkNamespace(pid) ?? []).filter(id => id !== networkNamespace()))
  expect(own.size).toBe(2)
  child.kill('SIGKILL')
  const left = (): number[] => members.filter(exists)
  for (let tries = 0; tries < 1000 && left().length > 0; tries++) await new Promise(resolve => setTimeout(resolve, 20))
  expect(left()).toEqual([])
  expect([...namespaces()].filter(id => own.has(id))).toEqual([])
})

it('Ctrl-C seals what there is, once', async () => {
  const output = outputDirectory()
  const child = spawn(IR, ['drill', '--output', output], { stdio: 'ignore' })
  const log = (): string => {
    const found = fs.readdirSync(output).find(name => name.endsWith('Z'))
    const file = found === undefined ? '' : path.join(output, found, 'custody.jsonl')
    return file !== '' && fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : ''
  }
  for (let tries = 0; tries < 3000 && !log().includes('"event":"start","action":"audit-attrs/'); tries++) {
    await new Promise(resolve => setTimeout(resolve, 10))
  }
  child.kill('SIGINT')
  const code = await new Promise(resolve => child.once('exit', resolve))
  expect(code).toBe(130)
  expect(custodyOf(caseIn(output)).at(-1)?.event).toBe('seal')
  expect((await ir(['verify', `${caseIn(output)}.zip`])).code).toBe(0)
})

it('cannot run in the machine’s own namespace, whatever it is told', async () => {
  const output = outputDirectory()
  const own = networkNamespace() as string
  for (const claimed of [own, 'net:[1]', 'nonsense', '']) {
    const found = await ir(['drill', '--confined-from', claimed, '--output', output])
    expect(found.code).toBe(4)
    expect(found.stderr).toMatch(/not confined|namespace made for it/)
  }
  expect(fs.readdirSync(output)).toEqual([])
})

it('does not change anything when unshare lies', async () => {
  // An unshare that does not unshare: in a mount namespace of its own, over the real one.
  const output = outputDirectory()
  const fake = path.join(outputDirectory(), 'unshare')
  // biome-ignore lint/suspicious/noTemplateCurlyInString: it is the shell's
  fs.writeFileSync(fake, '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n', { mode: 0o755 })
  const before = machine()
  const script = `mount --bind ${fake} /usr/bin/unshare && exec ${IR} drill --output ${output}`
  // A network namespace around it all the same: should the proof fail, it is this one that is cut off.
  const child = spawn('unshare', ['--net', '--mount', 'sh', '-c', script], { stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  child.stderr.on('data', chunk => {
    said += chunk
  })
  const code = await new Promise(resolve => child.once('exit', resolve))
  expect(code).toBe(4)
  expect(said).toMatch(/not confined/)
  expect(machine()).toBe(before)
  expect(fs.readdirSync(output)).toEqual([])
})

it('the debriefing cannot see the plants', () => {
  const source = fs.readFileSync(path.join(import.meta.dirname, '../../src/drill/debrief.ts'), 'utf8')
  const imports = [...source.matchAll(/from '([^']+)'/g)].map(found => found[1])
  expect(imports.filter(name => /plants|roles|arena/.test(name ?? ''))).toEqual([])
})
