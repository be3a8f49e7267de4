/** One boot of the lab: a real kernel in an emulated machine, with the host's own file tree, that runs one command and ends. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { makeInitramfs } from './initramfs.js'
import type { LabKernel } from './kernel.js'
import { CACHE, programFile } from './prerequisites.js'

const CHECKOUT = path.resolve(import.meta.dirname, '../..')

/** What tells the boots apart. */
export const BOOTS = {
  plain: { image: 'plain', cpu: 'max', append: '' },
  kaslr: { image: 'compressed', cpu: 'max,la57=off', append: '' },
  la57: { image: 'compressed', cpu: 'max', append: '' },
  integrity: { image: 'plain', cpu: 'max', append: 'lockdown=integrity' },
  confidentiality: { image: 'plain', cpu: 'max', append: 'lockdown=confidentiality' },
} as const

export type BootKind = keyof typeof BOOTS

export interface BootOptions {
  readonly kernel: LabKernel
  readonly kind: BootKind
  /** MiB. */
  readonly memory: number
  /** For sh, as root, in the checkout; the share is /lab. */
  readonly command: string
  /** Seconds until the machine is ended from outside. */
  readonly limit: number
  /** What the command prints, while it runs. */
  readonly output?: (stream: 'stdout' | 'stderr', text: Buffer) => void
}

/** What the boot says of itself. */
export interface BootReport {
  /** Where the kernel lies beyond its linked address. */
  readonly kaslrOffset: bigint
  readonly paging: '4-level' | '5-level'
  /** State of the kernel's lockdown. */
  readonly lockdown: string
}

export interface Booted {
  readonly report: BootReport
  /** Of the command. */
  readonly exitCode: number
  /** From the start of the machine to its end. */
  readonly seconds: number
}

/** arch/x86/include/asm/page_64_types.h and CONFIG_PHYSICAL_START: where _text is linked. */
const LINKED_TEXT = 0xffffffff81000000n

/** How often the output is looked for, ms. */
const LOOK = 200

/** A directory that the machine sees as /lab; to be removed by who asked for it. */
export function makeShare(): string {
  const directory = path.join(CACHE, 'shares')
  fs.mkdirSync(directory, { recursive: true })
  return fs.mkdtempSync(path.join(directory, 'share-'))
}

/** @throws an Error with the machine's last words when it does not come to the end of the command. */
export async function boot(share: string, { kernel, kind, memory, command, limit, output }: BootOptions): Promise<Booted> {
  const { image, cpu, append } = BOOTS[kind]
  const file = (name: string): string => path.join(share, name)
  fs.writeFileSync(file('initramfs'), makeInitramfs(kernel))
  fs.copyFileSync(path.join(import.meta.dirname, 'guest/init.sh'), file('init'))
  fs.writeFileSync(file('environment'), environment(kernel))
  fs.writeFileSync(file('command'), `${command}\n`)
  const began = performance.now()
  const qemu = spawn(
    programFile('qemu-system-x86_64') as string,
    [
      ...['-accel', 'tcg,thread=multi,tb-size=512', '-cpu', cpu, '-smp', '2', '-m', String(memory)],
      ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot', '-serial', `file:${file('console')}`],
      ...['-kernel', kernel[image], '-initrd', file('initramfs')],
      ...['-append', `console=ttyS0 panic=-1 quiet tsc=reliable no_timer_check ${append}`],
      // The host is never written to: read-only here, and below an overlay in the machine.
      ...['-fsdev', 'local,id=host,path=/,security_model=none,readonly=on,multidevs=remap'],
      ...['-device', 'virtio-9p-pci,fsdev=host,mount_tag=host'],
      ...['-fsdev', `local,id=lab,path=${share.replaceAll(',', ',,')},security_model=none,multidevs=remap`],
      ...['-device', 'virtio-9p-pci,fsdev=lab,mount_tag=lab', '-device', 'virtio-rng-pci'],
    ],
    { stdio: ['ignore', 'ignore', 'pipe'] },
  )
  let complaint = ''
  qemu.stderr.on('data', (text: Buffer) => {
    complaint = `${complaint}${text}`.slice(-2000)
  })
  const deadline = setTimeout(() => qemu.kill('SIGKILL'), limit * 1000)
  const follow = follower(share, output)
  const look = setInterval(follow, LOOK)
  // A test that is given up ends this process: the machine must not live on.
  const end = (): void => void qemu.kill('SIGKILL')
  process.once('exit', end)
  try {
    await once(qemu, 'close')
  } finally {
    clearTimeout(deadline)
    clearInterval(look)
    process.off('exit', end)
  }
  follow()
  const seconds = (performance.now() - began) / 1000
  const exitCode = textOf(file('exit-code')).trim()
  if (!/^\d+$/.test(exitCode)) {
    // What a panic prints behind its reason is long and tells nothing.
    const console = textOf(file('console')).split('Call Trace:')[0] as string
    const words = [complaint, console, textOf(file('stderr'))].map(text => text.trim().slice(-600)).filter(text => text !== '')
    throw new Error(`the machine ended after ${seconds.toFixed(0)} s and not by itself: ${words.join(' | ') || 'it said nothing'}`)
  }
  return { report: readReport(textOf(file('report'))), exitCode: Number(exitCode), seconds }
}

/** @throws an Error when the boot does not say one of the three. */
function readReport(text: string): BootReport {
  const start = /^([0-9a-f]{16}) . _text$/m.exec(text)?.[1]
  const lockdown = /\[([a-z]+)\]/.exec(text)?.[1]
  if (start === undefined || lockdown === undefined) throw new Error(`the boot does not say what it is: ${JSON.stringify(text)}`)
  return { kaslrOffset: BigInt(`0x${start}`) - LINKED_TEXT, paging: /^la57$/m.test(text) ? '5-level' : '4-level', lockdown }
}

function environment(kernel: LabKernel): string {
  const values = { MODULES: kernel.modules, DIRECTORY: CHECKOUT, PATH: `${process.env.PATH ?? ''}:/usr/sbin:/usr/bin:/sbin:/bin` }
  return Object.entries(values)
    .map(([name, value]) => `${name}='${value.replaceAll("'", "'\\''")}'\n`)
    .join('')
}

function follower(share: string, output: BootOptions['output']): () => void {
  const at = { stdout: 0, stderr: 0 }
  return () => {
    if (output === undefined) return
    for (const stream of ['stdout', 'stderr'] as const) {
      const file = path.join(share, stream)
      if (!fs.existsSync(file)) continue
      const text = fs.readFileSync(file).subarray(at[stream])
      at[stream] += text.length
      if (text.length > 0) output(stream, text)
    }
  }
}

function textOf(file: string): string {
  return fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : ''
}
