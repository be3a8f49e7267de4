/** What bin/ir starts. */
import { start } from './start.js'

// Not awaited: with the reader of our output gone, oclif waits for ever for its 'drain', and Node would end with 13.
void start(process.argv.slice(2))
