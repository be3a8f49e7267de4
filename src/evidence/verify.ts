/** Proves a case intact, as a directory or as its archive, on any machine: every byte is read again. See docs/formats.md. */
import { createHash, type Hash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { z } from 'zod'
import { UsageError } from '../errors.js'
import { errnoOf } from '../host.js'
import { commentOf } from './archive.js'
import { readArtifacts } from './artifacts.js'
import { BAGIT, infoValue, payloadOxum, readFetch, readManifest } from './bag.js'
import { type CustodyReading, readCustody } from './custody.js'
import { closeQuietly, openRegular, pieces, readRegular } from './disk.js'
import { isArtifactPath, isCaseId } from './names.js'
import { EntryDamaged, entryChunks, readStructure, type ZipEntry } from './zip.js'

const CUSTODY = 'custody.jsonl'
const MANIFEST = 'manifest-sha256.txt'
const TAGMANIFEST = 'tagmanifest-sha256.txt'

/** Not covered by the tagmanifest: itself, the log that ends with its hash, and what signs that log. */
const UNLISTED = new Set([TAGMANIFEST, CUSTODY, 'custody.sig'])

/** As far as a file is read as text; a manifest or log of half a million artifacts stays below. */
const TEXT_LIMIT = 256 << 20

/** More differences than anyone reads; the counts in the checks are complete. */
const MOST_DIFFERENCES = 1000

export interface Check {
  readonly what: string
  readonly ok: boolean
  readonly detail: string
}

export interface Difference {
  /** In the case: 'data/<step>/<name>'; the archive's own name for what concerns it as such. */
  readonly path: string
  readonly what: string
}

export interface Verification {
  readonly intact: boolean
  readonly checks: readonly Check[]
  readonly differences: readonly Difference[]
  /** SHA-256 of the last custody line, '' when there is none: compare it with the one noted at the terminal. */
  readonly head: string
  /** What this cannot tell. */
  readonly notChecked: readonly string[]
}

/** A case, however it is kept. */
interface Bag {
  /** Of the case: the name of the directory, or the one that the archive carries inside. */
  readonly id: string
  readonly kept: 'directory' | 'archive'
  /** Files in it, sorted. */
  readonly names: ReadonlySet<string>
  /** Throws an Error whose message ends the sentence that the path begins. */
  read(name: string): Promise<Buffer>
  digest(name: string): Promise<Digest>
  /** An artifact that fetch.txt names; undefined when it is not where it should be. */
  fetched(name: string): Promise<Digest | undefined>
}

interface Digest {
  readonly bytes: number
  readonly sha256: string
}

/**
 * Verifies a sealed case.
 * @throws UsageError when there is neither a case nor an archive at `path`, or it cannot be read.
 */
export async function verify(target: string): Promise<Verification> {
  let status: fs.Stats
  try {
    status = fs.statSync(target)
  } catch (error) {
    throw new UsageError(`cannot read ${target} (${errnoOf(error)})`, { cause: error })
  }
  const report = new Report()
  if (status.isDirectory()) await verifyDirectory(target, report)
  else if (status.isFile()) await verifyArchive(target, report)
  else throw new UsageError(`${target} is neither a case directory nor an archive`)
  return report.end()
}

class Report {
  readonly #checks: Check[] = []
  readonly #differences: Difference[] = []
  readonly #notChecked: string[] = []
  #count = 0
  head = ''

  check(what: string, ok: boolean, detail: string): void {
    this.#checks.push({ what, ok, detail })
  }

  differs(where: string, what: string): void {
    this.#count += 1
    if (this.#differences.length < MOST_DIFFERENCES) this.#differences.push({ path: where, what })
  }

  notChecked(what: string): void {
    this.#notChecked.push(what)
  }

  /** Differences so far, to see whether a check found some. */
  get count(): number {
    return this.#count
  }

  end(): Verification {
    if (this.#count > this.#differences.length) {
      this.#differences.push({ path: '', what: `and ${this.#count - this.#differences.length} more differences` })
    }
    return {
      intact: this.#count === 0 && this.#checks.length > 0 && this.#checks.every(check => check.ok),
      checks: this.#checks,
      differences: this.#differences,
      head: this.head,
      notChecked: [
        ...this.#notChecked,
        'who made it: nobody has signed this case, and whoever can write all of it can make all of its hashes agree',
        `whether it is the case that was sealed: compare the head ${this.head === '' ? '(there is none)' : this.head} with the one noted at the terminal`,
      ],
    }
  }
}

async function verifyDirectory(target: string, report: Report): Promise<void> {
  const directory = fs.realpathSync(target)
  const has = (name: string): boolean => fs.lstatSync(path.join(directory, name), { throwIfNoEntry: false }) !== undefined
  if (!has(CUSTODY) && !has('bagit.txt') && !has(MANIFEST)) throw new UsageError(`${target} is no case: it has no ${CUSTODY}`)
  const names = new Set<string>()
  try {
    listFiles(directory, '', names, report)
  } catch (error) {
    throw new UsageError(`cannot read ${target} (${errnoOf(error)})`, { cause: error })
  }
  const locate = (name: string): string => path.join(directory, name)
  const bag: Bag = {
    id: path.basename(directory),
    kept: 'directory',
    names,
    read: async name => readable(() => readRegular(locate(name), TEXT_LIMIT)),
    digest: name => digestOfFile(locate(name)),
    // In the directory everything lies at its place.
    fetched: async name => (names.has(name) ? digestOfFile(locate(name)) : undefined),
  }
  const custody = await checkCustody(bag, report)
  if (custody?.lines.at(-1)?.event !== 'seal' && !names.has(TAGMANIFEST)) {
    report.check('sealed', false, `not sealed: the run was interrupted; ir seal ${target}`)
    report.notChecked('the artifacts: a case that is not sealed has no manifest yet')
    return
  }
  await checkBag(bag, custody, report)
}

function listFiles(directory: string, folder: string, names: Set<string>, report: Report): void {
  for (const entry of fs.readdirSync(path.join(directory, folder), { withFileTypes: true })) {
    const name = folder === '' ? entry.name : `${folder}/${entry.name}`
    if (entry.isDirectory() && (folder !== '' || entry.name === 'data')) listFiles(directory, name, names, report)
    else if (entry.isFile()) names.add(name)
    else report.differs(name, entry.isDirectory() ? 'is a folder that is not in the bag' : 'is no regular file')
  }
}

async function verifyArchive(target: string, report: Report): Promise<void> {
  let fd: number
  try {
    fd = openRegular(fs.realpathSync(target))
  } catch (error) {
    throw new UsageError(`cannot read ${target} (${errnoOf(error)})`, { cause: error })
  }
  const self = path.basename(target)
  try {
    const { size } = fs.fstatSync(fd)
    const { entries, faults, sha256, hashed } = readStructure(fd, size)
    if (entries.length === 0 && !target.endsWith('.zip') && !looksLikeZip(fd)) {
      throw new UsageError(`${target} is neither a case directory nor an archive`)
    }
    const id = entries[0]?.name.split('/', 1)[0] ?? ''
    const inCase = (name: string): string => (name.startsWith(`${id}/`) ? name.slice(id.length + 1) : name)
    const actual = (await digest(pieces(fd, 0, hashed))).sha256
    if (actual !== sha256) report.differs(self, `its bytes do not have the hash of its comment (${commentOf(actual)})`)
    report.check(
      'archive',
      actual === sha256,
      actual === sha256 ? `every byte hashes to ${actual}` : 'its bytes are not those that were sealed',
    )
    for (const fault of faults) report.differs(fault.path === '' ? self : inCase(fault.path), fault.what)
    report.check(
      'structure',
      faults.length === 0,
      faults.length === 0 ? `${entries.length} entries, nothing before, between or behind them` : `${faults.length} faults`,
    )
    if (entries.length === 0) {
      report.notChecked('its contents: without its directory they cannot be told apart')
      return
    }
    const files = new Map<string, ZipEntry>()
    for (const entry of entries) {
      if (!entry.name.startsWith(`${id}/`)) report.differs(entry.name, 'belongs to another case')
      else if (!files.has(inCase(entry.name))) files.set(inCase(entry.name), entry)
    }
    const bag = archivedBag(fd, id, files, path.join(path.dirname(fs.realpathSync(target)), id))
    await checkBag(bag, await checkCustody(bag, report), report)
  } finally {
    closeQuietly(fd)
  }
}

/** Begins with a local header: something that was an archive. */
function looksLikeZip(fd: number): boolean {
  const start = Buffer.alloc(4)
  return fs.readSync(fd, start, 0, 4, 0) === 4 && start.readUInt32LE(0) === 0x04034b50
}

function archivedBag(fd: number, id: string, files: ReadonlyMap<string, ZipEntry>, beside: string): Bag {
  const chunks = (name: string): AsyncGenerator<Buffer> => {
    const entry = files.get(name)
    if (entry === undefined) throw new Error('is missing')
    return entryChunks(fd, entry)
  }
  return {
    id,
    kept: 'archive',
    names: new Set([...files.keys()].sort()),
    async read(name) {
      const content: Buffer[] = []
      let bytes = 0
      for await (const piece of chunks(name)) {
        bytes += piece.length
        if (bytes > TEXT_LIMIT) throw new Error(`is larger than the ${TEXT_LIMIT} bytes that are read`)
        content.push(piece)
      }
      return Buffer.concat(content)
    },
    digest: async name => digest(chunks(name)),
    async fetched(name) {
      const side = path.join(beside, name)
      return fs.lstatSync(side, { throwIfNoEntry: false }) === undefined ? undefined : digestOfFile(side)
    },
  }
}

/** The custody log and its chain; undefined when it cannot be read. */
async function checkCustody(bag: Bag, report: Report): Promise<CustodyReading | undefined> {
  const bytes = await readOrBlame(bag, CUSTODY, report)
  if (bytes === undefined) {
    report.check('custody chain', false, `${CUSTODY} cannot be read`)
    return undefined
  }
  const custody = readCustody(bytes)
  report.head = custody.lines.length === 0 ? '' : custody.head
  for (const problem of custody.problems) report.differs(CUSTODY, `line ${problem.line} ${problem.what}`)
  if (custody.torn.length > 0) report.differs(CUSTODY, `ends with ${custody.torn.length} bytes of a torn line`)
  const whole = custody.problems.length === 0 && custody.torn.length === 0 && custody.lines.length > 0
  report.check('custody chain', whole, whole ? `${custody.lines.length} lines, each carries the hash of the one before` : 'broken')
  return custody
}

async function checkBag(bag: Bag, custody: CustodyReading | undefined, report: Report): Promise<void> {
  await checkTags(bag, custody, report)
  const manifest = await readManifestOf(bag, MANIFEST, report)
  const fetch = bag.names.has('fetch.txt') ? readFetch((await readOrBlame(bag, 'fetch.txt', report))?.toString('utf8') ?? '') : undefined
  for (const line of fetch?.broken ?? []) report.differs('fetch.txt', `line ${line} makes no sense`)
  const payload = await checkPayload(bag, manifest, fetch?.sizes ?? new Map(), report)
  await checkInfo(bag, payload, report)
  await checkOrigins(bag, manifest, payload, report)
  checkFinishes(custody, manifest, payload, report)
}

async function checkTags(bag: Bag, custody: CustodyReading | undefined, report: Report): Promise<void> {
  const bytes = await readOrBlame(bag, TAGMANIFEST, report)
  const hash = bytes === undefined ? '' : createHash('sha256').update(bytes).digest('hex')
  const last = custody?.lines.at(-1)
  const sealed = last?.event === 'seal' && last.detail.tagmanifest === hash
  if (!sealed) {
    report.differs(
      CUSTODY,
      last?.event === 'seal' ? `seals another ${TAGMANIFEST} than this one` : 'does not end with the line of the seal',
    )
  }
  report.check(
    'seal',
    sealed,
    sealed ? `the last custody line holds the hash of ${TAGMANIFEST}` : `the last custody line does not seal ${TAGMANIFEST}`,
  )

  const before = report.count
  const { hashes, broken } = readManifest(bytes?.toString('utf8') ?? '')
  for (const line of broken) report.differs(TAGMANIFEST, `line ${line} makes no sense`)
  for (const [name, sha256] of hashes) await compare(name, sha256, bag, report)
  for (const name of bag.names) {
    if (!name.startsWith('data/') && !UNLISTED.has(name) && !hashes.has(name)) report.differs(name, `is not in ${TAGMANIFEST}`)
  }
  if (bag.names.has('bagit.txt') && (await readOrBlame(bag, 'bagit.txt', report))?.toString('utf8') !== BAGIT) {
    report.differs('bagit.txt', 'does not declare a BagIt 1.0 bag in UTF-8')
  }
  if (bag.names.has('custody.sig')) report.notChecked('custody.sig: this version does not know signatures')
  report.check(
    'tag files',
    report.count === before,
    `${hashes.size} files as ${TAGMANIFEST} has them`.concat(report.count === before ? '' : ', but not all'),
  )
}

async function compare(name: string, sha256: string, bag: Bag, report: Report): Promise<Digest | undefined> {
  if (!bag.names.has(name)) {
    report.differs(name, 'is missing')
    return undefined
  }
  try {
    const found = await bag.digest(name)
    if (found.sha256 !== sha256) report.differs(name, `has the hash ${found.sha256}, not ${sha256}`)
    return found
  } catch (error) {
    report.differs(name, sentence(error))
    return undefined
  }
}

async function readManifestOf(bag: Bag, name: string, report: Report): Promise<ReadonlyMap<string, string>> {
  const { hashes, broken } = readManifest((await readOrBlame(bag, name, report))?.toString('utf8') ?? '')
  for (const line of broken) report.differs(name, `line ${line} makes no sense`)
  for (const listed of hashes.keys()) if (!isArtifactPath(listed)) report.differs(name, 'names a file that is no artifact')
  return new Map([...hashes].filter(([listed]) => isArtifactPath(listed)))
}

/** Every artifact against the manifest, and nothing besides. Gives the sizes that were found. */
async function checkPayload(
  bag: Bag,
  manifest: ReadonlyMap<string, string>,
  fetch: ReadonlyMap<string, number>,
  report: Report,
): Promise<ReadonlyMap<string, number>> {
  const before = report.count
  const sizes = new Map<string, number>()
  for (const [name, sha256] of manifest) {
    const apart = fetch.has(name) && !bag.names.has(name)
    const found = apart ? await compareFetched(name, sha256, bag, report) : await compare(name, sha256, bag, report)
    if (found === undefined) continue
    sizes.set(name, found.bytes)
    if (fetch.has(name) && fetch.get(name) !== found.bytes)
      report.differs(name, `has ${found.bytes} bytes, in fetch.txt ${fetch.get(name)}`)
  }
  for (const name of bag.names) if (name.startsWith('data/') && !manifest.has(name)) report.differs(name, `is not in ${MANIFEST}`)
  for (const name of fetch.keys()) if (!manifest.has(name)) report.differs('fetch.txt', `names ${name}, which is not in ${MANIFEST}`)
  const ok = report.count === before
  report.check(
    'artifacts',
    ok,
    ok ? `${manifest.size} files as ${MANIFEST} has them` : `${sizes.size} of ${manifest.size} could be read, with differences`,
  )
  return sizes
}

async function compareFetched(name: string, sha256: string, bag: Bag, report: Report): Promise<Digest | undefined> {
  try {
    const found = await bag.fetched(name)
    if (found === undefined) {
      report.differs(name, `is missing: it is not in the archive but beside it, as ${bag.id}/${name}`)
      return undefined
    }
    if (found.sha256 !== sha256) report.differs(name, `has the hash ${found.sha256}, not ${sha256}`)
    return found
  } catch (error) {
    report.differs(name, sentence(error))
    return undefined
  }
}

async function checkInfo(bag: Bag, sizes: ReadonlyMap<string, number>, report: Report): Promise<void> {
  const before = report.count
  const info = (await readOrBlame(bag, 'bag-info.txt', report))?.toString('utf8') ?? ''
  const oxum = payloadOxum([...sizes.values()].map(bytes => ({ bytes })))
  const claimed = infoValue(info, 'Payload-Oxum')
  if (claimed !== oxum) report.differs('bag-info.txt', `speaks of ${claimed ?? 'no'} bytes.files, found are ${oxum}`)
  const id = infoValue(info, 'External-Identifier')
  // Whoever received a directory may have renamed it.
  if (id === undefined || !isCaseId(id) || (id !== bag.id && bag.kept === 'archive'))
    report.differs('bag-info.txt', 'does not name this case')
  else if (id !== bag.id) report.notChecked(`its name: it lies in ${bag.id}, and was sealed as ${id}`)
  report.check('bag-info.txt', report.count === before, `${oxum} bytes.files`)
}

async function checkOrigins(
  bag: Bag,
  manifest: ReadonlyMap<string, string>,
  sizes: ReadonlyMap<string, number>,
  report: Report,
): Promise<void> {
  const before = report.count
  const { artifacts, broken } = readArtifacts((await readOrBlame(bag, 'artifacts.jsonl', report))?.toString('utf8') ?? '')
  for (const line of broken) report.differs('artifacts.jsonl', `line ${line} makes no sense`)
  const known = new Set<string>()
  for (const { path: name, sha256, bytes } of artifacts) {
    if (known.has(name)) report.differs('artifacts.jsonl', `enters ${name} twice`)
    known.add(name)
    if (manifest.get(name) !== sha256) report.differs('artifacts.jsonl', `has another hash for ${name} than ${MANIFEST}`)
    else if (sizes.has(name) && sizes.get(name) !== bytes) report.differs(name, `has ${sizes.get(name)} bytes, ${bytes} were entered`)
  }
  for (const name of manifest.keys()) if (!known.has(name)) report.differs('artifacts.jsonl', `does not tell where ${name} comes from`)
  report.check('origins', report.count === before, `${known.size} artifacts in artifacts.jsonl`)
}

/** What a custody line may say about artifacts: the engine's 'finish' lines do. */
const Finished = z.array(z.looseObject({ path: z.string(), sha256: z.string(), bytes: z.number().optional() }))

function checkFinishes(
  custody: CustodyReading | undefined,
  manifest: ReadonlyMap<string, string>,
  sizes: ReadonlyMap<string, number>,
  report: Report,
): void {
  const before = report.count
  let told = 0
  for (const line of custody?.lines ?? []) {
    if (line.event !== 'finish' || line.detail.artifacts === undefined) continue
    const parsed = Finished.safeParse(line.detail.artifacts)
    if (!parsed.success) {
      report.differs(CUSTODY, `line ${line.seq} names its artifacts in no form that ir writes`)
      continue
    }
    for (const { path: name, sha256, bytes } of parsed.data) {
      told += 1
      if (!manifest.has(name)) report.differs(name, `is in line ${line.seq} of ${CUSTODY}, but not in ${MANIFEST}`)
      else if (manifest.get(name) !== sha256) report.differs(name, `has another hash in line ${line.seq} of ${CUSTODY} than in ${MANIFEST}`)
      else if (bytes !== undefined && sizes.has(name) && sizes.get(name) !== bytes) {
        report.differs(name, `has ${sizes.get(name)} bytes, ${bytes} in line ${line.seq} of ${CUSTODY}`)
      }
    }
  }
  report.check('custody artifacts', report.count === before, `${told} artifacts in the 'finish' lines`)
}

/** What cannot be read differs, once; undefined then. */
async function readOrBlame(bag: Bag, name: string, report: Report): Promise<Buffer | undefined> {
  if (!bag.names.has(name)) {
    report.differs(name, 'is missing')
    return undefined
  }
  try {
    return await bag.read(name)
  } catch (error) {
    report.differs(name, sentence(error))
    return undefined
  }
}

/** Errors of ours are written as the end of a sentence; those of the system have a code. */
function sentence(error: unknown): string {
  if (error instanceof EntryDamaged) return error.message
  const code = errnoOf(error)
  return code === '' ? (error instanceof Error ? error.message : String(error)) : `cannot be read (${code})`
}

function readable<T>(read: () => T): T {
  try {
    return read()
  } catch (error) {
    throw errnoOf(error) === '' ? new Error(`cannot be read: ${(error as Error).message}`, { cause: error }) : error
  }
}

async function digestOfFile(name: string): Promise<Digest> {
  const fd = readable(() => openRegular(name))
  try {
    return await digest(pieces(fd, 0, fs.fstatSync(fd).size))
  } finally {
    closeQuietly(fd)
  }
}

async function digest(content: AsyncIterable<Buffer>): Promise<Digest> {
  const hash: Hash = createHash('sha256')
  let bytes = 0
  for await (const piece of content) {
    hash.update(piece)
    bytes += piece.length
  }
  return { bytes, sha256: hash.digest('hex') }
}
