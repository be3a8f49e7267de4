/** File names as people can read them. A name is any bytes but '/' and NUL; what it holds is the attacker's choice. */
import { isUtf8 } from 'node:buffer'

/** Drawn as what it is and nothing else: letters, marks, numbers, punctuation, symbols and the plain space. Not the backslash. */
const PLAIN = /^[\p{L}\p{M}\p{N}\p{P}\p{S} ]$/u

/** Almost every name: printable ASCII without the backslash, and no space at the end. */
const SIMPLE = /^[ -[\]-~]*[!-[\]-~]$/

/**
 * A name in which every character that could steer a terminal, reorder a line or pass for another (controls, bidirectional
 * and zero-width characters, odd spaces, a space at the end) and every byte that is not UTF-8 stands as `\n`, `\t` or `\xHH`,
 * and the backslash as `\\`. Nothing is lost: bash(1) reads it back between `$'` and `'` once its single quotes are escaped.
 */
export function escapeName(name: Uint8Array): string {
  const bytes = Buffer.from(name.buffer, name.byteOffset, name.byteLength)
  const text = isUtf8(bytes) ? bytes.toString('utf8') : undefined
  if (text !== undefined && SIMPLE.test(text)) return text
  const escaped =
    text === undefined
      ? Array.from(bytes, byte => (byte < 0x80 ? escapeCharacter(String.fromCharCode(byte)) : hex(byte)))
      : Array.from(text, escapeCharacter)
  return escaped.join('').replace(/ $/, '\\x20')
}

/** JSON on one line, in which no character steers a terminal either: what is not plain stands as `\uHHHH`. */
export function plainJson(value: unknown): string {
  return JSON.stringify(value).replace(/[^\p{L}\p{M}\p{N}\p{P}\p{S} ]/gu, character =>
    character
      .split('')
      .map(unit => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
      .join(''),
  )
}

function escapeCharacter(character: string): string {
  if (character === '\\') return '\\\\'
  if (PLAIN.test(character)) return character
  if (character === '\n') return '\\n'
  if (character === '\t') return '\\t'
  return [...Buffer.from(character)].map(hex).join('')
}

function hex(byte: number): string {
  return `\\x${byte.toString(16).padStart(2, '0')}`
}
