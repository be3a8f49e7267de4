/** What an immutable or append-only attribute means at the place where it was found. */
import type { Finding, Severity } from '../../src/step.js'

/** One line of `attributes.jsonl`, as far as the rules need it. */
export interface AttributeRecord {
  /** Line of the listing, from 1. */
  readonly line: number
  /** As the listing shows it: escaped. */
  readonly shown: string
  readonly kind: 'file' | 'directory'
  /** As lsattr printed them; '' where it had no answer. */
  readonly attributes: string
  readonly immutable: boolean
  readonly appendOnly: boolean
  /** The kernel refuses to write it as if it were immutable, and lsattr does not say that it is. */
  readonly hidden: boolean
  /** Permission bits in octal, '' when unknown. */
  readonly mode: string
  /** ISO 8601, '' when unknown. */
  readonly changed: string
}

export type AttributeRule = 'attr-immutable' | 'attr-append-only' | 'attr-hidden'

/** T1222.002, Linux and Mac File and Directory Permissions Modification: chattr is one of its ways. */
const TECHNIQUE = 'T1222.002'

interface Place {
  readonly where: RegExp
  readonly severity: Severity
  readonly why: string
  readonly attack: readonly string[]
  /** Only for this rule. */
  readonly rule?: AttributeRule
}

/** The first that fits counts. */
const PLACES: readonly Place[] = [
  {
    // wiki.archlinux.org/title/Domain_name_resolution and its predecessor Resolv.conf: "Write-protect resolv.conf ... chattr +i".
    where: /^\/etc\/resolv\.conf$/,
    severity: 'low',
    why: 'administrators often lock this file so that a DHCP client does not rewrite it; look at the servers that it names',
    attack: [],
  },
  {
    // chattr(1): "a" lets a file only grow. Recommended for logs and histories (oneuptime.com, "How to Set Up Immutable Files with
    // chattr on Ubuntu": "Ideal for log files"): it keeps a record from being cleared, which helps no intruder.
    where: /^\/var\/log\/|\/\.(bash|zsh|ash|sh)_?history$/,
    severity: 'low',
    why: 'hardening guides let logs and shell histories only grow, so that nobody can clear them',
    attack: [],
    rule: 'attr-append-only',
  },
  {
    where: /^\/etc\/ld\.so\.preload$/,
    severity: 'high',
    why: 'a library named in this file is loaded into every program',
    attack: ['T1574.006'],
  },
  {
    where: /^\/etc\/(cron|anacrontab)|^\/var\/spool\/(cron|anacron|at)(\/|$)/,
    severity: 'high',
    why: 'what stands here is started again and again, and this keeps it from being removed',
    attack: ['T1053.003'],
  },
  {
    where: /\/\.ssh(\/|$)|^\/etc\/ssh(\/|$)/,
    severity: 'high',
    why: 'a key or a setting of SSH that cannot be removed keeps a way in open',
    attack: ['T1098.004'],
  },
  {
    where: /^\/(etc|usr\/lib|lib|run|usr\/local\/lib)\/systemd(\/|$)|\/\.config\/systemd(\/|$)/,
    severity: 'high',
    why: 'a unit that cannot be removed starts with the system or the session',
    attack: ['T1543.002'],
  },
  {
    where:
      /^\/etc\/(rc\.local|rc\d?\.d|init\.d|inittab|profile|profile\.d|bash\.bashrc|environment)(\/|$)|\/\.(bashrc|bash_profile|bash_login|profile|zshrc)$/,
    severity: 'high',
    why: 'what stands here runs at every start or login, and this keeps it from being removed',
    attack: ['T1546.004'],
  },
  {
    // Some guides recommend it for these (systemshardening.com, "Linux File Immutability with chattr"), and package updates fail then.
    where: /^\/etc\/((passwd|shadow|group|gshadow|subuid|subgid)-?|sudoers(\.d(\/.*)?)?|doas\.conf)$/,
    severity: 'high',
    why: 'no account can be changed or locked while this stands; some hardening guides do it too, so ask whether it was meant',
    attack: ['T1098'],
  },
  {
    where: /^\/etc\/(pam\.d|security)(\/|$)/,
    severity: 'high',
    why: 'this decides who may log in',
    attack: ['T1556.003'],
  },
  {
    where: /^\/(tmp|var\/tmp|dev\/shm)(\/|$)/,
    severity: 'high',
    why: 'everybody may write here, and nobody has a reason to keep something here for good',
    attack: [],
  },
  {
    where: /^\/(usr\/|usr\/local\/)?s?bin(\/|$)/,
    severity: 'high',
    why: 'no package sets attributes on programs: an update could not replace them',
    attack: ['T1554'],
  },
]

const ELSEWHERE: Omit<Place, 'where'> = { severity: 'medium', why: 'no package of the common distributions sets this', attack: [] }

/** Most telling first. */
export const SEVERITIES: readonly Severity[] = ['critical', 'high', 'medium', 'low', 'info']

export function severityOf(rule: AttributeRule, record: AttributeRecord): Severity {
  if (rule === 'attr-hidden') return 'critical'
  const { severity } = placeOf(rule, record)
  return severity === 'medium' && isProgram(record) ? 'high' : severity
}

/** The finding for one entry. `number` is its line in `attributes.jsonl`, from 1. */
export function attributeFinding(rule: AttributeRule, record: AttributeRecord, number: number): Finding {
  const place = placeOf(rule, record)
  const word = rule === 'attr-append-only' ? 'Append-only' : 'Immutable'
  return {
    rule,
    title:
      rule === 'attr-hidden'
        ? `lsattr does not show that a ${record.kind} is immutable: ${record.shown}`
        : `${word} ${record.kind}: ${record.shown}`,
    severity: severityOf(rule, record),
    subject: { kind: 'file', name: record.shown },
    why: [...reasons(rule, record), place.why],
    attack: [TECHNIQUE, ...(rule === 'attr-hidden' ? ['T1014'] : place.attack)],
    evidence: [
      { artifact: 'audit-attrs/lsattr_-d.txt', line: record.line },
      { artifact: 'audit-attrs/attributes.jsonl', line: number },
    ],
    next: nextOf(rule, record),
  }
}

function reasons(rule: AttributeRule, record: AttributeRecord): string[] {
  const why: string[] = []
  if (rule === 'attr-hidden') {
    why.push(`the kernel refuses to write it as it does with an immutable file (EPERM), and lsattr prints ${record.attributes}`)
    why.push('either lsattr or a library under it was replaced, or a security module of the kernel refuses it')
  } else if (record.attributes === '') {
    why.push('the kernel refuses to write it as it does with an immutable file (EPERM); lsattr had no answer')
  } else if (rule === 'attr-immutable') {
    why.push(`lsattr prints ${record.attributes}: i, it cannot be changed, renamed or removed, not even by root`)
  } else {
    why.push(`lsattr prints ${record.attributes}: a, it can only grow, and cannot be removed, not even by root`)
  }
  if (isProgram(record)) why.push(`it is executable (mode ${record.mode})`)
  // Setting it sets the time of change, and an immutable inode has no later one; the names in a directory neither.
  if (rule === 'attr-immutable' && record.changed !== '') why.push(`it became immutable at ${record.changed}, its last change (ctime)`)
  if (record.shown.includes('\\')) why.push('its name holds characters that a terminal does not show as they are')
  return why
}

function nextOf(rule: AttributeRule, record: AttributeRecord): string {
  const name = quoted(record.shown)
  if (rule === 'attr-hidden')
    return `Look at it with tools of your own, from a disk image or a rescue system: debugfs -R 'stat ...' or lsattr -d ${name}`
  const letters = `${record.immutable ? 'i' : ''}${record.appendOnly ? 'a' : ''}`
  return `Keep a copy, find out who set it (auditd, shell histories), then: chattr -${letters} ${name}`
}

/**
 * A path for a shell, to be read and pasted by a person. A path with escapes goes between $' and ', where bash, zsh and
 * POSIX.1-2024 shells read `\n`, `\t`, `\\` and `\xHH` back as the bytes they are.
 */
export function quoted(shown: string): string {
  if (shown.includes('\\')) return `$'${shown.replaceAll("'", "\\'")}'`
  if (/^[A-Za-z0-9_./:@%+=,-]+$/.test(shown)) return shown
  return `'${shown.replaceAll("'", "'\\''")}'`
}

function placeOf(rule: AttributeRule, { shown }: AttributeRecord): Omit<Place, 'where'> {
  return PLACES.find(place => place.where.test(shown) && (place.rule ?? rule) === rule) ?? ELSEWHERE
}

/** A regular file that somebody may execute. */
function isProgram({ kind, mode }: AttributeRecord): boolean {
  return kind === 'file' && (Number.parseInt(mode, 8) & 0o111) !== 0
}
