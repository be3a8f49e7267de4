/** Options of steps as command line flags, and back: one flag, one meaning. */
import { Flags, type Interfaces } from '@oclif/core'
import { UsageError } from '../src/errors.js'
import type { AnyStep, JsonObject, Option } from '../src/step.js'
import { parseDuration, parseSize, typedDuration, typedSize } from '../src/time.js'

type Flag = Interfaces.FlagInput[string]

/** The flags of some steps, grouped by step in `--help`. Two steps that share an option share its flag. */
export function stepFlags(steps: readonly AnyStep[]): Interfaces.FlagInput {
  const flags: Record<string, Flag> = {}
  for (const step of steps) {
    for (const [name, option] of Object.entries(step.options as Record<string, Option>)) {
      flags[name] ??= flagOf(name, option, step.id.toUpperCase())
    }
  }
  return flags
}

function flagOf(name: string, option: Option, helpGroup: string): Flag {
  const common = { env: `IR_${name.toUpperCase().replaceAll('-', '_')}`, helpGroup }
  switch (option.type) {
    case 'switch':
      return Flags.boolean({ ...common, summary: option.summary })
    case 'choice':
      return Flags.string({ ...common, summary: option.summary, options: [...option.values], default: option.default })
    case 'list':
      return Flags.string({
        ...common,
        summary: option.summary,
        multiple: true,
        delimiter: ',',
        ...(option.default ? { default: [...option.default] } : {}),
      })
    case 'integer':
      return Flags.string({ ...common, summary: `${option.summary} (${option.unit})`, default: String(option.default) })
    case 'duration':
      return Flags.string({ ...common, summary: option.summary, default: typedDuration(option.default), helpValue: '90s|30m' })
    case 'size':
      return Flags.string({ ...common, summary: option.summary, default: typedSize(option.default), helpValue: '512MiB' })
    case 'text':
      return Flags.string({ ...common, summary: option.summary, ...(option.default === undefined ? {} : { default: option.default }) })
  }
}

/**
 * The values of a step's options out of parsed flags.
 * @throws UsageError for a value that is none of its type.
 */
export function optionValues(step: AnyStep, flags: Readonly<Record<string, unknown>>): JsonObject {
  const values: Record<string, JsonObject[string]> = {}
  for (const [name, option] of Object.entries(step.options as Record<string, Option>)) {
    const value = optionValue(name, option, flags[name])
    if (value !== undefined) values[name] = value
  }
  return values
}

function optionValue(name: string, option: Option, given: unknown): JsonObject[string] | undefined {
  switch (option.type) {
    case 'switch':
      return given === true
    case 'list':
      return listOf(given) ?? option.default
    case 'integer':
      return integerOf(name, option, given === undefined ? option.default : given)
    case 'duration':
      return given === undefined ? option.default : parseDuration(String(given))
    case 'size':
      return given === undefined ? option.default : parseSize(String(given))
    case 'choice':
    case 'text':
      return given === undefined ? option.default : String(given)
  }
}

/** A list as flags give it, or as one variable of the environment does: comma separated. Undefined when neither was given. */
export function listOf(given: unknown): string[] | undefined {
  const items = typeof given === 'string' ? given.split(',') : given
  return Array.isArray(items) ? items.map(item => String(item).trim()).filter(item => item !== '') : undefined
}

function integerOf(name: string, option: Option & { type: 'integer' }, given: unknown): number {
  const text = String(given)
  const value = /^-?\d{1,15}$/.test(text) ? Number(text) : Number.NaN
  const { min = 0, max = Number.MAX_SAFE_INTEGER } = option
  if (!(value >= min && value <= max)) {
    throw new UsageError(
      `--${name} takes a whole number of ${option.unit} from ${min}${max === Number.MAX_SAFE_INTEGER ? '' : ` to ${max}`}, not '${text}'`,
    )
  }
  return value
}
