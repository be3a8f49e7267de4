import fs from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type Btf, BtfError, KIND, parseBtf } from '../../../../src/collectors/memory/btf.js'
import { BtfMaker, smallKernel } from '../../../helpers/btf.js'

const find = (btf: Btf, name: string): number => {
  for (let type = 1; type < btf.count; type++) if (btf.name(type) === name) return type
  throw new Error(`no ${name}`)
}

/** Asks for all there is of every type. */
function walk(btf: Btf): void {
  for (let type = 0; type < btf.count; type++) {
    const kind = btf.kind(type)
    btf.name(type)
    btf.plain(type)
    if (kind === KIND.INT) btf.integer(type)
    if (kind === KIND.ARRAY) btf.array(type)
    if (kind === KIND.STRUCT || kind === KIND.UNION) btf.members(type)
    if (kind === KIND.ENUM || kind === KIND.ENUM64) btf.constants(type)
    if (kind === KIND.POINTER) btf.target(type)
  }
}

describe('a small kernel', () => {
  const btf = parseBtf(smallKernel())

  it('structs, with bit fields and what has no name', () => {
    const task = find(btf, 'task_struct')
    expect(btf.size(task)).toBe(64)
    expect(btf.members(task).map(({ name, bitOffset, bits }) => [name, bitOffset, bits])).toEqual([
      ['tasks', 0, 0],
      ['comm', 128, 0],
      ['pid', 256, 0],
      ['exited', 288, 1],
      ['state', 320, 0],
      ['', 384, 0],
    ])
    const [, comm, pid] = btf.members(task)
    expect(btf.array(comm?.type ?? 0)).toEqual({ element: find(btf, 'char'), count: 16 })
    expect(btf.plain(pid?.type ?? 0)).toBe(find(btf, 'int'))
  })

  it('enumerations, signed and of 64 bits', () => {
    expect(btf.constants(find(btf, 'task_state'))).toEqual([
      { name: 'RUNNING', value: 0n },
      { name: 'DEAD', value: -1n },
    ])
    expect(btf.constants(find(btf, 'big'))).toEqual([{ name: 'ALL', value: 2n ** 64n - 1n }])
  })

  it('can be walked whole', () => walk(btf))
})

describe('the running kernel', () => {
  it('has a task with a name of 16 characters', () => {
    const btf = parseBtf(fs.readFileSync('/sys/kernel/btf/vmlinux'))
    walk(btf)
    const comm = btf.members(find(btf, 'task_struct')).find(({ name }) => name === 'comm')
    // TASK_COMM_LEN, linux/sched.h.
    expect(btf.array(btf.plain(comm?.type ?? 0)).count).toBe(16)
  })
})

describe('bytes that are not it', () => {
  it.each([
    ['nothing', Buffer.alloc(0), /hold no header/],
    ['another file', Buffer.alloc(64, 'x'), /no little-endian BTF/],
    ['big-endian', Buffer.from(smallKernel()).subarray(0, 2).reverse().toString('hex'), /hold no header|no little-endian/],
    ['cut', smallKernel().subarray(0, -1), /strings end at byte/],
  ])('%s', (_, bytes, why) => {
    expect(() => parseBtf(Buffer.from(bytes as Buffer))).toThrow(why)
  })

  it('a kind that is not known, a cut type, a circle, a name without end', () => {
    const unknown = new BtfMaker()
    unknown.add(31, 'x', 0)
    expect(() => parseBtf(unknown.bytes())).toThrow(/unknown kind 31/)
    const cut = new BtfMaker()
    cut.add(KIND.STRUCT, 'x', 8, [], { length: 5 })
    expect(() => parseBtf(cut.bytes())).toThrow(/type 1 is cut/)
    const circle = new BtfMaker()
    circle.add(KIND.CONST, '', 2)
    circle.add(KIND.VOLATILE, '', 1)
    expect(() => parseBtf(circle.bytes()).plain(1)).toThrow(/leads to itself/)
    const long = new BtfMaker()
    long.add(KIND.FLOAT, 'x'.repeat(600), 8)
    expect(() => parseBtf(long.bytes()).name(1)).toThrow(/does not end/)
    expect(() => parseBtf(smallKernel()).kind(1000)).toThrow(/no type 1000/)
  })

  it('is told as such, whatever they are', () => {
    const whole = smallKernel()
    const attempt = (bytes: Buffer): void => {
      try {
        walk(parseBtf(bytes))
      } catch (error) {
        expect(error).toBeInstanceOf(BtfError)
      }
    }
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { maxLength: 20 }), changes => {
        const damaged = Buffer.from(whole)
        for (const [at, byte] of changes) damaged[at] = byte
        attempt(damaged)
      }),
      { numRuns: 2000 },
    )
    fc.assert(fc.property(fc.uint8Array({ maxLength: 400 }), bytes => attempt(Buffer.from(bytes))))
    fc.assert(fc.property(fc.uint8Array({ maxLength: 400 }), bytes => attempt(Buffer.concat([whole.subarray(0, 24), Buffer.from(bytes)]))))
  })
})
