/** Volatility 3 in a virtual environment of its own, on an image and with nothing but the symbol file that lies beside it. */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import { CACHE, run } from './prerequisites.js'

/** Versions of it and of everything that it needs. */
const REQUIREMENTS = path.join(import.meta.dirname, 'requirements.txt')

/** One plugin on one image, ms. */
const LIMIT = 400_000

/** A row of a plugin's table, by the names of its columns. */
export type Row = Readonly<Record<string, unknown>>

/**
 * From the cache, or installed.
 * @returns the path of `vol`
 * @throws an Error of one line when it cannot be installed
 */
export function prepareVolatility(): string {
  const digest = createHash('sha256').update(fs.readFileSync(REQUIREMENTS)).digest('hex').slice(0, 12)
  const directory = path.join(CACHE, `volatility-${digest}`)
  const vol = path.join(directory, 'bin/vol')
  // The programs of a virtual environment name its path, so it is made where it stays, and pip's last file tells that it is complete.
  const complete = path.join(directory, 'complete')
  if (!fs.existsSync(complete)) {
    fs.rmSync(directory, { recursive: true, force: true })
    fs.mkdirSync(CACHE, { recursive: true })
    run('python3', ['-m', 'venv', directory])
    run(path.join(directory, 'bin/pip'), ['install', '--quiet', '--disable-pip-version-check', '--no-deps', '--requirement', REQUIREMENTS])
    fs.writeFileSync(complete, '')
  }
  return vol
}

/**
 * Rows of a plugin. Never online; symbols come from the directory of the image alone, and what it makes of them stays in `cache`.
 * @throws an Error with the end of what it said when it fails.
 */
export async function volatility(vol: string, image: string, cache: string, plugin: string, ...options: string[]): Promise<readonly Row[]> {
  const symbols = path.dirname(image)
  const argv = ['--offline', '--quiet', '--cache-path', cache, '-s', symbols, '-f', image, '-r', 'json', plugin, ...options]
  try {
    const { stdout } = await promisify(execFile)(vol, argv, {
      timeout: LIMIT,
      maxBuffer: 256 << 20,
      env: { ...process.env, LC_ALL: 'C.UTF-8' },
    })
    return JSON.parse(stdout) as Row[]
  } catch (error) {
    const said = error instanceof Error && 'stderr' in error ? String(error.stderr) : ''
    throw new Error(`${plugin} failed: ${(said.trim() || String(error)).slice(-1000)}`)
  }
}
