/** An examination as text for people. */
import { visible } from '../print.js'
import type { Examination, Fact, Topic } from './examination.js'

const HEADINGS: Readonly<Record<Topic, string>> = {
  host: 'HOST',
  rights: 'RIGHTS',
  tools: 'TOOLS',
  memory: 'MEMORY',
  disks: 'DISKS',
  output: 'OUTPUT',
  clock: 'CLOCK',
  connection: 'CONNECTION',
}

const MARKS: Readonly<Record<Fact['state'], string>> = { ok: 'ok  ', note: '-   ', unknown: '?   ', lack: 'LACK' }

/** What was looked at stands in a column of at most this. */
const WIDEST = 24

/** Lines for a terminal; what the host says is made visible. */
export function examinationLines(examination: Examination): string[] {
  const { hostname, kernel, examined, facts } = examination
  const lines = [`${visible(hostname)}, Linux ${visible(kernel)}, ${examined}`]
  for (const topic of Object.keys(HEADINGS) as Topic[]) {
    const about = facts.filter(fact => fact.topic === topic)
    if (about.length === 0) continue
    const width = Math.min(WIDEST, Math.max(...about.map(({ what }) => visible(what).length)))
    lines.push('', HEADINGS[topic], ...about.flatMap(fact => factLines(fact, width)))
  }
  return [...lines, '', summary(examination)]
}

function factLines(fact: Fact, width: number): string[] {
  const lines = [`  ${MARKS[fact.state]}  ${visible(fact.what).padEnd(width)}  ${visible(fact.found)}`]
  if ('remedy' in fact) lines.push(`${' '.repeat(10 + width)}-> ${visible(fact.remedy)}`)
  return lines
}

function summary({ lacks, unknown }: Examination): string {
  if (lacks === 0 && unknown === 0) return 'Nothing is lacking.'
  const words = [...(lacks > 0 ? [`${lacks} lacking`] : []), ...(unknown > 0 ? [`${unknown} unknown`] : [])]
  return `${words.join(', ')}. A response works without them and collects less; -> says what fixes each.`
}
