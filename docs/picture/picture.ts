/**
 * Takes the picture of the README: `npm run picture`, as root. A real `ir drill`, typed at a real shell on a real terminal, on a stage
 * (stage.sh) where nothing of this machine is seen but its programs. What the terminal got is replayed and drawn as docs/picture.svg.
 */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { openHost } from '../../src/host.js'
import { Screen } from './screen.js'
import { svg } from './svg.js'

const COLUMNS = 110
const ROWS = 60
const PROMPT = 'root@web1:~# '
const COMMAND = 'ir drill --output /var/tmp'
const SECONDS = 120

/** Where the checkout is seen on the stage. */
const STAGED = '/opt/ir'
const checkout = path.resolve(import.meta.dirname, '../..')

/** All that the terminal got. @throws when the drill was not complete. */
function takeDown(): string {
  const host = openHost()
  const [unshare, python] = ['unshare', 'python3'].map(name => {
    const found = host.which(name)
    if (found === undefined) throw new Error(`${name} is not installed: run bin/setup --dev`)
    return found
  }) as [string, string]
  const terminal = [python, `${STAGED}/docs/picture/terminal.py`, `${COLUMNS}`, `${ROWS}`, PROMPT, `${SECONDS}`, COMMAND]
  const stage = [
    '--mount',
    '--uts',
    '--pid',
    '--fork',
    '--kill-child',
    '--mount-proc',
    '/bin/sh',
    path.join(import.meta.dirname, 'stage.sh'),
  ]
  return execFileSync(unshare, [...stage, checkout, ...terminal], {
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
    stdio: ['ignore', 'pipe', 'inherit'],
    timeout: (SECONDS + 30) * 1000,
    killSignal: 'SIGKILL',
  }).toString('utf8')
}

const screen = new Screen(ROWS)
screen.write(takeDown())
const text = screen.lines.map(line => line.map(cell => cell.character).join('')).join('\n')
if (!text.includes('the archive verifies') || !text.includes('ir-web1-')) throw new Error(`this drill was not one to show:\n${text}`)
if (checkout !== STAGED && text.includes(checkout)) throw new Error(`the picture would show ${checkout}`)
const picture = svg({
  lines: screen.lines,
  columns: COLUMNS,
  title: 'root@web1: ir drill',
  description:
    'A terminal in which ir drill has been run: what was planted, the steps with their times, what was found, and what the sealed archive shows.',
  cursor: { row: screen.row, column: screen.column },
})
fs.writeFileSync(path.join(checkout, 'docs/picture.svg'), picture)
process.stdout.write(`docs/picture.svg: ${screen.lines.length} lines\n`)
