/** Names that are safe in a path, in a manifest, in an archive and on a terminal alike. */
import { createHash } from 'node:crypto'

/** One part of a path. Without '%', CR and LF that BagIt escapes (RFC 8493, 2.1.3), and without '\' that sha256sum escapes. */
const PART = /^[A-Za-z0-9._+=@,-]+$/

/** NAME_MAX of linux/limits.h. */
const LONGEST_PART = 255

/** Folders below data/<step>/; more than any collector needs, few enough for every PATH_MAX. */
const DEEPEST = 8

/** Whether it may be one part of a path: [A-Za-z0-9._+=@,-], not '.' or '..', at most 255 characters. */
export function isSafePart(part: string): boolean {
  return PART.test(part) && part !== '.' && part !== '..' && part.length <= LONGEST_PART
}

/** Whether it may be the name of an artifact: one or more safe parts, at most eight. */
export function isSafeName(name: string): boolean {
  const parts = name.split('/')
  return parts.length <= DEEPEST && parts.every(isSafePart)
}

/** Whether it may be the path of an artifact: data/<step>/<name>. */
export function isArtifactPath(path: string): boolean {
  const [top, step, ...name] = path.split('/')
  return top === 'data' && isSafePart(step ?? '') && isSafeName(name.join('/'))
}

/** Whether it may name a case: a safe part that does not begin with '-' or '.', short enough for '.zip.unfinished' behind it. */
export function isCaseId(id: string): boolean {
  return isSafePart(id) && /^[A-Za-z0-9]/.test(id) && id.length <= 200
}

/** A safe name for a file that somebody else named, the same for the same bytes: every unsafe byte and '=' as '=XX'. */
export function safePart(bytes: Uint8Array): string {
  const name = Array.from(bytes, byte => {
    const character = String.fromCharCode(byte)
    return character !== '=' && PART.test(character) ? character : `=${byte.toString(16).toUpperCase().padStart(2, '0')}`
  }).join('')
  if (name === '' || name === '.' || name === '..' || name.length > LONGEST_PART) {
    return `name-${createHash('sha256').update(bytes).digest('hex')}`
  }
  return name
}
