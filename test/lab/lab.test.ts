/** `ir capture-mem` on a real kernel. Each describe is one boot of an emulated machine; its checks look at what that boot left. */
import path from 'node:path'
import { afterAll, beforeEach, describe, expect, it, type TestContext } from 'vitest'
import { type Canary, coreRuns, countCanaryPages, limeRuns, type Run } from './image.js'
import { type LabKernel, prepareKernel } from './kernel.js'
import type { BootKind, BootReport } from './machine.js'
import { checkPrerequisites } from './prerequisites.js'
import { type Evidence, type Kept, type Session, startSession } from './session.js'
import { prepareVolatility, type Row, volatility } from './volatility.js'

/** Seconds; an emulated machine takes a tenth of it when nobody else uses the processors. */
const BOOT_LIMIT = 600

const IMAGE = 'memory.lime'
const SYMBOLS = 'memory.isf.json.gz'
const PAGE = 4096n

let prepared: LabKernel | 'failed' | undefined

describe('lab', () => {
  it('kernel', context => {
    const { release, version } = labKernel()
    measured(context, `${release} ${version}`)
  })
})

describe('plain', () => {
  const session = bootOf('plain', {
    memory: 256,
    report: { kaslr: false, paging: '4-level', lockdown: 'none' },
    command: `
      capture kcore
      capture mem --source mem
      capture lime --source lime --lime-module ${limeModule()}
      keep modules cat /proc/modules
      interrupt interrupted 32`,
  })

  it('kcore', () => {
    expect(session().kept('kcore')).toMatchObject({ exitCode: 0 })
    expect(session().evidence('kcore').artifacts).toContain(IMAGE)
  })

  it('/dev/mem is refused', () => {
    expect(session().kept('mem').exitCode).toBe(3)
    expect(reasonOf(session(), 'mem')).toContain(
      '/dev/mem: nothing above 1 MiB can be read (EPERM): the kernel is built with CONFIG_STRICT_DEVMEM',
    )
    expect(session().evidence('mem').artifacts).toEqual([])
  })

  it('LiME, and its module is gone again', () => {
    expect(session().kept('lime')).toMatchObject({ exitCode: 0 })
    expect(session().kept('modules').stdout).not.toMatch(/^lime /m)
  })

  it('headers as LiME writes them, but for the partial page', context => {
    const ours = rangesOf(limeRuns(session().evidence('kcore').artifact(IMAGE)))
    const theirs = rangesOf(limeRuns(session().evidence('lime').artifact(IMAGE)))
    expect(theirs.map(wholePages)).toEqual(ours)
    measured(context, `${ours.length} ranges`)
  })

  it('interrupted', context => {
    const { exitCode } = session().kept('interrupted')
    expect(exitCode).toBe(130)
    const evidence = session().evidence('interrupted')
    const image = evidence.artifact(IMAGE)
    const whole = bytesOf(limeRuns(session().evidence('kcore').artifact(IMAGE)))
    // Readable as far as it goes, and said to be a part.
    const part = bytesOf(limeRuns(image, { part: true }))
    expect(part).toBeGreaterThan(16n << 20n)
    expect(part).toBeLessThan(whole)
    expect(factsOf(evidence)).toMatchObject({ bytes: Number(part), plannedBytes: Number(whole) })
    expect(reasonOf(session(), 'interrupted')).toContain('the image is incomplete')
    measured(context, `${part >> 20n} of ${whole >> 20n} MiB kept`)
  })
})

describe('kaslr', () => {
  const session = bootOf('kaslr', {
    memory: 384,
    report: { kaslr: true, paging: '4-level', lockdown: 'none' },
    command: `
      plant
      keep modules cat /proc/modules
      keep arguments cat "/proc/$canary/cmdline"
      keep before ps -e -o pid= -o comm=
      capture kcore
      keep after ps -e -o pid= -o comm=`,
  })
  canaryIsWhole(session)

  it('Volatility', context => {
    vol = prepareVolatility()
    measured(context, path.basename(path.dirname(path.dirname(vol))))
  })

  it('linux.pslist', async context => {
    const found = new Map((await plugin('linux.pslist.PsList')).map(row => [Number(row.PID), String(row.COMM)]))
    const [before, after] = [processesOf(session().kept('before')), processesOf(session().kept('after'))]
    const lasting = [...before].filter(([pid]) => after.has(pid))
    // The planted process, init and every thread of the kernel that is no worker, at least. Workers change their names as they work.
    expect(lasting.length).toBeGreaterThan(20)
    const named = ([pid, name]: readonly [number, string]): string => (name.startsWith('kworker/') ? `${pid} kworker` : `${pid} ${name}`)
    const inImage = [...found].map(named)
    expect(inImage).toEqual(expect.arrayContaining(lasting.map(named)))
    expect(inImage).toEqual(expect.arrayContaining([expect.stringMatching(new RegExp(`^${session().canary().pid} python3`))]))
    // What came in between is ours, or a worker.
    const strangers = [...found].filter(
      ([pid, name]) => !before.has(pid) && !after.has(pid) && !/^(node|sh|MainThread|kworker\/.*)$/.test(name),
    )
    expect(strangers).toEqual([])
    measured(context, `${found.size} processes`)
  })

  it('linux.psaux', async () => {
    const { pid } = session().canary()
    const given = session().kept('arguments').stdout.split('\0').join(' ').trim()
    expect(given).toContain('canary.py /lab/canary.json')
    const row = (await plugin('linux.psaux.PsAux')).find(one => one.PID === pid)
    expect(String(row?.ARGS).trim()).toBe(given)
  })

  it('linux.lsmod', async context => {
    const loaded = [
      ...session()
        .kept('modules')
        .stdout.matchAll(/^(\S+) /gm),
    ].map(([, name]) => name as string)
    expect(loaded).toContain('overlay')
    const found = (await plugin('linux.lsmod.Lsmod')).map(row => String(row['Module Name']))
    expect(found.toSorted()).toEqual(loaded.toSorted())
    measured(context, `${found.length} modules`)
  })

  it('linux.lsof', async () => {
    const { pid } = session().canary()
    const rows = await plugin('linux.lsof.Lsof', '--pid', String(pid))
    expect(rows.map(row => row.Path)).toContain('/run/canary-open')
  })

  let vol: string | undefined

  /** With what lies in the archive beside the image, and nothing else. */
  async function plugin(name: string, ...options: string[]): Promise<readonly Row[]> {
    if (vol === undefined) throw new Error('Volatility could not be installed')
    const evidence = session().evidence('kcore')
    if (!evidence.artifacts.includes(SYMBOLS)) throw new Error(`no ${SYMBOLS} beside the image: Volatility cannot read it`)
    return volatility(vol, evidence.artifact(IMAGE), evidence.scratch, name, ...options)
  }
})

describe('la57', () => {
  const session = bootOf('la57', {
    memory: 384,
    report: { kaslr: true, paging: '5-level', lockdown: 'none' },
    command: `plant && capture kcore`,
  })
  canaryIsWhole(session)
})

describe('integrity', () => {
  const session = bootOf('integrity', {
    memory: 256,
    report: { kaslr: false, paging: '4-level', lockdown: 'integrity' },
    command: `
      capture kcore
      plan lime --source lime --lime-module ${limeModule()}
      plan mem --source mem
      keep insmod insmod ${limeModule()} path=/lab/unwanted.lime format=lime
      keep dmesg dmesg`,
  })

  it('kcore', () => {
    expect(session().kept('kcore')).toMatchObject({ exitCode: 0 })
    const runs = limeRuns(session().evidence('kcore').artifact(IMAGE))
    expect(bytesOf(runs)).toBeGreaterThan(240n << 20n)
  })

  it('LiME is refused', () => {
    expect(refusals(session(), 'lime').get('LiME module')).toMatch(/^kernel lockdown is 'integrity', and .*lime\.ko is not signed$/)
    // The kernel says the same when it is asked.
    expect(session().kept('insmod')).toMatchObject({ exitCode: 1, stderr: expect.stringContaining('Operation not permitted') })
    expect(session().kept('dmesg').stdout).toContain('Lockdown: insmod: unsigned module loading is restricted')
  })

  it('/dev/mem is refused', () => {
    expect(refusals(session(), 'mem').get('/dev/mem')).toBe("kernel lockdown is 'integrity' (EPERM)")
  })
})

describe('confidentiality', () => {
  const session = bootOf('confidentiality', {
    memory: 320,
    report: { kaslr: false, paging: '4-level', lockdown: 'confidentiality' },
    command: `
      plan auto
      plan lime --lime-module ${limeModule()}
      plant && capture process --pid "$canary"`,
  })

  it('every source is refused', () => {
    const why = refusals(session(), 'auto')
    expect(why.get('/proc/kcore')).toBe("kernel lockdown is 'confidentiality' (EPERM)")
    expect(why.get('/dev/mem')).toBe("kernel lockdown is 'confidentiality' (EPERM)")
    expect(why.get('process memory')).toBe('no process given')
    expect(refusals(session(), 'lime').get('LiME module')).toMatch(/^kernel lockdown is 'confidentiality', and .*lime\.ko is not signed$/)
  })

  it('canary', context => {
    // Less than was asked for: sealed, and never exit 0.
    expect(session().kept('process').exitCode).toBe(3)
    expect(reasonOf(session(), 'process')).toContain("physical memory: /proc/kcore: kernel lockdown is 'confidentiality' (EPERM)")
    const canary = session().canary()
    const core = session().evidence('process').artifact(`process-${canary.pid}.core`)
    expectWhole(context, countCanaryPages(core, coreRuns(core), canary), canary)
  })
})

/** Prepared once. @throws an Error of one line that says what the lab lacks. */
function labKernel(): LabKernel {
  if (typeof prepared === 'object') return prepared
  prepared = 'failed'
  checkPrerequisites()
  prepared = prepareKernel()
  return prepared
}

interface Boot {
  /** MiB. */
  readonly memory: number
  /** What the boot must say of itself. */
  readonly report: { readonly kaslr: boolean } & Pick<BootReport, 'paging' | 'lockdown'>
  readonly command: string
}

/** The check of the boot itself, which comes first, and what gives the boot to the others. */
function bootOf(kind: BootKind, { memory, report, command }: Boot): () => Session {
  let session: Session | undefined
  // Said once, by the check that failed.
  beforeEach(context => {
    if (prepared === 'failed') context.skip()
  })
  afterAll(() => session?.end())
  it('boot', async context => {
    const booted = await startSession({ kernel: labKernel(), kind, memory, command, limit: BOOT_LIMIT })
    session = booted
    const { kaslrOffset, paging, lockdown } = booted.report
    measured(context, `KASLR offset 0x${kaslrOffset.toString(16)}, ${paging} paging, lockdown ${lockdown}`)
    expect({ kaslr: kaslrOffset !== 0n, paging, lockdown }).toEqual(report)
  })
  return () => {
    if (session === undefined) throw new Error('the boot failed')
    return session
  }
}

function canaryIsWhole(session: () => Session): void {
  it('canary', context => {
    expect(session().kept('kcore')).toMatchObject({ exitCode: 0 })
    const image = session().evidence('kcore').artifact(IMAGE)
    const canary = session().canary()
    expectWhole(context, countCanaryPages(image, limeRuns(image), canary), canary)
  })

  it('the evidence says where the kernel lay', () => {
    const { kaslrOffset, paging } = session().report
    const facts = factsOf(session().evidence('kcore'))
    const fiveLevelPaging = paging === '5-level' ? '1' : '0'
    expect(facts).toMatchObject({ kernel: { release: labKernel().release, offset: kaslrOffset.toString(16), fiveLevelPaging } })
  })
}

function expectWhole(context: TestContext, found: number, { pages }: Canary): void {
  measured(context, `${found}/${pages}`)
  expect(pages).toBe(16_384)
  expect(found).toBe(pages)
}

function measured({ task }: TestContext, text: string): void {
  task.meta.measured = text
}

/** Beside the tree of modules, to which init.sh links. */
function limeModule(): string {
  return '"$(dirname "$(readlink "/lib/modules/$(uname -r)")")/lime.ko"'
}

interface Refusals {
  readonly steps: readonly { readonly rejected?: readonly { readonly what: string; readonly why: string }[] }[]
}

/** Why a plan does not take a source, by source. */
function refusals(session: Session, name: string): ReadonlyMap<string, string> {
  const { steps } = session.document(name) as Refusals
  return new Map(steps.flatMap(step => step.rejected ?? []).map(({ what, why }) => [what, why]))
}

function reasonOf(session: Session, name: string): string {
  const { steps } = session.document(name) as { steps: readonly { reason?: string }[] }
  return steps.map(({ reason }) => reason ?? '').join('; ')
}

/** Of the action that wrote the image. */
function factsOf({ custody }: Evidence): unknown {
  return custody.map(line => line.facts).find(facts => typeof facts === 'object' && facts !== null && 'plannedBytes' in facts)
}

/** Names by pid, without the ps that printed them; as long as the kernel keeps them, TASK_COMM_LEN in linux/sched.h. */
function processesOf({ stdout }: Kept): ReadonlyMap<number, string> {
  const rows = [...stdout.matchAll(/^ *(\d+) (.*)$/gm)].map(([, pid, name]) => [Number(pid), (name as string).slice(0, 15)] as const)
  return new Map(rows.filter(([, name]) => name !== 'ps'))
}

type Range = readonly [start: bigint, end: bigint]

function rangesOf(runs: readonly Run[]): Range[] {
  return runs.map(({ start, bytes }) => [start, start + bytes])
}

function wholePages([start, end]: Range): Range {
  return [((start + PAGE - 1n) / PAGE) * PAGE, (end / PAGE) * PAGE]
}

function bytesOf(runs: readonly Run[]): bigint {
  return runs.reduce((sum, { bytes }) => sum + bytes, 0n)
}
