/**
 * The first process of a network namespace (see namespace.ts): `node namespace-holder.ts OUTSIDE`, started under `unshare --net`.
 * Proves that it is confined, says where it is, keeps the namespace alive until its standard input ends, and then ends all that
 * still runs there.
 */
import fs from 'node:fs'
import { assertConfined, networkNamespace } from '../../src/confinement.js'

const outside = process.argv[2] ?? ''
assertConfined(outside)
const own = networkNamespace() as string
// No duplicate address detection: a router could not ask for its IPv6 neighbours during the first seconds (RFC 4862, section 5.4).
for (const which of ['all', 'default']) fs.writeFileSync(`/proc/sys/net/ipv6/conf/${which}/accept_dad`, '0')
process.stdout.write(`${own}\n`)
process.stdin.resume()
process.stdin.once('end', () => {
  endEverythingHere()
  process.exit(0)
})

/** Only what is in this namespace, which nobody but us can have entered. */
function endEverythingHere(): void {
  assertConfined(outside)
  for (let round = 0; round < 5; round += 1) {
    const here = fs.readdirSync('/proc').filter(name => /^\d+$/.test(name) && Number(name) !== process.pid && isHere(Number(name)))
    for (const name of here) {
      try {
        process.kill(Number(name), 'SIGKILL')
      } catch {
        // It ended in between.
      }
    }
    if (here.length === 0) return
  }
}

function isHere(pid: number): boolean {
  return networkNamespace(pid) === own
}
