/** ir doctor as a process. */
import fs from 'node:fs'
import path from 'node:path'
import { afterAll, expect, it } from 'vitest'
import { TOOLS } from '../../playbooks/tools.js'
import type { Examination } from '../../src/doctor/examination.js'
import { ir, outputDirectory, removeDirectories } from '../helpers/ir.js'

afterAll(removeDirectories)

it('tells people in tables, and exits 0 whatever is missing', async () => {
  const { code, stdout, stderr } = await ir(['doctor'])
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  const headings = stdout.split('\n').filter(line => /^[A-Z]+$/.test(line))
  expect(headings).toEqual(['HOST', 'RIGHTS', 'TOOLS', 'MEMORY', 'DISKS', 'OUTPUT', 'CLOCK', 'CONNECTION'])
  // Whatever lacks has its remedy on the next line.
  const lines = stdout.split('\n')
  for (const [index, line] of lines.entries()) if (/^ {2}(LACK|\?) /.test(line)) expect(lines[index + 1]).toMatch(/^ +-> \S/)
})

it('tells programs in one document', async () => {
  const { code, stdout, stderr } = await ir(['doctor', '--json', '--output', '/dev/shm'])
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  const found = JSON.parse(stdout) as Examination
  const about = (topic: string): Examination['facts'] => found.facts.filter(fact => fact.topic === topic)
  expect(about('tools').map(({ what }) => what)).toEqual(Object.keys(TOOLS))
  expect(about('output')[0]).toMatchObject({ what: '/dev/shm', state: 'lack' })
  expect(about('disks').find(({ what }) => what === '/')).toMatchObject({ detail: { attributes: true } })
  expect(found.facts.filter(({ state }) => state === 'lack').length).toBe(found.lacks)
})

it('needs no root', async () => {
  // setpriv: no user to be made, nothing kept of root.
  const prefix = ['/usr/bin/setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', '--inh-caps=-all', '--bounding-set=-all']
  const { code, stdout } = await ir(['doctor', '--json', '--output', '/var/tmp'], { prefix, cwd: '/' })
  expect(code).toBe(0)
  const found = JSON.parse(stdout) as Examination
  expect(found.facts.find(({ what }) => what === 'root')).toMatchObject({ state: 'lack', remedy: 'sudo ir doctor' })
  expect(found.facts.find(({ what }) => what === 'CAP_NET_ADMIN')).toMatchObject({ state: 'lack' })
})

it('writes nothing', async () => {
  const output = outputDirectory()
  const before = fs.statSync(output).mtimeMs
  expect((await ir(['doctor', '--output', output], { cwd: output })).code).toBe(0)
  expect(fs.readdirSync(output)).toEqual([])
  expect(fs.statSync(output).mtimeMs).toBe(before)
})

it('an output directory that does not exist is a lack, not a failure', async () => {
  const gone = path.join(outputDirectory(), 'gone')
  const { code, stdout } = await ir(['doctor', '--output', gone])
  expect(code).toBe(0)
  expect(stdout).toMatch(/LACK {2}.*does not exist/)
})
