/** Every reader of ours by the name that plans use. */
import type { CollectorName } from '../step.js'
import { attributes } from './attributes.js'
import type { Collector } from './collector.js'
import { packetRing } from './packet-ring.js'
import { physicalMemory } from './physical-memory.js'
import { processMemory } from './process-memory.js'
import { processes } from './processes.js'
import { sockets } from './sockets.js'

export const COLLECTORS: Readonly<Record<CollectorName, Collector>> = {
  attributes,
  'packet-ring': packetRing,
  'physical-memory': physicalMemory,
  'process-memory': processMemory,
  processes,
  sockets,
}
