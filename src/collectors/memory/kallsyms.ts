/** The kernel's symbols and where they lie in memory: /proc/kallsyms, kernel/kallsyms.c. */

/** Room for a name of 512 bytes (KSYM_NAME_LEN), its address and its module; a longer line is no symbol. */
const MAX_LINE = 1024

/** Kernels have 100,000 to 250,000. */
const MAX_SYMBOLS = 2_000_000

/** `ffffffff81000000 T _text`; a symbol of a module has `\t[name]` behind it and is not the kernel's. */
const LINE = /^([0-9a-f]{8,16}) ([A-Za-z]) (\S+)$/

/** Takes /proc/kallsyms in pieces; keeps one address for each name, that of a global symbol before that of a local one. */
export class Kallsyms {
  /** By name, as it is in memory. */
  readonly addresses = new Map<string, bigint>()
  /** Symbols of modules, BPF and ftrace, which are not kept. */
  ofModules = 0
  /** Lines that are no symbols. */
  unknown = 0
  private readonly local = new Set<string>()
  private rest = ''
  private shown = false

  /** The next piece of the file. */
  add(piece: Uint8Array): void {
    const text = this.rest + Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength).toString('latin1')
    const lines = text.split('\n')
    const rest = lines.pop() ?? ''
    for (const line of lines) this.line(line)
    // Cut, so that a file without line feeds does not pile up: it no longer is a line either way.
    this.rest = rest.slice(0, MAX_LINE + 1)
  }

  /** The file is at its end. */
  end(): void {
    if (this.rest !== '') this.line(this.rest)
    this.rest = ''
  }

  /** All addresses are 0: kernel.kptr_restrict, or no CAP_SYSLOG. */
  get hidden(): boolean {
    return !this.shown
  }

  /** Where the kernel starts; undefined when the file does not say. */
  get text(): bigint | undefined {
    return this.addresses.get('_text') ?? this.addresses.get('_stext')
  }

  private line(line: string): void {
    if (line.endsWith(']')) {
      this.ofModules++
      return
    }
    const found = line.length > MAX_LINE ? null : LINE.exec(line)
    if (found === null) {
      this.unknown++
      return
    }
    const [, digits, kind, name] = found as unknown as [string, string, string, string]
    const address = BigInt(`0x${digits}`)
    if (address !== 0n) this.shown = true
    const isLocal = kind >= 'a'
    const known = this.addresses.has(name)
    if (known && (isLocal || !this.local.has(name))) return
    if (!known && this.addresses.size === MAX_SYMBOLS) {
      this.unknown++
      return
    }
    this.addresses.set(name, address)
    if (isLocal) this.local.add(name)
    else this.local.delete(name)
  }
}
