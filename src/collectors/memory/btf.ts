/**
 * The kernel's own description of its types, BTF: Documentation/bpf/btf.rst and include/uapi/linux/btf.h. Types stay in the bytes
 * they came in and are decoded when asked for. What stands in the file is not trusted: every offset and number is checked.
 */

/** The bytes are no BTF, or contradict themselves. */
export class BtfError extends Error {}

/** btf.h, BTF_KIND_*. */
export const KIND = {
  VOID: 0,
  INT: 1,
  POINTER: 2,
  ARRAY: 3,
  STRUCT: 4,
  UNION: 5,
  ENUM: 6,
  FORWARD: 7,
  TYPEDEF: 8,
  VOLATILE: 9,
  CONST: 10,
  RESTRICT: 11,
  FUNCTION: 12,
  PROTOTYPE: 13,
  VARIABLE: 14,
  SECTION: 15,
  FLOAT: 16,
  DECLARATION_TAG: 17,
  TYPE_TAG: 18,
  ENUM64: 19,
} as const

const MAGIC = 0xeb9f
const HEADER_BYTES = 24
/** Of struct btf_type, in front of what its kind adds. */
const TYPE_BYTES = 12

/** Bytes that each kind adds: so many, and so many for each of its members; btf.h. */
const TRAILING: Readonly<Record<number, { readonly fixed: number; readonly each: number }>> = {
  [KIND.INT]: { fixed: 4, each: 0 },
  [KIND.POINTER]: { fixed: 0, each: 0 },
  [KIND.ARRAY]: { fixed: 12, each: 0 },
  [KIND.STRUCT]: { fixed: 0, each: 12 },
  [KIND.UNION]: { fixed: 0, each: 12 },
  [KIND.ENUM]: { fixed: 0, each: 8 },
  [KIND.FORWARD]: { fixed: 0, each: 0 },
  [KIND.TYPEDEF]: { fixed: 0, each: 0 },
  [KIND.VOLATILE]: { fixed: 0, each: 0 },
  [KIND.CONST]: { fixed: 0, each: 0 },
  [KIND.RESTRICT]: { fixed: 0, each: 0 },
  [KIND.FUNCTION]: { fixed: 0, each: 0 },
  [KIND.PROTOTYPE]: { fixed: 0, each: 8 },
  [KIND.VARIABLE]: { fixed: 4, each: 0 },
  [KIND.SECTION]: { fixed: 0, each: 12 },
  [KIND.FLOAT]: { fixed: 0, each: 0 },
  [KIND.DECLARATION_TAG]: { fixed: 4, each: 0 },
  [KIND.TYPE_TAG]: { fixed: 0, each: 0 },
  [KIND.ENUM64]: { fixed: 0, each: 12 },
}

/** linux/kallsyms.h, KSYM_NAME_LEN: the kernel knows no longer name. */
const MAX_NAME = 512

/** A type that only gives another one a name or a qualifier. */
const MODIFIERS: ReadonlySet<number> = new Set([KIND.TYPEDEF, KIND.VOLATILE, KIND.CONST, KIND.RESTRICT, KIND.TYPE_TAG])
/** Qualifiers and typedefs in C nest a few times; more is a circle. */
const MAX_DEPTH = 64

/** BTF_INT_* bits of an integer's encoding. */
export const ENCODING = { SIGNED: 1, CHARACTER: 2, BOOLEAN: 4 } as const

export interface BtfMember {
  /** '' for an anonymous struct or union. */
  readonly name: string
  readonly type: number
  readonly bitOffset: number
  /** 0 when it is no bit field. */
  readonly bits: number
}

export interface BtfConstant {
  readonly name: string
  readonly value: bigint
}

/** Types by their number; 0 is void. All methods throw BtfError for what the bytes do not hold. */
export interface Btf {
  /** Numbers are below it. */
  readonly count: number
  /** Of KIND. */
  kind(type: number): number
  /** '' where there is none. */
  name(type: number): string
  /** Bytes of an integer, float, struct, union or enumeration. */
  size(type: number): number
  /** The type that a pointer, modifier, function or variable is of. */
  target(type: number): number
  /** Forward: it is a union. Enumeration: its constants are signed. */
  flag(type: number): boolean
  /** Of an integer: bits of ENCODING, and how many bits of its size count. */
  integer(type: number): { readonly encoding: number; readonly bitOffset: number; readonly bits: number }
  array(type: number): { readonly element: number; readonly count: number }
  members(type: number): readonly BtfMember[]
  /** Of an enumeration of 4 or 8 bytes. */
  constants(type: number): readonly BtfConstant[]
  /** The type behind typedefs and qualifiers. */
  plain(type: number): number
}

/**
 * Finds the types in the bytes of /sys/kernel/btf/vmlinux.
 * @throws BtfError when they are not little-endian BTF, are cut, or hold a kind of type that is not known.
 */
export function parseBtf(bytes: Buffer): Btf {
  if (bytes.length < HEADER_BYTES) throw new BtfError(`${bytes.length} bytes hold no header`)
  if (bytes.readUInt16LE(0) !== MAGIC) throw new BtfError('it is no little-endian BTF')
  const headerBytes = bytes.readUInt32LE(4)
  if (headerBytes < HEADER_BYTES) throw new BtfError(`a header of ${headerBytes} bytes is too short`)
  const types = section(bytes, headerBytes, 8, 'types')
  const strings = section(bytes, headerBytes, 16, 'strings')
  return new BtfTypes(types, strings, starts(types))
}

function section(bytes: Buffer, headerBytes: number, field: number, what: string): Buffer {
  const start = headerBytes + bytes.readUInt32LE(field)
  const end = start + bytes.readUInt32LE(field + 4)
  if (end > bytes.length) throw new BtfError(`its ${what} end at byte ${end} of ${bytes.length}`)
  return bytes.subarray(start, end)
}

/** Where each type starts; the first is number 1. */
function starts(types: Buffer): Uint32Array {
  // No type is smaller, so there are never more.
  const found = new Uint32Array(Math.floor(types.length / TYPE_BYTES))
  let count = 0
  let at = 0
  while (at < types.length) {
    if (at + TYPE_BYTES > types.length) throw new BtfError(`type ${count + 1} is cut`)
    const info = types.readUInt32LE(at + 4)
    const trailing = TRAILING[kindOf(info)]
    if (trailing === undefined) throw new BtfError(`type ${count + 1} is of the unknown kind ${kindOf(info)}`)
    const end = at + TYPE_BYTES + trailing.fixed + trailing.each * lengthOf(info)
    if (end > types.length) throw new BtfError(`type ${count + 1} is cut`)
    found[count++] = at
    at = end
  }
  return found.subarray(0, count)
}

/** Bits 24 to 28 of struct btf_type's info. */
function kindOf(info: number): number {
  return (info >>> 24) & 0x1f
}

/** Bits 0 to 15: how many members. */
function lengthOf(info: number): number {
  return info & 0xffff
}

class BtfTypes implements Btf {
  readonly count: number
  private readonly types: Buffer
  private readonly strings: Buffer
  private readonly starts: Uint32Array

  constructor(types: Buffer, strings: Buffer, found: Uint32Array) {
    this.types = types
    this.strings = strings
    this.starts = found
    this.count = found.length + 1
  }

  kind(type: number): number {
    return type === 0 ? KIND.VOID : kindOf(this.info(type))
  }

  name(type: number): string {
    return type === 0 ? '' : this.text(this.types.readUInt32LE(this.at(type)))
  }

  size(type: number): number {
    return this.types.readUInt32LE(this.at(type) + 8)
  }

  target(type: number): number {
    return this.known(this.size(type))
  }

  flag(type: number): boolean {
    return this.info(type) >>> 31 === 1
  }

  integer(type: number): { encoding: number; bitOffset: number; bits: number } {
    this.expect(type, KIND.INT)
    const data = this.types.readUInt32LE(this.at(type) + TYPE_BYTES)
    return { encoding: (data >>> 24) & 0xf, bitOffset: (data >>> 16) & 0xff, bits: data & 0xff }
  }

  array(type: number): { element: number; count: number } {
    this.expect(type, KIND.ARRAY)
    const at = this.at(type) + TYPE_BYTES
    return { element: this.known(this.types.readUInt32LE(at)), count: this.types.readUInt32LE(at + 8) }
  }

  members(type: number): BtfMember[] {
    this.expect(type, KIND.STRUCT, KIND.UNION)
    const withBits = this.flag(type)
    return this.each(type, 12, at => {
      const place = this.types.readUInt32LE(at + 8)
      return {
        name: this.text(this.types.readUInt32LE(at)),
        type: this.known(this.types.readUInt32LE(at + 4)),
        bitOffset: withBits ? place & 0xffffff : place,
        bits: withBits ? place >>> 24 : 0,
      }
    })
  }

  constants(type: number): BtfConstant[] {
    this.expect(type, KIND.ENUM, KIND.ENUM64)
    const signed = this.flag(type)
    if (this.kind(type) === KIND.ENUM) {
      return this.each(type, 8, at => ({
        name: this.text(this.types.readUInt32LE(at)),
        value: BigInt(signed ? this.types.readInt32LE(at + 4) : this.types.readUInt32LE(at + 4)),
      }))
    }
    return this.each(type, 12, at => ({
      name: this.text(this.types.readUInt32LE(at)),
      value: signed ? this.types.readBigInt64LE(at + 4) : this.types.readBigUInt64LE(at + 4),
    }))
  }

  plain(type: number): number {
    let plain = this.known(type)
    for (let depth = 0; MODIFIERS.has(this.kind(plain)); depth++) {
      if (depth === MAX_DEPTH) throw new BtfError(`type ${type} leads to itself`)
      plain = this.target(plain)
    }
    return plain
  }

  private each<T>(type: number, bytes: number, decode: (at: number) => T): T[] {
    const first = this.at(type) + TYPE_BYTES
    return Array.from({ length: lengthOf(this.info(type)) }, (_, index) => decode(first + index * bytes))
  }

  private info(type: number): number {
    return this.types.readUInt32LE(this.at(type) + 4)
  }

  private at(type: number): number {
    const at = this.starts[type - 1]
    if (at === undefined) throw new BtfError(`there is no type ${type}`)
    return at
  }

  private known(type: number): number {
    if (type >= this.count) throw new BtfError(`there is no type ${type}`)
    return type
  }

  private expect(type: number, ...kinds: readonly number[]): void {
    if (!kinds.includes(this.kind(type))) throw new BtfError(`type ${type} is of kind ${this.kind(type)}`)
  }

  private text(offset: number): string {
    if (offset >= this.strings.length) {
      // Files without strings give 0 for no name.
      if (offset === 0) return ''
      throw new BtfError(`a name lies at byte ${offset} of ${this.strings.length}`)
    }
    const longest = this.strings.subarray(offset, offset + MAX_NAME + 1)
    const end = longest.indexOf(0)
    if (end === -1) throw new BtfError(`the name at byte ${offset} does not end`)
    return longest.toString('latin1', 0, end)
  }
}
