/** Physical memory by the best source that this host offers, and the reasons why the others are not taken. */
import { type Collected, defineStep, type JsonObject, type Plan, type Rejected, type Verdict } from '../../src/step.js'
import { fromDebugPackage, SYMBOLS, symbolKit } from '../kernel-symbols.js'
import {
  FROM_OUTSIDE,
  IMAGE,
  type MemoryRequest,
  type Offer,
  offerCrash,
  offerKcore,
  offerLime,
  offerMem,
  offerProcesses,
} from '../memory-sources.js'

interface Rung {
  readonly source: string
  readonly what: string
  readonly offer: (request: MemoryRequest) => Offer
}

/** Best first: kcore needs nothing and works also where lockdown forbids modules; a module taints; only Red Hat has /dev/crash; /dev/mem is shut on most kernels. */
const LADDER: readonly Rung[] = [
  { source: 'kcore', what: '/proc/kcore', offer: offerKcore },
  { source: 'lime', what: 'LiME module', offer: offerLime },
  { source: 'crash', what: '/dev/crash', offer: offerCrash },
  { source: 'mem', what: '/dev/mem', offer: offerMem },
  { source: 'process', what: 'process memory', offer: offerProcesses },
]

export const captureMem = defineStep({
  id: 'capture-mem',
  summary: 'Copy physical memory into a LiME image that Volatility reads',
  description: `Memory is the evidence that a reboot destroys. The sources are tried in this order by looking only: /proc/kcore; the LiME
kernel module, only when one is given with --lime-module; /dev/crash of Red Hat's kernels; /dev/mem, only when it can be read above
1 MiB; the memory of chosen processes, only with --pid or --suspicious, and that is not physical memory. Our own reader copies
/dev/mem range by range, where dd would read on through the memory of devices.

Beside the image lies what is needed to read it without a network or a debug package: memory.isf.json.gz, a symbol file for Volatility 3
made of the running kernel's own types (BTF) and symbols (kallsyms) when the image is complete, and the files that it comes from.

Pages that cannot be read are zeros in the image and are listed; an image that lacks more is marked incomplete and never counts as
collected. It changes nothing on the host, but for LiME, whose module taints the kernel until it is booted and is removed again.
Swap is not included. The expected time assumes 125 MiB/s, a ninth of that with LiME.`,
  references: [
    'https://www.rfc-editor.org/rfc/rfc3227#section-2.1',
    'https://man7.org/linux/man-pages/man5/proc_kcore.5.html',
    'https://man7.org/linux/man-pages/man7/kernel_lockdown.7.html',
    'https://github.com/504ensicsLabs/LiME',
    'https://attack.mitre.org/techniques/T1055/',
  ],
  options: {
    source: {
      type: 'choice',
      summary: 'Where to read memory from; auto takes the first that works',
      values: ['auto', 'kcore', 'lime', 'crash', 'mem', 'process'],
      default: 'auto',
    },
    'lime-module': {
      type: 'text',
      summary: 'LiME kernel module built for exactly this kernel, or a directory that holds it as lime-$(uname -r).ko',
    },
    pid: { type: 'list', summary: 'Processes whose memory is copied when physical memory cannot be' },
    suspicious: {
      type: 'switch',
      summary: 'Like --pid, of all processes whose executable is deleted, only in memory (memfd), or in a directory for temporary files',
    },
    'max-process': { type: 'size', summary: 'Bytes of memory of one process', default: 4 * 1024 ** 3 },
  },

  async plan({ host, options, directory }): Promise<Plan> {
    const request = {
      host,
      directory,
      limeModule: options['lime-module'],
      pids: options.pid ?? [],
      suspicious: options.suspicious,
      maxProcess: options['max-process'],
    }
    const rejected: Rejected[] = []
    let chosen: { readonly rung: Rung; readonly offer: Exclude<Offer, Rejected> } | undefined
    for (const rung of LADDER) {
      const { what, source } = rung
      if (options.source !== 'auto' && options.source !== source) {
        rejected.push({ what, why: `not asked for (--source ${options.source})`, remedy: '' })
        continue
      }
      if (chosen !== undefined) {
        rejected.push({ what, why: `not needed: ${chosen.rung.what} can be read`, remedy: '' })
        continue
      }
      const offer = rung.offer(request)
      if ('why' in offer) rejected.push(offer)
      else chosen = { rung, offer }
    }
    const tried = rejected.filter(({ why }) => !why.startsWith('not asked for') && !why.startsWith('not needed'))
    const whys = tried.map(({ what, why }) => `${what}: ${why}`).join('; ')
    const remedy = [...new Set(tried.map(one => one.remedy).filter(text => text !== ''))].join(', or ') || FROM_OUTSIDE
    if (chosen === undefined) return { unavailable: `no source of memory works here. ${whys}`, remedy, rejected }
    // Asked for physical memory, and got less.
    const less = options.source === 'auto' && chosen.rung.source === 'process'
    const missing = less ? { missing: [{ what: 'physical memory', why: whys, remedy }] } : {}
    if (chosen.rung.source === 'process') return { actions: chosen.offer.actions, rejected, ...missing }
    const kit = symbolKit(host)
    return { actions: [...chosen.offer.actions, ...kit.actions], rejected: [...rejected, ...kit.rejected] }
  },

  async interpret(collected): Promise<readonly Verdict[]> {
    const results = collected.actions.filter(action => typeof action.facts?.source === 'string')
    const processes = results.find(action => action.facts?.source === 'process')
    const physical = results.find(action => action.facts?.source !== 'process')
    if (processes === undefined) return [physicalVerdict(collected, physical), symbolsVerdict(collected)]
    return [{ ...NOT_PHYSICAL, remedy: REMEDY }, processVerdict(processes)]
  },
})

type ActionResult = Collected['actions'][number]

const PHYSICAL = 'memory-captured'
const SYMBOLS_MADE = 'memory-symbols'
const PROCESSES = 'process-memory-captured'
const REMEDY = 'The plan names each source with what would help against its refusal'
const NOT_PHYSICAL = { rule: PHYSICAL, notAssessed: 'Physical memory was not captured, only that of chosen processes' }

function physicalVerdict(collected: Collected, result: ActionResult | undefined): Verdict {
  const failed = collected.actions.find(action => action.outcome !== 'collected' && action.outcome !== 'empty')
  if (result === undefined || result.outcome !== 'collected') {
    const why = failed?.reason ?? 'no source of physical memory could be read'
    const partial = collected.has(IMAGE) ? `; what there is of it is in ${IMAGE}, marked as incomplete` : ''
    return {
      rule: PHYSICAL,
      notAssessed: `Physical memory was not captured: ${why}${partial}`,
      remedy: REMEDY,
    }
  }
  const facts = result.facts ?? {}
  const unreadable = numberIn(objectIn(facts, 'unreadable'), 'bytes')
  const gaps = numberIn(facts, 'gapBytes')
  const parts = [
    `${IMAGE} holds ${size(numberIn(facts, 'bytes'))} of physical memory in ${numberIn(facts, 'rangeCount')} ranges`,
    facts.source === 'lime' ? 'written by the LiME module and checked against /proc/iomem' : `read from ${String(facts.from)}`,
    ...(facts.source === 'lime' ? [] : [`${size(unreadable)} of it could not be read and are zeros`]),
    ...(gaps > 0 ? [`${size(gaps)} in partial pages at the borders of ranges are not in it`] : []),
  ]
  return { rule: PHYSICAL, clear: parts.join('; ') }
}

function symbolsVerdict(collected: Collected): Verdict {
  const result = collected.actions.find(action => typeof action.facts?.debugPackage === 'string')
  const facts = result?.facts ?? {}
  const remedy = fromDebugPackage(typeof facts.debugPackage === 'string' ? facts.debugPackage : 'the debug package of this kernel')
  const no = (why: string): Verdict => ({ rule: SYMBOLS_MADE, notAssessed: `There is no symbol file for the image: ${why}`, remedy })
  if (result === undefined) return no('it was not made')
  if (typeof facts.noSymbols === 'string') return no(facts.noSymbols)
  const symbols = objectIn(facts, 'symbols')
  if (result.outcome !== 'collected' || typeof symbols.file !== 'string') return no(result.reason ?? result.outcome)
  const made = `${SYMBOLS} holds ${numberIn(symbols, 'types')} types and ${numberIn(symbols, 'symbols')} symbols of ${String(facts.release)}`
  if (facts.fiveLevelPaging === true) {
    return {
      rule: SYMBOLS_MADE,
      notAssessed: `${made}, but this kernel uses 5-level paging, which no released version of Volatility can translate`,
      remedy: 'use crash or drgn with the debug package, or a later Volatility; strings and records of the image can be read all the same',
    }
  }
  return { rule: SYMBOLS_MADE, clear: `${made}: vol -s DIRECTORY -f ${IMAGE} linux.pslist, with both in DIRECTORY` }
}

function processVerdict(result: ActionResult): Verdict {
  if (result.outcome !== 'collected') {
    return {
      rule: PROCESSES,
      notAssessed: `The memory of the processes is incomplete: ${result.reason ?? result.outcome}`,
      remedy: 'Capture again with the processes that still run; raise --max-process where a limit was met',
    }
  }
  const processes = result.facts?.processes
  const count = Array.isArray(processes) ? processes.length : 0
  return {
    rule: PROCESSES,
    clear: `${size(numberIn(result.facts ?? {}, 'bytes'))} of memory of ${count} ${count === 1 ? 'process' : 'processes'}; this is not physical memory`,
  }
}

function objectIn(facts: JsonObject, key: string): JsonObject {
  const value = facts[key]
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as JsonObject) : {}
}

function numberIn(facts: JsonObject, key: string): number {
  const value = facts[key]
  return typeof value === 'number' ? value : 0
}

function size(bytes: number): string {
  if (bytes < 1024 ** 2) return `${bytes} bytes`
  return bytes < 1024 ** 3 ? `${(bytes / 1024 ** 2).toFixed(1)} MiB` : `${(bytes / 1024 ** 3).toFixed(1)} GiB`
}
