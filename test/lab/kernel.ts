/** The distribution's own kernel out of its packages, unpacked and never installed, and the LiME module built for it. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { CACHE, run } from './prerequisites.js'

export interface LabKernel {
  /** As `uname -r` says it. */
  readonly release: string
  /** Version of the package. */
  readonly version: string
  /** As it is booted by a boot loader: compressed, with KASLR and 5-level paging. */
  readonly compressed: string
  /** Unpacked: starts in half the time, at its linked address, since it is the decompressor that moves the kernel. */
  readonly plain: string
  /** The tree /lib/modules/RELEASE. */
  readonly modules: string
  /** lime.ko for this kernel. */
  readonly lime: string
}

/** Part of the cache's name: raised when what is made of the packages changes. */
const RECIPE = 1

/** The newest kernel of the distribution is what this package without contents depends on. */
const META_PACKAGE = 'linux-image-amd64'
const LIME_PACKAGE = 'lime-forensics-dkms'

/** Setup header of a bzImage, Documentation/arch/x86/boot.rst: number of sectors, payload_offset, payload_length. */
const SETUP_SECTORS = 0x1f1
const PAYLOAD_OFFSET = 0x248
const PAYLOAD_LENGTH = 0x24c
const XZ_MAGIC = 'fd377a585a00'

/**
 * From the cache, or downloaded and built (a minute).
 * @throws an Error of one line when the packages cannot be had or the module does not build.
 */
export function prepareKernel(): LabKernel {
  const image = newest()
  const version = /^Version: (\S+)$/m.exec(apt('apt-cache', 'show', '--no-all-versions', image))?.[1] ?? 'unknown'
  const directory = path.join(CACHE, `${image}_${version.replaceAll(/[^A-Za-z0-9.+~-]/g, '-')}_${RECIPE}`)
  if (!fs.existsSync(directory)) {
    fs.mkdirSync(CACHE, { recursive: true })
    const unfinished = fs.mkdtempSync(path.join(CACHE, 'unfinished-'))
    try {
      build(image, unfinished)
      fs.chmodSync(unfinished, 0o755)
      fs.renameSync(unfinished, directory)
    } finally {
      fs.rmSync(unfinished, { recursive: true, force: true })
    }
  }
  const file = (name: string): string => path.join(directory, name)
  return {
    release: image.replace('linux-image-', ''),
    version,
    compressed: file('vmlinuz'),
    plain: file('vmlinux'),
    modules: file('modules'),
    lime: file('lime.ko'),
  }
}

function newest(): string {
  const find = (): string | undefined => /^ *Depends: (linux-image-\S+)$/m.exec(apt('apt-cache', 'depends', META_PACKAGE))?.[1]
  const found = listed() ? find() : undefined
  if (found !== undefined) return found
  apt('apt-get', '-q', 'update')
  const now = find()
  if (now === undefined) throw new Error(`apt knows no ${META_PACKAGE}: the lab takes its kernel from Debian's packages`)
  return now
}

function listed(): boolean {
  try {
    return apt('apt-cache', 'show', META_PACKAGE) !== ''
  } catch {
    return false
  }
}

function apt(program: string, ...argv: string[]): string {
  return run(program, argv).toString()
}

/** Leaves vmlinuz, vmlinux, modules/ and lime.ko in the directory. */
function build(image: string, directory: string): void {
  const release = image.replace('linux-image-', '')
  const headers = `linux-headers-${release}`
  const needed = [...apt('apt-cache', 'depends', headers).matchAll(/^ *Depends: (linux-(?:headers|kbuild)-\S+)$/gm)].map(
    ([, name]) => name as string,
  )
  const work = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-lab-'))
  try {
    const [packages, root] = [path.join(work, 'packages'), path.join(work, 'root')]
    fs.mkdirSync(packages)
    download([image, headers, ...needed, LIME_PACKAGE], packages)
    for (const name of fs.readdirSync(packages)) run('dpkg', ['-x', path.join(packages, name), root])
    const compressed = path.join(root, 'boot', `vmlinuz-${release}`)
    fs.copyFileSync(compressed, path.join(directory, 'vmlinuz'))
    fs.writeFileSync(path.join(directory, 'vmlinux'), unpackKernel(fs.readFileSync(compressed)))
    const modules = [`lib/modules/${release}`, `usr/lib/modules/${release}`]
      .map(tree => path.join(root, tree))
      .find(tree => fs.existsSync(tree))
    if (modules === undefined) throw new Error(`${image} holds no modules`)
    fs.cpSync(modules, path.join(directory, 'modules'), { recursive: true, verbatimSymlinks: true })
    fs.copyFileSync(buildLime(root, release, work), path.join(directory, 'lime.ko'))
  } finally {
    fs.rmSync(work, { recursive: true, force: true })
  }
}

function download(packages: readonly string[], into: string): void {
  const get = (): Buffer => run('apt-get', ['-q', 'download', ...packages], { cwd: into })
  try {
    get()
  } catch {
    // The lists may be older than what the archive still has.
    apt('apt-get', '-q', 'update')
    get()
  }
}

/** The kernel itself out of a bzImage. @throws an Error when it is not packed with xz, as Debian's are. */
function unpackKernel(image: Buffer): Buffer {
  const start = ((image[SETUP_SECTORS] || 4) + 1) * 512 + image.readUInt32LE(PAYLOAD_OFFSET)
  const payload = image.subarray(start, start + image.readUInt32LE(PAYLOAD_LENGTH))
  if (payload.toString('hex', 0, 6) !== XZ_MAGIC) throw new Error('the kernel is not packed with xz')
  // The size of what is packed follows the stream.
  return run('xz', ['-dcq', '--single-stream'], { input: payload })
}

/** Against headers that lie where no package expects them, so three ways out of the tree are turned back into it. */
function buildLime(root: string, release: string, work: string): string {
  const sources = path.join(root, 'usr/src')
  const named = (directory: string, pattern: RegExp): string => {
    const found = fs.readdirSync(directory).find(name => pattern.test(name))
    if (found === undefined) throw new Error(`the packages hold no ${pattern.source} in ${path.relative(root, directory)}`)
    return path.join(directory, found)
  }
  const headers = path.join(sources, `linux-headers-${release}`)
  const common = named(sources, /^linux-headers-.*-common$/)
  const kbuild = named(path.join(root, 'usr/lib'), /^linux-kbuild-/)
  const makefile = path.join(headers, 'Makefile')
  fs.writeFileSync(makefile, fs.readFileSync(makefile, 'utf8').replace(/^include .*-common\/Makefile$/m, `include ${common}/Makefile`))
  for (const tree of [headers, common]) {
    for (const name of ['scripts', 'tools']) {
      fs.rmSync(path.join(tree, name), { force: true })
      fs.symlinkSync(path.join(kbuild, name), path.join(tree, name))
    }
  }
  const lime = path.join(work, 'lime')
  fs.cpSync(named(sources, /^lime-forensics-/), lime, { recursive: true })
  run('make', ['-C', headers, `M=${lime}`, 'CC=gcc', `-j${os.availableParallelism()}`, 'modules'])
  run('strip', ['--strip-debug', path.join(lime, 'lime.ko')])
  return path.join(lime, 'lime.ko')
}
