/** BTF as a compiler writes it, made for tests: include/uapi/linux/btf.h. */
import { KIND } from '../../src/collectors/memory/btf.js'

export class BtfMaker {
  private readonly types: Buffer[] = []
  private strings = '\0'

  /** A type of any kind; gives its number. `rest` are the 32-bit words behind struct btf_type. */
  add(kind: number, name: string, sizeOrType: number, rest: readonly number[] = [], { length = 0, flag = false } = {}): number {
    const words = [this.string(name), ((flag ? 0x80000000 : 0) | (kind << 24) | length) >>> 0, sizeOrType, ...rest]
    const bytes = Buffer.alloc(words.length * 4)
    for (const [index, word] of words.entries()) bytes.writeUInt32LE(word >>> 0, index * 4)
    this.types.push(bytes)
    return this.types.length
  }

  /** `encoding`: bits of ENCODING. */
  integer(name: string, size: number, encoding = 0, bits = size * 8): number {
    return this.add(KIND.INT, name, size, [((encoding << 24) | bits) >>> 0])
  }

  array(element: number, count: number): number {
    return this.add(KIND.ARRAY, '', 0, [element, element, count])
  }

  /** Members as name, type, offset in bits, and how many bits. */
  struct(name: string, size: number, members: readonly (readonly [string, number, number, number?])[], kind: number = KIND.STRUCT): number {
    const flag = members.some(([, , , bits]) => bits !== undefined)
    const rest = members.flatMap(([member, type, offset, bits = 0]) => [this.string(member), type, flag ? (bits << 24) | offset : offset])
    return this.add(kind, name, size, rest, { length: members.length, flag })
  }

  enumeration(name: string, constants: Readonly<Record<string, number>>, flag = false): number {
    const rest = Object.entries(constants).flatMap(([constant, value]) => [this.string(constant), value])
    return this.add(KIND.ENUM, name, 4, rest, { length: rest.length / 2, flag })
  }

  enumeration64(name: string, constants: Readonly<Record<string, bigint>>): number {
    const rest = Object.entries(constants).flatMap(([constant, value]) => [
      this.string(constant),
      Number(value & 0xffffffffn),
      Number(value >> 32n),
    ])
    return this.add(KIND.ENUM64, name, 8, rest, { length: rest.length / 3 })
  }

  bytes(): Buffer {
    const types = Buffer.concat(this.types)
    const strings = Buffer.from(this.strings, 'latin1')
    const header = Buffer.alloc(24)
    header.writeUInt16LE(0xeb9f, 0)
    header.writeUInt8(1, 2)
    header.writeUInt32LE(24, 4)
    header.writeUInt32LE(types.length, 12)
    header.writeUInt32LE(types.length, 16)
    header.writeUInt32LE(strings.length, 20)
    return Buffer.concat([header, types, strings])
  }

  private string(text: string): number {
    if (text === '') return 0
    const at = this.strings.length
    this.strings += `${text}\0`
    return at
  }
}

/** A little kernel: a task with a name, a list, bit fields, an anonymous union. */
export function smallKernel(): Buffer {
  const btf = new BtfMaker()
  const int = btf.integer('int', 4, 1)
  const char = btf.integer('char', 1, 1)
  const long = btf.integer('long unsigned int', 8)
  const unsigned = btf.integer('unsigned int', 4)
  const comm = btf.array(char, 16)
  const list = btf.struct('list_head', 16, [
    ['next', 7, 0],
    ['prev', 7, 64],
  ])
  btf.add(KIND.POINTER, '', list)
  const state = btf.enumeration('task_state', { RUNNING: 0, DEAD: 0xffffffff }, true)
  const either = btf.struct(
    '',
    8,
    [
      ['address', long, 0],
      ['number', int, 0],
    ],
    KIND.UNION,
  )
  const pid = btf.add(KIND.TYPEDEF, 'pid_t', int)
  const constant = btf.add(KIND.CONST, '', pid)
  btf.struct('task_struct', 64, [
    ['tasks', list, 0, 0],
    ['comm', comm, 128, 0],
    ['pid', constant, 256, 0],
    ['exited', unsigned, 288, 1],
    ['state', state, 320, 0],
    ['', either, 384, 0],
  ])
  btf.enumeration64('big', { ALL: 2n ** 64n - 1n })
  const own = btf.struct('', 4, [['sequence', unsigned, 0]])
  btf.add(KIND.TYPEDEF, 'seqcount_t', own)
  btf.add(KIND.FORWARD, 'only_declared', 0)
  btf.add(KIND.POINTER, '', 16)
  btf.add(KIND.VARIABLE, 'current_task', 7, [1])
  const prototype = btf.add(KIND.PROTOTYPE, '', int, [0, int], { length: 1 })
  btf.add(KIND.FUNCTION, 'do_exit', prototype)
  btf.add(KIND.FLOAT, 'double', 8)
  btf.struct('list_head', 8, [['first', long, 0]])
  btf.add(KIND.SECTION, '.data..percpu', 8, [18, 0, 8], { length: 1 })
  return btf.bytes()
}
