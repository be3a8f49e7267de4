/** The golden thirty minutes: what is done on a live Linux host that was taken, and in which order. */
import type { Playbook } from '../src/step.js'
import { auditAttrs } from './steps/audit-attrs.js'
import { captureMem } from './steps/capture-mem.js'
import { captureNet } from './steps/capture-net.js'
import { isolate } from './steps/isolate.js'
import { snapshotConnections } from './steps/snapshot-connections.js'
import { snapshotProcesses } from './steps/snapshot-processes.js'

/**
 * Order of volatility (RFC 3227, section 2.1) with one exception that comes first: the cut. Packets are dropped, not
 * refused, so that the sockets stay in the kernel's tables with their owners; the snapshot follows at once.
 */
export const golden30 = {
  id: 'golden-30',
  summary: 'The first thirty minutes on a live Linux host',
  throughout: [
    captureNet, // starts before the cut, so that it sees the last live traffic, and ends last
  ],
  steps: [
    isolate, // stop the bleeding: no order from outside, no data out, no second host
    snapshotConnections, // cut-off sockets begin to time out now
    snapshotProcesses, // with the executables that exist only in memory: a killed process takes them along
    captureMem, // alone: walking disks meanwhile would churn the memory that it copies
    auditAttrs, // disk, least volatile: last
  ],
} satisfies Playbook
