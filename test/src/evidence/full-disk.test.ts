import { fileURLToPath } from 'node:url'
import { expect, it } from 'vitest'
import { run, scratch } from './cases.js'

it('a full or read-only disk stops the response, and costs nothing that was written before', () => {
  const script = fileURLToPath(new URL('fill-disk.ts', import.meta.url))
  const sources = fileURLToPath(new URL('../../helpers/sources.mjs', import.meta.url))
  const { status, stdout, stderr } = run(['unshare', '-m', process.execPath, '--import', sources, script, scratch()])
  expect(stderr).toBe('')
  expect(status).toBe(0)
  const result = JSON.parse(stdout)
  for (const what of ['write', 'custody', 'tag', 'seal', 'archive', 'sealAgain']) {
    expect(result.refusals[what], what).toEqual({ evidence: true, message: expect.stringContaining('no space left on the disk (ENOSPC)') })
  }
  expect(result.refusals.readOnly).toEqual({ evidence: true, message: expect.stringContaining('the file system is read-only (EROFS)') })
  expect(result.refusals.archive.message).toContain('the case is sealed')
  expect(result.partial).toBeGreaterThan(100_000)
  expect([result.sealedInFull, result.sealedWithout]).toEqual([false, true])
  expect(result.left).not.toContain('full.zip')
  expect(result.left).not.toContain('full.zip.unfinished')
  expect([result.custodyProblems, result.custodyTorn]).toEqual([[], 0])
  // Only what the test itself took away to make room.
  expect(new Set(result.differences.map((difference: { path: string }) => difference.path))).toEqual(
    new Set(['data/capture-mem/memory.lime', 'bag-info.txt']),
  )
  expect(result.again).toMatchObject({ intact: true, differences: [] })
})
