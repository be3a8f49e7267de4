/** Everything you can type after `ir`. */
import { auditAttrs } from '../playbooks/steps/audit-attrs.js'
import { captureMem } from '../playbooks/steps/capture-mem.js'
import { captureNet } from '../playbooks/steps/capture-net.js'
import { isolate } from '../playbooks/steps/isolate.js'
import { release } from '../playbooks/steps/release.js'
import { snapshotConnections } from '../playbooks/steps/snapshot-connections.js'
import { snapshotProcesses } from '../playbooks/steps/snapshot-processes.js'
import { checkImage } from './check-image.js'
import Doctor from './doctor.js'
import Drill from './drill.js'
import Respond from './respond.js'
import Seal from './seal.js'
import { stepCommand } from './step.js'
import Verify from './verify.js'

export { unknownCommand } from './unknown.js'

export const COMMANDS = {
  respond: Respond,
  isolate: stepCommand(isolate, { examples: ['isolate --dry-run', 'isolate --allow 198.51.100.7'] }),
  release: stepCommand(release, { examples: ['release --dry-run', 'release --output /var/tmp'] }),
  'snapshot-connections': stepCommand(snapshotConnections, {
    examples: ['snapshot-connections', 'snapshot-connections --output /var/tmp --json'],
  }),
  'snapshot-processes': stepCommand(snapshotProcesses, { examples: ['snapshot-processes', 'snapshot-processes --output /var/tmp --json'] }),
  'capture-mem': stepCommand(captureMem, {
    examples: ['capture-mem --dry-run', 'capture-mem --source process --pid 1234', 'capture-mem --check memory.lime'],
    instead: checkImage,
  }),
  'capture-net': stepCommand(captureNet, {
    examples: ['capture-net --duration 60s', 'capture-net --rotate 300s --files 5 --interface eth0'],
  }),
  'audit-attrs': stepCommand(auditAttrs, { examples: ['audit-attrs', 'audit-attrs --path /etc,/opt'] }),
  drill: Drill,
  seal: Seal,
  verify: Verify,
  doctor: Doctor,
}
