/**
 * Makes what bin/start.js loads out of what tsc wrote to dist/: oclif.cjs and commands.cjs, a code cache for each, and
 * manifest.json. The manifest comes last: where it is, the build was complete.
 */
import fs from 'node:fs'
import path from 'node:path'
import { Plugin, settings } from '@oclif/core'
import { build } from 'esbuild'
import { load, scripts, start } from './start.js'

const root = path.join(import.meta.dirname, '..')
const dist = path.join(root, 'dist')

/**
 * A CommonJS bundle has one place, its modules had each their own. They keep it, so that a module still finds a file beside
 * itself (a worker); anything of import.meta that is left fails the build.
 */
const ownPlaces = {
  name: 'own places',
  setup(bundle) {
    bundle.onLoad({ filter: /\.js$/ }, ({ path: file }) => {
      if (!file.startsWith(`${dist}/`)) return undefined
      const place = `require('node:path').join(__dirname, ${JSON.stringify(path.relative(dist, file))})`
      const contents = fs
        .readFileSync(file, 'utf8')
        .replaceAll('import.meta.url', `require('node:url').pathToFileURL(${place}).href`)
        .replaceAll('import.meta.filename', place)
        .replaceAll('import.meta.dirname', `require('node:path').dirname(${place})`)
      return { contents, loader: 'js' }
    })
  },
}

async function bundle(name, entry, external = []) {
  await build({
    absWorkingDir: root,
    entryPoints: [entry],
    outfile: path.join(dist, `${name}.cjs`),
    bundle: true,
    platform: 'node',
    target: 'node22.13',
    format: 'cjs',
    legalComments: 'inline',
    logLevel: 'warning',
    logOverride: { 'empty-import-meta': 'error' },
    plugins: [ownPlaces],
    external,
  })
}

/** Command line help and flags as data, by oclif's own reading of the classes. */
async function readManifest() {
  settings.enableAutoTranspile = false
  const plugin = new Plugin({ root, isRoot: true, ignoreManifest: true, errorOnManifestCreate: true })
  await plugin.load()
  return plugin.manifest
}

/** Compiled by running them, so that the cache holds the functions that a start needs. */
async function writeCodeCaches(manifest) {
  const write = process.stdout.write
  process.stdout.write = () => true
  try {
    await start(['--help'], manifest)
  } finally {
    process.stdout.write = write
  }
  load('commands')
  for (const [name, script] of scripts) fs.writeFileSync(path.join(dist, `${name}.cache`), script.createCachedData())
}

/** One character beyond Latin-1 doubles what the source takes in memory. esbuild escapes them everywhere but in comments. */
function asciiOnly(name) {
  const file = path.join(dist, `${name}.cjs`)
  fs.writeFileSync(file, fs.readFileSync(file, 'utf8').replaceAll(/[^\0-\x7f]/g, '?'))
}

const manifest = await readManifest()
// Not minified: with the code cache it gains little, and the stack of a bug stays readable.
await bundle('oclif', '@oclif/core')
await bundle('commands', './dist/commands/index.js', ['@oclif/core'])
for (const name of ['oclif', 'commands']) asciiOnly(name)
await writeCodeCaches(manifest)
fs.writeFileSync(path.join(dist, 'manifest.json'), JSON.stringify(manifest))
