import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Kallsyms } from '../../../../src/collectors/memory/kallsyms.js'

function read(text: string, piece = text.length): Kallsyms {
  const kallsyms = new Kallsyms()
  const bytes = Buffer.from(text, 'latin1')
  for (let at = 0; at < bytes.length; at += piece) kallsyms.add(bytes.subarray(at, at + piece))
  kallsyms.end()
  return kallsyms
}

const TEXT = `0000000000000000 A fixed_percpu_data
ffffffffb5800000 T _stext
ffffffffb5800000 T _text
ffffffffb5800100 t helper
ffffffffb5800200 t helper
ffffffffb5800300 T helper
ffffffffb5800400 T helper
ffffffffc0a01000 t lime_init\t[lime]
ffffffffc0b01000 t bpf_prog_6deef7357e7b4530\t[bpf]
ffffffffb6e1a580 D init_task
`

describe('kallsyms', () => {
  it.each([1, 7, 64, 4096])('in pieces of %i bytes', piece => {
    const kallsyms = read(TEXT, piece)
    expect([...kallsyms.addresses]).toEqual([
      ['fixed_percpu_data', 0n],
      ['_stext', 0xffffffffb5800000n],
      ['_text', 0xffffffffb5800000n],
      // The global one, and the first of these.
      ['helper', 0xffffffffb5800300n],
      ['init_task', 0xffffffffb6e1a580n],
    ])
    expect(kallsyms).toMatchObject({ ofModules: 2, unknown: 0, hidden: false, text: 0xffffffffb5800000n })
  })

  it('is hidden when every address is 0, or there is none', () => {
    expect(read(TEXT.replace(/^[0-9a-f]{16}/gm, '0'.repeat(16))).hidden).toBe(true)
    expect(read('').hidden).toBe(true)
  })

  it('has room for anything, and stays small', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 500 }), fc.integer({ min: 1, max: 50 }), (bytes, piece) => {
        const text = Buffer.from(bytes).toString('latin1')
        const kallsyms = read(text, piece)
        expect(kallsyms.addresses.size + kallsyms.ofModules + kallsyms.unknown).toBeLessThanOrEqual(text.split('\n').length)
      }),
    )
    const kallsyms = read('a'.repeat(5 << 20), 65536)
    expect(kallsyms.addresses.size).toBe(0)
    expect(kallsyms.unknown).toBe(1)
  })
})
