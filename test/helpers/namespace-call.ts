/**
 * Calls the default export of a module inside a network namespace (see namespace.ts): `node namespace-call.ts OUTSIDE MODULE JSON`.
 * Proves that it is confined before it loads the module. The result goes as JSON to descriptor 3.
 */
import fs from 'node:fs'
import { pathToFileURL } from 'node:url'
import { assertConfined } from '../../src/confinement.js'

const [outside = '', module = '', argument = 'null'] = process.argv.slice(2)
assertConfined(outside)
const { default: call } = await import(pathToFileURL(module).href)
const result = await call(JSON.parse(argument))
fs.writeSync(3, JSON.stringify(result ?? null))
process.exit(0)
