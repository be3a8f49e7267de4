/** Stops an image before it fills the disk of the case: the custody log and the seal must still be written. */
import fs from 'node:fs'
import type { EvidenceFile } from '../../evidence/case.js'
import { errnoOf } from '../../host.js'
import { formatBytes } from '../../time.js'
import type { Stop } from './page-copy.js'

/** Asks the disk under `directory` whether `bytes` more leave `reserve` bytes free. */
export function diskRoom(directory: string, reserve: number): (bytes: number) => Stop | undefined {
  return bytes => {
    const { bavail, bsize } = fs.statfsSync(directory, { bigint: true })
    const free = Number(bavail * bsize)
    if (free >= bytes + reserve) return undefined
    return { outcome: 'failed', reason: `the disk has ${formatBytes(free)} left, and ${formatBytes(reserve)} are kept for log and seal` }
  }
}

/** The part of an evidence file that a copy writes to. */
export type Target = Pick<EvidenceFile, 'write' | 'hole'>

/** Writing failed, not reading; the cause tells why. */
export class TargetError extends Error {}

/** The file, with its failures told apart from those of the memory that is read. */
export function targetOf(file: Target): Target {
  const attempt = (write: () => void): void => {
    try {
      write()
    } catch (cause) {
      throw new TargetError('the image cannot be written', { cause })
    }
  }
  return { write: chunk => attempt(() => file.write(chunk)), hole: bytes => attempt(() => file.hole(bytes)) }
}

/** No space, no quota, or a file larger than allowed: write(2). */
const FULL = new Set(['ENOSPC', 'EDQUOT', 'EFBIG'])

/**
 * A full disk is how this image ends.
 * @throws the cause of any other failure: the case itself is broken.
 */
export function writeFailure(error: TargetError): Stop {
  for (let e = error.cause, depth = 0; e instanceof Error && depth < 5; e = e.cause, depth++) {
    if (FULL.has(errnoOf(e))) return { outcome: 'failed', reason: `the disk is full (${errnoOf(e)})` }
  }
  throw error.cause
}
