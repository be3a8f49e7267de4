/** At a terminal: what the engineer is asked, what is shown before a change is made, and a terminal that goes away. */
import fs from 'node:fs'
import path from 'node:path'
import { afterAll, afterEach, beforeEach, expect, it } from 'vitest'
import { caseIn, custodyOf, IR, ir, outputDirectory, removeDirectories } from '../helpers/ir.js'
import { type Finished, type Namespace, openNamespace } from '../helpers/namespace.js'

const TERMINAL = path.join(import.meta.dirname, '../helpers/terminal.py')
const RESPONDER = '198.51.100.7'

let host: Namespace
let output: string
beforeEach(async () => {
  host = await openNamespace()
  output = outputDirectory()
})
afterEach(() => host.close())
afterAll(removeDirectories)

const PYTHON = fs.existsSync('/usr/bin/python3') ? '/usr/bin/python3' : 'python3'

/** Runs `ir` on a terminal; each answer is typed when its question has appeared. */
const atTerminal = (answers: Record<string, string>, ...args: string[]): Promise<Finished> =>
  host.run([PYTHON, TERMINAL, ...Object.entries(answers).map(pair => pair.join('=')), '--', IR, ...args, '--output', output], {
    timeout: 150_000,
    env: { PATH: `${process.env.PATH}:/usr/sbin:/usr/bin:/sbin:/bin`, TERM: 'xterm', HOME: '/nonexistent' },
  })

const isCut = async (): Promise<boolean> => (await host.must(['nft', 'list', 'tables'])).includes('ir_isolate')

it('shows the change, its undo and the disk, and makes it after yes', async () => {
  const found = await atTerminal({ "Type 'yes'": 'yes' }, 'isolate', '--allow', RESPONDER)
  expect(found.code, found.stdout).toBe(0)
  const before = found.stdout.slice(0, found.stdout.indexOf("Type 'yes'"))
  expect(before).toContain('Drops all packets')
  expect(before).toContain('undo:')
  expect(before).toMatch(/free on the disk of/)
  expect(await isCut()).toBe(true)
  expect(custodyOf(caseIn(output)).find(line => line.event === 'consent')).toMatchObject({ how: 'typed yes' })
})

it('changes nothing after anything else', async () => {
  const found = await atTerminal({ "Type 'yes'": 'y' }, 'isolate', '--allow', RESPONDER)
  expect(found.code, found.stdout).toBe(4)
  expect(await isCut()).toBe(false)
  expect(fs.readdirSync(output)).toEqual([])
})

it('asks who stays connected when it cannot tell', async () => {
  const found = await atTerminal({ 'Which address': RESPONDER, "Type 'yes'": 'yes' }, 'isolate')
  expect(found.code, found.stdout).toBe(0)
  expect(await host.must(['nft', 'list', 'table', 'inet', 'ir_isolate'])).toContain(RESPONDER)
})

it('a response on a terminal draws its steps and ends with the head to note', async () => {
  const found = await atTerminal({}, 'respond', '--yes', '--allow', RESPONDER, '--only', 'isolate,snapshot-connections', '--case', 'INC-1')
  expect(found.code, found.stdout).toBe(0)
  expect(found.stdout).toMatch(/isolate.*collected/)
  expect(found.stdout).toMatch(/left of 30:00/)
  expect(found.stdout).toMatch(/head\S*\s+[0-9a-f]{64}/)
})

it('goes on and seals when the terminal goes away', async () => {
  const audited = outputDirectory()
  for (let index = 0; index < 3000; index++) fs.writeFileSync(path.join(audited, String(index)), '')
  const found = await atTerminal(
    { 'audit-attrs': 'hangup' },
    'respond',
    '--yes',
    '--allow',
    RESPONDER,
    '--only',
    'isolate,audit-attrs',
    '--path',
    audited,
  )
  expect(found.code, found.stdout).toBe(0)
  expect(custodyOf(caseIn(output)).at(-1)?.event).toBe('seal')
  expect((await ir(['verify', `${caseIn(output)}.zip`])).code).toBe(0)
})
