/** The text files of a bag: RFC 8493, The BagIt File Packaging Format (V1.0). */
import type { Artifact } from './case.js'

/** Section 2.1.1. */
export const BAGIT = 'BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n'

/** Section 2.1.3. Two spaces, so that `sha256sum -c` reads it; safe names need no escape in either. */
export function manifestText(files: readonly { readonly path: string; readonly sha256: string }[]): string {
  return inOrder(files)
    .map(({ path, sha256 }) => `${sha256}  ${path}\n`)
    .join('')
}

/** Sorted by path, by code units. */
export function inOrder<T extends { readonly path: string }>(files: readonly T[]): readonly T[] {
  return [...files].sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0))
}

/** Hashes by path; `broken` are the numbers of the lines, from 1, that are none, or name a path again. */
export function readManifest(text: string): { readonly hashes: ReadonlyMap<string, string>; readonly broken: readonly number[] } {
  const hashes = new Map<string, string>()
  const broken: number[] = []
  for (const [index, line] of linesOf(text).entries()) {
    const [, sha256, path] = /^([0-9a-f]{64}) {2}(.+)$/.exec(line) ?? []
    if (sha256 === undefined || path === undefined || hashes.has(path)) broken.push(index + 1)
    else hashes.set(path, sha256)
  }
  return { hashes, broken }
}

/** Section 2.2.2: 'Label: value' lines. A value keeps to its line, whoever wrote it. */
export function infoText(fields: readonly (readonly [label: string, value: string | undefined])[]): string {
  return fields
    .filter((field): field is readonly [string, string] => field[1] !== undefined && field[1] !== '')
    .map(([label, value]) => `${label}: ${oneLine(value)}\n`)
    .join('')
}

function oneLine(value: string): string {
  return value
    .toWellFormed()
    .replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]+/gu, ' ')
    .trim()
}

/** The first value of a label; undefined when it is not there. */
export function infoValue(text: string, label: string): string | undefined {
  return linesOf(text)
    .find(line => line.startsWith(`${label}: `))
    ?.slice(label.length + 2)
}

/** Payload-Oxum of section 2.2.2: bytes and number of the files in data/. */
export function payloadOxum(files: readonly { readonly bytes: number }[]): string {
  // BigInt: the sum of several images may pass 2^53.
  const bytes = files.reduce((sum, file) => sum + BigInt(file.bytes), 0n)
  return `${bytes}.${files.length}`
}

/** Section 2.2.3: where a file of data/ is that the archive does not hold. `directory` is the absolute path of the case. */
export function fetchText(files: readonly Artifact[], host: string, directory: string): string {
  return files.map(({ path, bytes }) => `${fileUrl(host, `${directory}/${path}`)} ${bytes} ${path}\n`).join('')
}

/** RFC 8089 with a host; all but unreserved characters escaped in every part (RFC 3986, 2.3). */
function fileUrl(host: string, path: string): string {
  const escaped = (part: string): string =>
    encodeURIComponent(part.toWellFormed()).replace(/[!'()*]/g, character => `%${character.charCodeAt(0).toString(16).toUpperCase()}`)
  return `file://${escaped(host)}${path.split('/').map(escaped).join('/')}`
}

/** Sizes by path; `broken` are the numbers of the lines, from 1, that make no sense. */
export function readFetch(text: string): { readonly sizes: ReadonlyMap<string, number>; readonly broken: readonly number[] } {
  const sizes = new Map<string, number>()
  const broken: number[] = []
  for (const [index, line] of linesOf(text).entries()) {
    const [, size, path] = /^\S+ (\d{1,16}) (.+)$/.exec(line) ?? []
    if (size === undefined || path === undefined || sizes.has(path)) broken.push(index + 1)
    else sizes.set(path, Number(size))
  }
  return { sizes, broken }
}

function linesOf(text: string): string[] {
  const lines = text.split('\n')
  if (lines.at(-1) === '') lines.pop()
  return lines
}
