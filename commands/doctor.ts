/** ir doctor: what this host offers a response, and the line that fixes each lack. Needs no root, changes nothing. */
import path from 'node:path'
import { Flags } from '@oclif/core'
import { formatNetwork } from '../playbooks/address.js'
import { findResponder, sshPorts, tcpSockets } from '../playbooks/responder.js'
import { captureMem } from '../playbooks/steps/capture-mem.js'
import { installLine, TOOLS, type ToolName } from '../playbooks/tools.js'
import type { Connection, Examination, MemoryOffer, Tool } from '../src/doctor/examination.js'
import { examine } from '../src/doctor/examine.js'
import { examinationLines } from '../src/doctor/table.js'
import { type Host, openHost } from '../src/host.js'
import { IrCommand } from './base.js'

export default class Doctor extends IrCommand {
  static override summary = 'Tell what this host offers a response, and what fixes each lack'
  static override description =
    'Looks at tools, memory sources, kernel lockdown, disks, space, clock, rights and the way you are connected. Changes nothing and exits 0 whatever is missing. As root it sees more.'
  static override examples = ['<%= config.bin %> doctor', '<%= config.bin %> doctor --output /var/tmp --json']
  static override flags = {
    output: Flags.string({ char: 'o', summary: 'directory that evidence would go to', default: '.', env: 'IR_OUTPUT' }),
  }

  async run(): Promise<Examination> {
    const { flags } = await this.parse(Doctor)
    const host = openHost()
    const examination = await examine(host, {
      tools: tools(host),
      memory: await memory(host),
      connection: connection(host),
      output: path.resolve(flags.output),
    })
    for (const line of examinationLines(examination)) this.log(line)
    return examination
  }
}

function tools(host: Host): Tool[] {
  return (Object.keys(TOOLS) as ToolName[]).map(name => {
    const { version } = TOOLS[name]
    return { name, version, install: installLine(host, name) }
  })
}

/** What capture-mem would do, as its own plan says. */
async function memory(host: Host): Promise<MemoryOffer> {
  const options = {
    source: 'auto',
    'lime-module': undefined,
    pid: undefined,
    suspicious: false,
    'max-process': captureMem.options['max-process'].default,
  }
  const plan = await captureMem.plan({ host, options, directory: '/', throughout: false })
  const actions = 'actions' in plan ? plan.actions : []
  const chosen = actions.flatMap(action =>
    action.kind === 'collect' && action.collector !== 'kernel-symbols'
      ? [{ title: action.title, ...(action.expectedBytes === undefined ? {} : { bytes: action.expectedBytes }) }]
      : [],
  )
  const rejected = 'refused' in plan ? [{ what: 'capture-mem', why: plan.refused, remedy: plan.remedy }] : (plan.rejected ?? [])
  return { chosen, rejected }
}

function connection(host: Host): Connection {
  const sockets = tcpSockets(host)
  const responder = findResponder(host, sockets)
  const ports = sshPorts(host, sockets)
  if (!responder.found) return { why: responder.why, ports }
  return { responder: `${formatNetwork(responder.peer.address)} port ${responder.peer.port}`, ports }
}
