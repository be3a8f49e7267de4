/** The host's programs that steps start, and the packages that bring them. */
import type { HostView } from '../src/step.js'

interface Tool {
  /** Package by package manager; the name of the program where they differ it says so. */
  readonly apt: string
  readonly dnf: string
  readonly apk: string
  /** Arguments that print a version and change nothing; none where the program has no such option. */
  readonly version?: readonly string[]
}

/** Every program that a step may start. `bin/setup` installs these packages. */
export const TOOLS = {
  nft: { apt: 'nftables', dnf: 'nftables', apk: 'nftables', version: ['--version'] },
  ip: { apt: 'iproute2', dnf: 'iproute', apk: 'iproute2', version: ['-V'] },
  ss: { apt: 'iproute2', dnf: 'iproute', apk: 'iproute2-ss', version: ['-V'] },
  tcpdump: { apt: 'tcpdump', dnf: 'tcpdump', apk: 'tcpdump', version: ['--version'] },
  lsattr: { apt: 'e2fsprogs', dnf: 'e2fsprogs', apk: 'e2fsprogs-extra', version: ['-V'] },
  conntrack: { apt: 'conntrack', dnf: 'conntrack-tools', apk: 'conntrack-tools', version: ['--version'] },
  getfattr: { apt: 'attr', dnf: 'attr', apk: 'attr', version: ['--version'] },
  unshare: { apt: 'util-linux', dnf: 'util-linux', apk: 'util-linux', version: ['--version'] },
  setpriv: { apt: 'util-linux', dnf: 'util-linux', apk: 'setpriv', version: ['--version'] },
  nsenter: { apt: 'util-linux', dnf: 'util-linux', apk: 'util-linux', version: ['--version'] },
  dd: { apt: 'coreutils', dnf: 'coreutils', apk: 'coreutils', version: ['--version'] },
  insmod: { apt: 'kmod', dnf: 'kmod', apk: 'kmod', version: ['--version'] },
  rmmod: { apt: 'kmod', dnf: 'kmod', apk: 'kmod', version: ['--version'] },
} as const satisfies Record<string, Tool>

export type ToolName = keyof typeof TOOLS

/** The command that installs a program here: 'apt-get install nftables'. */
export function installLine(host: HostView, tool: ToolName): string {
  const packages = TOOLS[tool]
  if (host.which('apt-get')) return `apt-get install ${packages.apt}`
  if (host.which('dnf')) return `dnf install ${packages.dnf}`
  if (host.which('apk')) return `apk add ${packages.apk}`
  return `install ${tool} (package ${packages.apt})`
}

/** What a step returns whose program the host does not have. */
export function missing(host: HostView, tool: ToolName): { readonly unavailable: string; readonly remedy: string } {
  return { unavailable: `${tool} is not installed`, remedy: installLine(host, tool) }
}
