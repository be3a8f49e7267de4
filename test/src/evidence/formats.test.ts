import fs from 'node:fs'
import path from 'node:path'
import { expect, it } from 'vitest'
import { ID, run, scratch, sealedCase } from './cases.js'

it('docs/formats.md gives commands that work as they stand, and find what they are for', async () => {
  const text = fs.readFileSync(path.resolve(import.meta.dirname, '../../../docs/formats.md'), 'utf8')
  const commands = [...text.matchAll(/^```sh\n(.*?)^```$/gms)].map(found => found[1] as string)
  expect(commands.length).toBeGreaterThan(5)
  expect(text).toContain(ID)
  const output = scratch()
  const { sealed, directory } = await sealedCase(output)
  const sh = (cwd: string) => run(['sh', '-eu', '-c', commands.join('\necho ---\n')], { cwd })

  const { status, stdout, stderr } = sh(output)
  expect(stderr).toBe('')
  expect(status).toBe(0)
  const [archive, unpacked, counted, chain, line, seal] = stdout.split('---\n') as [string, string, string, string, string, string]
  const [, comment, computed] = archive.trimEnd().split('\n')
  expect(comment).toMatch(/^sha256:[0-9a-f]{64}$/)
  expect(computed).toBe(comment)
  expect(unpacked).toBe('')
  const [claimed, found, ...files] = counted.trimEnd().split('\n')
  expect(found).toBe(claimed)
  expect(files.filter(name => files.indexOf(name) === files.lastIndexOf(name))).toEqual(['custody.jsonl', 'tagmanifest-sha256.txt'])
  expect(chain).toBe(`head ${sealed.head}\n`)
  expect(line.split('\n')[1]).toBe(`"prev":"${line.slice(0, 64)}"`)
  expect(seal.split('\n')[1]).toContain(/"tagmanifest":"([0-9a-f]{64})"/.exec(seal)?.[1] as string)

  // And they notice: an artifact, then the chain.
  const changed = scratch()
  fs.cpSync(output, changed, { recursive: true, filter: source => path.basename(source) !== 'unpacked' })
  fs.appendFileSync(path.join(changed, ID, 'data/capture-mem/memory.lime'), 'x')
  expect(sh(changed)).toMatchObject({ status: 1, stderr: expect.stringContaining('1 computed checksum did NOT match') })
  const custody = path.join(directory, 'custody.jsonl')
  fs.writeFileSync(
    custody,
    fs.readFileSync(custody, 'utf8').replace('"ss_', '"xx_').replace('snapshot-connections', 'Snapshot-connections'),
  )
  const follow = commands.find(command => command.includes('while IFS=')) as string
  expect(run(['sh', '-eu', '-c', follow], { cwd: directory })).toMatchObject({
    status: 1,
    stdout: expect.stringContaining('the chain breaks at: {"seq":3'),
  })
})
