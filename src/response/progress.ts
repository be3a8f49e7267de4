/** What the engineer sees while a response runs: listr2 on a terminal, plain lines elsewhere. Only a view: the verdict comes from the results. */
import { Listr, ListrLogger, type ListrTaskWrapper, ProcessOutput } from 'listr2'
import type { Progress } from '../collectors/collector.js'
import { changeLines, stepLine, visible } from '../print.js'
import { formatBytes, formatDuration } from '../time.js'
import type { ResponseEvents, StepResult } from './execute.js'
import type { PlannedStep, ResponsePlan } from './plan.js'

export interface ProgressView extends ResponseEvents {
  /** The engineer pressed Ctrl-C: seen at once, or it is pressed again, which aborts. */
  stopping(): void
  /** Ends the view, whatever state it is in; resolves when nothing is drawn any more. */
  close(): Promise<void>
}

const STOPPING = 'stopping: what is collected will be sealed (Ctrl-C again aborts)'

/** Plain lines to `write`: for logs, pipes and `--json`. */
export function plainProgress(plan: ResponsePlan, write: (line: string) => void): ProgressView {
  const started = performance.now()
  const at = (): string => `[+${((performance.now() - started) / 1000).toFixed(1).padStart(6)} s]`
  const said = new Map<string, number>()
  return {
    stepStarted: step => write(`${at()} ${step.id}: ${step.summary}`),
    progress(step, figures) {
      // A line now and then shows that a long step lives, without drowning the log.
      const last = said.get(step.id) ?? performance.now()
      said.set(step.id, last)
      if (performance.now() - last < PLAIN_EVERY) return
      said.set(step.id, performance.now())
      write(`${at()} ${step.id}: ${figuresText(figures)}`)
    },
    announce(_step, change) {
      for (const line of changeLines(change)) write(`${at()} ${line}`)
    },
    stepEnded(_step, result, head) {
      write(`${at()} ${stepLine(result)}   head ${head.slice(0, 16)}`)
    },
    stopping: () => write(`${at()} ${STOPPING}`),
    sealing: () => write(`${at()} sealing ${plan.case}`),
    close: async () => {},
  }
}

const PLAIN_EVERY = 15_000

type Task = ListrTaskWrapper<unknown, never, never>

/** One line of the list: filled by the engine, drawn by listr2. */
class Row {
  private task: Pick<Task, 'title' | 'output' | 'skip'> | undefined
  private title: string
  private readonly notes: string[] = []
  private settle: (error?: Error) => void = () => {}
  private readonly done: Promise<void>

  constructor(title: string) {
    this.title = title
    this.done = new Promise((resolve, reject) => {
      this.settle = error => (error === undefined ? resolve() : reject(error))
    })
    this.done.catch(() => {})
  }

  draw(task: Pick<Task, 'title' | 'output' | 'skip'>): Promise<void> {
    this.task = task
    task.title = this.title
    if (this.notes.length > 0) task.output = this.notes.join('\n')
    return this.done
  }

  say(title: string): void {
    this.title = title
    if (this.task) this.task.title = title
  }

  note(line: string): void {
    this.notes.push(line)
    if (this.task) this.task.output = line
  }

  end(problem?: string): void {
    this.settle(problem === undefined ? undefined : new Error(problem))
  }
}

/** The list on a terminal, with a timer per step, live figures and what is left of the budget. */
export function terminalProgress(plan: ResponsePlan, stream: NodeJS.WriteStream): ProgressView {
  const started = performance.now()
  const beside = plan.steps.filter(step => step.throughout)
  const rows = new Map<string, Row>()
  for (const step of beside) rows.set(`${step.id} begins`, new Row(`${step.id}  ${step.summary}`))
  for (const step of plan.steps) if (!step.throughout) rows.set(step.id, new Row(`${step.id}  ${step.summary}`))
  for (const step of beside) rows.set(step.id, new Row(`${step.id}  ends with the last step`))
  const seal = new Row('seal')
  const all = [...rows.values(), seal]
  const besideFigures = new Map<string, string>()
  const rates = new Map<string, Rate>()
  let current: { step: PlannedStep; since: number; figures: string } | undefined
  let stopped = false

  const tick = setInterval(() => {
    if (current && !stopped) rows.get(current.step.id)?.say(runningTitle(current, plan, started, besideFigures, stream.columns))
  }, 500)
  tick.unref()

  const list = new Listr<unknown, 'default'>(
    all.map(row => ({
      title: ' ',
      task: (_context, task) => row.draw(task as unknown as Task),
      rendererOptions: { persistentOutput: true, outputBar: Number.POSITIVE_INFINITY },
    })),
    {
      concurrent: false,
      // The engine decides what goes on after a failure and what Ctrl-C means; listr2's own handler would exit before the seal.
      exitOnError: false,
      registerSignalListeners: false,
      renderer: 'default',
      rendererOptions: {
        logger: new ListrLogger({ processOutput: new ProcessOutput(stream, stream) }),
        showErrorMessage: false,
      },
    },
  )
  const drawn = list.run().then(
    () => {},
    () => {},
  )
  return {
    stepStarted(step) {
      if (step.throughout) return
      for (const other of beside) rows.get(`${other.id} begins`)?.end()
      current = { step, since: performance.now(), figures: '' }
      rows.get(step.id)?.say(runningTitle(current, plan, started, besideFigures, stream.columns))
    },
    progress(step, figures) {
      const rate = rates.get(step.id) ?? new Rate()
      rates.set(step.id, rate)
      const text = figuresText(figures, rate.of(figures))
      if (step.throughout) {
        besideFigures.set(step.id, text)
        const begins = rows.get(`${step.id} begins`)
        begins?.say(`${step.id}  runs beside the others`)
        begins?.end()
      } else if (current?.step.id === step.id) current.figures = text
    },
    announce(step, change) {
      rows.get(step.id)?.note(changeLines(change).join('\n'))
    },
    stepEnded(step, result, head) {
      if (current?.step.id === step.id) current = undefined
      rows.get(`${step.id} begins`)?.end()
      endRow(rows.get(step.id), result, head)
    },
    stopping() {
      stopped = true
      if (current) rows.get(current.step.id)?.say(`${current.step.id}  ${STOPPING}`)
    },
    sealing: () => seal.say(`seal  ${plan.case}`),
    async close() {
      clearInterval(tick)
      for (const row of all) row.end()
      await drawn
    },
  }
}

function endRow(row: Row | undefined, result: StepResult, head: string): void {
  if (row === undefined) return
  row.say(`${stepLine(result)}  head ${head.slice(0, 16)}`)
  row.end(result.outcome === 'collected' || result.outcome === 'empty' ? undefined : visible(result.reason ?? result.outcome))
}

function runningTitle(
  current: { step: PlannedStep; since: number; figures: string },
  plan: ResponsePlan,
  started: number,
  beside: ReadonlyMap<string, string>,
  columns: number,
): string {
  const left = plan.budget - (performance.now() - started) / 1000
  const own = [formatDuration((performance.now() - current.since) / 1000), ...(current.figures === '' ? [] : [current.figures])]
  const others = [...beside].map(([id, figures]) => `${id} ${figures}`)
  const end = left >= 0 ? `${clock(left)} left of ${clock(plan.budget)}` : `${clock(-left)} over the budget`
  const title = (parts: readonly string[]): string => `${current.step.id}  ${parts.join(' \u00b7 ')}`
  const whole = title([...own, ...others, end])
  // A line that wraps makes the list jump; two columns are listr2's own.
  return whole.length + 2 <= columns ? whole : title([...own, end])
}

function clock(seconds: number): string {
  const whole = Math.round(seconds)
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')}`
}

/** Bytes per second since the first figure. */
class Rate {
  private first: { at: number; bytes: number } | undefined

  of(figures: Progress): number | undefined {
    if (figures.bytes === undefined) return undefined
    const now = performance.now()
    this.first ??= { at: now, bytes: figures.bytes }
    const seconds = (now - this.first.at) / 1000
    return seconds < 1 ? undefined : (figures.bytes - this.first.bytes) / seconds
  }
}

/** '512.0 MiB of 4.0 GiB, 148.0 MiB/s, 24 s left' */
function figuresText(figures: Progress, rate?: number): string {
  const parts: string[] = []
  const { bytes, totalBytes, packets, items, totalItems } = figures
  if (items !== undefined) parts.push(totalItems === undefined ? `${items} entries` : `${items} of ${totalItems}`)
  if (packets !== undefined) parts.push(`${packets} packets`)
  if (bytes !== undefined) parts.push(totalBytes === undefined ? formatBytes(bytes) : `${formatBytes(bytes)} of ${formatBytes(totalBytes)}`)
  if (bytes !== undefined && totalBytes !== undefined && rate !== undefined && rate > 0) {
    parts.push(`${formatBytes(rate)}/s`, `${formatDuration(Math.max(0, totalBytes - bytes) / rate)} left`)
  }
  return parts.join(', ')
}
