/** Runs the real command line, as it was built, and reads what it left. */
import { execFileSync, spawn } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import type { Finished } from './namespace.js'

export const IR = path.resolve(import.meta.dirname, '../../bin/ir')

/** A new directory for evidence, removed by `removeDirectories`. */
export function outputDirectory(): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'ir-test-'))
  made.push(directory)
  return directory
}

const made: string[] = []

export function removeDirectories(): void {
  for (const directory of made.splice(0)) fs.rmSync(directory, { recursive: true, force: true })
}

/**
 * Runs `ir` where we are: only for what changes nothing (dry runs, refusals, verify, doctor, snapshots) or confines itself (drill).
 * Isolation is refused here: it belongs into a namespace of test/helpers/namespace.ts.
 */
export function ir(
  args: readonly string[],
  options: { env?: Record<string, string>; cwd?: string; prefix?: readonly string[] } = {},
): Promise<Finished> {
  const changes = ['isolate', 'respond', 'release', 'confirm'].includes(args[0] ?? '')
  if (changes && !args.includes('--dry-run') && options.prefix === undefined) throw new Error(`ir ${args[0]} needs a namespace`)
  const [program, ...rest] = [...(options.prefix ?? []), IR, ...args] as [string, ...string[]]
  const child = spawn(program, rest, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', HOME: '/nonexistent', ...options.env },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  })
  let [stdout, stderr] = ['', '']
  child.stdout.on('data', chunk => {
    stdout += chunk
  })
  child.stderr.on('data', chunk => {
    stderr += chunk
  })
  return new Promise(resolve => child.once('close', (code, signal) => resolve({ code, signal, stdout, stderr })))
}

/** The only case directory below an output directory. */
export function caseIn(output: string): string {
  const found = fs.readdirSync(output).filter(name => /^ir-.*Z$/.test(name) && fs.statSync(path.join(output, name)).isDirectory())
  if (found.length !== 1) throw new Error(`${found.length} cases in ${output}: ${fs.readdirSync(output)}`)
  return path.join(output, found[0] as string)
}

export interface CustodyLine {
  readonly event: string
  readonly action?: string
  readonly step?: string
  readonly outcome?: string
  readonly [key: string]: unknown
}

export function custodyOf(caseDirectory: string): CustodyLine[] {
  return fs
    .readFileSync(path.join(caseDirectory, 'custody.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')
    .map(line => JSON.parse(line))
}

/** Checks an archive as a stranger would: `unzip -t`, unpack, `sha256sum -c`. Gives the directory that it unpacked to. */
export function checkWithStandardTools(archive: string): string {
  const directory = outputDirectory()
  execFileSync('unzip', ['-tqq', archive])
  execFileSync('unzip', ['-qq', archive, '-d', directory])
  const bag = path.join(directory, fs.readdirSync(directory)[0] as string)
  execFileSync('sha256sum', ['--strict', '--quiet', '-c', 'manifest-sha256.txt'], { cwd: bag })
  execFileSync('sha256sum', ['--strict', '--quiet', '-c', 'tagmanifest-sha256.txt'], { cwd: bag })
  return bag
}
