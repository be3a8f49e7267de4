/** Proof that this process does not sit in the network namespace of the machine. A drill and the tests change nothing without it. */
import fs from 'node:fs'
import { RefusedError } from './errors.js'

/** The first network namespace of a kernel that numbers it by constant: NET_NS_INIT_INO of include/uapi/linux/nsfs.h (6.18). */
const INITIAL = `net:[${0xeffffff9}]`

/** 'net:[4026531840]' of a process, undefined where we may not look. */
export function networkNamespace(pid: number | 'self' = 'self'): string | undefined {
  try {
    return fs.readlinkSync(`/proc/${pid}/ns/net`)
  } catch {
    return undefined
  }
}

/**
 * Throws unless this process is in a network namespace of its own: other than `outside` (as the process that made the
 * namespace saw its own), than PID 1's where that can be read, and than the kernel's first.
 * A process of ours cannot leave its namespace again (Node has no setns), so one proof holds until it ends.
 * @throws RefusedError also when it cannot tell.
 */
export function assertConfined(outside: string): void {
  const own = networkNamespace()
  const forbidden = [outside, networkNamespace(1), INITIAL]
  if (!/^net:\[\d+\]$/.test(outside) || own === undefined || forbidden.includes(own)) {
    throw new RefusedError(`this process is not confined: its network namespace is ${own ?? 'unknown'}, the machine's is ${outside}`)
  }
}
