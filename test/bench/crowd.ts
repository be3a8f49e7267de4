/**
 * A crowd for a snapshot: `node crowd.ts COUNT DIRECTORY` starts COUNT sleeping processes and one whose executable is deleted, says
 * its SHA-256, and ends them all, by their ids, when its standard input ends.
 */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'

const [count = '', directory = ''] = process.argv.slice(2)
const sleeper = ['/usr/bin/sleep', '/bin/sleep'].find(file => fs.existsSync(file)) ?? ''
const copy = path.join(directory, 'deleted')
// One more byte than the program of the host, so that it is none that the host has.
fs.writeFileSync(copy, Buffer.concat([fs.readFileSync(sleeper), Buffer.from([0])]), { mode: 0o700 })
const crowd = [...Array.from({ length: Number(count) }, () => sleeper), copy].map(file =>
  spawn(file, ['600'], { argv0: 'sleep', stdio: 'ignore' }),
)
await Promise.all(crowd.map(child => new Promise((resolve, reject) => child.once('spawn', resolve).once('error', reject))))
const sha256 = createHash('sha256').update(fs.readFileSync(copy)).digest('hex')
fs.unlinkSync(copy)
process.stdout.write(`${sha256}\n`)
process.stdin.resume()
process.stdin.once('end', () => {
  for (const child of crowd) child.kill('SIGKILL')
})
