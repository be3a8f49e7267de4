import fs from 'node:fs'
import path from 'node:path'
import { afterAll, expect, it } from 'vitest'
import { limeHeader } from '../../src/collectors/memory/lime.js'
import { ir, outputDirectory, removeDirectories } from '../helpers/ir.js'

afterAll(removeDirectories)

const PAGE = 4096
const range = { start: 0x1000n, end: 0x3000n }

function image(): string {
  const memory = Buffer.alloc(2 * PAGE)
  memory.write('Linux version 6.1.0-test (builder@example) #1 SMP \x1b[31m\n\0', 0, 'latin1')
  memory.write('Linux version 6.1.0-test (builder@example) #1 SMP\n\0', 512, 'latin1')
  memory.write('OSRELEASE=6.1.0-test\nPAGESIZE=4096\nSYMBOL(a)=1\nKERNELOFFSET=1000000\n', PAGE, 'latin1')
  const file = path.join(outputDirectory(), 'memory.lime')
  fs.writeFileSync(file, Buffer.concat([limeHeader(range), memory]))
  return file
}

it('a whole image: 0, in words and as JSON', async () => {
  const file = image()
  const words = await ir(['capture-mem', '--check', file])
  expect(words).toMatchObject({ code: 0, stderr: '' })
  expect(words.stdout).toMatch(/^KASLR {7}0x1000000$/m)
  expect(words.stdout).toMatch(/^the image is whole$/m)
  const json = await ir(['capture-mem', '--check', file, '--json'])
  expect(JSON.parse(json.stdout)).toMatchObject({ image: file, problems: [], kernel: { release: '6.1.0-test' } })
})

it('a damaged one: 5, and what is wrong', async () => {
  const file = image()
  fs.appendFileSync(file, 'x')
  const { code, stdout } = await ir(['capture-mem', '--check', file])
  expect(code).toBe(5)
  expect(stdout).toMatch(/^BAD: damaged at byte 8224: 1 bytes behind the last record are no header/m)
})

it('none: 2, and nothing is collected', async () => {
  const output = outputDirectory()
  const { code, stderr } = await ir(['capture-mem', '--check', 'nowhere.lime'], { cwd: output })
  expect(code).toBe(2)
  expect(stderr).toMatch(/there is no .*\/nowhere\.lime/)
  expect(fs.readdirSync(output)).toEqual([])
})

it('goes with no option of the capture', async () => {
  const { code, stderr } = await ir(['capture-mem', '--check', image(), '--source', 'kcore'])
  expect(code).toBe(2)
  expect(stderr).toMatch(/--source/)
})
