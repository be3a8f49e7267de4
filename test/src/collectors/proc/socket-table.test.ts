/** The kernel's socket tables: recorded ones, the ends of what they can say, and hostile ones. */
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  parseAddress,
  parseTable,
  SOCKET_TABLES,
  type SocketEntry,
  type SocketTable,
} from '../../../../src/collectors/proc/socket-table.js'

const FIXTURES = path.resolve(import.meta.dirname, '../../../fixtures/snapshot-connections/debian-12')
const format = { endianness: 'LE', ticks: 100 } as const
const tables = Object.keys(SOCKET_TABLES) as SocketTable[]

const INET_HEADER = '  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n'
const parse = (table: SocketTable, line: string): SocketEntry | undefined => [...parseTable(table, INET_HEADER + line, format)][0]

describe('recorded tables', () => {
  it.each(tables)('%s: every line is understood', table => {
    const text = fs.readFileSync(path.join(FIXTURES, `proc_net_${table}`), 'latin1')
    const entries = [...parseTable(table, text, format)]
    expect(entries).toHaveLength(text.split('\n').length - 2)
    expect(entries).not.toContain(undefined)
  })
})

describe('TCP and UDP', () => {
  it('are told with state, addresses, queues, timer and owner', () => {
    const line =
      '   3: 0A0200C0:0016 070200C0:C0D4 01 00000004:00000002 02:000AE1F3 00000001  1000        0 34567 2 0000000000000000 20 4 31 10 -1'
    expect(parse('tcp', line)).toEqual({
      protocol: 'tcp',
      state: 'ESTABLISHED',
      local: { address: '192.0.2.10', port: 22 },
      remote: { address: '192.0.2.7', port: 49_364 },
      inode: 34_567,
      uid: 1000,
      sendQueue: 4,
      receiveQueue: 2,
      timer: 'keepalive',
      timerSeconds: 7132.03,
      retransmits: 1,
    })
  })

  it('have states of their own', () => {
    const line = (state: string): string => `0: 00000000:0035 00000000:0000 ${state} 00000000:00000000 00:00000000 00000000 0 0 1`
    const state = (table: SocketTable, number: string): unknown => (parse(table, line(number)) as { state: string } | undefined)?.state
    expect(['01', '02', '03', '06', '07', '0A', '0C', '0D', '7F'].map(number => state('tcp', number))).toEqual([
      'ESTABLISHED',
      'SYN_SENT',
      'SYN_RECV',
      'TIME_WAIT',
      'CLOSE',
      'LISTEN',
      'NEW_SYN_RECV',
      'BOUND_INACTIVE',
      '127',
    ])
    expect(['01', '07'].map(number => state('udp6', number))).toEqual(['ESTABLISHED', 'UNCONN'])
  })

  it('that are cut or not of the form are not guessed at', () => {
    for (const line of ['', 'x', '0: 0100007F:0016', '0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0']) {
      expect(parse('tcp', line), line).toBeUndefined()
    }
  })
})

describe('addresses', () => {
  it('are those of RFC 5952', () => {
    expect(parseAddress('0100007F', 'LE')).toBe('127.0.0.1')
    expect(parseAddress('C0000207', 'BE')).toBe('192.0.2.7')
    expect(parseAddress('00000000000000000000000000000000', 'LE')).toBe('::')
    expect(parseAddress('00000000000000000000000001000000', 'LE')).toBe('::1')
    expect(parseAddress('0000000000000000FFFF0000070200C0', 'LE')).toBe('::ffff:192.0.2.7')
    expect(parseAddress('B80D0120000000000000000007000000', 'LE')).toBe('2001:db8::7')
  })

  it('of IPv6 say the same as the ones of the URL standard, in either byte order', () => {
    fc.assert(
      fc.property(fc.array(fc.oneof(fc.constant(0), fc.nat(0xffff)), { minLength: 8, maxLength: 8 }), words => {
        const big = Buffer.alloc(16)
        words.forEach((word, index) => void big.writeUInt16BE(word, index * 2))
        const address = parseAddress(big.toString('hex').toUpperCase(), 'BE')
        expect(net.isIPv6(address)).toBe(true)
        const canonical = new URL(`http://[${words.map(word => word.toString(16)).join(':')}]/`).hostname
        expect(new URL(`http://[${address}]/`).hostname).toBe(canonical)
        if (!address.includes('.')) expect(`[${address}]`).toBe(canonical)
        const little = Buffer.from(big).swap32().toString('hex').toUpperCase()
        expect(parseAddress(little, 'LE')).toBe(address)
      }),
    )
  })
})

describe('the others', () => {
  const one = (table: SocketTable, line: string): SocketEntry | undefined => [...parseTable(table, `header\n${line}\n`, format)][0]

  it('unix: names with blanks and bytes that are no text', () => {
    expect(one('unix', '00000000ec1a956b: 00000002 00000000 00010000 0001 01 12345 /run/a b.sock')).toEqual({
      protocol: 'unix',
      type: 'stream',
      state: 'LISTEN',
      inode: 12_345,
      references: 2,
      path: '/run/a b.sock',
    })
    expect(one('unix', '00000000ec1a956b: 00000002 00000000 00000000 0002 03    45 @x\xff')).toMatchObject({
      type: 'dgram',
      state: 'CONNECTED',
      path: '@x\ufffd',
      pathBase64: 'QHj/',
    })
    expect(one('unix', '00000000ec1a956b: 00000002 00000000 00000000 0005 01 45')).toMatchObject({ type: 'seqpacket', path: '' })
  })

  it('unix: a newline in a name costs the rest of that name, nothing else', () => {
    const text = [
      'Num RefCount Protocol Flags Type St Inode Path',
      '00000000ec1a956b: 00000002 00000000 00010000 0001 01 1 /tmp/a',
      'evil: rest of the name',
      '00000000ec1a956c: 00000002 00000000 00010000 0001 01 2 /tmp/b',
      '',
    ].join('\n')
    const entries = [...parseTable('unix', text, format)]
    expect(entries.map(entry => entry?.inode)).toEqual([1, undefined, 2])
  })

  it('packet: who listens to everything', () => {
    expect(one('packet', '0000000099590346 3      3    0003   2     1 0      0      34636 ')).toEqual({
      protocol: 'packet',
      type: 'raw',
      ethertype: '0x0003',
      interface: 2,
      running: true,
      inode: 34_636,
      uid: 0,
    })
  })

  it('netlink: family by its name', () => {
    expect(one('netlink', '00000000bf5faa6c 9   812        00000001 0        0        0     2        0        407     ')).toEqual({
      protocol: 'netlink',
      family: 'audit',
      portId: 812,
      groups: '00000001',
      inode: 407,
    })
  })
})

describe('hostile tables', () => {
  const noise = fc
    .array(fc.constantFrom(...'0123456789ABCDEFabcdef:@/- \n\0', '0000', '\u00ff'), { maxLength: 300 })
    .map(parts => parts.join(''))

  it.each(tables)('%s: any text is survived, line by line', table => {
    fc.assert(
      fc.property(fc.oneof(noise, fc.string()), text => {
        const entries = [...parseTable(table, text, format)]
        expect(entries.length).toBeLessThanOrEqual(text.split('\n').length)
      }),
    )
  })

  it.each(tables)('%s: a recorded table with some bytes changed is survived', table => {
    const recorded = fs.readFileSync(path.join(FIXTURES, `proc_net_${table}`))
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(recorded.length - 1), fc.nat(255)), { maxLength: 20 }), changes => {
        const text = Buffer.from(recorded)
        for (const [at, byte] of changes) text[at] = byte
        for (const entry of parseTable(table, text.toString('latin1'), format)) {
          if (entry !== undefined) expect(Number.isSafeInteger(entry.inode)).toBe(true)
        }
      }),
    )
  })

  it.each(tables)('%s: long lines take no longer than they are long', table => {
    for (const piece of [' ', '0', '0 ', '0: ', ':', 'A']) {
      const text = `header\n${piece.repeat((1 << 20) / piece.length)}\n`
      expect([...parseTable(table, text, format)]).toEqual([undefined])
    }
  })
})
