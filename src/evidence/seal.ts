/** Closes a case: manifests, the last custody line, and the archive beside the directory. See docs/formats.md. */
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import type { Readable } from 'node:stream'
import { EvidenceError, RefusedError } from '../errors.js'
import { errnoOf } from '../host.js'
import type { Seconds } from '../step.js'
import { iso } from '../time.js'
import { type ArchiveMember, type WrittenArchive, writeArchive } from './archive.js'
import { readArtifacts } from './artifacts.js'
import { BAGIT, fetchText, infoText, inOrder, manifestText, payloadOxum, readFetch, readManifest } from './bag.js'
import type { Case } from './case.js'
import { CaseDirectory, endsSealed, findCase, LONGEST_LOG } from './case-directory.js'
import { readCustody } from './custody.js'
import { closeQuietly, createFile, diskRefused, hashNow, openRegular, type Pinned, readFully, readRegular, syncDirectory } from './disk.js'
import { LARGE } from './evidence-file.js'
import { difference, takeStock } from './stock.js'

/** Pieces in which a large artifact is packed: what zlib holds of them adds up. */
const PIECE = 128 * 1024

/** Above this an artifact stays beside the archive. */
const INLINE_LIMIT = 1 << 30

/** Names that say that the content does not compress any more. */
const COMPRESSED = /\.(gz|zst|xz|bz2|lz4|zip|7z|age)$/

/** Up to here nothing is won by compressing: the headers of an entry are longer. Thousands of such files seal thrice as fast. */
const TINY = 128

/** Not in the tagmanifest: the custody log ends with its hash, and the signature comes after that. */
const UNLISTED = new Set(['tagmanifest-sha256.txt', 'custody.jsonl', 'custody.sig'])

/** What an analyst wants to read first stands first. */
const FIRST = [
  'bagit.txt',
  'bag-info.txt',
  'manifest-sha256.txt',
  'tagmanifest-sha256.txt',
  'fetch.txt',
  'custody.jsonl',
  'custody.sig',
  'artifacts.jsonl',
]

/** Errors of link(2) where a file system has no hard links. */
const NO_LINKS = new Set(['EPERM', 'EOPNOTSUPP', 'ENOTSUP', 'ENOSYS', 'EMLINK'])

export interface ArchiveOptions {
  /** Who gets case and archive in the end: the user behind sudo. */
  readonly owner?: { readonly uid: number; readonly gid: number }
  /** Without a byte moved for so long the archive is given up; 120 s when absent. */
  readonly stall?: Seconds
}

export interface SealInfo extends ArchiveOptions {
  readonly examiner?: string
  readonly authority?: string
  /** The number that the case has elsewhere. */
  readonly label?: string
  readonly host: string
  /** Name and version: 'ir-toolkit 1.2.0'. */
  readonly tool: string
  /** Of the host: 'Europe/Vienna'. All times in the case are UTC. */
  readonly timeZone: string
  /** Of the host's clock against a better one, as it was told: '+0.35 s (chrony)'. */
  readonly clockOffset?: string
  /** UTC, ISO 8601. */
  readonly started: string
  /** Bytes; an artifact above it stays beside the archive. 1 GiB when absent. */
  readonly inlineLimit?: number
}

export interface Sealed {
  /** Absolute path of the zip. */
  readonly archive: string
  readonly bytes: number
  /** Of the whole archive, as sha256sum prints it. */
  readonly sha256: string
  /** SHA-256 of the last custody line: to be noted off the host. */
  readonly head: string
  /** Absolute paths of the artifacts that are not in the archive. */
  readonly beside: readonly string[]
  /** Artifacts that were missing or shorter than when they were entered: evidence is damaged (exit 5), the rest is sealed. */
  readonly damaged: readonly string[]
  /** What did not work out without harm to the evidence, a sentence each. */
  readonly warnings: readonly string[]
}

/**
 * Seals a case and writes `<case>.zip` beside it. What lies in data/ and was never entered is entered now. Afterwards the
 * case is never written again.
 * @throws EvidenceError when the disk refuses. Before the custody line 'seal' the case can be sealed again later; behind
 *   it only the archive is missing, and bundleCase makes it.
 */
export async function sealCase(caze: Case, info: SealInfo): Promise<Sealed> {
  if (!(caze instanceof CaseDirectory)) throw new TypeError('only a case from createCase or openCase can be sealed')
  const damaged = await settle(caze)
  await caze.syncAll()
  writeTags(caze, info)
  const tags = takeStock(caze.root).tags.filter(name => !UNLISTED.has(name))
  const tagmanifest = manifestText(tags.map(name => ({ path: name, sha256: fileHash(caze.root, name) })))
  caze.writeTag('tagmanifest-sha256.txt', tagmanifest)
  caze.record('seal', {
    tagmanifest: createHash('sha256').update(tagmanifest).digest('hex'),
    artifacts: caze.artifacts.length,
    payload: payloadOxum(caze.artifacts),
  })
  caze.end()
  return archive(caze, caze.head, caze.host.now(), info, damaged)
}

/**
 * Writes the archive of a case that is sealed already and has none: the disk was full, or the power went.
 * @throws UsageError when there is no case at `directory`.
 * @throws RefusedError when it is not sealed, or its archive exists.
 * @throws EvidenceError when the disk refuses.
 */
export async function bundleCase(directory: string, options: ArchiveOptions & { readonly date: Date }): Promise<Sealed> {
  const place = findCase(directory)
  const refuse = (why: string): RefusedError => {
    closeQuietly(place.root.fd)
    closeQuietly(place.parent.fd)
    return new RefusedError(why)
  }
  if (!endsSealed(place.root)) throw refuse(`${place.directory} is not sealed: ir seal ${place.directory}`)
  if (fs.lstatSync(place.parent.at(`${place.id}.zip`), { throwIfNoEntry: false }) !== undefined) {
    throw refuse(`${place.directory}.zip exists already`)
  }
  return archive(place, readCustody(readTag(place.root, 'custody.jsonl')).head, options.date, options, [])
}

/** Enters what nobody entered, and says in the custody log what is not as it was entered. Returns what is damaged. */
async function settle(caze: CaseDirectory): Promise<readonly string[]> {
  const unclosed = caze.abandonWriting()
  const stock = takeStock(caze.root)
  // Of a tag that was being written when the run was ended.
  for (const name of stock.tags) if (/^\..*\.new$/.test(name)) caze.remove(name)
  const was = new Map(stock.renamed.map(({ path: renamed, was }) => [renamed, was]))
  const leftOut = [...stock.leftOut]
  const late = new Set<string>()
  for (const { path: relative } of stock.payload) {
    if (caze.has(relative)) continue
    const [, step, ...name] = relative.split('/')
    const old = was.get(relative)
    const notes = ['entered by the seal: whoever wrote it did not finish', ...(old === undefined ? [] : [`its name was ${old}`])]
    try {
      await caze.adopt(step as string, name.join('/'), { action: `${step}/?`, how: 'program', notes })
      late.add(relative)
    } catch (error) {
      if (error instanceof EvidenceError) throw error
      leftOut.push({ what: relative, why: error instanceof Error ? error.message : String(error) })
    }
  }
  const sizes = new Map(stock.payload.map(file => [file.path, file.bytes]))
  const differs: { path: string; how: string }[] = []
  for (const artifact of caze.artifacts) {
    if (late.has(artifact.path)) continue
    const how = difference(artifact, sizes.get(artifact.path))
    if (how === undefined) continue
    differs.push({ path: artifact.path, how })
    // A program that we could not end writes on behind what was hashed: only that is evidence.
    if (how === 'longer') cut(caze.root, artifact.path, artifact.bytes)
  }
  if (unclosed.length + late.size + leftOut.length + stock.renamed.length + differs.length > 0) {
    caze.record('gap', {
      why: 'found by the seal',
      // The rest is in artifacts.jsonl; a line of a million names helps nobody.
      late: [...late].slice(0, 100),
      lateCount: late.size,
      renamed: stock.renamed.slice(0, 100).map(({ path: now, was }) => ({ now, was })),
      leftOut: leftOut.slice(0, 100).map(({ what, why }) => ({ what, why })),
      leftOutCount: leftOut.length,
      differs: differs.slice(0, 100).map(({ path: differing, how }) => ({ path: differing, how })),
      differsCount: differs.length,
    })
  }
  return differs.filter(({ how }) => how !== 'longer').map(({ path: relative }) => relative)
}

function cut(root: Pinned, relative: string, bytes: number): void {
  try {
    const fd = openRegular(root.at(relative), true)
    try {
      fs.ftruncateSync(fd, bytes)
    } finally {
      closeQuietly(fd)
    }
  } catch (error) {
    throw diskRefused(`cut ${relative}`, error)
  }
}

function writeTags(caze: CaseDirectory, info: SealInfo): void {
  const now = iso(caze.host.now())
  const beside = inOrder(caze.artifacts.filter(artifact => artifact.bytes > (info.inlineLimit ?? INLINE_LIMIT)))
  caze.writeTag('bagit.txt', BAGIT)
  caze.writeTag(
    'bag-info.txt',
    infoText([
      ['External-Identifier', caze.id],
      ['Internal-Sender-Identifier', info.label],
      ['External-Description', `Evidence of the host ${info.host}`],
      ['Contact-Name', info.examiner],
      ['Bagging-Date', now.slice(0, 10)],
      ['Payload-Oxum', payloadOxum(caze.artifacts)],
      ['Bag-Software-Agent', info.tool],
      ['X-Authority', info.authority],
      ['X-Host', info.host],
      ['X-Started', info.started],
      ['X-Sealed', now],
      ['X-Time-Zone', info.timeZone],
      ['X-Clock-Offset', info.clockOffset ?? 'not known'],
    ]),
  )
  caze.writeTag('manifest-sha256.txt', manifestText(caze.artifacts))
  // One may be left from a seal that the disk refused.
  if (beside.length === 0) caze.remove('fetch.txt')
  else caze.writeTag('fetch.txt', fetchText(beside, info.host, caze.directory))
}

function fileHash(root: Pinned, name: string): string {
  try {
    const fd = openRegular(root.at(name))
    try {
      return hashNow(fd, fs.fstatSync(fd).size)
    } finally {
      closeQuietly(fd)
    }
  } catch (error) {
    throw diskRefused(`read ${name}`, error)
  }
}

function readTag(root: Pinned, name: string): Buffer {
  return readRegular(root.at(name), LONGEST_LOG)
}

interface Place {
  readonly id: string
  readonly directory: string
  readonly root: Pinned
  readonly parent: Pinned
}

/** From the sealed directory alone, so that it can be done again. Closes `root` and `parent`. */
async function archive(place: Place, head: string, date: Date, options: ArchiveOptions, damaged: readonly string[]): Promise<Sealed> {
  const { id, directory, root, parent } = place
  const name = `${id}.zip`
  const unfinished = `${name}.unfinished`
  let fd: number | undefined
  try {
    const { members, beside } = contents(place)
    fs.rmSync(parent.at(unfinished), { force: true })
    fd = createFile(parent, unfinished)
    const written: WrittenArchive = await writeArchive(fd, members, {
      date,
      ...(options.stall === undefined ? {} : { stall: options.stall }),
    })
    publish(parent, unfinished, name)
    syncDirectory(parent.fd)
    const warnings = options.owner === undefined ? [] : handOver(root, fd, options.owner)
    return { archive: `${directory}.zip`, ...written, head, beside, damaged, warnings }
  } catch (error) {
    discard(parent, unfinished)
    const refused = diskRefused('write the archive', error)
    throw new EvidenceError(`${refused.message}; the case is sealed in ${directory} and lacks only its archive: ir seal ${directory}`, {
      cause: error,
    })
  } finally {
    if (fd !== undefined) closeQuietly(fd)
    closeQuietly(root.fd)
    closeQuietly(parent.fd)
  }
}

/** Metadata first, then data/ in the order of the manifest, without what fetch.txt names. */
function contents({ id, directory, root }: Place): { members: ArchiveMember[]; beside: string[] } {
  const tags = takeStock(root).tags
  const text = (name: string): string => (tags.includes(name) ? readTag(root, name).toString('utf8') : '')
  const order = [...FIRST.filter(name => tags.includes(name)), ...tags.filter(name => !FIRST.includes(name))]
  const { hashes } = readManifest(text('manifest-sha256.txt'))
  const beside = [...readFetch(text('fetch.txt')).sizes.keys()]
  const apart = new Set(beside)
  const sizes = new Map(readArtifacts(text('artifacts.jsonl')).artifacts.map(artifact => [artifact.path, artifact.bytes]))
  const inside = [...hashes.keys()].filter(relative => !apart.has(relative) && sizeOf(root, relative) !== undefined)
  return {
    members: [...order, ...inside].map(relative => ({
      name: `${id}/${relative}`,
      stored: COMPRESSED.test(relative) || (sizeOf(root, relative) ?? 0) <= TINY,
      open: () => openMember(root, relative, sizes.get(relative)),
    })),
    beside: beside.map(relative => path.join(directory, relative)),
  }
}

/** Undefined when no regular file of this path is there. */
function sizeOf(root: Pinned, relative: string): number | undefined {
  const status = fs.lstatSync(root.at(relative), { throwIfNoEntry: false })
  return status?.isFile() ? status.size : undefined
}

/** At most as many bytes as were hashed, however the file has grown since. */
function openMember(root: Pinned, relative: string, hashed: number | undefined): Buffer | Readable {
  const fd = openRegular(root.at(relative))
  const bytes = Math.min(fs.fstatSync(fd).size, hashed ?? Number.POSITIVE_INFINITY)
  if (bytes > LARGE) return fs.createReadStream('', { fd, start: 0, end: bytes - 1, highWaterMark: PIECE })
  try {
    // A stream for each of thousands of small files takes half as long again.
    const buffer = Buffer.allocUnsafe(bytes)
    return buffer.subarray(0, readFully(fd, buffer, 0))
  } finally {
    closeQuietly(fd)
  }
}

/** Gives the finished archive its name, and never that of another file. */
function publish(parent: Pinned, unfinished: string, name: string): void {
  try {
    fs.linkSync(parent.at(unfinished), parent.at(name))
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') throw new EvidenceError(`a file ${name} has appeared meanwhile`, { cause: error })
    if (!NO_LINKS.has(errnoOf(error))) throw error
    if (fs.lstatSync(parent.at(name), { throwIfNoEntry: false }) !== undefined)
      throw new EvidenceError(`a file ${name} has appeared meanwhile`)
    fs.renameSync(parent.at(unfinished), parent.at(name))
    return
  }
  fs.unlinkSync(parent.at(unfinished))
}

function discard(parent: Pinned, unfinished: string): void {
  try {
    fs.rmSync(parent.at(unfinished), { force: true })
  } catch {
    // The error that led here is the one to tell.
  }
}

/**
 * Gives case and archive to a user, from the leaves up: as long as the case itself is ours and 0700, nobody but root can
 * put a link where we are about to change an owner. Returns what did not work; evidence is not lost by that.
 */
function handOver(root: Pinned, archiveFd: number, owner: { readonly uid: number; readonly gid: number }): string[] {
  const walk = (folder: Buffer): void => {
    for (const entry of fs.readdirSync(folder, { withFileTypes: true, encoding: 'buffer' })) {
      const inside = Buffer.concat([folder, Buffer.from('/'), entry.name])
      if (entry.isDirectory()) walk(inside)
      fs.lchownSync(inside, owner.uid, owner.gid)
    }
  }
  try {
    walk(Buffer.from(root.at('.')))
    fs.fchownSync(archiveFd, owner.uid, owner.gid)
    fs.fchownSync(root.fd, owner.uid, owner.gid)
    return []
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    return [`the case still belongs to ${process.geteuid?.()}: it could not be handed to ${owner.uid} (${why})`]
  }
}
