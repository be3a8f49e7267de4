/** The case directory: evidence is written once, hashed while written, and never replaced. See docs/formats.md. */
import type { FileStatus, JsonObject } from '../step.js'

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
  /** Removes it: nothing was collected. */
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
  /** Hashes and enters a file that a program wrote below data/<step>/, by itself or through a descriptor that we gave it. */
  adopt(step: string, name: string, origin: Origin): Promise<Artifact>
  /** Absolute path of data/<step>/<name>, its folders made. For programs that write their file themselves. */
  pathOf(step: string, name: string): string
  /** Writes a tag file at the top of the case, such as plan.json, findings.json, undo.sh. Replaces one of the same name. */
  tag(name: string, content: string | Uint8Array): void
  /** Appends a line to the custody log and writes it through before returning. */
  record(event: string, detail: JsonObject): void
}
