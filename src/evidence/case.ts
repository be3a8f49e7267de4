/** The case directory: evidence is written once, hashed while written, and never replaced. See docs/formats.md. */
import type { Host } from '../host.js'
import type { FileStatus, JsonObject } from '../step.js'
import { CaseDirectory, endsSealed, findCase } from './case-directory.js'
import { closeQuietly } from './disk.js'

/** Where an artifact comes from, for artifacts.jsonl. */
export interface Origin {
  /** Action id: 'snapshot-connections/2'. */
  readonly action: string
  /** How it was got: 'program', 'copy', 'collector'. */
  readonly how: 'program' | 'copy' | 'collector'
  /** Path on the host of what was copied. */
  readonly path?: string
  /** Of the original, when it is a file of the host. */
  readonly status?: FileStatus
  readonly link?: string
  /** Anything an examiner must know: 'changed during copy', 'cut at 64 MiB'. */
  readonly notes?: readonly string[]
}

export interface Artifact {
  /** 'data/<step>/<name>' */
  readonly path: string
  readonly bytes: number
  /** Lower case hex. */
  readonly sha256: string
}

/** A new evidence file, hashed while written. */
export interface EvidenceFile {
  /** 'data/<step>/<name>' */
  readonly path: string
  readonly fd: number
  readonly bytes: number
  write(chunk: Uint8Array | string): void
  /**
   * Leaves a hole of zeros, `bytes` long, hashed as zeros.
   * The zeros are part of the artifact: sha256sum of the file gives the same.
   */
  hole(bytes: number): void
  /** Writes through to the disk, closes, enters it in the case. */
  close(origin: Origin): Artifact
  /** Removes it: nothing was collected. Does nothing once it is closed. */
  discard(): void
}

/** An open case. */
export interface Case {
  /** Name of the directory: 'ir-<host>-<stamp>'. */
  readonly id: string
  /** Absolute path. */
  readonly directory: string
  /** Artifacts entered so far, in the order in which they were closed. */
  readonly artifacts: readonly Artifact[]
  /** SHA-256 of the last custody line. */
  readonly head: string
  /**
   * A new file data/<step>/<name> (O_EXCL, O_NOFOLLOW, 0600).
   * `name` may hold one or more folders: 'executables/<sha256>'. Only [A-Za-z0-9._+=@,-] in each part.
   * @throws EvidenceError when the name is unsafe, exists already, or the disk refuses.
   */
  open(step: string, name: string): EvidenceFile
  /**
   * Hashes and enters a file that a program wrote below data/<step>/, by itself or through a descriptor that we gave it
   * (`open` it, hand `fd` over, adopt it when the program has ended; its EvidenceFile is closed by that).
   * Rejects with a plain Error when there is no such file or it is no regular one: an outcome, no reason to stop.
   * @throws EvidenceError when it is entered already, or the disk refuses.
   */
  adopt(step: string, name: string, origin: Origin): Promise<Artifact>
  /** Absolute path of data/<step>/<name>, its folders made. For programs that write their file themselves. */
  pathOf(step: string, name: string): string
  /** Writes a tag file at the top of the case, such as plan.json, findings.json, undo.sh. Replaces one of the same name. */
  tag(name: string, content: string | Uint8Array): void
  /** Appends a line to the custody log and writes it through before returning. */
  record(event: string, detail: JsonObject): void
}

/**
 * A new case: the directory `<output>/<id>`, 0700, with an empty custody log.
 * @throws UsageError when `id` is no name for a case.
 * @throws RefusedError when `output` is no directory, or the case or its archive exists already.
 * @throws EvidenceError when the disk refuses.
 */
export function createCase({ output, id, host }: { output: string; id: string; host: Host }): Case {
  return CaseDirectory.create(output, id, host)
}

/**
 * A case whose run ended without a seal, to be gone on with. A custody line that was torn in the middle is moved to
 * custody.torn, one of artifacts.jsonl to artifacts.torn; a 'gap' line says so. What lies in data/ and was never entered
 * is entered by the seal.
 * @throws UsageError when there is no case at `directory`.
 * @throws RefusedError when it is sealed, or another process writes it.
 * @throws EvidenceError when the disk refuses.
 */
export function openCase(directory: string, host: Host): Case {
  return CaseDirectory.open(directory, host)
}

/**
 * Whether a case is sealed, and therefore never written again; its archive may still be missing (see bundleCase).
 * @throws UsageError when there is no case at `directory`.
 */
export function isSealed(directory: string): boolean {
  const { root, parent } = findCase(directory)
  try {
    return endsSealed(root)
  } finally {
    closeQuietly(root.fd)
    closeQuietly(parent.fd)
  }
}
