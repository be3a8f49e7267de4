/** The clock: without it no two pieces of evidence from two hosts can be put in order. */
import type { Host } from '../host.js'
import { captureProgram } from '../programs.js'
import type { Argv, Seconds } from '../step.js'
import { iso } from '../time.js'
import type { Fact } from './examination.js'
import { linkOf, textOf } from './look.js'

const LIMIT: Seconds = 5

/** systemd-timesyncd.service(8): touched whenever the clock was set from the network. */
const TIMESYNC = '/run/systemd/timesync/synchronized'

export async function examineClock(host: Host): Promise<Fact[]> {
  return [zone(host), await synchronised(host)]
}

function zone(host: Host): Fact {
  const about = { topic: 'clock', what: 'time zone' } as const
  const named = linkOf(host, '/etc/localtime')?.split('/zoneinfo/')[1] ?? textOf(host, '/etc/timezone')
  const now = `it is ${iso(host.now())}`
  if (named) return { ...about, state: 'note', found: `${named}; ${now}`, detail: { zone: named } }
  // localtime(5): without the link UTC is assumed.
  if (linkOf(host, '/etc/localtime') === undefined && textOf(host, '/etc/localtime') === undefined) {
    return { ...about, state: 'note', found: `UTC, none is set; ${now}`, detail: { zone: 'UTC' } }
  }
  return {
    ...about,
    state: 'unknown',
    found: `/etc/localtime is no link that names one; ${now}`,
    remedy: 'timedatectl set-timezone Etc/UTC',
  }
}

/** Passive signs first; the kernel's own (adjtimex) cannot be read from here. */
async function synchronised(host: Host): Promise<Fact> {
  const about = { topic: 'clock', what: 'synchronised' } as const
  const set = modifiedOf(host, TIMESYNC)
  if (set !== undefined) return { ...about, state: 'ok', found: `systemd-timesyncd set the clock at ${iso(new Date(set))}` }
  const chrony = await say(host, 'chronyc', ['-n', 'tracking'])
  if (chrony !== undefined) {
    const field = (name: string): string => new RegExp(`^${name}\\s*: (.*)$`, 'm').exec(chrony)?.[1]?.trim() ?? 'not told'
    const leap = field('Leap status')
    const found = `chrony: ${leap}, ${field('System time')}`
    if (leap === 'Normal') return { ...about, state: 'ok', found }
    return { ...about, state: 'lack', found, remedy: `chronyc -n sources; ${BY_HAND}` }
  }
  const systemd = await say(host, 'timedatectl', ['show'])
  const answer = /^NTPSynchronized=(yes|no)$/m.exec(systemd ?? '')?.[1]
  if (answer === 'yes') return { ...about, state: 'ok', found: 'yes, says timedatectl' }
  if (answer === 'no') return { ...about, state: 'lack', found: 'no, says timedatectl', remedy: `timedatectl set-ntp true; ${BY_HAND}` }
  return { ...about, state: 'unknown', found: 'neither systemd-timesyncd, chrony nor timedatectl tells', remedy: BY_HAND }
}

const BY_HAND = 'compare date -u with a clock you trust, and note the difference in the case'

function modifiedOf(host: Host, path: string): number | undefined {
  try {
    return host.lstat(path).modified
  } catch {
    return undefined
  }
}

/** What a program says, undefined when it is not there or fails. */
async function say(host: Host, program: string, args: readonly string[]): Promise<string | undefined> {
  const path = host.which(program)
  if (path === undefined) return undefined
  const argv: Argv = [path, ...args]
  const { exit, stdout } = await captureProgram({ title: program, argv, limit: LIMIT }, { maxBytes: 64 * 1024 })
  return exit.code === 0 ? stdout.toString('utf8') : undefined
}
