/** Who may import whom. The table is that of docs/adr/0006-import-rules.md. */
import fs from 'node:fs'
import path from 'node:path'
import { describe, expect, it } from 'vitest'

const ROOT = path.resolve(import.meta.dirname, '..')

/** Each library has one owner: a later major, or another library, touches one file. */
const OWNER: Readonly<Record<string, string>> = {
  execa: 'src/programs.ts',
  listr2: 'src/response/progress.ts',
  archiver: 'src/evidence/archive.ts',
  chalk: 'src/print.ts',
  'date-fns': 'src/time.ts',
  '@date-fns/utc': 'src/time.ts',
}

interface Import {
  readonly file: string
  /** As written: 'node:fs', 'zod', '../src/step.js'. */
  readonly from: string
  /** Where a relative one leads, below the root: 'src/step.js'. */
  readonly target: string
}

/** Every module that the files of a folder name: import, export from, import(), require(), new Worker(). */
function importsOf(folder: string): Import[] {
  return sourcesOf(folder).flatMap(file => {
    const code = fs.readFileSync(path.join(ROOT, file), 'utf8')
    const found = [...code.matchAll(/(?:\bfrom\s|\bimport\s|\bimport\(|\brequire\(|\bnew URL\()\s*'([^']+)'/g)]
    return found.map(match => {
      const from = match[1] as string
      return { file, from, target: from.startsWith('.') ? path.join(path.dirname(file), from) : '' }
    })
  })
}

function sourcesOf(folder: string): string[] {
  return fs
    .readdirSync(path.join(ROOT, folder), { recursive: true, encoding: 'utf8' })
    .filter(name => /\.[cm]?[jt]s$/.test(name))
    .map(name => path.join(folder, name))
}

function offences(imports: readonly Import[], allowed: (one: Import) => boolean): string[] {
  return imports.filter(one => !allowed(one)).map(({ file, from }) => `${file} imports ${from}`)
}

const within = (target: string, ...folders: string[]): boolean => folders.some(folder => target.startsWith(`${folder}/`))
const library = (from: string): string =>
  from
    .split('/')
    .slice(0, from.startsWith('@') ? 2 : 1)
    .join('/')
const builtin = (from: string): boolean => from.startsWith('node:')

const commands = importsOf('commands')
const playbooks = importsOf('playbooks')
const src = importsOf('src')

describe('who may import whom', () => {
  it('is read from files that are there', () => {
    for (const imports of [commands, playbooks, src]) expect(imports.length).toBeGreaterThan(10)
  })

  it('commands/: playbooks/, src/, @oclif/core, node:', () => {
    const allowed = ({ from, target }: Import): boolean =>
      within(target, 'commands', 'playbooks', 'src') || library(from) === '@oclif/core' || builtin(from)
    expect(offences(commands, allowed)).toEqual([])
  })

  it('playbooks/: playbooks/ and src/step.js, nothing else', () => {
    const allowed = ({ target }: Import): boolean => within(target, 'playbooks') || target === 'src/step.js'
    expect(offences(playbooks, allowed)).toEqual([])
  })

  it('src/: src/, node:, zod, and a library only in the file that owns it', () => {
    const allowed = ({ file, from, target }: Import): boolean =>
      within(target, 'src') || builtin(from) || from === 'zod' || OWNER[library(from)] === file
    expect(offences(src, allowed)).toEqual([])
  })

  it('src/step.ts imports nothing', () => {
    expect(src.filter(one => one.file === 'src/step.ts')).toEqual([])
  })

  it('each owner owns: it imports its library', () => {
    const imported = new Set(src.map(({ file, from }) => `${library(from)} ${file}`))
    for (const [name, file] of Object.entries(OWNER)) expect(imported).toContain(`${name} ${file}`)
  })

  it('node:child_process: nobody, nor is there another way to it', () => {
    const ways = /child_process|process\.binding|\bshell: true/
    const files = ['commands', 'playbooks', 'src', 'bin'].flatMap(sourcesOf)
    expect(files.filter(file => ways.test(fs.readFileSync(path.join(ROOT, file), 'utf8')))).toEqual([])
  })

  it('relative imports name the file that is loaded', () => {
    const relative = [...commands, ...playbooks, ...src].filter(one => one.target !== '')
    const loads = ({ target }: Import): boolean => target.endsWith('.js') && fs.existsSync(path.join(ROOT, target.replace(/\.js$/, '.ts')))
    expect(offences(relative, loads)).toEqual([])
  })
})
