/** File names as people can read them. A name is any bytes but '/' and NUL; what it holds is the attacker's choice. */
import { isUtf8 } from 'node:buffer'

/** Drawn as what it is and nothing else: letters, marks, numbers, punctuation, symbols and the plain space. Not the backslash. */
const PLAIN = /^[\p{L}\p{M}\p{N}\p{P}\p{S} ]$/u

/**
 * A name in which every character that could steer a terminal, reorder a line or pass for another (controls, bidirectional
 * and zero-width characters, odd spaces) and every byte that is not UTF-8 stands as `\n`, `\t` or `\xHH`, and the backslash
 * as `\\`. Nothing is lost: bash(1) reads it back between `$'` and `'` once its single quotes are escaped.
 */
export function escapeName(name: Uint8Array): string {
  const bytes = Buffer.from(name.buffer, name.byteOffset, name.byteLength)
  if (!isUtf8(bytes)) return [...bytes].map(byte => (byte < 0x80 ? escapeCharacter(String.fromCharCode(byte)) : hex(byte))).join('')
  return Array.from(bytes.toString('utf8'), escapeCharacter).join('')
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
