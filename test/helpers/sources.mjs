/**
 * Lets bare Node run the TypeScript sources: `node --import ./test/helpers/sources.mjs some.ts`.
 * The sources import each other as './x.js', as they are named once compiled; where only './x.ts' exists, that is meant.
 */
import { registerHooks } from 'node:module'

registerHooks({
  resolve(specifier, context, next) {
    try {
      return next(specifier, context)
    } catch (error) {
      if (!/^(\.|\/|file:).*\.js$/.test(specifier)) throw error
      return next(`${specifier.slice(0, -3)}.ts`, context)
    }
  },
})
