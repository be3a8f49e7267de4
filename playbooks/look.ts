/** Looks at the host where "not there" and "not to be seen" are answers, not errors. */
import type { HostView } from '../src/step.js'

export function exists(host: HostView, path: string): boolean {
  return lookAt(() => host.lstat(path)) !== undefined
}

/** The file as text; undefined where it cannot be read. */
export function textOf(host: HostView, path: string): string | undefined {
  return lookAt(() => host.read(path))
}

/** Names in a directory; none where it cannot be listed. */
export function listOf(host: HostView, path: string): readonly string[] {
  return lookAt(() => host.list(path)) ?? []
}

/** Where a link leads; undefined for a kernel thread, somebody else's process, or what is gone. */
export function linkOf(host: HostView, path: string): string | undefined {
  return lookAt(() => host.readlink(path))
}

function lookAt<T>(look: () => T): T | undefined {
  try {
    return look()
  } catch {
    return undefined
  }
}
