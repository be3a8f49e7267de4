/** Saves every process, and the programs that exist only in memory. */
import { defineStep, type Finding, type Severity, type StepArtifacts, type Verdict } from '../../src/step.js'
import { incomplete, records } from '../records.js'

const PROCESSES = 'processes.jsonl'

export const snapshotProcesses = defineStep({
  id: 'snapshot-processes',
  summary: 'Save every process with environment, maps and files; copy out programs that exist only in memory',
  description: `Reads each process once from /proc (processes.jsonl): command, environment, user, start, parent, cgroup, namespaces, memory maps, limits, open files
with their positions, and its program file with SHA-256. Programs whose file is deleted, or that never had one (memfd), are copied out through
/proc/PID/exe (executables/<sha256>): they are gone when their last process ends.

Starts no program of the host and changes nothing; access times of program files stay as they are. Environments may hold secrets: so does the case then.

Left out: memory itself (capture-mem), program files on network disks, and what a process keeps us from reading; the facts name each.`,
  references: [
    'RFC 3227, section 2.1 (order of volatility)',
    'proc(5), proc_pid_exe(5), proc_pid_maps(5), proc_pid_fdinfo(5)',
    'memfd_create(2)',
    'https://attack.mitre.org/techniques/T1057/',
    'https://attack.mitre.org/techniques/T1620/',
    'https://attack.mitre.org/techniques/T1070/004/',
  ],
  options: {},

  async plan() {
    return {
      actions: [
        {
          kind: 'collect',
          title: 'Read every process, copy out programs without a file',
          collector: 'processes',
          options: { hashBytes: 4 * 1024 ** 3, hashSeconds: 5, copyFileBytes: 256 * 1024 ** 2, copyBytes: 1024 ** 3 },
          writes: [PROCESSES, 'executables/', 'large/'],
          expectedBytes: 32 * 1024 ** 2,
          expectedSeconds: 3,
          limit: 120,
        },
      ],
    }
  },

  async interpret(collected) {
    return interpretPrograms(collected)
  },
})

/** What the collector writes, as far as it matters here; src/collectors/proc/process-record.ts has the whole. */
interface ProcessRecord {
  readonly pid: number
  readonly ppid: number
  readonly comm: string
  readonly kernelThread: boolean
  readonly started: string | null
  readonly uid: { readonly effective: number } | null
  readonly cmdline: readonly string[]
  readonly exe: {
    readonly link: string
    readonly deleted: boolean
    readonly memfd: boolean
    readonly replaced?: boolean
    readonly inode?: string
    readonly device?: string
    readonly sha256?: string
    readonly artifact?: string
    readonly notes?: readonly string[]
  } | null
  readonly denied?: readonly string[]
}

type Executable = NonNullable<ProcessRecord['exe']>

interface Rule {
  readonly id: string
  readonly attack: readonly string[]
  matches(exe: Executable): boolean
  severity(exe: Executable, processes: readonly ProcessRecord[]): Severity
  title(exe: Executable): string
  reason(exe: Executable): string
  /** What was looked for, for the verdict that it is not there. */
  readonly clear: string
  readonly next: string
}

const MEMFD: Rule = {
  id: 'process-memfd',
  attack: ['T1620'],
  matches: exe => exe.memfd,
  severity: (exe, processes) => (isContainerRuntime(exe, processes) ? 'low' : 'critical'),
  title: () => 'A process runs a program that never was a file on disk',
  reason: exe => `its program lies in memory only, made with memfd_create: ${exe.link}`,
  clear: 'none runs a program from a memfd',
  next: 'Examine the saved copy on another machine; do not run it. Its parent and its first command show how it came in.',
}

const DELETED: Rule = {
  id: 'process-executable-deleted',
  attack: ['T1070.004'],
  matches: exe => exe.deleted && !exe.memfd,
  severity: exe => (ANYBODY_WRITES.test(exe.link) ? 'high' : 'medium'),
  title: () => 'A process runs a program whose file is deleted',
  reason: exe =>
    exe.replaced
      ? `its program is deleted, and another file stands in its place, as after the upgrade of a package: ${exe.link}`
      : `its program is deleted: ${exe.link}`,
  clear: 'none runs a deleted program',
  next: 'Compare the hash of the saved copy with the package it should be from; after an upgrade restart the service. If it is from no package, examine the copy on another machine; do not run it.',
}

/** Where every user may put a program, and the homes of users: no package does. */
const ANYBODY_WRITES = /^\/(tmp|var\/tmp|dev\/shm|run|home|root)\//

/** runc and crun run from a sealed copy of themselves in a memfd, so that a container cannot overwrite them (CVE-2019-5736). */
function isContainerRuntime(exe: Executable, processes: readonly ProcessRecord[]): boolean {
  return /^\/memfd:runc_cloned:/.test(exe.link) && processes.every(process => /^(runc|crun)/.test(process.comm))
}

/** The ids and commands shown of one program; findings are for people. */
const MOST_SHOWN = 8

/** A program with the processes that run it, and the lines they stand on. */
interface Running {
  readonly exe: Executable
  readonly processes: ProcessRecord[]
  readonly lines: number[]
}

interface Looked {
  /** Those of which the file is deleted, each with a content and a link of its own. */
  readonly deleted: readonly Running[]
  /** Processes of which the program was seen. */
  readonly seen: number
  /** Processes of which it was not. */
  readonly unseen: number
}

/** One finding for each program, not for each of its processes. */
function interpretPrograms(collected: StepArtifacts): readonly Verdict[] {
  const looked = lookThrough(collected)
  const gap = gapOf(collected, looked)
  return [MEMFD, DELETED].flatMap(rule => {
    const verdicts: Verdict[] = looked.deleted.filter(({ exe }) => rule.matches(exe)).map(running => finding(rule, running))
    if (gap !== undefined) verdicts.push({ rule: rule.id, notAssessed: gap.why, remedy: gap.remedy })
    else if (verdicts.length === 0) verdicts.push({ rule: rule.id, clear: `of ${looked.seen} processes with a program ${rule.clear}` })
    return verdicts
  })
}

function lookThrough(collected: StepArtifacts): Looked {
  const programs = new Map<string, Running>()
  let [seen, unseen] = [0, 0]
  for (const { line, record } of records<ProcessRecord>(collected, PROCESSES)) {
    const { exe } = record
    if (record.kernelThread) continue
    // A program known by its link alone, because its file system does not answer, may be deleted or not.
    if (exe?.inode === undefined) unseen += exe !== null || record.denied?.includes('exe') ? 1 : 0
    else seen += 1
    if (!exe?.deleted) continue
    const key = [exe.memfd, exe.sha256 ?? `${exe.device} ${exe.inode}`, exe.link].join(' ')
    const running = programs.get(key) ?? { exe, processes: [], lines: [] }
    running.processes.push(record)
    running.lines.push(line)
    programs.set(key, running)
  }
  const unreadable = collected.actions[0]?.facts?.unreadable
  return { deleted: [...programs.values()], seen, unseen: unseen + (typeof unreadable === 'number' ? unreadable : 0) }
}

/** Why the rules could not look at every process. */
function gapOf(collected: StepArtifacts, { seen, unseen }: Looked): { why: string; remedy: string } | undefined {
  const why = incomplete(collected, PROCESSES)
  if (why !== undefined) return { why, remedy: 'run ir snapshot-processes again, as root' }
  if (unseen > 0) return { why: `the programs of ${unseen} of ${seen + unseen} processes could not be seen`, remedy: 'run ir as root' }
  if (seen === 0) return { why: 'no process with a program was read', remedy: 'run ir as root' }
  return undefined
}

function finding(rule: Rule, { exe, processes, lines }: Running): Finding {
  const shown = processes.slice(0, MOST_SHOWN)
  const more = processes.length > MOST_SHOWN ? ` and ${processes.length - MOST_SHOWN} more` : ''
  return {
    rule: rule.id,
    title: rule.title(exe),
    severity: rule.severity(exe, processes),
    subject: { kind: 'process', name: `${shown.map(process => `${process.pid} (${process.comm})`).join(', ')}${more}` },
    why: [rule.reason(exe), ...shown.map(describe), ...(exe.sha256 === undefined ? [] : [`SHA-256 ${exe.sha256}`]), ...(exe.notes ?? [])],
    attack: rule.attack,
    evidence: [
      ...lines.slice(0, MOST_SHOWN).map(line => ({ artifact: `snapshot-processes/${PROCESSES}`, line })),
      ...(exe.artifact === undefined ? [] : [{ artifact: `snapshot-processes/${exe.artifact}` }]),
    ],
    next: rule.next,
  }
}

/** Characters of a command that a sentence can bear. */
const SHOWN_COMMAND = 200

function describe({ pid, ppid, uid, started, cmdline, comm }: ProcessRecord): string {
  const command = cmdline.join(' ') || comm
  const short = command.length > SHOWN_COMMAND ? `${command.slice(0, SHOWN_COMMAND)}...` : command
  const user = uid === null ? '' : `, user ${uid.effective}`
  return `process ${pid}${user}, child of ${ppid}${started === null ? '' : `, started ${started}`}: ${short}`
}
