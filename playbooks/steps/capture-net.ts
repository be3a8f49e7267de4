/** Records packets before, during and after the cut. */
import { type Action, defineStep, type HostView, type Plan } from '../../src/step.js'
import { missing } from '../tools.js'

/** Index and name of each interface: packets of '-i any' carry the index alone (LINKTYPE_LINUX_SLL2). */
const LINKS = 'ip_-o_link.txt'

/** All segments together, those that span the cut included. */
const TOTAL_BYTES = 2 * 1024 ** 3

/** A capture that runs beside a response ends with it; nothing of ours runs longer than this. */
const THROUGHOUT_LIMIT = 24 * 3600

/** For closing the files after the last packet. */
const CLOSING = 30

/** IFNAMSIZ - 1 of include/uapi/linux/if.h. */
const INTERFACE_NAME_MOST = 15

export const captureNet = defineStep({
  id: 'capture-net',
  summary: 'Record packets into a ring of files',
  description: `Runs tcpdump on all interfaces and keeps the last packets: a new file every --rotate, the newest --files of them, at most 2 GiB
together. In a response it starts before the cut and ends last; the file that was being written during the cut is never given up.
Every file is a complete pcap. It stops rather than fill the disk of the evidence. Interfaces are not put into promiscuous mode.

Not seen: packets that this host's own rules drop on the way out (they never reach an interface), other network namespaces.`,
  references: ['tcpdump(8)', 'pcap-filter(7)', 'pcap-savefile(5)', 'https://www.tcpdump.org/linktypes.html'],
  options: {
    rotate: { type: 'duration', summary: 'A new file after so long', default: 300 },
    files: { type: 'integer', summary: 'Keep the newest', unit: 'files', default: 5, min: 1, max: 100 },
    snaplen: { type: 'integer', summary: 'Of each packet; 0 for all', unit: 'bytes', default: 0, min: 0, max: 262_144 },
    filter: { type: 'text', summary: "Only packets that match, as tcpdump has it: 'not port 22'" },
    interface: { type: 'text', summary: 'Only this one', default: 'any' },
    duration: { type: 'duration', summary: 'How long; in a response: until its end', default: 1500 },
  },

  async plan({ host, options, throughout }): Promise<Plan> {
    const { rotate, files, snaplen, filter, duration } = options
    const device = options.interface
    const problem = device === 'any' ? undefined : noSuchInterface(host, device)
    if (problem !== undefined) return problem
    const tcpdump = host.which('tcpdump')
    if (tcpdump === undefined) return missing(host, 'tcpdump')
    const limit = throughout ? THROUGHOUT_LIMIT : duration + CLOSING
    // One file more than `files`: the one that spans the cut.
    const segmentBytes = Math.floor(TOTAL_BYTES / (files + 1))
    const setpriv = host.which('setpriv')
    const [program, ...more] = setpriv === undefined ? [tcpdump] : [setpriv, '--pdeathsig', 'TERM', '--', tcpdump, '-Z', 'root']
    const argv = [
      // It ends when we are killed, however quiet the network is. The kernel forgets that wish when a program changes its user
      // (prctl(2), PR_SET_PDEATHSIG), hence -Z; with '-w -' it takes nothing apart.
      program as string,
      ...more,
      '-i',
      device,
      '-n', // no names: a look-up would tell the attacker, and hang after the cut
      '-p', // not promiscuous: this host's own packets, and nothing changed on it
      '-U', // every packet at once
      '-s',
      String(snaplen),
      '-w',
      '-',
      // Behind '--' a filter cannot be taken for an option (-z runs a program).
      ...(filter === undefined || filter.trim() === '' ? [] : ['--', filter]),
    ] as const
    return {
      actions: [
        mapInterfaces(host),
        {
          kind: 'collect',
          title: `Capture packets (${device === 'any' ? 'all interfaces' : device}) into a ring of ${files} files`,
          collector: 'packet-ring',
          options: { rotateSeconds: rotate, files, segmentBytes, ...(throughout ? {} : { seconds: duration }) },
          source: [{ title: 'Capture packets', argv, limit }],
          writes: ['capture-NNNN.pcap'],
          ...(throughout ? {} : { expectedSeconds: duration }),
          limit,
        },
      ],
    }
  },
})

/** Without `ip`, the names alone. */
function mapInterfaces(host: HostView): Action {
  const ip = host.which('ip')
  if (ip === undefined)
    return { kind: 'copy', title: 'Copy the list of interfaces', from: '/proc/net/dev', to: 'proc_net_dev.txt', limit: 5 }
  return { kind: 'observe', title: 'List interfaces with their numbers', argv: [ip, '-o', 'link'], stdout: LINKS, limit: 5 }
}

function noSuchInterface(host: HostView, name: string): Extract<Plan, { refused: string }> | undefined {
  const names = interfaces(host)
  if (names.includes(name) && name.length <= INTERFACE_NAME_MOST && !name.startsWith('-')) return undefined
  return { refused: `there is no interface ${JSON.stringify(name)}`, remedy: `--interface any, or one of: ${names.join(', ')}` }
}

/** proc_net(5): two lines of heading, then 'name: numbers'. Of the network namespace that we are in, as /sys/class/net may not be. */
function interfaces(host: HostView): string[] {
  try {
    return host
      .read('/proc/net/dev')
      .split('\n')
      .slice(2)
      .flatMap(line => /^\s*(\S+):/.exec(line)?.[1] ?? [])
  } catch {
    return []
  }
}
