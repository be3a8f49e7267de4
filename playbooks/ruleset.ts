/** Reads what `nft list` prints: nft(8). The format is indented text: tables, in them chains and sets, in those one rule a line. */

/** A line of a ruleset with what it stands in: 'table ip filter / chain INPUT'. */
export interface RulesetLine {
  readonly within: string
  readonly text: string
}

export interface RuleCount {
  readonly comment: string
  readonly verdict: 'accept' | 'drop'
  readonly packets: number
  readonly bytes: number
}

/** A ruleset may be large; beyond this many lines nothing is concluded from it. */
const LINES_MOST = 500_000

/** The lines of the table with this header ('inet ir_isolate'), and all others. Undefined when there are too many to judge. */
export function splitRuleset(lines: Iterable<string>, table: string): { own: string[]; others: RulesetLine[] } | undefined {
  const own: string[] = []
  const others: RulesetLine[] = []
  let outer = ''
  let inner = ''
  for (const line of lines) {
    if (own.length + others.length >= LINES_MOST) return undefined
    // Tables begin in the first column, chains and sets after one tab; a table that its owner holds has words behind its name.
    if (/^table /.test(line)) [outer, inner] = [line.replace(/ \{.*$/, ''), '']
    else if (/^\t\S.*\{$/.test(line)) inner = line.trim().replace(/ \{$/, '')
    if (outer === `table ${table}`) own.push(line)
    else if (line.trim() !== '') others.push({ within: inner === '' ? outer : `${outer} / ${inner}`, text: line.trim() })
    if (line === '}') [outer, inner] = ['', '']
    else if (line === '\t}') inner = ''
  }
  return { own, others }
}

/**
 * What must be the same before and after: without live numbers (counters, quotas in use) and without elements that come and go by
 * themselves (of sets with a timeout, or filled by rules).
 */
export function lasting(lines: readonly RulesetLine[]): RulesetLine[] {
  const restless = new Set(
    lines.filter(({ text }) => /^flags .*\b(timeout|dynamic)\b/.test(text) || /^timeout \d/.test(text)).map(({ within }) => within),
  )
  const kept: RulesetLine[] = []
  let inElements = false
  for (const { within, text } of lines) {
    if (restless.has(within) && text.startsWith('elements = {')) inElements = true
    if (!inElements) kept.push({ within, text: withoutLiveNumbers(text) })
    if (inElements && text.endsWith('}')) inElements = false
  }
  return kept
}

function withoutLiveNumbers(text: string): string {
  return text
    .replaceAll(/\bpackets \d+ bytes \d+/g, 'packets # bytes #')
    .replaceAll(/\bused \d+ \w+/g, 'used #')
    .replaceAll(/\bexpires [0-9a-z]+/g, 'expires #')
}

/** Lines that only one of two rulesets has, and whether the same lines stand in another order. */
export function compareRulesets(before: readonly RulesetLine[], after: readonly RulesetLine[]) {
  const keyOf = ({ within, text }: RulesetLine): string => `${within}\n${text}`
  const rest = (from: readonly RulesetLine[], other: readonly RulesetLine[]): RulesetLine[] => {
    const counts = new Map<string, number>()
    for (const line of other) counts.set(keyOf(line), (counts.get(keyOf(line)) ?? 0) + 1)
    return from.filter(line => {
      const left = counts.get(keyOf(line)) ?? 0
      counts.set(keyOf(line), left - 1)
      return left <= 0
    })
  }
  const gone = rest(before, after)
  const added = rest(after, before)
  const reordered =
    gone.length === 0 && added.length === 0 && before.some((line, index) => keyOf(line) !== keyOf(after[index] as RulesetLine))
  return { gone, added, reordered }
}

/** Counters of rules that carry a comment and a verdict. */
export function ruleCounts(lines: Iterable<string>): RuleCount[] {
  const counts: RuleCount[] = []
  for (const line of lines) {
    const [, packets, bytes, verdict, comment] = /counter packets (\d+) bytes (\d+) (accept|drop) comment "([^"]*)"/.exec(line) ?? []
    if (comment === undefined) continue
    counts.push({ comment, verdict: verdict as RuleCount['verdict'], packets: Number(packets), bytes: Number(bytes) })
  }
  return counts
}

/** Elements of a set in the lines of a table: addresses, ports. */
export function setElements(lines: readonly string[], set: string): string[] {
  const text = lines.join('\n')
  const body = new RegExp(`^\\tset ${set} \\{$([^}]*)elements = \\{([^}]*)\\}`, 'm').exec(text)?.[2] ?? ''
  return body
    .split(',')
    .map(element => element.trim())
    .filter(element => element !== '')
}
