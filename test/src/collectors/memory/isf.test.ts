import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BtfError, parseBtf } from '../../../../src/collectors/memory/btf.js'
import { type IsfCounts, isfText } from '../../../../src/collectors/memory/isf.js'
import { BtfMaker, smallKernel } from '../../../helpers/btf.js'

const BANNER = Buffer.from('Linux version 6.1.0-test (builder@example) #1 SMP\n')
const PRODUCER = { name: 'ir', version: '1' }

type Symbols = readonly (readonly [string, bigint])[]

function textOf(btf: Buffer, symbols: Symbols = []): { text: string; counts: IsfCounts } {
  const counts: IsfCounts = { types: 0, enums: 0, symbols: 0, typed: [] }
  return { text: [...isfText({ btf: parseBtf(btf), symbols, banner: BANNER, producer: PRODUCER }, counts)].join(''), counts }
}

// biome-ignore lint/suspicious/noExplicitAny: a document of another program's format
const made = (btf: Buffer, symbols?: Symbols): any => JSON.parse(textOf(btf, symbols).text)

describe('a symbol file', () => {
  it('has the sections that schema 6.2.0 asks for, and the kinds that it knows', () => {
    const isf = made(smallKernel())
    expect(Object.keys(isf).sort()).toEqual(['base_types', 'enums', 'metadata', 'symbols', 'user_types'])
    expect(isf.metadata.format).toBe('6.2.0')
    for (const { kind } of [...isf.metadata.linux.types, ...isf.metadata.linux.symbols]) expect(kind).toBe('symtab')
    expect(isf.base_types).toMatchObject({
      void: { size: 0, kind: 'void', endian: 'little' },
      pointer: { size: 8, kind: 'int' },
      int: { size: 4, signed: true, kind: 'int' },
      char: { size: 1, kind: 'char' },
    })
  })

  it('structs', () => {
    const { user_types: types } = made(smallKernel())
    expect(types.task_struct).toEqual({
      size: 64,
      kind: 'struct',
      fields: {
        tasks: { offset: 0, type: { kind: 'struct', name: 'list_head' } },
        comm: { offset: 16, type: { kind: 'array', count: 16, subtype: { kind: 'base', name: 'char' } } },
        pid: { offset: 32, type: { kind: 'base', name: 'int' } },
        exited: { offset: 36, type: { kind: 'bitfield', bit_position: 0, bit_length: 1, type: { kind: 'base', name: 'unsigned int' } } },
        state: { offset: 40, type: { kind: 'enum', name: 'task_state' } },
        unnamed_field_0: { offset: 48, anonymous: true, type: { kind: 'union', name: 'unnamed_9' } },
      },
    })
    expect(types.unnamed_9.kind).toBe('union')
    expect(types.seqcount_t.fields.sequence.offset).toBe(0)
    expect(types.only_declared).toEqual({ size: 0, fields: {}, kind: 'struct' })
    // Two files of the kernel use the same name: neither is lost, and the first keeps it.
    expect(types.list_head.size).toBe(16)
    expect(Object.keys(types).filter(name => name.startsWith('list_head___'))).toHaveLength(1)
  })

  it('enumerations, beyond 2^53 too', () => {
    const { text } = textOf(smallKernel())
    expect(JSON.parse(text).enums.task_state).toEqual({ size: 4, base: 'int', constants: { RUNNING: 0, DEAD: -1 } })
    expect(text).toContain('"constants":{"ALL":18446744073709551615}')
    expect(JSON.parse(text).base_types['unsigned enum 8']).toEqual({ size: 8, signed: false, kind: 'int', endian: 'little' })
  })

  it('symbols: exact addresses, and a type where Volatility needs one', () => {
    const { text, counts } = textOf(smallKernel(), [
      ['init_task', 0xffffffff8261a581n],
      ['modules', 0xffffffff82601235n],
      ['current_task', 0x1fb00n],
      ['init_mm', 0xffffffff82700000n],
      ['linux_banner', 0xffffffff82000100n],
      ['a"b\\', 5n],
    ])
    expect(text).toContain(`"init_task":{"address":${0xffffffff8261a581n},"type":{"kind":"struct","name":"task_struct"}}`)
    const { symbols } = JSON.parse(text)
    expect(symbols.modules.type).toEqual({ kind: 'struct', name: 'list_head' })
    expect(symbols.current_task.type).toEqual({ kind: 'pointer', subtype: { kind: 'struct', name: 'list_head' } })
    // BTF does not have its type.
    expect(symbols.init_mm).not.toHaveProperty('type')
    expect(symbols['a"b\\'].address).toBe(5)
    expect(counts).toEqual({ types: 6, enums: 2, symbols: 6, typed: ['init_task', 'modules', 'current_task'] })
  })

  it('the banner, as it is in memory, with or without its symbol', () => {
    for (const symbols of [[], [['linux_banner', 0xffffffff82000100n]]] as Symbols[]) {
      const banner = made(smallKernel(), symbols).symbols.linux_banner
      expect(Buffer.from(banner.constant_data, 'base64').toString('latin1')).toBe(`${BANNER.toString('latin1')}\0`)
      expect(banner.type).toEqual({ kind: 'array', count: BANNER.length + 1, subtype: { kind: 'base', name: 'char' } })
    }
  })

  it('bit fields: of old kernels, and across the border of a unit', () => {
    const btf = new BtfMaker()
    const unsigned = btf.integer('unsigned int', 4)
    const narrow = btf.integer('unsigned int', 4, 0, 3)
    btf.struct('old', 4, [['bits', narrow, 5]])
    btf.struct('packed', 8, [['crossing', unsigned, 28, 8]])
    const { user_types: types, base_types: bases } = made(btf.bytes())
    expect(types.old.fields.bits).toMatchObject({ offset: 0, type: { kind: 'bitfield', bit_position: 5, bit_length: 3 } })
    expect(types.packed.fields.crossing).toMatchObject({ offset: 3, type: { bit_position: 4, bit_length: 8 } })
    expect(bases['unsigned int'].size).toBe(4)
  })

  it('names of types that only the own sources of the kernel know', () => {
    const btf = new BtfMaker()
    const int = btf.integer('int', 4, 1)
    btf.struct('', 8, [
      ['seq', int, 0],
      ['timekeeper', int, 32],
    ])
    expect(made(btf.bytes(), [['tk_core', 1n]]).symbols.tk_core.type).toEqual({ kind: 'struct', name: 'unnamed_2' })
  })

  it('of damaged types is one document or an error that says so', () => {
    const whole = smallKernel()
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { maxLength: 8 }), changes => {
        const damaged = Buffer.from(whole)
        for (const [at, byte] of changes) damaged[at] = byte
        try {
          made(damaged, [
            ['init_task', 1n],
            ['tk_core', 2n],
          ])
        } catch (error) {
          expect(error).toBeInstanceOf(BtfError)
        }
      }),
      { numRuns: 2000 },
    )
  })
})
