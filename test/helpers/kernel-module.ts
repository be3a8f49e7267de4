/** A relocatable ELF file with a section .modinfo, as kernel modules have it; it holds no code. */
export function kernelModule(info: readonly string[], options: { readonly type?: number; readonly signed?: boolean } = {}): Buffer {
  const names = Buffer.from('\0.shstrtab\0.modinfo\0')
  const modinfo = Buffer.from(info.map(text => `${text}\0`).join(''))
  const sectionsAt = 64 + names.length + modinfo.length
  const file = Buffer.alloc(sectionsAt + 3 * 64)
  file.write('7f454c46020101', 'hex')
  file.writeUInt16LE(options.type ?? 1, 16)
  file.writeUInt16LE(62, 18)
  file.writeBigUInt64LE(BigInt(sectionsAt), 40)
  file.writeUInt16LE(64, 58)
  file.writeUInt16LE(3, 60)
  file.writeUInt16LE(1, 62)
  names.copy(file, 64)
  modinfo.copy(file, 64 + names.length)
  const section = (index: number, name: number, at: number, bytes: number): void => {
    const header = sectionsAt + index * 64
    file.writeUInt32LE(name, header)
    file.writeBigUInt64LE(BigInt(at), header + 24)
    file.writeBigUInt64LE(BigInt(bytes), header + 32)
  }
  section(1, 1, 64, names.length)
  section(2, 11, 64 + names.length, modinfo.length)
  return options.signed ? Buffer.concat([file, Buffer.from('~Module signature appended~\n')]) : file
}
