/** Plans, outcomes and findings as text for a terminal. Everything that came from the host is made visible, never obeyed. */
import chalk from 'chalk'
import type { Sealed } from './evidence/seal.js'
import type { StepResult } from './response/execute.js'
import type { PlannedStep, ResponsePlan } from './response/plan.js'
import type { Precheck } from './response/precheck.js'
import { expectedBytes } from './response/precheck.js'
import type { ResponseResult } from './response/respond.js'
import { typed } from './response/undo.js'
import type { Action, Change, Finding, Outcome, Running, Seconds, Severity, Verdict } from './step.js'
import { formatBytes, formatDuration, typedDuration } from './time.js'

/**
 * Text from the host with everything that could steer a terminal or reorder a line replaced by its code: C0 and C1 controls,
 * DEL, bidirectional controls and marks (Unicode Standard Annex 9), line and paragraph separators, zero-width characters.
 */
export function visible(text: string): string {
  return text.replaceAll(
    /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
    character => `\\u{${character.codePointAt(0)?.toString(16)}}`,
  )
}

/** Text with the colours of its severity. */
function severe(severity: Severity): string {
  const label = severity.toUpperCase().padEnd(8)
  if (severity === 'critical' || severity === 'high') return chalk.red.bold(label)
  if (severity === 'medium') return chalk.yellow(label)
  return chalk.dim(label)
}

function outcomeText(outcome: Outcome): string {
  if (outcome === 'collected') return chalk.green(outcome)
  if (outcome === 'empty' || outcome === 'skipped') return chalk.dim(outcome)
  return chalk.yellow(outcome)
}

/** A plan as a dry run prints it: `$` reads, `=` copies, `!` changes with their undo. */
export function planLines(plan: ResponsePlan, checks: readonly Precheck[]): string[] {
  const lines = [
    chalk.bold(`Plan of ${plan.playbook} on ${visible(plan.host)}`) +
      chalk.dim('   $ reads   = copies   ! changes   (nothing has been done)'),
    ...checks.map(checkLine),
  ]
  for (const step of plan.steps) lines.push('', ...stepLines(step))
  const seconds = plan.steps.flatMap(step => step.actions).reduce((sum, action) => sum + expectedSeconds(action), 0)
  const time = seconds > 0 ? `, at least ${formatDuration(seconds)}` : ''
  lines.push('', `Expected: up to ${formatBytes(expectedBytes(plan))}${time}, of a budget of ${typedDuration(plan.budget)}.`)
  lines.push(`Evidence: ${visible(plan.output)}/${plan.case}.zip`)
  return lines
}

function expectedSeconds(action: Action): number {
  return action.kind === 'collect' ? (action.expectedSeconds ?? 0) : 0
}

function checkLine(check: Precheck): string {
  return `  ${check.ok ? chalk.green('ok') : chalk.red('no')}  ${check.what.padEnd(12)} ${visible(check.detail)}`
}

function stepLines(step: PlannedStep): string[] {
  const lines = [chalk.bold(step.id) + (step.throughout ? chalk.dim(' (beside all others)') : '') + chalk.dim(`  ${step.summary}`)]
  const cannot = step.refused ?? step.unavailable
  if (cannot !== undefined) {
    lines.push(chalk.yellow(`  - ${step.refused === undefined ? 'unavailable' : 'refused'}: ${visible(cannot)}`))
    if (step.remedy) lines.push(chalk.yellow(`      ${visible(step.remedy)}`))
  }
  for (const lacking of step.missing) lines.push(chalk.yellow(`  - ${lacking.what}: ${visible(lacking.why)}; ${visible(lacking.remedy)}`))
  for (const other of step.rejected)
    lines.push(chalk.dim(`  - not ${other.what}: ${visible(other.why)}${other.remedy ? `; ${visible(other.remedy)}` : ''}`))
  for (const action of step.actions) lines.push(...actionLines(action))
  return lines
}

function actionLines(action: Action): string[] {
  switch (action.kind) {
    case 'observe':
      return [`  $ ${commandText(action)}`]
    case 'copy':
      return [`  = ${visible(action.from)}`]
    case 'collect': {
      const size = action.expectedBytes === undefined ? '' : chalk.dim(` (about ${formatBytes(action.expectedBytes)})`)
      return [`  $ ${action.title}${size}`, ...(action.source ?? []).map(running => chalk.dim(`      from ${commandText(running)}`))]
    }
    case 'change':
      return [
        chalk.magenta(`  ! ${commandText(action)}`),
        `      ${visible(action.effect)}`,
        ...inputLines(action),
        ...(action.undo.length === 0 ? [] : action.undo.map(running => chalk.magenta(`      undo: ${oneLine(typed(running))}`))),
      ]
  }
}

function commandText(running: Running): string {
  return visible(running.argv.join(' '))
}

function inputLines(running: Running): string[] {
  if (running.stdin === undefined) return []
  return running.stdin
    .trimEnd()
    .split('\n')
    .map(line => chalk.dim(`      | ${visible(line.replaceAll('\t', '  '))}`))
}

function oneLine(text: string): string {
  return text
    .split('\n')
    .map(line => visible(line))
    .join(' \u23ce ')
}

/** What a change does and how it is undone, for the engineer before it is made. */
export function changeLines(change: Change): string[] {
  return [`${chalk.magenta('!')} ${visible(change.effect)}`, ...undoLines(change)]
}

/** The way back, ready to be typed. */
function undoLines(change: Change): string[] {
  return change.undo.flatMap(running => `undo: ${typed(running)}`.split('\n').map(visible))
}

/** The beginning and the end of a long text: of a command line both tell something. */
export function clipped(text: string, most: number): string {
  if (text.length <= most) return text
  const kept = most - 5
  return `${text.slice(0, Math.floor(kept / 3))} ... ${text.slice(-Math.ceil((2 * kept) / 3))}`
}

/** A reason at a glance; the whole of it stands in the custody log. */
function shortened(text: string): string {
  return text.length <= REASON_MOST ? text : `${text.slice(0, REASON_MOST).replace(/\s+\S*$/, '')} ...`
}

const REASON_MOST = 160

/** One line for an ended step. */
export function stepLine(result: StepResult): string {
  const size = result.bytes > 0 ? `, ${formatBytes(result.bytes)}` : ''
  const reason = result.reason === undefined ? '' : `: ${shortened(visible(result.reason))}`
  return `${result.id}  ${outcomeText(result.outcome)} in ${formatDuration(result.seconds)}${size}${reason}`
}

/** What was found and on whom, in one line. */
export function headline(finding: { readonly title: string; readonly subject: { readonly name: string } }): string {
  return finding.title.includes(finding.subject.name) ? finding.title : `${finding.title}: ${finding.subject.name}`
}

function verdictLines(verdicts: readonly Verdict[]): string[] {
  const findings = verdicts.filter((verdict): verdict is Finding => 'severity' in verdict)
  const order: Severity[] = ['critical', 'high', 'medium', 'low', 'info']
  const lines = findings
    .toSorted((left, right) => order.indexOf(left.severity) - order.indexOf(right.severity))
    .map(finding => `  ${severe(finding.severity)} ${clipped(visible(headline(finding)), REASON_MOST)}`)
  const unassessed = Map.groupBy(
    verdicts.filter(verdict => 'notAssessed' in verdict),
    verdict => verdict.rule,
  )
  for (const [rule, [first, ...more]] of unassessed) {
    const others = more.length === 0 ? '' : ` (and ${more.length} more reasons)`
    lines.push(chalk.yellow(`  not assessed: ${rule}: ${shortened(visible(first?.notAssessed ?? ''))}${others}`))
  }
  for (const verdict of verdicts) if ('clear' in verdict) lines.push(chalk.dim(`  ${verdict.rule}: ${shortened(visible(verdict.clear))}`))
  return lines
}

/** Findings shown at the end; the rest stands in findings.json. */
const SHOWN = 12

/**
 * The end of a response, for the engineer's notes. `steps`: with a line for each, where the progress view has not shown them.
 * `confined`: what stands ends with the namespace of the drill.
 */
export function summaryLines(result: ResponseResult, { steps, confined }: { steps: boolean; confined: boolean }): string[] {
  const mark = (outcome: Outcome): string => (outcome === 'collected' ? chalk.green('\u2713') : chalk.yellow('\u2022'))
  const lines = steps ? ['', ...result.steps.map(step => `  ${mark(step.outcome)} ${stepLine(step)}`)] : []
  const verdicts = verdictLines(result.verdicts)
  if (verdicts.length > 0) lines.push('', ...verdicts.slice(0, SHOWN))
  if (verdicts.length > SHOWN) lines.push(chalk.dim(`  and ${verdicts.length - SHOWN} more in findings.json`))
  lines.push('')
  for (const change of confined ? [] : result.standing) {
    const way = change.undo.length > 0 ? ['  undo it with: ir release'] : []
    lines.push(`${chalk.magenta('still in force:')} ${visible(change.effect)}`, ...way)
  }
  for (const running of result.leftChanged) {
    lines.push(chalk.red('This host is left changed: an undo failed. Type:'), ...typed(running).split('\n').map(visible))
  }
  lines.push(...sealedLines(result.sealed, result.seconds))
  return lines
}

/** Where the archive lies, what to note, what is wrong with it. */
export function sealedLines(sealed: Sealed, seconds?: Seconds): string[] {
  const took = seconds === undefined ? '' : `, ${formatDuration(seconds)}`
  return [
    `${chalk.bold('sealed')}  ${visible(sealed.archive)}  (${formatBytes(sealed.bytes)}${took})`,
    `sha256  ${sealed.sha256}`,
    `${chalk.bold('head')}    ${sealed.head}   ${chalk.dim('<- note this line')}`,
    ...sealed.beside.map(file => `beside  ${visible(file)}`),
    ...sealed.damaged.map(file => chalk.red(`damaged ${visible(file)}`)),
    ...sealed.warnings.map(warning => chalk.yellow(`warning ${visible(warning)}`)),
    chalk.dim(`check   ir verify ${visible(sealed.archive)}`),
  ]
}
