/** What a drill plants for the steps to find. Inert: nothing here downloads, runs or harms anything, and all of it ends with the drill. */
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { RefusedError } from '../errors.js'
import type { Host } from '../host.js'
import { captureProgram, complaint } from '../programs.js'
import type { Argv } from '../step.js'
import type { Arena } from './arena.js'

export interface Plants {
  /** The process without an executable on disk; its memory is captured. */
  readonly deletedPid: number
  /** One line each, for the engineer before the drill; never shown to the debriefing. */
  readonly lines: readonly string[]
  /** Removes what does not vanish with the namespaces. */
  remove(): Promise<void>
}

/** On the private /dev/shm of the arena, which is gone with the drill. */
const HIDDEN = '/dev/shm/.drill'

/** Plants everything and waits until it lives. `lasts` bounds the sleeping process, in seconds. */
export async function plant(host: Host, arena: Arena, lasts: number): Promise<Plants> {
  fs.mkdirSync(HIDDEN, { recursive: true })
  const lines = ['a process that calls its server on 203.0.113.66 port 4444 every third of a second, over IPv4 and IPv6']
  arena.start('service')
  arena.start('beacon')
  const deletedPid = await deletedProcess(host, arena, lasts)
  lines.push(`process ${deletedPid}, whose executable was deleted after it started`)
  const immutable = await immutableFile(host)
  lines.push(immutable === undefined ? 'no immutable file: this kernel has none on a tmpfs' : `an immutable file, ${immutable}`)
  // The beacon and the responder's session must be talking before the first step looks.
  await sleep(1500)
  return {
    deletedPid,
    lines,
    async remove() {
      if (immutable !== undefined) await chattr(host, '-i', immutable)
      fs.rmSync(HIDDEN, { recursive: true, force: true })
    },
  }
}

async function deletedProcess(host: Host, arena: Arena, lasts: number): Promise<number> {
  const sleeper = host.which('sleep')
  if (sleeper === undefined) throw new RefusedError('a drill needs sleep (coreutils)')
  const copy = path.join(HIDDEN, 'dbus-update')
  fs.copyFileSync(sleeper, copy)
  fs.chmodSync(copy, 0o700)
  // Where sleep is one name of a larger program (busybox), the copy is told which by its name: hence a folder of its own.
  const program = arena.launch(isMultiCall(sleeper) ? [copy, 'sleep', String(lasts)] : [copy, String(lasts)])
  for (let tries = 0; tries < 100; tries++) {
    await sleep(20)
    try {
      if (program.pid !== undefined && fs.readlinkSync(`/proc/${program.pid}/exe`) === copy) {
        fs.unlinkSync(copy)
        return program.pid
      }
    } catch {
      // Not started yet.
    }
  }
  throw new RefusedError('the drill could not start its sleeping process')
}

function isMultiCall(program: string): boolean {
  return path.basename(fs.realpathSync(program)) === 'busybox'
}

async function immutableFile(host: Host): Promise<string | undefined> {
  const file = path.join(HIDDEN, 'id_rsa.lock')
  fs.writeFileSync(file, 'drill: nothing\n')
  return (await chattr(host, '+i', file)) === undefined ? file : undefined
}

async function chattr(host: Host, flag: string, file: string): Promise<string | undefined> {
  const program = host.which('chattr')
  if (program === undefined) return 'chattr is not installed'
  const running = { title: 'Plant', argv: [program, flag, '--', file] as Argv, limit: 5 }
  return complaint(running, (await captureProgram(running)).exit)
}
