/** The figures of a benchmark and the table at its end. */
import { type Spread, shown } from './measure.js'

export interface Figure {
  readonly what: string
  readonly spread: Spread
  readonly unit: string
  /** What one unit is in the values' own. */
  readonly each?: number
  /** At most, in units; only reported when absent. */
  readonly goal?: number
}

/** One line as soon as something is measured. */
export function say(text: string): void {
  process.stdout.write(`${text}\n`)
}

export function figuresTable(figures: readonly Figure[]): string[] {
  const rows = figures.map(figure => {
    const { spread, unit, each = 1, goal } = figure
    // What is printed is what is compared: 3.004 is printed as 3.00 and meets a goal of 3.
    const value = Number((spread.median / each).toFixed(2))
    return [
      figure.what,
      shown(spread, unit, each, 2),
      `n=${spread.n}`,
      goal === undefined ? '' : `<= ${goal}${unit === '' ? '' : ` ${unit}`}`,
      goal === undefined ? '' : value <= goal ? 'yes' : 'NO',
    ]
  })
  const table = [['figure', 'median (least..most)', '', 'goal', 'met'], ...rows]
  const widths = [0, 1, 2, 3, 4].map(column => Math.max(...table.map(row => row[column]?.length ?? 0)))
  return table.map(row =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('   ')
      .trimEnd(),
  )
}
