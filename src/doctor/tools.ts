/** The host's programs, each asked for its version. */
import type { Host } from '../host.js'
import { captureProgram, complaint } from '../programs.js'
import type { Seconds } from '../step.js'
import type { Fact, Tool } from './examination.js'

const LIMIT: Seconds = 5
const OUTPUT = 64 * 1024

/** One fact for each tool, all asked at the same time. */
export function examineTools(host: Host, tools: readonly Tool[]): Promise<Fact[]> {
  return Promise.all(tools.map(tool => examineTool(host, tool)))
}

async function examineTool(host: Host, tool: Tool): Promise<Fact> {
  const about = { topic: 'tools', what: tool.name } as const
  const path = host.which(tool.name)
  if (path === undefined) return { ...about, state: 'lack', found: 'not installed', remedy: tool.install }
  if (tool.version === undefined) return { ...about, state: 'ok', found: path, detail: { path } }
  const running = { title: `Version of ${tool.name}`, argv: [path, ...tool.version] as const, limit: LIMIT }
  const { exit, stdout, stderr } = await captureProgram(running, { maxBytes: OUTPUT })
  const trouble = complaint(running, exit)
  if (trouble !== undefined)
    return { ...about, state: 'lack', found: trouble, remedy: `install it again: ${tool.install}`, detail: { path } }
  const version = versionIn(stderr) ?? versionIn(stdout)
  return { ...about, state: 'ok', found: `${path}  ${version ?? '(tells no version)'}`, detail: { path, version: version ?? null } }
}

/**
 * The first line that holds a version. Standard error goes first: `lsattr -V` tells its version there, and on standard output
 * what lies in the directory.
 */
function versionIn(output: Buffer): string | undefined {
  const lines = output.toString('utf8').split('\n')
  // ld.so(8) complains before any program begins when /etc/ld.so.preload names what is not there.
  const line = lines.find(line => /\d/.test(line) && !line.startsWith('ERROR: ld.so:'))
  return line?.trim().slice(0, 200)
}
