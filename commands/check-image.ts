/** ir capture-mem --check FILE: a look through an image that exists. */
import path from 'node:path'
import { checkMemoryImage, type ImageCheck } from '../src/collectors/memory/image-check.js'
import { UsageError } from '../src/errors.js'
import { errnoOf } from '../src/host.js'
import { visible } from '../src/print.js'
import { formatBytes } from '../src/time.js'
import type { Instead } from './step.js'

export const checkImage: Instead = {
  flag: 'check',
  summary: 'look through this image instead: does Volatility open it, and which kernel is it of',
  helpValue: 'FILE',
  run(file, say) {
    const found = checked(path.resolve(file))
    for (const line of checkLines(found)) say(visible(line))
    process.exitCode = found.problems.length === 0 ? 0 : 5
    return found
  },
}

function checked(image: string): ImageCheck {
  try {
    return checkMemoryImage(image)
  } catch (error) {
    const code = errnoOf(error)
    if (code === '') throw error
    throw new UsageError(code === 'ENOENT' ? `there is no ${image}` : `${image} cannot be read (${code})`)
  }
}

/** So many records fit a screen; --json has more. */
const SHOWN = 20

function checkLines(found: ImageCheck): string[] {
  const { records, recordCount, kernel, unreadable } = found
  return [
    `image       ${found.image}, ${formatBytes(found.fileBytes)}`,
    `memory      ${formatBytes(found.memoryBytes)} in ${recordCount} ${recordCount === 1 ? 'record' : 'records'}`,
    ...records.slice(0, SHOWN).map(({ first, last }) => `            ${first}-${last}`),
    ...(recordCount > SHOWN ? [`            and ${recordCount - SHOWN} more`] : []),
    `holes       ${formatBytes(found.holeBytes)} of zeros that take no room`,
    `unreadable  ${unreadable === undefined ? 'not known: no case around it' : `${formatBytes(unreadable.bytes)} in ${unreadable.runs} runs`}`,
    `banner      ${found.banner ?? 'none found'}`,
    `KASLR       ${kernel?.offset ?? 'not known: no VMCOREINFO found'}`,
    `symbols     ${found.symbols ?? 'none beside it'}`,
    ...found.notes.map(note => `note: ${note}`),
    ...found.problems.map(problem => `BAD: ${problem}`),
    found.problems.length === 0 ? 'the image is whole' : 'the image is NOT whole',
  ]
}
