/** What the lab's machine starts with: a static busybox and the modules that it takes to mount the host. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { gzipSync } from 'node:zlib'
import type { LabKernel } from './kernel.js'
import { programFile, run } from './prerequisites.js'

/** The rest follows from what these need. */
const MODULES = ['virtio_pci', '9pnet_virtio', '9p', 'overlay']

/** A cpio archive, gzip, for `-initrd`. @throws an Error when a module is neither in the tree nor built in. */
export function makeInitramfs(kernel: LabKernel): Buffer {
  const root = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-lab-initramfs-'))
  try {
    for (const name of ['bin', 'proc', 'sys', 'dev', 'host', 'changes', 'root', 'modules']) fs.mkdirSync(path.join(root, name))
    fs.copyFileSync(programFile('busybox') as string, path.join(root, 'bin/busybox'))
    fs.copyFileSync(path.join(import.meta.dirname, 'guest/initramfs.sh'), path.join(root, 'init'))
    fs.chmodSync(path.join(root, 'init'), 0o755)
    for (const [index, file] of inOrder(kernel).entries()) {
      const content = file.endsWith('.xz') ? run('xz', ['-dc', file]) : fs.readFileSync(file)
      fs.writeFileSync(path.join(root, 'modules', `${String(index).padStart(2, '0')}-${moduleName(file)}.ko`), content)
    }
    const names = fs.readdirSync(root, { recursive: true, encoding: 'utf8' }).toSorted()
    return gzipSync(run('cpio', ['-o', '-H', 'newc', '--quiet'], { cwd: root, input: `${names.join('\n')}\n` }), { level: 1 })
  } finally {
    fs.rmSync(root, { recursive: true, force: true })
  }
}

/** Each module after those that it needs. */
function inOrder({ modules }: LabKernel): string[] {
  const files = new Map(
    fs
      .readdirSync(path.join(modules, 'kernel'), { recursive: true, encoding: 'utf8' })
      .filter(file => /\.ko(\.xz)?$/.test(file))
      .map(file => [moduleName(file), path.join(modules, 'kernel', file)]),
  )
  const builtIn = new Set(fs.readFileSync(path.join(modules, 'modules.builtin'), 'utf8').trim().split('\n').map(moduleName))
  const ordered: string[] = []
  const add = (name: string): void => {
    const file = files.get(name)
    if (file === undefined) {
      if (builtIn.has(name)) return
      throw new Error(`the kernel has no module ${name}`)
    }
    if (ordered.includes(file)) return
    const needs = run('modinfo', ['-F', 'depends', file]).toString().trim()
    for (const need of needs.split(',').filter(text => text !== '')) add(need.replaceAll('-', '_'))
    ordered.push(file)
  }
  for (const name of MODULES) add(name)
  return ordered
}

/** The kernel takes - and _ in names of modules for the same. */
function moduleName(file: string): string {
  return path
    .basename(file)
    .replace(/\.ko(\.xz)?$/, '')
    .replaceAll('-', '_')
}
