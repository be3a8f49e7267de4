/** One line for each boot and check: `kaslr: canary 16384/16384 ok`. */
import type { Reporter, TestCase, TestModule } from 'vitest/node'

declare module 'vitest' {
  interface TaskMeta {
    /** What the check measured, for its line. */
    measured?: string
  }
}

export default class LabReporter implements Reporter {
  onTestCaseResult(test: TestCase): void {
    const { state, errors } = test.result()
    if (state === 'skipped') return
    const measured = test.meta().measured
    const what = [`${test.fullName.replace(' > ', ': ')}`, ...(measured === undefined ? [] : [measured])].join(' ')
    const seconds = ((test.diagnostic()?.duration ?? 0) / 1000).toFixed(0)
    say(`${what} ${state === 'passed' ? 'ok' : 'FAILED'} (${seconds} s)`)
    for (const { message, diff } of errors ?? [])
      say(`  ${(diff === undefined ? message : `${message}\n${diff}`).replaceAll('\n', '\n  ')}`)
  }

  onTestRunEnd(modules: readonly TestModule[], unhandled: readonly { readonly message: string }[]): void {
    const outside = modules.flatMap(module => [...module.errors(), ...[...module.children.allSuites()].flatMap(suite => suite.errors())])
    for (const { message } of [...outside, ...unhandled]) say(`lab: ${message}`)
    const tests = modules.flatMap(module => [...module.children.allTests()].map(test => test.result().state))
    const count = (state: string): number => tests.filter(one => one === state).length
    const skipped = count('skipped')
    say(`${count('passed')} passed, ${count('failed')} failed${skipped > 0 ? `, ${skipped} not reached` : ''}`)
  }
}

function say(line: string): void {
  process.stdout.write(`${line}\n`)
}
