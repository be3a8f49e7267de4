/** A boot as the tests use it: what was kept of its commands, and its cases out of their sealed archives. */
import fs from 'node:fs'
import path from 'node:path'
import type { Canary } from './image.js'
import { type Booted, type BootOptions, boot, makeShare } from './machine.js'
import { run } from './prerequisites.js'

export interface Kept {
  readonly exitCode: number
  readonly stdout: string
  readonly stderr: string
}

export interface Session extends Booted {
  /** What `keep NAME` kept. @throws errno errors when the machine did not get to it. */
  kept(name: string): Kept
  /** The same, of a command that prints one JSON document. */
  document(name: string): unknown
  canary(): Canary
  /** Unpacks the archive of `capture NAME` and checks every hash. @throws when one is wrong. */
  evidence(name: string): Evidence
  end(): void
}

/** A case as who has only the archive, and what lies beside it, sees it. */
export interface Evidence {
  /** Path of an artifact of capture-mem. */
  artifact(name: string): string
  readonly artifacts: readonly string[]
  /** A directory for whoever looks at it; it goes with the session. */
  readonly scratch: string
  /** Lines of custody.jsonl. */
  readonly custody: readonly Record<string, unknown>[]
}

/** @throws what `boot` throws; then nothing of it is left. */
export async function startSession(options: BootOptions): Promise<Session> {
  const share = makeShare()
  const end = (): void => fs.rmSync(share, { recursive: true, force: true })
  const text = (name: string): string => fs.readFileSync(path.join(share, name), 'utf8')
  let booted: Booted
  try {
    booted = await boot(share, { ...options, command: `. test/lab/guest/commands.sh\n${options.command}` })
    if (booted.exitCode !== 0) throw new Error(`its command failed (${booted.exitCode}): ${text('stderr').trim().slice(-600)}`)
  } catch (error) {
    end()
    throw error
  }
  const opened = new Map<string, Evidence>()
  return {
    ...booted,
    kept: name => ({ exitCode: Number(text(`${name}.exit-code`)), stdout: text(`${name}.stdout`), stderr: text(`${name}.stderr`) }),
    document: name => JSON.parse(text(`${name}.stdout`)),
    canary: () => JSON.parse(text('canary.json')) as Canary,
    evidence(name) {
      const known = opened.get(name) ?? unpack(path.join(share, 'cases', name))
      opened.set(name, known)
      return known
    },
    end,
  }
}

/** By the commands of docs/formats.md. */
function unpack(output: string): Evidence {
  const [archive, ...more] = fs.readdirSync(output).filter(name => name.endsWith('.zip'))
  if (archive === undefined || more.length > 0) throw new Error(`${output} does not hold one archive`)
  const beside = path.join(output, archive.replace(/\.zip$/, ''))
  const unpacked = path.join(output, 'unpacked')
  run('unzip', ['-q', path.join(output, archive), '-d', unpacked])
  const bag = path.join(unpacked, path.basename(beside))
  const fetch = path.join(bag, 'fetch.txt')
  for (const line of fs.existsSync(fetch) ? linesOf(fetch) : []) {
    const name = line.split(' ')[2] as string
    fs.mkdirSync(path.dirname(path.join(bag, name)), { recursive: true })
    fs.copyFileSync(path.join(beside, name), path.join(bag, name))
  }
  // Nothing that is looked at later comes from anywhere else.
  fs.rmSync(beside, { recursive: true })
  for (const manifest of ['tagmanifest-sha256.txt', 'manifest-sha256.txt']) {
    if (fs.statSync(path.join(bag, manifest)).size > 0) run('sha256sum', ['--quiet', '--strict', '-c', manifest], { cwd: bag })
  }
  const data = path.join(bag, 'data/capture-mem')
  const scratch = path.join(output, 'scratch')
  fs.mkdirSync(scratch)
  return {
    scratch,
    artifact: name => path.join(data, name),
    artifacts: fs.existsSync(data) ? fs.readdirSync(data).toSorted() : [],
    custody: linesOf(path.join(bag, 'custody.jsonl')).map(line => JSON.parse(line) as Record<string, unknown>),
  }
}

function linesOf(file: string): string[] {
  return fs
    .readFileSync(file, 'utf8')
    .split('\n')
    .filter(line => line !== '')
}
