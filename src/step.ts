/**
 * The contracts between what is done (playbooks/) and how it is done (src/). This file imports nothing.
 *
 * A step plans with a view of the host that can start no program and write nothing; what it returns is data. A dry run
 * prints that data, a real run executes the same value.
 */

/** Seconds, may be fractional. */
export type Seconds = number

/** Any value that survives JSON unchanged: what plans, options and facts are made of. */
export type Json = string | number | boolean | null | readonly Json[] | { readonly [key: string]: Json }
export type JsonObject = { readonly [key: string]: Json }

/** A program and its arguments as the kernel receives them, the program by absolute path. Never a shell string. */
export type Argv = readonly [program: string, ...args: string[]]

/** One run of a program. */
export interface Running {
  /** Imperative, for the engineer: 'List TCP sockets with their owners'. */
  readonly title: string
  readonly argv: Argv
  /** What the program reads on standard input; nothing when absent. */
  readonly stdin?: string
  /** Evidence file for standard output, a plain name: 'ss_-tunap.txt'. Without it standard output is dropped. */
  readonly stdout?: string
  /** Evidence files that the program writes itself. */
  readonly writes?: readonly string[]
  /** Exit codes that mean success, [0] when absent. */
  readonly accept?: readonly number[]
  /** Source of a regular expression that the output of a verification must match: an exit code alone is easily faked. */
  readonly matches?: string
  /** Until the program is ended, with all it started. */
  readonly limit: Seconds
}

/** A program that only reads. */
export interface Observe extends Running {
  readonly kind: 'observe'
}

/** A file that we read ourselves, bounded in bytes and time. */
export interface Copy {
  readonly kind: 'copy'
  readonly title: string
  readonly from: string
  /** Evidence file, a plain name. */
  readonly to: string
  /** Stop after so many bytes and say so; 64 MiB when absent. */
  readonly maxBytes?: number
  readonly limit: Seconds
}

/** Our own readers, each a file in src/collectors/. */
export type CollectorName = 'sockets' | 'processes' | 'physical-memory' | 'process-memory' | 'kernel-symbols' | 'packet-ring' | 'attributes'

/** A collector of ours with its options. */
export interface Collect {
  readonly kind: 'collect'
  readonly title: string
  readonly collector: CollectorName
  readonly options: JsonObject
  /** Programs whose output the collector reads (tcpdump for the ring, lsattr in batches). */
  readonly source?: readonly Running[]
  /** Programs that get its output. */
  readonly sink?: readonly Running[]
  /** Evidence files it writes: plain names, or 'name/' for a folder of files named while running. */
  readonly writes: readonly string[]
  /** Size to expect on disk, for the dry run and the space check; unknown when absent. */
  readonly expectedBytes?: number
  /** Time to expect, for the dry run. */
  readonly expectedSeconds?: Seconds
  readonly limit: Seconds
}

/** Alters the host. Cannot be written without the way back. */
export interface Change extends Running {
  readonly kind: 'change'
  /** What is altered, in words, shown when asking for consent. */
  readonly effect: string
  /** Must all succeed after the change; otherwise it is undone at once. */
  readonly verify?: readonly Running[]
  /** Succeeds when a change of this kind is in force already: then one that is doubted is kept, for its undo would lift that one too. */
  readonly already?: Running
  /** The way back; [] only where none is possible, with the reason in `effect`. */
  readonly undo: readonly Running[]
  /** 'step': undone when the step ends. 'case': stays until `ir release`. */
  readonly lasts: 'step' | 'case'
  /** Tried in order when the first is refused. */
  readonly fallback?: readonly Running[]
}

export type Action = Observe | Copy | Collect | Change

/** A way to get the evidence that was looked at and not taken, and why. */
export interface Rejected {
  readonly what: string
  readonly why: string
  /** What to do about it; '' where nothing helps. */
  readonly remedy: string
}

export type Plan =
  | {
      readonly actions: readonly Action[]
      readonly rejected?: readonly Rejected[]
      /** Wanted and not to be had here, beside what is: the step counts as incomplete (exit 3). */
      readonly missing?: readonly Rejected[]
    }
  | { readonly unavailable: string; readonly remedy: string; readonly rejected?: readonly Rejected[] }
  /** Going on would harm: the whole response stops before anything is touched (exit 4). */
  | {
      readonly refused: string
      readonly remedy: string
      /** At a terminal the engineer is asked for this option instead, and the step planned again. */
      readonly ask?: { readonly option: string; readonly question: string }
    }

/** An option of a step: one command line flag, one meaning in every step that has it. */
export type Option =
  | { readonly type: 'text'; readonly summary: string; readonly default?: string }
  /** Comma separated, may be given more than once. */
  | { readonly type: 'list'; readonly summary: string; readonly default?: readonly string[] }
  | {
      readonly type: 'integer'
      readonly summary: string
      readonly unit: string
      readonly default: number
      readonly min?: number
      readonly max?: number
    }
  /** Typed as 90s, 30m, 2h; a value in seconds. */
  | { readonly type: 'duration'; readonly summary: string; readonly default: Seconds }
  /** Typed as 512MiB, 2GiB; a value in bytes. */
  | { readonly type: 'size'; readonly summary: string; readonly default: number }
  | { readonly type: 'choice'; readonly summary: string; readonly values: readonly string[]; readonly default: string }
  | { readonly type: 'switch'; readonly summary: string }

export type Options = Readonly<Record<string, Option>>

type ValueOf<T extends Option> = T extends { type: 'integer' | 'duration' | 'size' }
  ? number
  : T extends { type: 'switch' }
    ? boolean
    : T extends { type: 'list' }
      ? readonly string[] | (T extends { default: readonly string[] } ? never : undefined)
      : T extends { type: 'choice' }
        ? string
        : string | (T extends { default: string } ? never : undefined)

/** The values a step plans with, one for each of its options. */
export type Values<O extends Options> = { readonly [K in keyof O]: ValueOf<O[K]> }

export type FileKind = 'file' | 'directory' | 'link' | 'fifo' | 'socket' | 'character' | 'block' | 'other'

/** What lstat(2) tells. Times are milliseconds since the epoch. */
export interface FileStatus {
  readonly kind: FileKind
  /** Permission bits, 0o7777. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly size: bigint
  readonly device: bigint
  readonly inode: bigint
  readonly links: number
  readonly accessed: number
  readonly modified: number
  readonly changed: number
  /** 0 where the file system keeps none. */
  readonly born: number
}

/** What statfs(2) tells. `type` is the magic number of linux/magic.h. */
export interface FileSystemStatus {
  readonly type: bigint
  readonly totalBytes: number
  readonly freeBytes: number
}

/**
 * What planning may see: starts no program, writes nothing, changes no access time that it can help.
 * All methods throw when the host refuses, except `which`: an Error whose `code` is the errno name ('ENOENT', 'EACCES', 'EPERM' ...).
 */
export interface HostView {
  readonly hostname: string
  now(): Date
  /** Absolute path of a program in the fixed search path, undefined when the host has none. */
  which(program: string): string | undefined
  /** Names in a directory, sorted. */
  list(path: string): readonly string[]
  lstat(path: string): FileStatus
  readlink(path: string): string
  statfs(path: string): FileSystemStatus
  /** The file as UTF-8 text, at most `maxBytes` of it (1 MiB when absent). */
  read(path: string, maxBytes?: number): string
  /** Up to `bytes` bytes at an offset that may exceed 2^53. Fewer at the end of the file. */
  peek(path: string, at: bigint, bytes: number): Uint8Array
}

/** What came of a step or an action. Missing, empty and failed are three facts. */
export type Outcome = 'collected' | 'empty' | 'unavailable' | 'failed' | 'timed-out' | 'interrupted' | 'skipped'

/** How one action ended, as the steps' interpreters see it. */
export interface ActionResult {
  readonly id: string
  readonly outcome: Outcome
  /** Why, when the outcome is not 'collected'. */
  readonly reason?: string
  /** Exit code of the program, where one ran and ended by itself. */
  readonly exit?: number
  /** What a collector counted and measured. */
  readonly facts?: JsonObject
  /** Evidence files it made, by 'data/<step>/<name>': tells which action a file is of. */
  readonly artifacts?: readonly { readonly path: string }[]
}

/** The artifacts of one step. Names are those of the plan; text is decoded as UTF-8 with replacement. */
export interface StepArtifacts {
  readonly outcome: Outcome
  readonly actions: readonly ActionResult[]
  readonly names: readonly string[]
  has(name: string): boolean
  /** At most `maxBytes` (16 MiB when absent) of an artifact; '' when there is none. */
  text(name: string, maxBytes?: number): string
  /** Line by line without the newline; nothing when there is none. A line above 1 MiB is cut. */
  lines(name: string): Iterable<string>
}

export interface Collected extends StepArtifacts {
  /** Any other step of this response that has ended; undefined when it was not part of it. */
  of(step: string): StepArtifacts | undefined
}

export type Severity = 'info' | 'low' | 'medium' | 'high' | 'critical'

export interface Finding {
  readonly rule: string
  readonly title: string
  readonly severity: Severity
  readonly subject: {
    readonly kind: 'process' | 'file' | 'connection' | 'account' | 'unit' | 'kernel' | 'host' | 'service'
    readonly name: string
  }
  /** The signals with their values, one sentence each. */
  readonly why: readonly string[]
  /** ATT&CK technique ids. */
  readonly attack: readonly string[]
  /** Where it stands: artifact path as 'step/name', line counted from 1. */
  readonly evidence: readonly { readonly artifact: string; readonly line?: number }[]
  /** What to do next. */
  readonly next: string
}

/** How a rule ends: never 'clean' where nothing was measured. */
export type Verdict =
  | Finding
  | { readonly rule: string; readonly clear: string }
  | { readonly rule: string; readonly notAssessed: string; readonly remedy: string }

export interface PlanContext<O extends Options> {
  readonly host: HostView
  readonly options: Values<O>
  /** Absolute path under which this step's evidence files will lie. */
  readonly directory: string
  /** It starts before the other steps and is ended after the last of them, instead of ending by itself. */
  readonly throughout: boolean
}

/** One thing that is done: a file in playbooks/steps/. */
export interface Step<O extends Options = Options> {
  /** Command and evidence directory: 'capture-mem'. */
  readonly id: string
  /** One line for help. */
  readonly summary: string
  /** What it does, what it changes, what it leaves out. */
  readonly description: string
  /** RFCs, man pages, kernel documents, ATT&CK. */
  readonly references: readonly string[]
  readonly options: O
  plan(context: PlanContext<O>): Promise<Plan>
  /** Called when the step has ended, also after a failure; reads artifacts, never the host. */
  interpret?(collected: Collected): Promise<readonly Verdict[]>
}

/** A step whatever its options. */
// biome-ignore lint/suspicious/noExplicitAny: the options of a step are its own business; the engine passes them through
export type AnyStep = Step<any>

/** Infers the types of a step's options. */
export function defineStep<const O extends Options>(step: Step<O>): Step<O> {
  return step
}

/** Steps in order; `throughout` starts before the first and ends after the last. */
export interface Playbook {
  readonly id: string
  readonly summary: string
  readonly throughout: readonly AnyStep[]
  readonly steps: readonly AnyStep[]
}
