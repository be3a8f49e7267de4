/** A dry run starts no program and writes no file, and prints the plan that a real run executes. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { afterAll, expect, it } from 'vitest'
import { golden30 } from '../../playbooks/golden-30.js'
import { IR, ir, outputDirectory, removeDirectories } from '../helpers/ir.js'

afterAll(removeDirectories)

const DRY = ['respond', '--dry-run', '--allow', '198.51.100.7,2001:db8::7']

it('executes nothing but the launcher and Node, and opens nothing for writing', () => {
  const output = outputDirectory()
  const trace = path.join(outputDirectory(), 'trace')
  execFileSync(
    'strace',
    [
      '-f',
      '-o',
      trace,
      '-e',
      'trace=execve,execveat,open,openat,openat2,creat,mkdir,mkdirat,rename,renameat2,unlink,unlinkat,link,linkat,symlink,symlinkat,connect,init_module,finit_module,mount,chmod,fchmodat,truncate',
      IR,
      ...DRY,
      '--output',
      output,
    ],
    {
      stdio: ['ignore', 'ignore', 'inherit'],
      env: { PATH: '/usr/bin:/bin' },
    },
  )
  const calls = fs.readFileSync(trace, 'utf8').split('\n')
  const programs = calls.flatMap(line => /execve\("([^"]+)".*= 0/.exec(line)?.[1] ?? [])
  expect(programs.map(program => path.basename(program))).toEqual(['ir', 'node'])
  const writes = calls.filter(line => /O_WRONLY|O_RDWR|O_CREAT|O_TRUNC/.test(line) && !/"\/dev\/(null|tty)"/.test(line))
  expect(writes).toEqual([])
  const changes = calls.filter(line =>
    /\b(creat|mkdir|mkdirat|rename\w*|unlink\w*|link|linkat|symlink\w*|connect|f?init_module|mount|chmod|fchmodat|truncate)\(/.test(line),
  )
  expect(changes).toEqual([])
  expect(fs.readdirSync(output)).toEqual([])
})

it('starts nothing out of a poisoned PATH', async () => {
  const poison = outputDirectory()
  const mark = path.join(poison, 'mark')
  for (const name of [
    'node',
    'nft',
    'ss',
    'ip',
    'tcpdump',
    'lsattr',
    'sh',
    'uname',
    'id',
    'dirname',
    'readlink',
    'sudo',
    'conntrack',
    'env',
  ]) {
    fs.writeFileSync(path.join(poison, name), `#!/bin/sh\necho ${name} >> ${mark}\n`, { mode: 0o755 })
  }
  const found = await ir(DRY, { env: { PATH: poison } })
  expect(found).toMatchObject({ code: 0, stderr: '' })
  expect(fs.existsSync(mark)).toBe(false)
})

it('shows reads, copies and changes with their undo, what is missing, bytes and time', async () => {
  const { stdout } = await ir(DRY)
  for (const step of [...golden30.throughout, ...golden30.steps]) expect(stdout).toContain(step.id)
  expect(stdout).toMatch(/^ {2}\$ .*\/ss -/m)
  expect(stdout).toMatch(/^ {2}= \/proc\/net\/tcp$/m)
  expect(stdout).toMatch(/^ {2}! .*\/nft -f -$/m)
  expect(stdout).toMatch(/undo: .*\/nft 'add table inet ir_isolate; delete table inet ir_isolate'/)
  expect(stdout).toMatch(/capture-mem/)
  expect(stdout).toMatch(/Expected: up to .* of a budget of 30m/)
})

it('prints failed pre-checks as lines of the plan and exits 0', async () => {
  const found = await ir([...DRY, '--output', '/proc'])
  expect(found.code).toBe(0)
  expect(found.stdout).toMatch(/^ {2}no {2}(output|space)/m)
})

it('as JSON is the plan document alone', async () => {
  const found = await ir([...DRY, '--json'])
  expect(found.code).toBe(0)
  const plan = JSON.parse(found.stdout)
  expect(plan).toMatchObject({ format: 'ir-plan/1', playbook: 'golden-30' })
  expect(found.stdout).toBe(`${JSON.stringify(plan, null, 2)}\n`)
})
