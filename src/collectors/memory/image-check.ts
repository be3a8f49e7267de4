/** Looks through an image of memory: does it open in Volatility, which kernel does it hold, and is what its case says of it still true. */
import fs from 'node:fs'
import path from 'node:path'
import { gunzipSync } from 'node:zlib'
import { z } from 'zod'
import { errnoOf, readFile } from '../../host.js'
import { type AddressRange, hex, mergeRanges, rangeFacts, subtractRanges, totalBytes, wholePages } from './address-range.js'
import { systemRam } from './iomem.js'
import { keyValues } from './kcore.js'
import { type LimeRecord, readLime } from './lime.js'

export interface ImageCheck {
  readonly image: string
  readonly fileBytes: number
  /** Bytes of memory in it, and the records they lie in; the first of them are named. */
  readonly memoryBytes: number
  readonly recordCount: number
  readonly records: readonly { readonly first: string; readonly last: string }[]
  /** Zeros that take no room on the disk. */
  readonly holeBytes: number
  /** Pages that could not be read and are zeros, by the case; undefined when no case lies around the image. */
  readonly unreadable?: { readonly bytes: number; readonly runs: number }
  /** What the kernel in it calls itself. */
  readonly banner?: string
  /** Of its VMCOREINFO. */
  readonly kernel?: { readonly release: string; readonly offset?: string; readonly fiveLevelPaging?: boolean }
  /** The symbol file beside it. */
  readonly symbols?: string
  /** Each of them makes Volatility refuse the image, or part of what was in memory is not in it. */
  readonly problems: readonly string[]
  /** What an analyst must know all the same. */
  readonly notes: readonly string[]
}

const MAX_LISTED = 1000
const CHUNK = 4 << 20
/** Longer than a banner and than VMCOREINFO, which fills a page at most (linux/vmcore_info.h, VMCOREINFO_BYTES). */
const OVERLAP = 8192
const MAX_CUSTODY = 256 << 20
const MAX_SYMBOLS = 64 << 20
const MAX_ISF = 512 << 20
const MAX_IOMEM = 16 << 20
const PAGE = 4096n

/** Frame_Header of RFC 8878, section 3.1.1, and the header of gzip, RFC 1952. */
const COMPRESSED: readonly (readonly [hex: string, name: string, program: string])[] = [
  ['28b52ffd', 'zstd', 'zstd -d'],
  ['1f8b', 'gzip', 'gunzip'],
]

/** Ends as in the kernel's own memory: in copies of it something else follows. */
const BANNER = /Linux version [\x20-\x7e]{10,600}\n\0/g
/** Begins a page of its own, kernel/crash_core.c; what else holds the words is no list of KEY=value. */
const VMCOREINFO = /OSRELEASE=[\x20-\x7e]{1,64}\n(?:[\w()./[\]-]{1,100}=[\x20-\x7e]{0,200}\n){3,}/

/**
 * Reads the image once. It is not changed.
 * @throws errno errors of the file itself; what it holds is told, never thrown.
 */
export function checkMemoryImage(image: string): ImageCheck {
  const fd = fs.openSync(image, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)
  try {
    const { size: fileBytes, blocks } = fs.fstatSync(fd)
    const found = readLime((into, at) => fs.readSync(fd, into, 0, into.length, at), fileBytes)
    const packed = found.records.length === 0 ? compression(fd) : undefined
    if (packed !== undefined) return { ...NOTHING, image, fileBytes, problems: [packed] }
    const damage = found.damage
    const refused =
      damage?.kind === 'format'
        ? [`damaged at byte ${damage.at}: ${damage.what}; Volatility refuses the whole image`]
        : damage === undefined
          ? []
          : [`cut at byte ${damage.at}: ${damage.what}; Volatility opens it and fails where it ends`]
    const symbols = symbolFile(image)
    const kernel = findKernel(fd, found.records, fileBytes, symbols?.banner)
    const { facts, problems: broken } = caseFacts(image, fileBytes)
    const records = found.records.map(({ start, end }) => ({ start, end }))
    const problems = [...refused, ...kernelProblems(kernel, symbols), ...broken, ...lackingRam(image, records, facts)]
    return {
      image,
      fileBytes,
      memoryBytes: found.records.reduce((sum, { start, end, at }) => sum + Math.min(Number(end - start), fileBytes - at), 0),
      recordCount: records.length,
      records: records.slice(0, MAX_LISTED).map(rangeFacts) as unknown as ImageCheck['records'],
      holeBytes: Math.max(0, fileBytes - blocks * 512),
      ...(facts?.unreadable === undefined ? {} : { unreadable: { bytes: facts.unreadable.bytes, runs: facts.unreadable.runs } }),
      ...(kernel.banner === undefined ? {} : { banner: kernel.banner.trimEnd() }),
      ...(kernel.info === undefined ? {} : { kernel: kernelOf(kernel.info) }),
      ...(symbols === undefined ? {} : { symbols: symbols.file }),
      problems,
      notes: notes(kernel, facts),
    }
  } finally {
    fs.closeSync(fd)
  }
}

const NOTHING = { memoryBytes: 0, recordCount: 0, records: [], holeBytes: 0, notes: [] }

function compression(fd: number): string | undefined {
  const start = Buffer.alloc(4)
  fs.readSync(fd, start, 0, 4, 0)
  const [, name, program] = COMPRESSED.find(([magic]) => start.toString('hex').startsWith(magic)) ?? []
  return name === undefined ? undefined : `compressed with ${name}: unpack it first (${program})`
}

interface Kernel {
  readonly info?: ReadonlyMap<string, string>
  /** With its line feed. */
  readonly banner?: string
}

/** As it was built: a draft of the banner without this number is in newer kernels too (init/version.c; seen in 6.1). */
const BUILD_NUMBER = /#\d/

/** Searches the records, not the headers between them; reads no further when it has both. `wanted` is the banner of the symbols. */
function findKernel(fd: number, records: readonly LimeRecord[], fileBytes: number, wanted: string | undefined): Kernel {
  const buffer = Buffer.allocUnsafe(CHUNK + OVERLAP)
  const banners = new Set<string>()
  let info: ReadonlyMap<string, string> | undefined
  const ofRelease = (): string[] => {
    const release = info?.get('OSRELEASE')
    return release === undefined ? [] : [...banners].filter(banner => banner.startsWith(`Linux version ${release} `))
  }
  const sure = (): string | undefined =>
    wanted === undefined ? ofRelease().find(banner => BUILD_NUMBER.test(banner)) : [...banners].find(banner => banner === wanted)
  for (const { at, start, end } of records) {
    const stop = Math.min(fileBytes, at + Number(end - start))
    for (let from = at; from < stop; from += CHUNK) {
      const got = fs.readSync(fd, buffer, 0, Math.min(buffer.length, stop - from), from)
      const chunk = buffer.subarray(0, got)
      for (const text of around(chunk, 'Linux version ', 1024)) {
        for (const [banner] of text.matchAll(BANNER)) if (banners.size < MAX_LISTED) banners.add(banner.slice(0, -1))
      }
      if (info === undefined) {
        const note = around(chunk, 'OSRELEASE=', 4096).flatMap(text => VMCOREINFO.exec(text)?.[0] ?? [])[0]
        if (note !== undefined) info = keyValues(note)
      }
      const banner = sure()
      if (info !== undefined && banner !== undefined) return { info, banner }
    }
  }
  const banner = sure() ?? ofRelease().find(one => BUILD_NUMBER.test(one)) ?? ofRelease()[0]
  const only = info === undefined && banners.size === 1 ? [...banners][0] : undefined
  const found = banner ?? only
  return { ...(info === undefined ? {} : { info }), ...(found === undefined ? {} : { banner: found }) }
}

/** The text from each place of a word on. */
function around(chunk: Buffer, word: string, bytes: number): string[] {
  const texts: string[] = []
  for (let at = chunk.indexOf(word, 0, 'latin1'); at !== -1; at = chunk.indexOf(word, at + word.length, 'latin1')) {
    texts.push(chunk.toString('latin1', at, at + bytes))
  }
  return texts
}

function kernelOf(info: ReadonlyMap<string, string>): NonNullable<ImageCheck['kernel']> {
  const offset = info.get('KERNELOFFSET')
  const levels = info.get('NUMBER(pgtable_l5_enabled)')
  return {
    release: info.get('OSRELEASE') ?? '',
    ...(offset !== undefined && /^[0-9a-f]{1,16}$/.test(offset) ? { offset: hex(BigInt(`0x${offset}`)) } : {}),
    ...(levels === undefined ? {} : { fiveLevelPaging: levels !== '0' }),
  }
}

function kernelProblems({ info, banner }: Kernel, symbols: ReturnType<typeof symbolFile>): string[] {
  if (banner === undefined) {
    const release = info?.get('OSRELEASE')
    return [`no banner of a Linux kernel${release === undefined ? '' : ` ${release}`} in it: Volatility cannot tell which kernel it is of`]
  }
  if (symbols === undefined) return []
  if (symbols.banner === undefined) return [`${symbols.file} beside it is no symbol file, or names no kernel`]
  return symbols.banner === banner ? [] : [`${symbols.file} beside it is of another kernel: ${symbols.banner.trimEnd()}`]
}

/** The banner of the symbol file beside the image, with its line feed; undefined when there is no such file. */
function symbolFile(image: string): { readonly file: string; readonly banner?: string } | undefined {
  const file = `${path.basename(image).replace(/\.lime$/, '')}.isf.json.gz`
  try {
    const text = gunzipSync(readFile(path.join(path.dirname(image), file), MAX_SYMBOLS), { maxOutputLength: MAX_ISF }).toString('latin1')
    // Not parsed as a whole: it has 14 MB, and the one entry is short.
    const entry = text.indexOf('"linux_banner":')
    const data = entry === -1 ? undefined : /"constant_data": ?"([A-Za-z0-9+/=]+)"/.exec(text.slice(entry, entry + 4096))?.[1]
    if (data === undefined) return { file }
    return { file, banner: Buffer.from(data, 'base64').toString('latin1').replace(/\0$/, '') }
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    if (errnoOf(error) === '' && !(error instanceof RangeError)) throw error
    return { file }
  }
}

const Facts = z.object({
  image: z.string(),
  fileBytes: z.number(),
  unreadable: z.object({ bytes: z.number(), runs: z.number() }).optional(),
})
const Finish = z.object({ event: z.literal('finish'), outcome: z.string(), reason: z.string().optional(), facts: Facts })

/** What the custody log of the case says of an image at data/<step>/<name>. */
function caseFacts(image: string, fileBytes: number): { readonly facts?: z.infer<typeof Facts>; readonly problems: readonly string[] } {
  const name = path.basename(image)
  let log: string
  try {
    log = readFile(path.resolve(path.dirname(image), '../../custody.jsonl'), MAX_CUSTODY).toString('utf8')
  } catch (error) {
    if (errnoOf(error) === '') throw error
    return { problems: [] }
  }
  for (const line of log.split('\n')) {
    if (!line.includes('"event":"finish"') || !line.includes(JSON.stringify(name))) continue
    const finish = Finish.safeParse(jsonOf(line))
    if (!finish.success || finish.data.facts.image !== name) continue
    const { facts, outcome, reason } = finish.data
    return {
      facts,
      problems: [
        ...(outcome === 'collected' ? [] : [`the case says that it is not whole (${outcome}): ${reason ?? 'no reason given'}`]),
        ...(facts.fileBytes === fileBytes ? [] : [`it has ${fileBytes} bytes, and ${facts.fileBytes} by the case`]),
      ],
    }
  }
  return { problems: [] }
}

function jsonOf(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch {
    return undefined
  }
}

/** Whole pages of RAM that the list beside the image names and the image does not hold. */
function lackingRam(image: string, records: readonly AddressRange[], facts: z.infer<typeof Facts> | undefined): string[] {
  let ram: readonly AddressRange[]
  try {
    ram = systemRam(readFile(path.join(path.dirname(image), 'iomem.txt'), MAX_IOMEM).toString('latin1'))
  } catch {
    // None beside it, or without addresses: there is nothing to compare with.
    return []
  }
  if (facts === undefined && records.length === 0) return []
  const lacking = subtractRanges(mergeRanges(wholePages(ram, PAGE)), mergeRanges(records))
  if (lacking.length === 0) return []
  const first = lacking[0] as AddressRange
  return [
    `it lacks ${totalBytes(lacking)} bytes of the RAM in iomem.txt, in ${lacking.length} ranges from ${hex(first.start)}-${hex(first.end - 1n)} on`,
  ]
}

function notes({ info }: Kernel, facts: z.infer<typeof Facts> | undefined): string[] {
  const levels = info?.get('NUMBER(pgtable_l5_enabled)') ?? '0'
  const paging = levels === '0' ? [] : ['5-level paging: no released version of Volatility can translate its addresses']
  const bad = facts?.unreadable?.bytes ?? 0
  return bad === 0 ? paging : [...paging, `${bad} bytes could not be read and are zeros; the facts of the action name the pages`]
}
