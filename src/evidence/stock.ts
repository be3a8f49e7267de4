/** Takes stock of a case directory before it is sealed: what is there, what nobody entered, what cannot be sealed. */
import fs from 'node:fs'
import { errnoOf } from '../host.js'
import type { Artifact } from './case.js'
import { diskRefused, type Pinned } from './disk.js'
import { isArtifactPath, isSafePart, safePart } from './names.js'

/** More entries than any run makes; a directory that is still being filled must not hold up the seal for ever. */
const MOST_ENTRIES = 1_000_000

export interface Stock {
  /** Tag files at the top of the case, sorted. */
  readonly tags: readonly string[]
  /** Regular files in data/, sorted, with their present sizes. */
  readonly payload: readonly { readonly path: string; readonly bytes: number }[]
  /** What got another name because its own was unsafe; `was` is escaped. */
  readonly renamed: readonly { readonly path: string; readonly was: string }[]
  /** What no archive can hold (links, devices, foreign folders), escaped, and why. */
  readonly leftOut: readonly { readonly what: string; readonly why: string }[]
}

/** @throws EvidenceError when the directory cannot be read. */
export function takeStock(root: Pinned): Stock {
  const tags: string[] = []
  const payload: { path: string; bytes: number }[] = []
  const renamed: { path: string; was: string }[] = []
  const leftOut: { what: string; why: string }[] = []
  let entries = 0

  const walk = (folder: string): void => {
    for (const raw of namesIn(root, folder)) {
      entries += 1
      if (entries > MOST_ENTRIES) break
      const path = safe(folder, raw)
      const status = fs.lstatSync(root.at(path), { throwIfNoEntry: false })
      if (status === undefined) continue
      if (status.isDirectory() && path.split('/').length < 10) walk(path)
      else if (status.isFile() && status.nlink === 1 && isArtifactPath(path)) payload.push({ path, bytes: status.size })
      else leftOut.push({ what: path, why: reason(status) })
    }
  }

  /** The name it has, or gets. */
  const safe = (folder: string, raw: Buffer): string => {
    const name = raw.toString('latin1')
    if (isSafePart(name)) return `${folder}/${name}`
    let path = `${folder}/${safePart(raw)}`
    for (let n = 2; fs.lstatSync(root.at(path), { throwIfNoEntry: false }) !== undefined; n += 1) path = `${folder}/${safePart(raw)}.${n}`
    fs.renameSync(Buffer.concat([Buffer.from(`${root.at(folder)}/`), raw]), root.at(path))
    renamed.push({ path, was: escaped(raw) })
    return path
  }

  try {
    for (const raw of namesIn(root, '')) {
      const name = raw.toString('latin1')
      if (name === 'data') continue
      const status = fs.lstatSync(Buffer.concat([Buffer.from(root.at('')), raw]), { throwIfNoEntry: false })
      if (status?.isFile() && status.nlink === 1 && isSafePart(name)) tags.push(name)
      else if (status !== undefined) leftOut.push({ what: escaped(raw), why: reason(status) })
    }
    walk('data')
  } catch (error) {
    throw diskRefused('read the case directory', error)
  }
  if (entries > MOST_ENTRIES) leftOut.push({ what: 'data', why: `holds more than ${MOST_ENTRIES} files` })
  payload.sort((a, b) => (a.path < b.path ? -1 : 1))
  return { tags: tags.sort(), payload, renamed, leftOut }
}

function namesIn(root: Pinned, folder: string): readonly Buffer[] {
  try {
    return fs.readdirSync(root.at(folder), { encoding: 'buffer' })
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return []
    throw error
  }
}

function reason(status: fs.Stats): string {
  if (status.isSymbolicLink()) return 'a symbolic link'
  if (status.isDirectory()) return 'a folder that is not ours, or too deep'
  if (!status.isFile()) return 'neither file nor folder'
  return status.nlink === 1 ? 'a file where none belongs' : 'a file with another name outside of the case'
}

/** Bytes of a name as printable ASCII, others as \xHH. */
function escaped(raw: Buffer): string {
  return Array.from(raw, byte =>
    byte >= 0x20 && byte < 0x7f && byte !== 0x5c ? String.fromCharCode(byte) : `\\x${byte.toString(16).padStart(2, '0')}`,
  ).join('')
}

/** How an artifact as it lies there differs from what was entered; undefined when its size agrees. */
export function difference(artifact: Artifact, lies: number | undefined): 'missing' | 'shorter' | 'longer' | undefined {
  if (lies === undefined) return 'missing'
  if (lies === artifact.bytes) return undefined
  return lies < artifact.bytes ? 'shorter' : 'longer'
}
