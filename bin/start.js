/**
 * Starts oclif from what bin/build.js made of the sources: two bundles, each with V8's code cache, and the manifest of the
 * commands. So `ir --help` compiles nothing and loads no command, and a start opens six files instead of six hundred.
 * The caches are only ever read here: on a suspect host nothing is written that is no evidence.
 */
import fs from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import v8 from 'node:v8'
import vm from 'node:vm'

const root = path.join(import.meta.dirname, '..')
const dist = path.join(root, 'dist')

/** The scripts that were loaded, by the name of their bundle. */
export const scripts = new Map()

const modules = new Map()

/** What dist/<name>.cjs exports. */
export function load(name) {
  if (!modules.has(name)) modules.set(name, evaluate(name))
  return modules.get(name)
}

function evaluate(name) {
  const filename = path.join(dist, `${name}.cjs`)
  const cache = path.join(dist, `${name}.cache`)
  const script = new vm.Script(`(function (exports, require, module, __filename, __dirname) {${fs.readFileSync(filename, 'latin1')}\n})`, {
    filename,
    // V8 looks at version and flags and leaves alone what is not its own: then this start is slower, and that is all.
    ...(fs.existsSync(cache) ? { cachedData: fs.readFileSync(cache) } : {}),
    importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
  })
  scripts.set(name, script)
  const builtin = createRequire(filename)
  const require = wanted => (wanted === '@oclif/core' ? load('oclif') : builtin(wanted))
  const module = { exports: {} }
  script.runInThisContext()(module.exports, require, module, filename, dist)
  return module.exports
}

/** Runs a command line; sets the exit code or ends the process as oclif does. */
export async function start(args, manifest = readJson(path.join(dist, 'manifest.json'))) {
  // Config.loadTheme of @oclif/core would read a file in the home of whoever calls.
  process.env.IR_DISABLE_THEME = '1'
  // Where these are not set it would ask the user database: by libraries of the host, over LDAP perhaps, which the cut ends.
  process.env.HOME ??= '/'
  process.env.SHELL ??= '/bin/sh'
  // bin/ir has chosen the Node: no need to load semver for a look at its version.
  process.env.OCLIF_DISABLE_ENGINE_WARNING = '1'
  const { execute, Plugin, settings } = load('oclif')
  settings.enableAutoTranspile = false
  const pjson = readJson(path.join(root, 'package.json'))

  /** The only plugin: ourselves, told by the manifest, so that oclif looks for nothing on the disk. */
  class Ourselves extends Plugin {
    async load() {
      this.type = 'core'
      this.isRoot = true
      this.valid = true
      this.root = root
      this.pjson = pjson
      this.moduleType = 'module'
      this.name = pjson.name
      this.alias = pjson.name
      this.version = pjson.version
      this.hooks = {}
      this.manifest = manifest
      this.hasManifest = true
      this.commandIDs = Object.keys(manifest.commands)
      this.commands = Object.entries(manifest.commands).map(([id, command]) => ({
        ...command,
        load: () => this.findCommand(id),
        pluginAlias: this.alias,
        pluginType: this.type,
      }))
    }

    async findCommand(id) {
      const command = load('commands').COMMANDS[id]
      // A host that was taken has little memory to spare, and live data is small: V8 collects garbage early instead of letting it
      // grow. Only now: under other flags than those of the build the code caches would be refused.
      v8.setFlagsFromString('--optimize-for-size')
      command.id = id
      command.plugin = this
      return command
    }
  }

  // oclif would only say that it was not found.
  const [typed = '-'] = args
  if (typed === '-h') return start(['--help'], manifest)
  if (typed === 'help') return start([...args.slice(1), '--help'], manifest)
  if (!typed.startsWith('-') && !(typed in manifest.commands)) {
    load('commands').unknownCommand(args, Object.keys(manifest.commands))
    return
  }
  const ourselves = new Ourselves({ root, name: pjson.name, isRoot: true })
  await ourselves.load()
  await execute({ args, loadOptions: { root, pjson, plugins: new Map([[ourselves.name, ourselves]]) } })
}

function readJson(file) {
  return JSON.parse(fs.readFileSync(file, 'utf8'))
}
