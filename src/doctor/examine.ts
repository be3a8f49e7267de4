/** Looks at everything that a response needs here. Reads only, and starts nothing but programs that tell about themselves. */
import type { Host } from '../host.js'
import { iso } from '../time.js'
import { examineClock } from './clock.js'
import { examineDisks, examineOutput } from './disks.js'
import type { Connection, Examination, Fact, Questions } from './examination.js'
import { textOf } from './look.js'
import { examineMemory } from './memory.js'
import { examineHost, examineRights } from './rights.js'
import { examineTools } from './tools.js'

/** Never fails because of what the host lacks: that is what it tells. */
export async function examine(host: Host, questions: Questions): Promise<Examination> {
  const [tools, disks, clock] = await Promise.all([examineTools(host, questions.tools), examineDisks(host), examineClock(host)])
  const facts: Fact[] = [
    ...examineHost(host),
    ...examineRights(host),
    ...tools,
    ...examineMemory(host, questions.memory),
    ...disks,
    ...examineOutput(host, questions.output),
    ...clock,
    ...examineConnection(questions.connection),
  ]
  return {
    hostname: host.hostname,
    examined: iso(host.now()),
    kernel: textOf(host, '/proc/sys/kernel/osrelease') ?? '',
    facts,
    lacks: facts.filter(({ state }) => state === 'lack').length,
    unknown: facts.filter(({ state }) => state === 'unknown').length,
  }
}

function examineConnection({ responder, why, ports }: Connection): Fact[] {
  const about = { topic: 'connection', what: 'responder' } as const
  const where =
    ports.length === 0 ? 'no port of SSH is known' : `SSH is reached at ${ports.length === 1 ? 'port' : 'ports'} ${ports.join(', ')}`
  return [
    responder === undefined
      ? {
          ...about,
          state: 'unknown',
          found: `not found: ${why ?? 'unknown'}; isolating asks whom to leave in`,
          remedy: 'ir isolate --allow ADDRESS, or --allow none at the console',
        }
      : { ...about, state: 'ok', found: `${responder} over SSH; isolating leaves this address in`, detail: { responder } },
    { topic: 'connection', what: 'ports', state: 'note', found: where, detail: { ports } },
  ]
}
