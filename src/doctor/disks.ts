/** Disks: what they are, how full, whether they keep attributes; and whether the evidence fits where it would go. */
import fs from 'node:fs'
import { type Lsattr, readNames } from '../collectors/lsattr.js'
import { isLocal } from '../collectors/walk.js'
import { errnoOf, type Host } from '../host.js'
import { type Mount, mountOf } from '../mounts.js'
import type { Running, Seconds } from '../step.js'
import { formatBytes } from '../time.js'
import type { Fact } from './examination.js'
import { mountsOf, ramBytes } from './look.js'

const LSATTR_LIMIT: Seconds = 5

/** Of local disks and of remote ones, so many are named. */
const NAMED = 40

/** Read-only images and the kernel's own device nodes: nothing is hidden or filled there. */
const UNINTERESTING = new Set(['squashfs', 'erofs', 'iso9660', 'udf', 'cramfs', 'devtmpfs', 'rootfs'])

interface Disk {
  readonly mount: Mount
  readonly totalBytes: number
  readonly freeBytes: number
}

/** Local disks with their space and attributes; network and FUSE mounts by name only: a look at a dead one does not come back. */
export async function examineDisks(host: Host): Promise<Fact[]> {
  const mounts = mountsOf(host)
  if (mounts.length === 0) {
    return [
      {
        topic: 'disks',
        what: 'mounts',
        state: 'unknown',
        found: '/proc/self/mountinfo cannot be read',
        remedy: 'mount -t proc proc /proc',
      },
    ]
  }
  const disks = localDisks(host, mounts)
  const attributes = await attributesOn(
    host,
    disks.map(({ mount }) => mount.point),
  )
  const facts = disks.map((disk, index) => diskFact(disk, attributes?.[index]))
  const remote = mounts.filter(mount => mount.remote)
  for (const { point, type, source } of remote.slice(0, NAMED)) {
    const found = `${type} from ${source}: hangs once the host is cut off, with every program that touches it; nothing of it is collected`
    facts.push({ topic: 'disks', what: point, state: 'note', found, detail: { type, source, remote: true } })
  }
  if (remote.length > NAMED)
    facts.push({ topic: 'disks', what: 'others', state: 'note', found: `${remote.length - NAMED} more network mounts` })
  return facts
}

/** One for each disk, however often it is mounted, the largest first. */
function localDisks(host: Host, mounts: readonly Mount[]): Disk[] {
  const disks = new Map<bigint, Disk>()
  const top = new Map(mounts.map(mount => [mount.point, mount]))
  for (const mount of top.values()) {
    if (!isLocal(mount) || UNINTERESTING.has(mount.type)) continue
    try {
      const { device } = host.lstat(mount.point)
      const { totalBytes, freeBytes } = host.statfs(mount.point)
      const known = disks.get(device)
      if (known === undefined || known.mount.point.length > mount.point.length) disks.set(device, { mount, totalBytes, freeBytes })
    } catch {
      // Not ours to look at, or covered by another mount.
    }
  }
  return [...disks.values()].sort((one, other) => other.totalBytes - one.totalBytes).slice(0, NAMED)
}

/** Whether lsattr reads the attributes of each path; undefined when lsattr is not there or does not work. */
async function attributesOn(host: Host, points: readonly string[]): Promise<(boolean | undefined)[] | undefined> {
  const lsattr = host.which('lsattr')
  if (lsattr === undefined || points.length === 0) return undefined
  const running = (option: string): Running => ({ title: 'Attributes of the disks', argv: [lsattr, option], limit: LSATTR_LIMIT })
  const asked: Lsattr = { names: running('-d'), directories: running('-a'), runs: { all: 0, repeated: 0 } }
  try {
    const readings = await readNames(
      asked,
      points.map(point => Buffer.from(point)),
    )
    return readings.map(({ state }) => (state === 'listed' ? true : state === 'not-supported' ? false : undefined))
  } catch {
    return undefined
  }
}

function diskFact({ mount, totalBytes, freeBytes }: Disk, attributes: boolean | undefined): Fact {
  const { point, type, readOnly } = mount
  const words = [`${type}, ${formatBytes(freeBytes)} free of ${formatBytes(totalBytes)}`, ...(readOnly ? ['read-only'] : [])]
  if (attributes === true) words.push('attributes can be read')
  if (attributes === false) words.push('keeps no attributes: audit-attrs cannot assess it')
  const detail = { type, totalBytes, freeBytes, readOnly, remote: false, attributes: attributes ?? null }
  return { topic: 'disks', what: point, state: attributes === false ? 'note' : 'ok', found: words.join(', '), detail }
}

/** What a case needs beside the image of the memory: logs, lists, packets of half an hour. */
const BESIDE = 1024 ** 3

/** The directory that evidence would go to: there, writable, local, on a disk, and large enough for the memory. */
export function examineOutput(host: Host, output: string): Fact[] {
  const about = { topic: 'output', what: output } as const
  const elsewhere = 'give a directory on another disk with --output'
  let real: string
  try {
    real = fs.realpathSync(host.at(output))
    if (!fs.statSync(real).isDirectory()) return [{ ...about, state: 'lack', found: 'is no directory', remedy: elsewhere }]
    fs.accessSync(real, fs.constants.W_OK | fs.constants.X_OK)
  } catch (error) {
    const code = errnoOf(error)
    if (code === 'ENOENT') return [{ ...about, state: 'lack', found: 'does not exist', remedy: `make it (mkdir -p), or ${elsewhere}` }]
    return [{ ...about, state: 'lack', found: `cannot be written (${code})`, remedy: code === 'EACCES' ? 'sudo ir doctor' : elsewhere }]
  }
  const mount = mountOf(mountsOf(host), real)
  const { freeBytes } = host.statfs(output)
  const facts: Fact[] = []
  if (mount?.remote) {
    const found = `lies on ${mount.type} (${mount.source}), which the cut would take away`
    facts.push({ ...about, state: 'lack', found, remedy: 'give a directory on a local disk with --output' })
  }
  if (mount?.type === 'tmpfs' || mount?.type === 'ramfs') {
    const found = `lies in memory (${mount.type}): evidence would overwrite free memory, and be gone with the power`
    facts.push({ ...about, state: 'lack', found, remedy: elsewhere })
  }
  return [...facts, space(about, freeBytes, ramBytes(host), elsewhere)]
}

function space(about: { topic: 'output'; what: string }, freeBytes: number, ram: number | undefined, remedy: string): Fact {
  if (ram === undefined)
    return { ...about, state: 'unknown', found: `${formatBytes(freeBytes)} free; the size of the memory is not known`, remedy }
  const neededBytes = ram + BESIDE
  const found = `${formatBytes(freeBytes)} free; an image of the memory with the rest takes up to ${formatBytes(neededBytes)}`
  const detail = { freeBytes, ramBytes: ram, neededBytes }
  return freeBytes >= neededBytes ? { ...about, state: 'ok', found, detail } : { ...about, state: 'lack', found, remedy, detail }
}
