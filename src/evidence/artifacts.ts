/** artifacts.jsonl: where each artifact comes from. One line per artifact, appended when it is closed. See docs/formats.md. */
import { z } from 'zod'
import type { FileStatus, Json } from '../step.js'
import { iso } from '../time.js'
import type { Artifact, Origin } from './case.js'
import { isArtifactPath } from './names.js'

const Entry = z.looseObject({
  path: z.string().refine(isArtifactPath, 'no path of an artifact'),
  bytes: z.int().nonnegative(),
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
})

/** One line without its LF. Times of the original are UTC to the microsecond, null where the file system keeps none. */
export function artifactLine(artifact: Artifact, origin: Origin, closed: Date): string {
  const { path, bytes, sha256 } = artifact
  const status = origin.status
  return JSON.stringify({
    path,
    bytes,
    sha256,
    closed: iso(closed),
    action: origin.action,
    how: origin.how,
    ...(origin.path === undefined ? {} : { original: origin.path }),
    ...(status === undefined ? {} : statusFields(status)),
    ...(origin.link === undefined ? {} : { link: origin.link }),
    ...(origin.notes === undefined || origin.notes.length === 0 ? {} : { notes: [...origin.notes] }),
  })
}

function statusFields(status: FileStatus): { [key: string]: Json } {
  return {
    kind: status.kind,
    mode: status.mode.toString(8).padStart(4, '0'),
    uid: status.uid,
    gid: status.gid,
    // Numbers of 64 bits do not survive JSON readers that use doubles.
    size: status.size.toString(),
    device: status.device.toString(),
    inode: status.inode.toString(),
    links: status.links,
    accessed: utc(status.accessed),
    modified: utc(status.modified),
    changed: utc(status.changed),
    born: status.born === 0 ? null : utc(status.born),
  }
}

/** The largest time of an ECMAScript Date, in milliseconds; a file on tmpfs may claim a later one. */
const LATEST = 8.64e15

/** 2026-06-11T14:22:33.120345Z, or '@<seconds>' where the year has more than four digits or a Date cannot say it. */
function utc(milliseconds: number): string {
  const micro = Math.round(milliseconds * 1000)
  const whole = Math.floor(micro / 1e6)
  if (!(Math.abs(whole * 1000) < LATEST)) return `@${whole}`
  const text = new Date(whole * 1000).toISOString()
  if (!/^\d{4}-/.test(text)) return `@${whole}`
  return `${text.slice(0, 19)}.${String(micro - whole * 1e6).padStart(6, '0')}Z`
}

/** What an artifacts.jsonl says; `broken` are the numbers of the lines, from 1, that make no sense. */
export function readArtifacts(text: string): { readonly artifacts: readonly Artifact[]; readonly broken: readonly number[] } {
  const artifacts: Artifact[] = []
  const broken: number[] = []
  const lines = text.split('\n')
  if (lines.at(-1) === '') lines.pop()
  for (const [index, line] of lines.entries()) {
    try {
      const { path, bytes, sha256 } = Entry.parse(JSON.parse(line))
      artifacts.push({ path, bytes, sha256 })
    } catch {
      broken.push(index + 1)
    }
  }
  return { artifacts, broken }
}
