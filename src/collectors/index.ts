/** Every reader of ours by the name that plans use. */
import type { CollectorName } from '../step.js'
import { attributes } from './attributes.js'
import type { Collector } from './collector.js'
import { kernelSymbols } from './memory/kernel-symbols.js'
import { physicalMemory } from './memory/physical-memory.js'
import { processMemory } from './memory/process-memory.js'
import { packetRing } from './packets/packet-ring.js'
import { processes } from './proc/processes.js'
import { sockets } from './proc/sockets.js'

export const COLLECTORS: Readonly<Record<CollectorName, Collector>> = {
  attributes,
  'kernel-symbols': kernelSymbols,
  'packet-ring': packetRing,
  'physical-memory': physicalMemory,
  'process-memory': processMemory,
  processes,
  sockets,
}
