/** Takes the isolation away again, and shows that nothing else changed. */
import { type ActionResult, type Collected, defineStep, type Plan, type Verdict } from '../../src/step.js'
import { RELEASE, TABLE } from '../isolation.js'
import { compareRulesets, lasting, type RulesetLine, ruleCounts, splitRuleset } from '../ruleset.js'
import { missing } from '../tools.js'

const BEFORE = 'before.nft_-s_list_ruleset.txt'
const AFTER = 'after.nft_-s_list_ruleset.txt'
const COUNTS = `nft_list_table_${TABLE.family}_${TABLE.name}.txt`

const LOAD_LIMIT = 20
const LIST_LIMIT = 60

/** Lines of a difference that a finding names; the artifacts hold all. */
const SHOWN_MOST = 20

const TABLE_NAME = `${TABLE.family} ${TABLE.name}`

export const release = defineStep({
  id: 'release',
  summary: 'End the isolation, exactly',
  description: `Deletes the table of rules that 'ir isolate' loaded, and nothing else. The rules of the host are listed before and after; a
difference beyond our table, live counters and elements that expire is a finding. How many packets were dropped is saved first.
Connections of an attacker that were only held up go on: end them first if they must not.`,
  references: ['nft(8)'],
  options: {},

  async plan({ host }): Promise<Plan> {
    const nft = host.which('nft')
    if (nft === undefined) return missing(host, 'nft')
    const table = [TABLE.family, TABLE.name]
    return {
      actions: [
        { kind: 'observe', title: 'List all rules before', argv: [nft, '-s', 'list', 'ruleset'], stdout: BEFORE, limit: LIST_LIMIT },
        {
          kind: 'observe',
          title: 'Save what was dropped while isolated',
          argv: [nft, 'list', 'table', ...table],
          stdout: COUNTS,
          // 1: there is no such table. Then there is nothing to release, which is no failure.
          accept: [0, 1],
          limit: LOAD_LIMIT,
        },
        {
          kind: 'change',
          title: 'End the isolation',
          argv: [nft, RELEASE],
          effect: `Deletes table ${TABLE_NAME} if it is there: what it dropped passes again. No undo; to cut the host off again: ir isolate.`,
          verify: [{ title: 'See that our table is gone', argv: [nft, 'list', 'table', ...table], accept: [1], limit: LOAD_LIMIT }],
          undo: [],
          lasts: 'case',
          limit: LOAD_LIMIT,
        },
        { kind: 'observe', title: 'List all rules after', argv: [nft, '-s', 'list', 'ruleset'], stdout: AFTER, limit: LIST_LIMIT },
      ],
    }
  },

  async interpret(collected): Promise<readonly Verdict[]> {
    const [before, , change, after] = collected.actions
    const rule = 'release-exact'
    if (change?.outcome !== 'collected') {
      const why = change?.reason ?? 'nothing was done'
      return [{ rule, notAssessed: `the isolation was not released: ${why}`, remedy: `nft delete table ${TABLE_NAME}` }]
    }
    const failed = [before, after].find(list => !isListed(list))
    if (failed) return [unjudged(`the rules could not be listed: ${failed.reason ?? failed.outcome}`)]
    return [compare(collected)]
  },
})

/** A host without any rule has an empty list: nft prints nothing then. */
function isListed(list: ActionResult | undefined): boolean {
  return list?.outcome === 'collected' || list?.outcome === 'empty'
}

function compare(collected: Collected): Verdict {
  const before = splitRuleset(collected.lines(BEFORE), TABLE_NAME)
  const after = splitRuleset(collected.lines(AFTER), TABLE_NAME)
  if (before === undefined || after === undefined) return unjudged('there are too many rules to compare')
  if (after.own.length > 0) return unjudged('our table is back: somebody isolates this host again')
  const { gone, added, reordered } = compareRulesets(lasting(before.others), lasting(after.others))
  const counts = `${before.others.length} other lines of rules are as before, but for live counters and elements that expire`
  if (gone.length === 0 && added.length === 0 && !reordered) {
    const done =
      before.own.length === 0
        ? 'There was no isolation to release; nothing changed'
        : `The isolation has ended, and nothing else changed${dropped(collected)}`
    return { rule: 'release-exact', clear: `${done}: ${counts}` }
  }
  const lines = [...gone.map(line => shown('gone', line)), ...added.map(line => shown('new', line))]
  return {
    rule: 'release-exact',
    title: 'Other firewall rules changed while the isolation was released',
    severity: 'medium',
    subject: { kind: 'host', name: 'nftables ruleset' },
    why: [
      ...(reordered ? ['the same rules stand in another order'] : []),
      ...lines.slice(0, SHOWN_MOST),
      ...(lines.length > SHOWN_MOST ? [`and ${lines.length - SHOWN_MOST} lines more`] : []),
    ],
    attack: [],
    evidence: [{ artifact: `release/${BEFORE}` }, { artifact: `release/${AFTER}` }],
    next: 'Compare the two lists and find out who changed the rules: a firewall service, a container engine, or the attacker',
  }
}

function dropped(collected: Collected): string {
  const counts = ruleCounts(collected.lines(COUNTS)).filter(({ verdict }) => verdict === 'drop')
  if (counts.length === 0) return ''
  return ` (packets while isolated: ${counts.map(({ comment, packets }) => `${packets} ${comment}`).join(', ')})`
}

function shown(what: 'gone' | 'new', { within, text }: RulesetLine): string {
  return `${what}: ${within === '' ? '' : `${within}: `}${text}`
}

function unjudged(why: string): Verdict {
  return { rule: 'release-exact', notAssessed: `the isolation was released, but ${why}`, remedy: 'nft list ruleset' }
}
