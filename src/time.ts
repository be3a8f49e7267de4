/** UTC stamps, durations and sizes as people type and read them. Everything stored is UTC. */
import { UTCDate } from '@date-fns/utc'
import { format } from 'date-fns/format'
import { UsageError } from './errors.js'
import type { Seconds } from './step.js'

/** 2026-06-11T14:22:33.120Z */
export function iso(date: Date): string {
  return date.toISOString()
}

/** 20260611T142233Z, for names of cases. */
export function stamp(date: Date): string {
  return format(new UTCDate(date.getTime()), "yyyyMMdd'T'HHmmss'Z'")
}

const UNITS: Record<string, Seconds> = { s: 1, m: 60, h: 3600, d: 86_400 }

/** Seconds from 90s, 30m, 2h, 1d. */
export function parseDuration(text: string): Seconds {
  const found = /^(\d+(?:\.\d+)?)(s|m|h|d)$/.exec(text.trim())
  const seconds = found ? Number(found[1]) * (UNITS[found[2] as string] as number) : 0
  if (seconds <= 0) throw new UsageError(`'${text}' is no duration: type it as 90s, 30m or 2h`)
  return seconds
}

const SIZES: Record<string, number> = { B: 1, KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3, TiB: 1024 ** 4 }

/** Bytes from 512MiB, 2GiB. */
export function parseSize(text: string): number {
  const found = /^(\d+(?:\.\d+)?)(B|KiB|MiB|GiB|TiB)$/.exec(text.trim())
  const bytes = found ? Math.floor(Number(found[1]) * (SIZES[found[2] as string] as number)) : 0
  if (bytes <= 0) throw new UsageError(`'${text}' is no size: type it as 512MiB or 2GiB`)
  return bytes
}

/** 0.4 s, 12 s, 3 min 20 s, 1 h 05 min. */
export function formatDuration(seconds: Seconds): string {
  if (seconds < 10) return `${seconds.toFixed(1)} s`
  const whole = Math.round(seconds)
  if (whole < 60) return `${whole} s`
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, '0')} s`
  return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, '0')} min`
}

/** As typed on the command line: 90s, 30m, 2h. */
export function typedDuration(seconds: Seconds): string {
  if (seconds % 3600 === 0) return `${seconds / 3600}h`
  if (seconds % 60 === 0) return `${seconds / 60}m`
  return `${seconds}s`
}

/** 512 B, 1.4 MiB. */
export function formatBytes(bytes: number): string {
  let value = bytes
  let unit = 'B'
  for (const next of ['KiB', 'MiB', 'GiB', 'TiB']) {
    if (value < 1024) break
    value /= 1024
    unit = next
  }
  return unit === 'B' ? `${bytes} B` : `${value.toFixed(1)} ${unit}`
}

/** As typed on the command line: 512MiB, 2GiB. */
export function typedSize(bytes: number): string {
  for (const unit of ['TiB', 'GiB', 'MiB', 'KiB']) {
    const size = SIZES[unit] as number
    if (bytes >= size && bytes % size === 0) return `${bytes / size}${unit}`
  }
  return `${bytes}B`
}
