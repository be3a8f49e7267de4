import path from 'node:path'
import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    root: path.resolve(import.meta.dirname, '../..'),
    include: ['test/lab/**/*.test.ts'],
    // A machine has its own limit, below this one, so that it can say why.
    testTimeout: 700_000,
    pool: 'forks',
    fileParallelism: false,
    reporters: [path.join(import.meta.dirname, 'reporter.ts')],
  },
})
