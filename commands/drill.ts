/** ir drill: the whole playbook for real, its network confined to a throwaway namespace, with inert plants to find. */
import { Flags } from '@oclif/core'
import { golden30 } from '../playbooks/golden-30.js'
import { networkNamespace } from '../src/confinement.js'
import { ADDRESSES, ARENA_TOOLS, assertInside, confinedArgv, openArena } from '../src/drill/arena.js'
import { debrief, debriefLines } from '../src/drill/debrief.js'
import { plant } from '../src/drill/plants.js'
import { play, ROLES, type Role } from '../src/drill/roles.js'
import { RefusedError, UsageError } from '../src/errors.js'
import { openHost } from '../src/host.js'
import { visible } from '../src/print.js'
import { runAttached } from '../src/programs.js'
import { parseDuration } from '../src/time.js'
import { caseFlags, IrCommand, stopSignal } from './base.js'
import { stepFlags } from './options.js'
import { type ResponseDocument, type ResponseFlags, runResponse } from './response.js'

/** Longer than any drill: what is planted ends by itself if nothing else ends it, in seconds. */
const LASTS = 1800

/** Steps keep their defaults in a drill; the responder and the captured process are the drill's own. */
const GIVEN = ['allow', 'source', 'pid']

export default class Drill extends IrCommand {
  static override summary = 'Rehearse the response for real, safely: own network namespace, inert plants, a sealed archive'
  static override description = [
    'Runs the same playbook with the same engine on this machine. Everything that touches the network happens in an anonymous network namespace made for the drill,',
    'with an attacker and a responder in a second one; both end with the drill. This machine keeps its own rules and connections.',
    'It ends with what was cut, seen and saved, read out of the sealed archive.',
  ].join(' ')
  static override examples = ['<%= config.bin %> drill', '<%= config.bin %> drill --output /var/tmp --json']
  static override flags = {
    budget: Flags.string({ summary: 'no step is started after this time', default: '60s', env: 'IR_BUDGET', helpValue: '60s' }),
    'full-memory': Flags.boolean({ summary: 'capture all physical memory, not only that of the planted process', env: 'IR_FULL_MEMORY' }),
    ...caseFlags,
    role: Flags.string({ hidden: true, options: [...ROLES] }),
    'confined-from': Flags.string({ hidden: true }),
  }

  async run(): Promise<ResponseDocument | undefined> {
    const { flags } = await this.parse(Drill)
    const outside = flags['confined-from']
    if (flags.role !== undefined) return play(flags.role as Role, outside ?? '')
    if (flags['dry-run']) return this.respond(flags, [ADDRESSES.responder.v4, ADDRESSES.responder.v6], undefined)
    if (outside === undefined) return this.confine()
    return this.rehearse(flags, outside)
  }

  /** Starts this command again inside namespaces of its own and waits for it. */
  private async confine(): Promise<never> {
    const host = openHost()
    if (process.geteuid?.() !== 0) throw new RefusedError('a drill makes network namespaces, which needs root: sudo ir drill')
    const lacking = ARENA_TOOLS.find(tool => host.which(tool) === undefined)
    if (lacking) throw new RefusedError(`a drill needs ${lacking}, which is not installed: run bin/setup`)
    const own = networkNamespace()
    if (own === undefined) throw new RefusedError('/proc/self/ns/net cannot be read: a drill could not prove that it is confined')
    const argv = confinedArgv(host, self(), ['drill', ...this.argv, '--confined-from', own])
    const code = await runAttached(argv, send => {
      for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => send(signal))
      process.on('SIGHUP', () => {})
    })
    // Not by oclif, which would print a document of its own behind that of the confined process.
    process.exit(code)
  }

  private async rehearse(flags: DrillFlags, outside: string): Promise<ResponseDocument> {
    assertInside(outside)
    const host = openHost()
    const say = (line: string): void => void process.stderr.write(`${line}\n`)
    const arena = await openArena(host, self(), outside, LASTS)
    try {
      const plants = await plant(host, arena, LASTS)
      try {
        say('drill: confined to a network namespace of its own; planted:')
        for (const line of plants.lines) say(`  ${visible(line)}`)
        return await this.respond(flags, [ADDRESSES.responder.v4, ADDRESSES.responder.v6], { pid: plants.deletedPid, outside })
      } finally {
        await plants.remove()
      }
    } finally {
      await arena.stop()
    }
  }

  private async respond(
    flags: DrillFlags,
    allow: readonly string[],
    inside: { pid: number; outside: string } | undefined,
  ): Promise<ResponseDocument> {
    const memory = flags['full-memory'] ? {} : { source: 'process', pid: [String(inside?.pid ?? process.pid)] }
    const { document, exitCode, archive } = await runResponse({
      playbook: golden30,
      budget: parseDuration(flags.budget),
      flags: { ...flags, ...stepDefaults(), ...memory, allow, yes: true },
      json: this.jsonEnabled(),
      tool: `${this.config.name} ${this.config.version}`,
      stop: stopSignal,
      ...(inside === undefined ? {} : { guard: () => assertInside(inside.outside) }),
    })
    process.exitCode = exitCode
    if (archive === undefined) return document
    const found = await debrief(archive)
    if (!this.jsonEnabled()) for (const line of debriefLines(found)) this.log(line)
    return { ...document, drill: found } as ResponseDocument
  }
}

type DrillFlags = ResponseFlags & { readonly budget: string; readonly 'full-memory': boolean }

/** IR_* variables of single steps are for real responses: a drill takes the steps' own defaults. */
function stepDefaults(): Record<string, undefined> {
  const names = Object.keys(stepFlags([...golden30.throughout, ...golden30.steps])).filter(name => !GIVEN.includes(name))
  return Object.fromEntries(names.map(name => [name, undefined]))
}

/** The command line that starts this program. */
function self(): readonly string[] {
  const script = process.argv[1]
  if (script === undefined) throw new UsageError('a drill must be started as a program')
  return [process.execPath, ...process.execArgv, script]
}
