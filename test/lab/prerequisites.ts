/** What the lab takes from the host that it runs on. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'

/** Programs of the lab; `bin/setup --dev` installs them where apt-get is. */
const PROGRAMS = [
  ...['apt-get', 'apt-cache', 'dpkg', 'qemu-system-x86_64', 'busybox', 'cpio', 'xz', 'gcc', 'make', 'ld', 'strip', 'modinfo'],
  ...['python3', 'unzip', 'sha256sum'],
]

/** elf(5): a program header of this type names the loader, so the program is not static. */
const PT_INTERP = 3

/** Longest that one program of the set-up may take, ms: the download of a kernel on a slow line. */
const LIMIT = 600_000

/** The part of the lab that outlives a run: kernels and virtual environments, by version. */
export const CACHE = path.join(process.env.XDG_CACHE_HOME || path.join(os.homedir(), '.cache'), 'ir-lab')

/** @throws an Error of one line that names everything the host lacks. */
export function checkPrerequisites(): void {
  const lacking: string[] = PROGRAMS.filter(program => programFile(program) === undefined)
  const busybox = programFile('busybox')
  if (busybox !== undefined && !isStatic(busybox)) lacking.push('a static busybox (package busybox-static)')
  if (process.arch !== 'x64') lacking.push('an x86-64 machine')
  if (lacking.length > 0) throw new Error(`the lab lacks ${lacking.join(', ')}; bin/setup --dev installs what it needs on Debian`)
}

/** Absolute path of a program in PATH; undefined when there is none. */
export function programFile(program: string): string | undefined {
  const directories = [...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/sbin']
  return directories.map(directory => path.join(directory, program)).find(file => fs.existsSync(file))
}

/**
 * Runs a program of the set-up and gives its standard output.
 * @throws an Error with the end of what it said, when it cannot be started or fails.
 */
export function run(
  program: string,
  argv: readonly string[],
  { cwd = '/', input }: { cwd?: string; input?: Buffer | string } = {},
): Buffer {
  const { status, stdout, stderr, error } = spawnSync(programFile(program) ?? program, argv, {
    cwd,
    timeout: LIMIT,
    maxBuffer: 1 << 30,
    env: { ...process.env, LC_ALL: 'C' },
    ...(input === undefined ? {} : { input }),
  })
  if (status === 0) return stdout
  const said = `${error?.message ?? ''}${stderr?.toString() ?? ''}`.trim().slice(-600)
  throw new Error(`${program} ${argv.slice(0, 3).join(' ')} failed (${status}): ${said}`)
}

function isStatic(file: string): boolean {
  const elf = fs.readFileSync(file)
  const [at, size, count] = [Number(elf.readBigUInt64LE(32)), elf.readUInt16LE(54), elf.readUInt16LE(56)]
  return Array.from({ length: count }, (_, index) => elf.readUInt32LE(at + index * size)).every(type => type !== PT_INTERP)
}
