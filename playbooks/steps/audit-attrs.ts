/** Immutable and append-only attributes: how intruders keep their files from being removed, and what a clean-up fails on. */
import { type ActionResult, type Collected, defineStep, type Json, type JsonObject, type Verdict } from '../../src/step.js'
import { records } from '../records.js'
import { type AttributeRecord, type AttributeRule, attributeFinding, quoted, SEVERITIES, severityOf } from '../rules/attributes.js'
import { missing } from '../tools.js'

const LISTING = 'lsattr_-d.txt'
const RECORDS = 'attributes.jsonl'

/** Findings for each rule; more of them are counted in one more. */
const FINDINGS = 200

/** One run of lsattr over up to 1,000 names takes some hundredths of a second; a disk that is being worn out, a few seconds. */
const RUN_LIMIT = 20

/** For the batch that runs when the time of the walk is over, repeated in halves if it must be. */
const LAST_RUNS = 120

export const auditAttrs = defineStep({
  id: 'audit-attrs',
  summary: 'List immutable and append-only attributes of files and directories',
  description:
    'Walks the directories, hidden ones included, and reads the attributes of every regular file and directory with lsattr, many ' +
    'names at a time. Beside it the kernel is asked whether it would refuse to write them, so that a replaced lsattr is noticed. ' +
    'Follows no link, enters no network, FUSE or kernel file system, and names what it left out. Changes nothing; reading a ' +
    'directory may set its access time, as with ls. File systems that keep no attributes are reported as not assessed.',
  references: [
    'man 1 chattr',
    'man 1 lsattr',
    'man 2 ioctl_iflags',
    'man 2 access (EPERM)',
    'ATT&CK T1222.002 Linux and Mac File and Directory Permissions Modification',
  ],
  options: {
    path: {
      type: 'list',
      summary: 'directories or files to audit, by absolute path',
      // The first two are those of the procedure that this step implements; malware hides in the others.
      default: ['/etc', '/usr/bin', '/usr/sbin', '/usr/local', '/root', '/home', '/tmp', '/var/tmp', '/dev/shm', '/var/spool/cron'],
    },
    'max-entries': {
      type: 'integer',
      summary: 'stop the audit after so many directory entries',
      unit: 'entries',
      default: 500_000,
      min: 1,
      max: 10_000_000,
    },
    'max-time': { type: 'duration', summary: 'stop the audit after this time', default: 300 },
  },
  async plan({ host, options }) {
    const lsattr = host.which('lsattr')
    if (lsattr === undefined) return missing(host, 'lsattr')
    const relative = options.path.filter(path => !path.startsWith('/'))
    if (relative.length > 0 || options.path.length === 0) {
      return { refused: `--path needs absolute paths, not '${relative.join(', ')}'`, remedy: 'ir audit-attrs --path /etc,/opt' }
    }
    return {
      actions: [
        {
          kind: 'collect',
          title: `Read the attributes of files and directories below ${options.path.join(' ')}`,
          collector: 'attributes',
          options: { paths: options.path, maxEntries: options['max-entries'], maxSeconds: options['max-time'] },
          source: [
            // Exit 1: some names were refused. The names themselves are appended by the collector.
            { title: 'Attributes of the names that follow', argv: [lsattr, '-d'], accept: [0, 1], limit: RUN_LIMIT },
            { title: 'Attributes of names that are not UTF-8, by their directory', argv: [lsattr, '-a'], accept: [0, 1], limit: RUN_LIMIT },
          ],
          writes: [LISTING, RECORDS],
          limit: options['max-time'] + LAST_RUNS,
        },
      ],
    }
  },
  async interpret(collected) {
    const [action] = collected.actions
    const facts = action?.facts
    const findings = readFindings(collected)
    if (facts === undefined) {
      const why = `the attributes were not read: ${action?.reason ?? collected.outcome}`
      return [...findings.verdicts, ...RULES.map(rule => ({ rule, notAssessed: why, remedy: remedyFor(action) }))]
    }
    const gaps = gapsOf(facts, action)
    const listed = numberOf(facts.listed)
    const verdicts: Verdict[] = [...findings.verdicts]
    for (const rule of RULES) {
      if (!findings.rules.has(rule) && listed > 0) verdicts.push({ rule, clear: clearOf(rule, facts) })
      verdicts.push(...gaps.map(gap => ({ rule, ...gap })))
    }
    return [...verdicts, ...crossCheckOf(facts, findings.rules)]
  },
})

/** Those that read the output of lsattr. */
const RULES: readonly AttributeRule[] = ['attr-immutable', 'attr-append-only']

interface Found {
  readonly rule: AttributeRule
  readonly record: AttributeRecord
  readonly number: number
}

/** The worst findings of each rule, and one more for the rest. Memory stays bounded whatever the records hold. */
function readFindings(collected: Collected): { readonly verdicts: readonly Verdict[]; readonly rules: ReadonlySet<AttributeRule> } {
  const kept = new Map<AttributeRule, Found[]>()
  const counts = new Map<AttributeRule, number>()
  for (const { line: number, record: line } of records<Record<string, unknown>>(collected, RECORDS)) {
    const record = recordOf(line)
    for (const rule of rulesOf(record)) {
      counts.set(rule, (counts.get(rule) ?? 0) + 1)
      const list = kept.get(rule) ?? []
      list.push({ rule, record, number })
      kept.set(rule, list.length > 2 * FINDINGS ? worst(list) : list)
    }
  }
  const verdicts: Verdict[] = []
  for (const [rule, list] of kept) {
    const reported = worst(list)
    const left = (counts.get(rule) ?? 0) - reported.length
    verdicts.push(...reported.map(found => attributeFinding(rule, found.record, found.number)))
    if (left > 0) verdicts.push(restFinding(rule, left, reported))
  }
  return { verdicts, rules: new Set(kept.keys()) }
}

function rulesOf(record: AttributeRecord): AttributeRule[] {
  return [
    ...(record.hidden ? ['attr-hidden' as const] : []),
    ...(record.immutable ? ['attr-immutable' as const] : []),
    ...(record.appendOnly ? ['attr-append-only' as const] : []),
  ]
}

function worst(list: readonly Found[]): Found[] {
  const rank = ({ rule, record }: Found): number => SEVERITIES.indexOf(severityOf(rule, record))
  return list.toSorted((a, b) => rank(a) - rank(b) || a.number - b.number).slice(0, FINDINGS)
}

/** Not less severe than the least of those reported one by one: those left out are at most that. */
function restFinding(rule: AttributeRule, left: number, reported: readonly Found[]): Verdict {
  const last = reported.at(-1) as Found
  return {
    rule,
    title: `${left} more files and directories like these`,
    severity: severityOf(rule, last.record),
    subject: { kind: 'host', name: 'audit-attrs' },
    why: [`${left + reported.length} in all; the ${reported.length} most severe are reported one by one`],
    attack: ['T1222.002'],
    evidence: [{ artifact: `audit-attrs/${RECORDS}` }],
    next: `Read all of them in audit-attrs/${RECORDS}`,
  }
}

/** What the rules need of a line; the kind of nothing where it is torn. */
function recordOf(line: Readonly<Record<string, unknown>>): AttributeRecord {
  const text = (name: string): string => (typeof line[name] === 'string' ? line[name] : '')
  return {
    line: typeof line.line === 'number' ? line.line : 0,
    shown: text('shown') || text('path'),
    kind: line.kind === 'directory' ? 'directory' : 'file',
    attributes: text('attributes'),
    immutable: line.immutable === true,
    appendOnly: line.appendOnly === true,
    hidden: line.hidden === true,
    mode: text('mode'),
    changed: text('changed'),
  }
}

interface Gap {
  readonly notAssessed: string
  readonly remedy: string
}

function remedyFor(action: ActionResult | undefined): string {
  return action?.outcome === 'timed-out' || action?.outcome === 'interrupted' ? 'ir audit-attrs' : 'ir doctor'
}

/** Everything that was asked for and not measured. */
function gapsOf(facts: JsonObject, action: ActionResult | undefined): Gap[] {
  const gaps: Gap[] = []
  const bounds = Array.isArray(facts.bounds) ? facts.bounds.map(bound => BOUNDS[`${bound}`] ?? `${bound}`) : []
  const stopped = bounds.length > 0 ? `reached its bound (${bounds.join(', ')})` : 'was stopped'
  for (const root of objectsOf(facts.roots)) gaps.push(...rootGaps(root, stopped))
  const mounts = objectsOf(facts.mounts)
  if (mounts.length > 0) {
    const all = numberOf(facts.mountsLeftOut)
    gaps.push({
      notAssessed: `${count(all, 'mount')} not entered: ${mounts.map(({ path, why }) => `${path}, ${why}`).join('; ')}`,
      remedy: 'lsattr -R on the machine that keeps the files',
    })
  }
  const unread = objectsOf(facts.unread)
  if (unread.length > 0) {
    const all = numberOf(facts.directoriesUnread)
    gaps.push({
      notAssessed: `${count(all, 'directory', 'directories')} could not be read: ${unread.map(({ path, why }) => `${path}, ${why}`).join('; ')}`,
      remedy: 'sudo ir audit-attrs',
    })
  }
  const doubtful = numberOf(facts.failed) + numberOf(facts.unclear)
  if (doubtful > 0) {
    gaps.push({
      notAssessed: `lsattr gave no usable answer for ${count(doubtful, 'file or directory', 'files and directories')}`,
      remedy: `their names and the reasons are in audit-attrs/${RECORDS}`,
    })
  }
  if (action?.outcome === 'interrupted' || action?.outcome === 'timed-out') {
    gaps.push({ notAssessed: 'the audit was stopped before its end', remedy: 'ir audit-attrs' })
  }
  return gaps
}

/** The collector's names of its bounds, as the options have them. */
const BOUNDS: Readonly<Record<string, string>> = { entries: '--max-entries', seconds: '--max-time', depth: '256 levels below a path' }

function rootGaps(root: JsonObject, stopped: string): Gap[] {
  const gaps: Gap[] = []
  const { path, state } = root
  if (state === 'not-entered') {
    gaps.push({ notAssessed: `${path} was not entered: ${root.reason}`, remedy: 'lsattr -R on the machine that keeps the files' })
  }
  if (state === 'failed') gaps.push({ notAssessed: `${path} could not be read: ${root.reason}`, remedy: 'sudo ir audit-attrs' })
  const notSupported = numberOf(root.notSupported)
  if (notSupported > 0) {
    const all = numberOf(root.files) + numberOf(root.directories)
    gaps.push({
      notAssessed: `${notSupported} of ${count(all, 'file or directory', 'files and directories')} below ${path} lie on a file system whose attributes lsattr cannot read`,
      remedy: `compare them with a backup, or look from outside (rescue system, host of the container): lsattr -R ${quoted(`${path}`)}`,
    })
  }
  const notReached = numberOf(root.notReached)
  if (notReached > 0) {
    gaps.push({
      notAssessed: `the audit ${stopped} before ${count(notReached, 'directory', 'directories')} below ${path}, and what they hold`,
      remedy: `ir audit-attrs --path ${quoted(`${path}`)} --max-entries 10000000 --max-time 2h`,
    })
  }
  return gaps
}

function clearOf(rule: AttributeRule, facts: JsonObject): string {
  const what = rule === 'attr-immutable' ? 'immutable' : 'append-only'
  const roots = objectsOf(facts.roots)
  const measured = roots.filter(root => numberOf(root.listed) > 0).map(root => `${root.path}`)
  const absent = roots.filter(root => root.state === 'missing').map(root => `${root.asked}`)
  return (
    `none of ${count(numberOf(facts.listed), 'file or directory', 'files and directories')} is ${what}: ${measured.join(' ')}` +
    (absent.length > 0 ? ` (not there: ${absent.join(' ')})` : '')
  )
}

function crossCheckOf(facts: JsonObject, found: ReadonlySet<AttributeRule>): Verdict[] {
  const rule = 'attr-hidden'
  if (found.has(rule) || numberOf(facts.listed) === 0) return []
  const asked = numberOf(facts.crossChecked)
  if (asked > 0) return [{ rule, clear: `the kernel and lsattr agree about ${count(asked, 'file or directory', 'files and directories')}` }]
  const why = 'the kernel does not tell on read-only file systems whether it would refuse to write'
  return [{ rule, notAssessed: why, remedy: 'look from a rescue system: lsattr -R' }]
}

function count(number: number, one: string, many = `${one}s`): string {
  return `${number} ${number === 1 ? one : many}`
}

function numberOf(value: Json | undefined): number {
  return typeof value === 'number' ? value : 0
}

function objectsOf(value: Json | undefined): readonly JsonObject[] {
  return Array.isArray(value) ? value.filter(item => typeof item === 'object' && item !== null && !Array.isArray(item)) : []
}
