import fs from 'node:fs'
import path from 'node:path'
import zlib from 'node:zlib'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { dpkgPackage, rpmPackage } from '../../../../src/collectors/memory/kernel-package.js'
import { kernelSymbols } from '../../../../src/collectors/memory/kernel-symbols.js'
import { openHost } from '../../../../src/host.js'
import type { JsonObject } from '../../../../src/step.js'
import { smallKernel } from '../../../helpers/btf.js'
import { collecting } from '../../../helpers/collecting.js'
import { kcoreHeaders, temporaryDirectory } from '../../../helpers/kcore.js'

const RELEASE = '6.1.0-56-amd64'
const BANNER = 'Linux version 6.1.0-56-amd64 (builder@example) #1 SMP\n'
const OPTIONS = { to: 'memory.isf.json.gz', release: RELEASE, debugPackage: `linux-image-${RELEASE}-dbg` }
const KALLSYMS = `0000000000000000 A fixed_percpu_data
0000000000001fb0 A current_task
ffffffffb5800000 T _stext
ffffffffb5800000 T _text
ffffffffb6e1a580 D init_task
ffffffffb6e00100 D linux_banner
ffffffffc0a01000 t helper\t[lime]
`
/** NT_GNU_BUILD_ID behind a note of Xen. */
const NOTES = Buffer.from('040000000400000006000000586e65000100000004000000040000000300000' + '0474e5500deadbeef', 'hex')
const DPKG = `Package: linux-image-amd64
Status: install ok installed
Version: 6.1.192-2

Package: linux-image-${RELEASE}
Status: install ok installed
Version: 6.1.192-2

Package: zlib1g
Version: 1
`

let root: string

beforeEach(() => {
  root = temporaryDirectory()
  const kcore = kcoreHeaders([{ offset: 4096n, virtual: 4096n, physical: 4096n, bytes: 4096n }], {
    vmcoreinfo: `OSRELEASE=${RELEASE}\nKERNELOFFSET=34800000\nNUMBER(pgtable_l5_enabled)=0\n`,
  })
  put('proc/kcore', kcore)
  put('proc/version', BANNER)
  put('proc/kallsyms', KALLSYMS)
  put('proc/modules', 'lime 16384 0 - Live 0xffffffffc0a01000 (OE)\nhidden-name! 1 0\n')
  put('sys/kernel/btf/vmlinux', smallKernel())
  put('sys/kernel/btf/lime', 'types of a module')
  put('sys/kernel/notes', NOTES)
  put('sys/module/lime/sections/.text', '0xffffffffc0a01000\n')
  put('sys/module/lime/taint', 'OE\n')
  put('sys/module/rootkit/sections/.text', '0xffffffffc0b01000\n')
  put('sys/module/printk/parameters', '')
  put('var/lib/dpkg/status', DPKG)
})

afterEach(() => fs.rmSync(root, { recursive: true }))

function put(name: string, content: string | Buffer): void {
  const file = path.join(root, name)
  fs.mkdirSync(path.dirname(file), { recursive: true })
  fs.writeFileSync(file, content)
}

const collect = (options: JsonObject = OPTIONS) => collecting(kernelSymbols, options, { host: openHost({ root }) })
const isfOf = (bytes: Buffer) => JSON.parse(zlib.gunzipSync(bytes).toString('utf8'))

describe('the symbol kit', () => {
  it('is made of what the running kernel tells', async () => {
    using ended = await collect()
    expect(ended.result).toMatchObject({ outcome: 'collected' })
    expect(ended.names.toSorted()).toEqual(['btf/lime', 'memory.isf.json.gz', 'modules.jsonl', 'vmcoreinfo.txt'])
    expect(ended.facts).toMatchObject({
      release: RELEASE,
      debugPackage: `linux-image-${RELEASE}-dbg`,
      vmcoreinfo: 'vmcoreinfo.txt',
      fiveLevelPaging: false,
      offset: '34800000',
      package: { name: `linux-image-${RELEASE}`, version: '6.1.192-2', database: '/var/lib/dpkg/status' },
      modules: { count: 2 },
      moduleTypes: { count: 1, bytes: 17 },
      symbols: { file: 'memory.isf.json.gz', types: 6, enums: 2, symbols: 6, offset: '0x34800000', offsetFrom: 'VMCOREINFO', ofModules: 1 },
    })
    expect(ended.bytes('vmcoreinfo.txt').toString()).toContain('\nKERNELOFFSET=34800000\n')
    expect(ended.records('modules.jsonl')).toEqual([
      { name: 'lime', listed: true, inSysfs: true, sections: { '.text': '0xffffffffc0a01000' }, taint: 'OE' },
      { name: 'rootkit', listed: false, inSysfs: true, sections: { '.text': '0xffffffffc0b01000' }, taint: '' },
    ])
    const zipped = zlib.gunzipSync(ended.bytes('memory.isf.json.gz')).toString()
    // As linked: without what randomisation added; per-cpu data is never moved.
    expect(zipped).toContain(`"init_task":{"address":${0xffffffff8261a580n},`)
    expect(zipped).toContain('"current_task":{"address":8112,')
    expect(Buffer.from(JSON.parse(zipped).symbols.linux_banner.constant_data, 'base64').toString()).toBe(`${BANNER}\0`)
  })

  it('names the build', async () => {
    using ended = await collect()
    expect(ended.facts.buildId).toBe('deadbeef')
  })

  it('without kcore takes the offset from where x86-64 links its text', async () => {
    fs.rmSync(path.join(root, 'proc/kcore'))
    using ended = await collect()
    expect(ended.facts).toMatchObject({
      vmcoreinfo: 'kcore cannot be read: ENOENT',
      symbols: { offset: '0x34800000', offsetFrom: '_text, by where x86-64 links it' },
    })
    expect(ended.names).not.toContain('vmcoreinfo.txt')
  })

  it.each([
    ['no BTF', () => fs.rmSync(path.join(root, 'sys/kernel/btf/vmlinux')), /has no \/sys\/kernel\/btf\/vmlinux/],
    ['hidden addresses', () => put('proc/kallsyms', KALLSYMS.replace(/^[0-9a-f]{16}/gm, '0'.repeat(16))), /shows no addresses/],
    ['no data symbols', () => put('proc/kallsyms', KALLSYMS.replace(/^.*init_task\n/m, '')), /CONFIG_KALLSYMS_ALL/],
  ])('%s: no symbol file, and why', async (_, change, why) => {
    change()
    using ended = await collect()
    expect(ended.result.outcome).toBe('collected')
    expect(ended.names).not.toContain('memory.isf.json.gz')
    expect(ended.facts.noSymbols).toMatch(why)
  })

  it('damaged types are a failure, and leave no half file', async () => {
    put('sys/kernel/btf/vmlinux', smallKernel().subarray(0, -4))
    using ended = await collect()
    expect(ended.result).toMatchObject({ outcome: 'failed', reason: expect.stringMatching(/vmlinux: its strings end/) })
    expect(ended.names).not.toContain('memory.isf.json.gz')
    expect(ended.names).toContain('modules.jsonl')
  })

  it('does nothing more when it is stopped', async () => {
    using ended = await collecting(kernelSymbols, OPTIONS, { host: openHost({ root }), signal: AbortSignal.abort() })
    expect(ended.result.outcome).toBe('interrupted')
    expect(ended.names).not.toContain('memory.isf.json.gz')
  })

  it('of the types of the running kernel is a whole document', async () => {
    fs.copyFileSync('/sys/kernel/btf/vmlinux', path.join(root, 'sys/kernel/btf/vmlinux'))
    using ended = await collect()
    const isf = isfOf(ended.bytes('memory.isf.json.gz'))
    expect(isf.user_types.task_struct.fields.comm.type).toEqual({ kind: 'array', count: 16, subtype: { kind: 'base', name: 'char' } })
    expect(isf.symbols.init_task.type).toEqual({ kind: 'struct', name: 'task_struct' })
  })
})

describe('the package of the kernel', () => {
  it('in the database of dpkg', () => {
    expect(dpkgPackage(DPKG, RELEASE)).toEqual({ name: `linux-image-${RELEASE}`, version: '6.1.192-2' })
    expect(dpkgPackage(DPKG, '6.1.0-5')).toBeUndefined()
    // Cut in the middle of the version: read on before saying anything.
    expect(dpkgPackage(DPKG.slice(0, DPKG.indexOf('\n\nPackage: zlib') - 2), RELEASE)).toBeUndefined()
    expect(dpkgPackage(`Package: linux-image-unsigned-6.8.0-45-generic\nVersion: 6.8.0-45.45\n`, '6.8.0-45-generic')?.name).toMatch(
      /unsigned/,
    )
  })

  it('in the headers of rpm', () => {
    const headers = 'C\0kernel-headers\x005.14.0\x00427.el9\0\0C\0kernel-core\x005.14.0\x00427.el9\0The Linux kernel\0'
    expect(rpmPackage(headers, '5.14.0-427.el9.x86_64')).toEqual({ name: 'kernel-core', version: '5.14.0-427.el9' })
    expect(rpmPackage(headers, '5.14.0-428.el9.x86_64')).toBeUndefined()
    expect(rpmPackage(headers, 'odd')).toBeUndefined()
  })

  it('beyond the first piece of a large database', async () => {
    put('var/lib/dpkg/status', `${'Package: other\nVersion: 1\n\n'.repeat(60_000)}${DPKG}`)
    using ended = await collect()
    expect(ended.facts.package).toMatchObject({ version: '6.1.192-2' })
  })
})
