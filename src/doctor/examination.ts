/** What the doctor tells: facts about this host, and for each lack the line that fixes it. */
import type { JsonObject } from '../step.js'

export type Topic = 'host' | 'rights' | 'tools' | 'memory' | 'disks' | 'output' | 'clock' | 'connection'

interface About {
  readonly topic: Topic
  /** What was looked at: 'tcpdump', '/proc/kcore', 'CAP_NET_ADMIN'. */
  readonly what: string
  /** What was found, in words; may hold anything that the host says. */
  readonly found: string
  /** The figures, for programs. */
  readonly detail?: JsonObject
}

/** 'lack': something `ir` wants is missing. 'unknown': it could not be told. 'note': neither good nor bad, worth knowing. */
export type Fact = About &
  ({ readonly state: 'ok' | 'note' } | { readonly state: 'lack' | 'unknown' /** What to type, or to do. */; readonly remedy: string })

export interface Examination {
  readonly hostname: string
  /** ISO 8601, UTC. */
  readonly examined: string
  /** Release: '6.1.0-21-amd64'. */
  readonly kernel: string
  /** In the order of `Topic`. */
  readonly facts: readonly Fact[]
  /** How many of them are lacks, and how many unknown. */
  readonly lacks: number
  readonly unknown: number
}

/** A program that steps start. */
export interface Tool {
  readonly name: string
  /** Arguments that print its version; none where it has no such option. */
  readonly version?: readonly string[]
  /** The command that installs it here. */
  readonly install: string
}

/** What capturing memory would do here, as its step planned it. */
export interface MemoryOffer {
  /** What would be read; none when nothing works. */
  readonly chosen: readonly { readonly title: string; readonly bytes?: number }[]
  /** What was looked at and not taken. */
  readonly rejected: readonly { readonly what: string; readonly why: string; readonly remedy: string }[]
}

/** Who is connected, as isolating would see it. */
export interface Connection {
  /** '198.51.100.7 port 50222'; none when it was not found, with the reason. */
  readonly responder?: string
  readonly why?: string
  /** Where SSH is reached. */
  readonly ports: readonly number[]
}

/** What the doctor is to look at beside the host itself: knowledge of the playbooks. */
export interface Questions {
  readonly tools: readonly Tool[]
  readonly memory: MemoryOffer
  readonly connection: Connection
  /** Absolute path that evidence would be written to. */
  readonly output: string
}
