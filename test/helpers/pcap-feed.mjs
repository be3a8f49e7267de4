/**
 * Stands in for tcpdump where a test must know every packet: `node pcap-feed.mjs JSON`, a list of what to do one after the other:
 * {"packets": 3, "bytes": 100} writes packets of so much data, numbered in their first 4 bytes and by one second each in their time;
 * {"wait": 500} waits milliseconds; {"raw": "base64"} writes bytes as they are; {"stay": true} stays a minute.
 */
import { setTimeout as sleep } from 'node:timers/promises'

const header = Buffer.alloc(24)
header.writeUInt32LE(0xa1b2c3d4, 0)
header.writeUInt16LE(2, 4)
header.writeUInt16LE(4, 6)
header.writeUInt32LE(262_144, 16)
header.writeUInt32LE(1, 20)

/** 2026-01-01T00:00:00Z */
const START = 1_767_225_600
let number = 0

function record(bytes) {
  const packet = Buffer.alloc(16 + bytes)
  number += 1
  packet.writeUInt32LE(START + number, 0)
  packet.writeUInt32LE(bytes, 8)
  packet.writeUInt32LE(bytes, 12)
  packet.writeUInt32LE(number, 16)
  return packet
}

const write = data => new Promise(resolve => process.stdout.write(data, resolve))

for (const { header: withHeader, packets, bytes = 100, wait, raw, stay, exit, say } of JSON.parse(process.argv[2])) {
  if (withHeader) await write(header)
  if (packets !== undefined) await write(Buffer.concat(Array.from({ length: packets }, () => record(bytes))))
  if (raw !== undefined) await write(Buffer.from(raw, 'base64'))
  if (say !== undefined) process.stderr.write(say)
  if (wait !== undefined) await sleep(wait)
  if (stay) await sleep(60_000)
  if (exit !== undefined) process.exit(exit)
}
