/**
 * What playbooks/responder.ts finds in the process that it is called in (see namespace.ts), or, with `behind`, in a process that
 * this one starts without its environment, as sudo does.
 */
import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { formatNetwork } from '../../playbooks/address.js'
import { findResponder, sshPorts, tcpSockets } from '../../playbooks/responder.js'
import { openHost } from '../../src/host.js'

export interface Found {
  readonly responder: string
  readonly ports: readonly number[]
}

export default function find({ behind = false }: { behind?: boolean }): Found {
  if (behind) {
    const script = `import(${JSON.stringify(fileURLToPath(import.meta.url))}).then(found => console.log(JSON.stringify(found.default({}))))`
    const sources = fileURLToPath(new URL('sources.mjs', import.meta.url))
    return JSON.parse(execFileSync(process.execPath, ['--import', sources, '-e', script], { env: {}, encoding: 'utf8' })) as Found
  }
  const host = openHost()
  const sockets = tcpSockets(host)
  const responder = findResponder(host, sockets)
  return {
    responder: responder.found ? `${formatNetwork(responder.peer.address)} by ${responder.by}` : responder.why,
    ports: sshPorts(host, sockets),
  }
}
