/**
 * A symbol file of Volatility 3, made of what the running kernel tells: its types from BTF, its symbols from kallsyms, its banner
 * from /proc/version. The format is the intermediate symbol format, volatility3/schemas/schema-6.2.0.json.
 */
import { type Btf, BtfError, ENCODING, KIND } from './btf.js'

export interface IsfSource {
  readonly btf: Btf
  /** By name, as linked: what randomisation added is taken off. */
  readonly symbols: Iterable<readonly [name: string, address: bigint]>
  /** What the kernel calls itself, as it stands in its memory: with a line feed, without the NUL. */
  readonly banner: Buffer
  readonly producer: { readonly name: string; readonly version: string }
}

/** What went into the file. */
export interface IsfCounts {
  types: number
  enums: number
  symbols: number
  /** Of those, which Volatility needs to know the type of. */
  typed: string[]
}

const FORMAT = '6.2.0'

/** Pointers, arrays and typedefs in C nest a few times; more is a circle. */
const MAX_DEPTH = 64

/**
 * The type of a symbol, in the words of C: kallsyms has no types, and BTF has variables for per-cpu data only. All that Volatility
 * asks by `object_from_symbol` (framework/plugins/linux and framework/symbols/linux, 2.28.2), from the kernel's sources.
 */
const SYMBOL_TYPES: Readonly<Record<string, string>> = {
  __start___tracepoints_ptrs: 'int',
  _etext: 'char',
  _text: 'char',
  bpf_kallsyms: 'struct list_head',
  cap_last_cap: 'int',
  file_systems: 'struct file_system_type *',
  ftrace_list_end: 'struct ftrace_ops',
  ftrace_mod_maps: 'struct list_head',
  ftrace_ops_list: 'struct ftrace_ops *',
  ftrace_ops_trampoline_list: 'struct list_head',
  // IDT_ENTRIES and FB_MAX, arch/x86/include/asm/desc_defs.h and uapi/linux/fb.h.
  idt_table: 'struct gate_struct [256]',
  init_cred: 'struct cred',
  init_files: 'struct files_struct',
  init_fs: 'struct fs_struct',
  init_mm: 'struct mm_struct',
  init_pid_ns: 'struct pid_namespace',
  init_task: 'struct task_struct',
  init_uts_ns: 'struct uts_namespace',
  iomem_resource: 'struct resource',
  keyboard_notifier_list: 'struct atomic_notifier_head',
  log_buf: 'char *',
  log_buf_len: 'unsigned int',
  mem_map: 'struct page *',
  mod_tree: 'struct mod_tree_root',
  module_addr_max: 'long unsigned int',
  module_addr_min: 'long unsigned int',
  module_kset: 'struct kset *',
  modules: 'struct list_head',
  net_namespace_list: 'struct list_head',
  num_registered_fb: 'int',
  page_offset_base: 'long unsigned int',
  prb: 'struct printk_ringbuffer *',
  prog_idr: 'struct idr',
  raw6_seq_ops: 'struct seq_operations',
  raw_seq_ops: 'struct seq_operations',
  registered_fb: 'struct fb_info * [32]',
  socket_file_ops: 'struct file_operations',
  sockfs_dentry_operations: 'struct dentry_operations',
  // TAINT_FLAGS_COUNT since Linux 4.16, linux/panic.h; later kernels have one or two more, and reading beyond the end would invent some.
  taint_flags: 'struct taint_flag [18]',
  tcp4_seq_ops: 'struct seq_operations',
  tcp6_seq_ops: 'struct seq_operations',
  tty_drivers: 'struct list_head',
  udp6_seq_ops: 'struct seq_operations',
  udp_seq_ops: 'struct seq_operations',
  udplite6_seq_ops: 'struct seq_operations',
  udplite_seq_ops: 'struct seq_operations',
  vmalloc_base: 'long unsigned int',
  vmemmap_base: 'long unsigned int',
}

/** Anonymous structs that are known by their members: kernel/time/timekeeping.c has had no name for this one until 6.13. */
const MEMBER_TYPES: Readonly<Record<string, readonly string[]>> = { tk_core: ['seq', 'timekeeper'] }

/** Base types that the file itself needs, with their size on 64-bit machines. */
const OWN_BASE_TYPES: readonly BaseType[] = [
  { name: 'void', size: 0, signed: false, kind: 'void' },
  { name: 'pointer', size: 8, signed: false, kind: 'int' },
  { name: 'char', size: 1, signed: true, kind: 'char' },
  { name: 'int', size: 4, signed: true, kind: 'int' },
  { name: 'unsigned int', size: 4, signed: false, kind: 'int' },
  { name: 'long unsigned int', size: 8, signed: false, kind: 'int' },
]

interface BaseType {
  readonly name: string
  readonly size: number
  readonly signed: boolean
  readonly kind: 'void' | 'int' | 'float' | 'char' | 'bool'
}

/** Text that is JSON already. */
type Json = string

const json = (value: unknown): Json => JSON.stringify(value)

/**
 * The file in pieces of a few kilobytes, one after another: together they are one JSON document of about 100 bytes for each byte
 * that BTF has for it. `counts` is filled on the way.
 * @throws BtfError when the types contradict themselves.
 */
export function* isfText({ btf, symbols, banner, producer }: IsfSource, counts: IsfCounts): Generator<string> {
  const types = new TypeTable(btf)
  yield `{"metadata":{"format":"${FORMAT}","producer":${json(producer)},"linux":{"symbols":[{"kind":"symtab","name":"/proc/kallsyms"}],`
  // The schema knows dwarf, symtab and system-map only.
  yield '"types":[{"kind":"symtab","name":"/sys/kernel/btf/vmlinux"}]}},\n"user_types":{'
  let separator = ''
  for (const entry of types.users()) {
    counts.types++
    yield `${separator}\n${entry}`
    separator = ','
  }
  yield '},\n"enums":{'
  separator = ''
  for (const entry of types.enums()) {
    counts.enums++
    yield `${separator}\n${entry}`
    separator = ','
  }
  yield '},\n"symbols":{'
  separator = ''
  let hasBanner = false
  for (const [name, address] of symbols) {
    counts.symbols++
    let more = ''
    if (name === 'linux_banner') {
      hasBanner = true
      more = bannerJson(banner)
    } else {
      const type = types.ofSymbol(name)
      if (type !== undefined) {
        counts.typed.push(name)
        more = `,"type":${type}`
      }
    }
    // Not through JSON.stringify: addresses exceed 2^53.
    yield `${separator}\n${json(name)}:{"address":${address}${more}}`
    separator = ','
  }
  // Without it Volatility does not know which kernel the file is for; kernels without CONFIG_KALLSYMS_ALL list no data.
  if (!hasBanner) yield `${separator}\n"linux_banner":{"address":0${bannerJson(banner)}}`
  yield '},\n"base_types":{'
  separator = ''
  for (const { name, ...base } of types.bases()) {
    yield `${separator}\n${json(name)}:${json({ ...base, endian: 'little' })}`
    separator = ','
  }
  yield '}}\n'
}

/** As the compiler left it in the kernel: with its NUL. */
function bannerJson(banner: Buffer): Json {
  const data = Buffer.concat([banner, Buffer.alloc(1)])
  const type = { kind: 'array', count: data.length, subtype: { kind: 'base', name: 'char' } }
  return `,"type":${json(type)},"constant_data":"${data.toString('base64')}"`
}

/** Gives every type of BTF the name that it has in the file: BTF goes by number, and two files of the kernel may use one name. */
class TypeTable {
  private readonly btf: Btf
  /** Of structs, unions and enumerations. */
  private readonly names = new Map<number, string>()
  private readonly baseTypes = new Map<string, BaseType>()
  /** The first definition of a name, as 'struct x' or 'enum x'. */
  private readonly defined = new Map<string, number>()
  private readonly variables = new Map<string, number>()
  /** Only declared: pointed to, never seen inside. */
  private readonly opaque = new Map<string, 'struct' | 'union'>()

  constructor(btf: Btf) {
    this.btf = btf
    for (const base of OWN_BASE_TYPES) this.baseTypes.set(base.name, base)
    this.nameTypes()
  }

  *users(): Generator<Json> {
    for (let type = 1; type < this.btf.count; type++) {
      const kind = this.btf.kind(type)
      if (kind !== KIND.STRUCT && kind !== KIND.UNION) continue
      yield this.user(type, kind)
    }
    for (const [name, kind] of this.opaque) yield `${json(name)}:{"size":0,"fields":{},"kind":"${kind}"}`
  }

  *enums(): Generator<Json> {
    for (let type = 1; type < this.btf.count; type++) {
      const kind = this.btf.kind(type)
      if (kind !== KIND.ENUM && kind !== KIND.ENUM64) continue
      const size = this.btf.size(type)
      const constants = this.btf.constants(type).map(({ name, value }) => `${json(name)}:${value}`)
      const base = this.enumBase(size, this.btf.flag(type))
      yield `${json(this.names.get(type))}:{"size":${size},"base":${json(base)},"constants":{${constants.join(',')}}}`
    }
  }

  bases(): Iterable<BaseType> {
    return this.baseTypes.values()
  }

  /** Undefined when nothing needs the type of this symbol, or BTF does not have it. */
  ofSymbol(name: string): Json | undefined {
    const words = Object.hasOwn(SYMBOL_TYPES, name) ? SYMBOL_TYPES[name] : undefined
    if (words !== undefined) return this.ofWords(words)
    const members = Object.hasOwn(MEMBER_TYPES, name) ? MEMBER_TYPES[name] : undefined
    if (members !== undefined) {
      const type = this.withMembers(members)
      if (type !== undefined) return this.describe(type)
    }
    const variable = this.variables.get(name)
    return variable === undefined ? undefined : this.describe(variable)
  }

  private nameTypes(): void {
    const { btf } = this
    const taken = new Set<string>()
    const anonymous = new Map<number, string>()
    for (let type = 1; type < btf.count; type++) {
      const kind = btf.kind(type)
      const name = btf.name(type)
      if (kind === KIND.STRUCT || kind === KIND.UNION) this.nameUser(type, kind, name, taken)
      else if (kind === KIND.ENUM || kind === KIND.ENUM64) this.nameEnum(type, name)
      else if (kind === KIND.VARIABLE && !this.variables.has(name)) this.variables.set(name, btf.target(type))
      else if (kind === KIND.TYPEDEF && !anonymous.has(btf.target(type))) anonymous.set(btf.target(type), name)
    }
    // `typedef struct { ... } seqlock_t` goes by the name of its typedef, unless that is a name of its own.
    for (const [type, own] of this.names) {
      const name = anonymous.get(type)
      if (btf.name(type) !== '' || name === undefined || name === '' || taken.has(name)) continue
      taken.delete(own)
      taken.add(name)
      this.names.set(type, name)
    }
    for (let type = 1; type < btf.count; type++) {
      if (btf.kind(type) !== KIND.FORWARD || taken.has(btf.name(type))) continue
      this.opaque.set(btf.name(type), btf.flag(type) ? 'union' : 'struct')
    }
  }

  private nameUser(type: number, kind: number, name: string, taken: Set<string>): void {
    if (name === '') {
      this.names.set(type, `unnamed_${type}`)
      taken.add(`unnamed_${type}`)
      return
    }
    const unique = taken.has(name) ? `${name}___${type}` : name
    taken.add(unique)
    this.names.set(type, unique)
    const words = `${kind === KIND.UNION ? 'union' : 'struct'} ${name}`
    if (!this.defined.has(words)) this.defined.set(words, type)
  }

  private nameEnum(type: number, name: string): void {
    const words = `enum ${name}`
    const unique = name === '' ? `unnamed_${type}` : this.defined.has(words) ? `${name}___${type}` : name
    if (!this.defined.has(words)) this.defined.set(words, type)
    this.names.set(type, unique)
  }

  private user(type: number, kind: number): Json {
    const { btf } = this
    let unnamed = 0
    const fields = btf.members(type).map(member => {
      const anonymous = member.name === ''
      const name = anonymous ? `unnamed_field_${unnamed++}` : member.name
      const { offset, described } = this.place(member)
      return `${json(name)}:{"type":${described},"offset":${offset}${anonymous ? ',"anonymous":true' : ''}}`
    })
    const word = kind === KIND.UNION ? 'union' : 'struct'
    return `${json(this.names.get(type))}:{"size":${btf.size(type)},"fields":{${fields.join(',')}},"kind":"${word}"}`
  }

  private place(member: { readonly type: number; readonly bitOffset: number; readonly bits: number }): {
    readonly offset: number
    readonly described: Json
  } {
    const { btf } = this
    const plain = btf.plain(member.type)
    let { bits, bitOffset } = member
    // Before Linux 4.20 a bit field was a member of an integer type with fewer bits than its size has.
    if (bits === 0 && btf.kind(plain) === KIND.INT) {
      const integer = btf.integer(plain)
      if (integer.bits < btf.size(plain) * 8) {
        bits = integer.bits
        bitOffset += integer.bitOffset
      }
    }
    if (bits === 0) return { offset: bitOffset >>> 3, described: this.describe(member.type) }
    const isEnum = btf.kind(plain) === KIND.ENUM || btf.kind(plain) === KIND.ENUM64
    const storage = btf.kind(plain) === KIND.INT || isEnum ? Math.max(1, btf.size(plain)) : 4
    const aligned = Math.floor(bitOffset / (storage * 8)) * storage
    // In a packed struct it may begin in one unit and end in the next.
    const offset = bitOffset - aligned * 8 + bits <= storage * 8 ? aligned : bitOffset >>> 3
    const type = btf.kind(plain) === KIND.INT || isEnum ? this.describe(plain) : '{"kind":"base","name":"unsigned int"}'
    return { offset, described: `{"kind":"bitfield","bit_position":${bitOffset - offset * 8},"bit_length":${bits},"type":${type}}` }
  }

  private describe(type: number, depth = 0): Json {
    if (depth === MAX_DEPTH) throw new BtfError(`type ${type} leads to itself`)
    const { btf } = this
    const plain = btf.plain(type)
    const kind = btf.kind(plain)
    switch (kind) {
      case KIND.INT:
        return this.base(integerType(btf, plain))
      case KIND.FLOAT:
        return this.base({ name: btf.name(plain), size: btf.size(plain), signed: true, kind: 'float' })
      case KIND.POINTER:
        return `{"kind":"pointer","subtype":${this.describe(btf.target(plain), depth + 1)}}`
      case KIND.ARRAY: {
        const { element, count } = btf.array(plain)
        return `{"kind":"array","count":${count},"subtype":${this.describe(element, depth + 1)}}`
      }
      case KIND.STRUCT:
      case KIND.UNION:
        return `{"kind":"${kind === KIND.UNION ? 'union' : 'struct'}","name":${json(this.names.get(plain))}}`
      case KIND.ENUM:
      case KIND.ENUM64:
        return `{"kind":"enum","name":${json(this.names.get(plain))}}`
      case KIND.FORWARD:
        return `{"kind":"${btf.flag(plain) ? 'union' : 'struct'}","name":${json(btf.name(plain))}}`
      case KIND.FUNCTION:
      case KIND.PROTOTYPE:
        return '{"kind":"function"}'
      default:
        return '{"kind":"base","name":"void"}'
    }
  }

  private base(base: BaseType): Json {
    const known = this.baseTypes.get(base.name)
    if (known === undefined || known.size === base.size) {
      this.baseTypes.set(base.name, base)
      return `{"kind":"base","name":${json(base.name)}}`
    }
    // The narrow integers of old bit fields have the name of the wide ones.
    const name = `${base.name}___${base.size}`
    this.baseTypes.set(name, { ...base, name })
    return `{"kind":"base","name":${json(name)}}`
  }

  private enumBase(size: number, signed: boolean): string {
    const base: BaseType = { name: `${signed ? 'signed' : 'unsigned'} enum ${size}`, size, signed, kind: 'int' }
    if (size === 4) return signed ? 'int' : 'unsigned int'
    this.baseTypes.set(base.name, base)
    return base.name
  }

  /** 'struct x', 'struct x *', 'struct x * [32]', 'int'. */
  private ofWords(words: string): Json | undefined {
    const found = /^((?:struct )?[\w ]*\w)( \*)?(?: \[(\d+)\])?$/.exec(words)
    const [, name, pointer, count] = found ?? []
    if (name === undefined) throw new RangeError(`'${words}' is no type`)
    const type = this.defined.get(name)
    if (type === undefined && !this.baseTypes.has(name)) return undefined
    const inner = type === undefined ? `{"kind":"base","name":${json(name)}}` : this.describe(type)
    const pointed = pointer === undefined ? inner : `{"kind":"pointer","subtype":${inner}}`
    return count === undefined ? pointed : `{"kind":"array","count":${count},"subtype":${pointed}}`
  }

  private withMembers(names: readonly string[]): number | undefined {
    for (let type = 1; type < this.btf.count; type++) {
      if (this.btf.kind(type) !== KIND.STRUCT || this.btf.name(type) !== '') continue
      const members = this.btf.members(type)
      if (members.length === names.length && members.every(({ name }, index) => name === names[index])) return type
    }
    return undefined
  }
}

function integerType(btf: Btf, type: number): BaseType {
  const { encoding } = btf.integer(type)
  const name = btf.name(type)
  const character = (encoding & ENCODING.CHARACTER) !== 0 || /^(?:(?:un)?signed )?char$/.test(name)
  const kind = (encoding & ENCODING.BOOLEAN) !== 0 ? 'bool' : character ? 'char' : 'int'
  return { name, size: btf.size(type), signed: (encoding & ENCODING.SIGNED) !== 0, kind }
}
