import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { networkNamespace } from '../../src/confinement.js'
import { joinNamespaces, openNamespace } from './namespace.js'

describe('a namespace for tests', () => {
  it('is not the machine', async () => {
    await using namespace = await openNamespace()
    expect(namespace.id).toMatch(/^net:\[\d+\]$/)
    expect(namespace.id).not.toBe(networkNamespace())
    expect((await namespace.must(['readlink', '/proc/self/ns/net'])).trim()).toBe(namespace.id)
    expect(await namespace.must(['ip', '-o', 'link'])).toMatch(/^1: lo: <LOOPBACK,UP[^\n]*\n$/)
  })

  it('is joined to another by a cable', async () => {
    await using host = await openNamespace()
    await using peer = await openNamespace()
    await joinNamespaces(host, ['192.0.2.10/24', '2001:db8::10/64'], peer, ['192.0.2.7/24', '2001:db8::7/64'])
    for (const address of ['192.0.2.7', '2001:db8::7']) {
      expect((await host.run(['ip', 'route', 'get', address])).stdout).toContain('dev eth0')
    }
    expect(await host.must(['ip', '-o', 'neigh'])).toBe('')
  })

  it('calls TypeScript sources inside', async () => {
    await using namespace = await openNamespace()
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-namespace-'))
    const module = path.join(folder, 'where.ts')
    const confinement = new URL('../../src/confinement.js', import.meta.url).pathname
    fs.writeFileSync(
      module,
      `import { networkNamespace } from ${JSON.stringify(confinement)}
       export default (said: string): object => ({ said, where: networkNamespace() })`,
    )
    expect(await namespace.call(module, 'hello')).toEqual({ said: 'hello', where: namespace.id })
    fs.rmSync(folder, { recursive: true })
  })

  it('passes on how a program ended, and what it read', async () => {
    await using namespace = await openNamespace()
    expect(await namespace.run(['cat'], { stdin: 'in\n' })).toMatchObject({ code: 0, signal: null, stdout: 'in\n' })
    expect((await namespace.run(['nft', 'list', 'table', 'inet', 'none'])).code).toBe(1)
    expect((await namespace.run(['sleep', '60'], { timeout: 100 })).signal).toBe('SIGKILL')
  })

  it('leaves nothing behind, also of programs that left their parent', async () => {
    const namespace = await openNamespace()
    await namespace.must(['setsid', '--fork', 'sleep', '600'])
    namespace.start(['sleep', '600'])
    await namespace.close()
    const left = fs.readdirSync('/proc').filter(name => /^\d+$/.test(name) && networkNamespace(Number(name)) === namespace.id)
    expect(left).toEqual([])
    await expect(async () => namespace.run(['true'])).rejects.toThrow('closed')
  })
})
