/** A terminal window as SVG: text stays text. */
import type { Cell, Style } from './screen.js'

const COLOURS = {
  text: '#d7dde4',
  dim: '#8b949e',
  black: '#484f58',
  red: '#ff7b72',
  green: '#56d364',
  yellow: '#e3b341',
  blue: '#79c0ff',
  magenta: '#d2a8ff',
  cyan: '#76e3ea',
  white: '#ffffff',
  grey: '#8b949e',
} as const

const FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"

/** Pixels. Most monospaced fonts are 0.6 of their size wide; each run of text is told its exact place and length all the same. */
const SIZE = 13
const CELL = 7.8
const LEADING = 18
const BAR = 36
const MARGIN = 18

export interface Picture {
  readonly lines: readonly (readonly Cell[])[]
  /** In the bar of the window. */
  readonly title: string
  /** For those who cannot see it. */
  readonly description: string
  readonly columns: number
  readonly cursor?: { readonly row: number; readonly column: number }
}

export function svg({ lines, title, description, columns, cursor }: Picture): string {
  const width = Math.ceil(columns * CELL + 2 * MARGIN)
  const height = BAR + lines.length * LEADING + 2 * MARGIN - 6
  const baseline = (row: number): number => BAR + MARGIN + row * LEADING + SIZE - 3
  const text = lines.flatMap((line, row) => {
    const spans = runs(cut(line, columns)).map(span)
    return spans.length === 0 ? [] : [`    <text y="${baseline(row)}">${spans.join('')}</text>`]
  })
  const block =
    cursor === undefined
      ? []
      : [
          `  <rect x="${at(cursor.column)}" y="${baseline(cursor.row) - SIZE + 2}" width="${CELL}" height="${SIZE + 2}" fill="${COLOURS.text}"/>`,
        ]
  const lights = ['#ff5f57', '#febc2e', '#28c840'].map(
    (fill, index) => `  <circle cx="${MARGIN + 4 + index * 20}" cy="${BAR / 2}" r="6" fill="${fill}"/>`,
  )
  return `${[
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" xml:space="preserve" role="img" aria-labelledby="title description">`,
    `  <title id="title">${xml(title)}</title>`,
    `  <desc id="description">${xml(description)}</desc>`,
    // Blanks count: for browsers, and for others that know only xml:space.
    '  <style>text { white-space: pre }</style>',
    `  <rect x="0.5" y="0.5" width="${width - 1}" height="${height - 1}" rx="10" fill="#0d1117" stroke="#30363d"/>`,
    `  <path d="M1 ${BAR}V10.5a9.5 9.5 0 0 1 9.5-9.5H${width - 10.5}a9.5 9.5 0 0 1 9.5 9.5V${BAR}z" fill="#161b22"/>`,
    ...lights,
    `  <text x="${width / 2}" y="${BAR / 2 + 4}" text-anchor="middle" font-family="${FONT}" font-size="12" fill="${COLOURS.dim}">${xml(title)}</text>`,
    ...block,
    `  <g font-family="${FONT}" font-size="${SIZE}" fill="${COLOURS.text}">`,
    ...text,
    '  </g>',
    '</svg>',
  ].join('\n')}\n`
}

interface Run {
  readonly column: number
  readonly text: string
  readonly style: Style
}

/** A line that is longer than the window ends in an ellipsis. */
function cut(line: readonly Cell[], columns: number): readonly Cell[] {
  const last = line.findLastIndex(cell => cell.character !== ' ')
  if (last < columns) return line.slice(0, last + 1)
  return [...line.slice(0, columns - 1), { character: '…', style: { dim: true } }]
}

/** Neighbours of one style; runs of blanks between them are left out, each run knows its place. */
function runs(line: readonly Cell[]): Run[] {
  const found: Run[] = []
  for (const [column, { character, style }] of line.entries()) {
    const last = found.at(-1)
    if (last?.style === style) found[found.length - 1] = { ...last, text: last.text + character }
    else found.push({ column, text: character, style })
  }
  return found.filter(run => run.text.trim() !== '')
}

function span({ column, text, style }: Run): string {
  const before = text.length - text.trimStart().length
  const shown = text.trim()
  const fill = style.colour === undefined ? (style.dim ? COLOURS.dim : undefined) : COLOURS[style.colour]
  const length = round([...shown].length * CELL)
  return `<tspan x="${at(column + before)}" textLength="${length}"${fill === undefined ? '' : ` fill="${fill}"`}${style.bold ? ' font-weight="bold"' : ''}>${xml(shown)}</tspan>`
}

function at(column: number): number {
  return round(MARGIN + column * CELL)
}

function round(value: number): number {
  return Math.round(value * 10) / 10
}

function xml(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;')
}
