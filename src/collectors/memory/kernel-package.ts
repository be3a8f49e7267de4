/** Which package the running kernel came in, read from the files of the package managers: no program of the host is started. */
import fs from 'node:fs'
import { errnoOf, type Host } from '../../host.js'
import { pacer } from '../pace.js'

export interface KernelPackage {
  readonly name: string
  readonly version: string
  /** The file that says so. */
  readonly database: string
}

/** dpkg(1); one stanza for each package, deb822(5). */
const DPKG = '/var/lib/dpkg/status'
/** rpm's databases: sqlite, Berkeley DB, ndb; the second place since Fedora 36 and SUSE 15. */
const RPM = ['/var/lib/rpm', '/usr/lib/sysimage/rpm'].flatMap(folder =>
  ['rpmdb.sqlite', 'Packages', 'Packages.db'].map(name => `${folder}/${name}`),
)

/** Databases of hosts with tens of thousands of packages are below. */
const MAX_DATABASE = 512 << 20
const CHUNK = 1 << 20
/** What may be cut by the end of a chunk: a stanza of dpkg, or the names of an rpm header. */
const OVERLAP = 64 << 10

/** The package of the kernel `release` (uname -r); undefined when no database names one. */
export async function kernelPackage(host: Host, release: string, signal: AbortSignal): Promise<KernelPackage | undefined> {
  const found = await searchFile(host, DPKG, signal, text => dpkgPackage(text, release))
  if (found !== undefined) return { ...found, database: DPKG }
  for (const database of RPM) {
    const inRpm = await searchFile(host, database, signal, text => rpmPackage(text, release))
    if (inRpm !== undefined) return { ...inRpm, database }
  }
  return undefined
}

type Named = Pick<KernelPackage, 'name' | 'version'>

/** `linux-image-6.1.0-56-amd64`, or Ubuntu's `linux-image-unsigned-6.8.0-45-generic`. */
export function dpkgPackage(text: string, release: string): Named | undefined {
  for (const name of [`linux-image-${release}`, `linux-image-unsigned-${release}`]) {
    const start = `\n${text}`.indexOf(`\nPackage: ${name}\n`)
    if (start === -1) continue
    const end = text.indexOf('\n\n', start)
    const stanza = text.slice(start, end === -1 ? text.length : end + 1)
    // With its line feed: what is cut by the end of the text is no version.
    const version = /^Version: ([\w.+~:-]{1,200})\n/m.exec(stanza)?.[1]
    if (version !== undefined) return { name, version }
  }
  return undefined
}

/**
 * rpm names the kernel's release after its package: 5.14.0-427.el9.x86_64 is version 5.14.0, release 427.el9 of an architecture. In
 * a header of the database, lib/header.c, the strings NAME, VERSION and RELEASE (tags 1000 to 1002) stand one behind the other.
 */
export function rpmPackage(text: string, release: string): Named | undefined {
  const parts = /^([^-]+)-(.+)\.[^.]+$/.exec(release)
  if (parts === null) return undefined
  const [, version, build] = parts as unknown as [string, string, string]
  const wanted = `\0${version}\0${build}\0`
  for (let at = text.indexOf(wanted); at !== -1; at = text.indexOf(wanted, at + 1)) {
    const name = /(?:^|\0)(kernel[\w.+-]{0,100})$/.exec(text.slice(Math.max(0, at - 200), at))?.[1]
    // Others have the kernel's version too: its headers, its tools.
    if (name !== undefined && /^kernel(?:-core|-uek-core|-uek|-default|-rt-core|-64k-core)?$/.test(name)) {
      return { name, version: `${version}-${build}` }
    }
  }
  return undefined
}

async function searchFile(
  host: Host,
  path: string,
  signal: AbortSignal,
  find: (text: string) => Named | undefined,
): Promise<Named | undefined> {
  let fd: number
  try {
    fd = fs.openSync(host.at(path), fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)
  } catch (error) {
    if (errnoOf(error) === '') throw error
    return undefined
  }
  try {
    const pace = pacer()
    const chunk = Buffer.allocUnsafe(CHUNK)
    let before = ''
    for (let at = 0; at < MAX_DATABASE && !signal.aborted; ) {
      const got = fs.readSync(fd, chunk, 0, CHUNK, at)
      if (got === 0) return undefined
      const text = before + chunk.toString('latin1', 0, got)
      const found = find(text)
      if (found !== undefined) return found
      before = text.slice(-OVERLAP)
      at += got
      await pace()
    }
    return undefined
  } finally {
    fs.closeSync(fd)
  }
}
