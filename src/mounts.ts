/** What is mounted where: proc_pid_mountinfo(5). */
import path from 'node:path'
import type { HostView } from './step.js'

export interface Mount {
  readonly point: string
  readonly type: string
  readonly source: string
  /** Read-only, by the mount or by its file system. */
  readonly readOnly: boolean
  /** Network and FUSE file systems: they hang when the network is cut. */
  readonly remote: boolean
}

/** File systems whose data is on another machine, from the kernel's fs/ directory; everything of FUSE counts, its server may need the network. */
const REMOTE =
  /^(nfs4?|cifs|smb3|smbfs|9p|ceph|glusterfs|lustre|afs|coda|ncpfs|ocfs2|gfs2|gfs|davfs|beegfs|gpfs|orangefs|virtiofs|fuse(\..+)?)$/

/** A host with hundreds of containers has thousands of mounts, each a line of some hundred bytes. */
const LIST_LIMIT = 16 * 1024 ** 2

/** Mounts as a process sees them, in the order in which they were made, at most the first 16 MiB of the list. */
export function readMounts(host: HostView, pid: number | 'self' = 'self'): Mount[] {
  return host.read(`/proc/${pid}/mountinfo`, LIST_LIMIT).split('\n').flatMap(parseMount)
}

function parseMount(line: string): Mount[] {
  const [left, right] = line.split(' - ', 2)
  const before = left?.split(' ') ?? []
  const after = right?.split(' ') ?? []
  const [point, options] = [before[4], before[5]]
  const [type, source, superOptions] = after
  if (point === undefined || options === undefined || type === undefined) return []
  const readOnly = [options, superOptions ?? ''].some(list => list.split(',').includes('ro'))
  return [{ point: unescaped(point), type, source: unescaped(source ?? ''), readOnly, remote: REMOTE.test(type) }]
}

/** Space, tab, newline and backslash stand as three octal digits. */
function unescaped(text: string): string {
  return text.replaceAll(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)))
}

/** The mount that a path lies on: the last one made among those with the longest matching point. */
export function mountOf(mounts: readonly Mount[], absolute: string): Mount | undefined {
  let best: Mount | undefined
  for (const mount of mounts) {
    const under = mount.point === '/' || absolute === mount.point || absolute.startsWith(`${mount.point}${path.sep}`)
    if (under && (best === undefined || mount.point.length >= best.point.length)) best = mount
  }
  return best
}
