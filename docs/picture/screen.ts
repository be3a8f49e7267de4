/** A small terminal: what stands on the screen when a program has written all it had to write. */

export type Colour = 'black' | 'red' | 'green' | 'yellow' | 'blue' | 'magenta' | 'cyan' | 'white' | 'grey'

export interface Style {
  readonly colour?: Colour
  readonly bold?: boolean
  readonly dim?: boolean
}

export interface Cell {
  readonly character: string
  readonly style: Style
}

const PLAIN: Style = {}
const BLANK: Cell = { character: ' ', style: PLAIN }

/** SGR 30 to 37 and 90: ECMA-48, 8.3.117; 90 is that of xterm. */
const COLOURS: Readonly<Record<number, Colour>> = {
  30: 'black',
  31: 'red',
  32: 'green',
  33: 'yellow',
  34: 'blue',
  35: 'magenta',
  36: 'cyan',
  37: 'white',
  90: 'grey',
}

/** Private modes that change nothing of what stands there: cursor seen, synchronized output, bracketed paste. */
const HARMLESS = /^\?(25|2026|2004)[hl]$/

/**
 * A terminal as high as `rows`, of endless width: what does not fit is for the reader of the cells to cut. It knows the control
 * functions that occur and throws at any other, so that the picture is never of something else than what was printed.
 */
export class Screen {
  /** From the first line ever written, those that scrolled away included. */
  readonly lines: Cell[][] = [[]]
  row = 0
  column = 0
  readonly #rows: number
  #style: Style = PLAIN

  constructor(rows: number) {
    this.#rows = rows
  }

  write(text: string): void {
    // Control sequences, ECMA-48, 5.4; all else one character at a time.
    for (const [all, parameters, final] of text.matchAll(/\u001b\[([0-?]*)[ -/]*([@-~])|[\s\S]/gu)) {
      if (final !== undefined) this.#control(parameters ?? '', final)
      else this.#put(all)
    }
  }

  #put(character: string): void {
    if (character === '\n') this.#down()
    else if (character === '\r') this.column = 0
    else if (/[\p{Cc}\p{Mn}\p{Me}\p{Cf}]/u.test(character)) throw new Error(`the terminal does not know ${escaped(character)}`)
    else {
      const line = this.#line()
      while (line.length < this.column) line.push(BLANK)
      line[this.column++] = { character, style: this.#style }
    }
  }

  #control(parameters: string, final: string): void {
    const count = parameters === '' ? 1 : Number(parameters)
    if (final === 'm') for (const code of parameters.split(';')) this.#render(Number(code))
    else if (final === 'A') this.row = Math.max(this.#top(), this.row - count)
    else if (final === 'B') this.row = Math.min(this.lines.length - 1, this.row + count)
    else if (final === 'G') this.column = count - 1
    else if (final === 'K' && (parameters === '' || parameters === '0')) this.#line().splice(this.column)
    else if (final === 'K' && parameters === '2') this.#line().splice(0)
    else if (final === 'J' && (parameters === '' || parameters === '0')) {
      this.#line().splice(this.column)
      this.lines.splice(this.row + 1)
    } else if (!HARMLESS.test(parameters + final)) throw new Error(`the terminal does not know CSI ${parameters}${final}`)
  }

  /** Select graphic rendition. */
  #render(code: number): void {
    const { colour, bold, dim } = this.#style
    const colours = colour === undefined ? {} : { colour }
    if (code === 0) this.#style = PLAIN
    else if (code === 1) this.#style = { ...this.#style, bold: true }
    else if (code === 2) this.#style = { ...this.#style, dim: true }
    else if (code === 22) this.#style = colours
    else if (code === 39) this.#style = { ...(bold ? { bold } : {}), ...(dim ? { dim } : {}) }
    else if (COLOURS[code]) this.#style = { ...this.#style, colour: COLOURS[code] }
    else throw new Error(`the terminal does not know SGR ${code}`)
  }

  /** The cursor cannot leave the screen upwards: what has scrolled away stays as it is. */
  #top(): number {
    return Math.max(0, this.lines.length - this.#rows)
  }

  #down(): void {
    this.row++
    if (this.row === this.lines.length) this.lines.push([])
  }

  #line(): Cell[] {
    return this.lines[this.row] as Cell[]
  }
}

function escaped(character: string): string {
  return `U+${(character.codePointAt(0) ?? 0).toString(16).padStart(4, '0')}`
}
