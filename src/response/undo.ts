/** The way back as text: what an engineer can type, or run as undo.sh, when `ir` itself is gone. */
import type { Change, Running } from '../step.js'

/** One command as typed into a shell, its standard input as a here-document. */
export function typed(running: Running): string {
  const command = running.argv.map(quote).join(' ')
  if (running.stdin === undefined) return command
  return `${command} <<'IR_END'\n${running.stdin.replace(/\n?$/, '\n')}IR_END`
}

/** A shell script that undoes the changes, the last one first. */
export function undoScript(changes: readonly Change[]): string {
  const lines = ['#!/bin/sh', '# Undoes what ir changed on this host, the last change first.']
  for (const change of changes.toReversed()) {
    lines.push('', `# ${printable(change.effect)}`)
    if (change.undo.length === 0) lines.push('# (no way back)')
    for (const running of change.undo) lines.push(typed(running))
  }
  return `${lines.join('\n')}\n`
}

function quote(word: string): string {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`
}

/** A comment must stay one line. */
function printable(text: string): string {
  return text.replaceAll(/[\u0000-\u001f\u007f]/g, ' ')
}
