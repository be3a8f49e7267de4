/** Small looks at the host that may fail: a doctor tells what he could not see, and goes on. */
import type { Host } from '../host.js'
import { type Mount, readMounts } from '../mounts.js'

/** The text of a small file of the kernel or of /etc, trimmed; undefined when it cannot be read. */
export function textOf(host: Host, path: string): string | undefined {
  try {
    return host.read(path, 65_536).trim()
  } catch {
    return undefined
  }
}

/** False also where we may not look. */
export function exists(host: Host, path: string): boolean {
  try {
    host.lstat(path)
    return true
  } catch {
    return false
  }
}

export function linkOf(host: Host, path: string): string | undefined {
  try {
    return host.readlink(path)
  } catch {
    return undefined
  }
}

/** A field of /proc/self/status: proc_pid_status(5). */
export function statusField(host: Host, name: string): string | undefined {
  const line = textOf(host, '/proc/self/status')
    ?.split('\n')
    .find(line => line.startsWith(`${name}:`))
  return line?.slice(name.length + 1).trim()
}

/** Bytes of RAM that the kernel uses (MemTotal of proc_meminfo(5)); undefined when it does not tell. */
export function ramBytes(host: Host): number | undefined {
  const kibibytes = /^MemTotal:\s+(\d+) kB$/m.exec(textOf(host, '/proc/meminfo') ?? '')?.[1]
  return kibibytes === undefined ? undefined : Number(kibibytes) * 1024
}

/** Mounts, [] where they cannot be read. */
export function mountsOf(host: Host): Mount[] {
  try {
    return readMounts(host)
  } catch {
    return []
  }
}
