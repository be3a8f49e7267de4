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

/** 2026-06-11T14:22:33.120345Z; '@<seconds>' where the year has not four digits, as a file on tmpfs may claim. */
function utc(milliseconds: number): string {
  const seconds = Math.floor(milliseconds / 1000)
  const micro = Math.round((milliseconds - seconds * 1000) * 1000)
  if (micro === 1e6) return utc((seconds + 1) * 1000)
  const date = new Date(seconds * 1000)
  const text = Number.isNaN(date.getTime()) ? '' : date.toISOString()
  return /^\d{4}-/.test(text) ? `${text.slice(0, 19)}.${String(micro).padStart(6, '0')}Z` : `@${seconds}`
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
