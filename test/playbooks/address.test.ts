import net from 'node:net'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { covers, formatNetwork, isLoopback, type Network, parseNetwork, parseProcAddress } from '../../playbooks/address.js'

const read = (text: string): Network => {
  const network = parseNetwork(text)
  if (network === undefined) throw new Error(`${text} was not understood`)
  return network
}
const again = (text: string): string => formatNetwork(read(text))

describe('addresses', () => {
  it('are written one way, however they were typed', () => {
    expect(again('198.51.100.7')).toBe('198.51.100.7')
    expect(again('198.51.100.7/32')).toBe('198.51.100.7')
    expect(again('198.51.100.77/24')).toBe('198.51.100.0/24')
    expect(again('2001:DB8:0:0:0:0:0:7')).toBe('2001:db8::7')
    expect(again('2001:db8:0:1:1:1:1:1')).toBe('2001:db8:0:1:1:1:1:1')
    expect(again('2001:0:0:1:0:0:0:1')).toBe('2001:0:0:1::1')
    expect(again('2001:db8:ffff::/33')).toBe('2001:db8:8000::/33')
    expect(again('::')).toBe('::')
    expect(again('fe80::1%eth0')).toBe('fe80::1')
    expect(again('::ffff:198.51.100.7')).toBe('198.51.100.7')
    expect(again('::ffff:c633:6400/120')).toBe('198.51.100.0/24')
    expect(again('64:ff9b::198.51.100.7')).toBe('64:ff9b::c633:6407')
  })

  it('are refused when they are none', () => {
    const none = [
      '',
      'bastion.example.org',
      '198.51.100',
      '198.51.100.256',
      '198.51.100.07',
      '0x7f.0.0.1',
      '198.51.100.7/33',
      '198.51.100.7/',
      '198.51.100.7/08',
    ]
    const noneOfSix = [
      '2001:db8::7::',
      '1:2:3:4:5:6:7',
      '1:2:3:4:5:6:7:8:9',
      '::12345',
      '2001:db8::/129',
      '1::2:3:4:5:6:7:8',
      '::1.2.3',
      ':',
      ':::',
      '1:',
    ]
    for (const text of [...none, ...noneOfSix, '198.51.100.7%eth0', '198.51.100.7 ', '-1', '::1; flush ruleset', '198.51.100.7\n']) {
      expect([text, parseNetwork(text)]).toEqual([text, undefined])
    }
  })

  it('agree with what the system takes for an address', () => {
    const text = fc.oneof(fc.ipV4(), fc.ipV6(), fc.string({ unit: fc.constantFrom(...'0123456789abf:.'), maxLength: 24 }))
    fc.assert(
      fc.property(text, candidate => {
        const network = parseNetwork(candidate)
        expect(network !== undefined).toBe(net.isIP(candidate) !== 0)
        if (network === undefined) return
        expect(parseNetwork(formatNetwork(network))).toEqual(network)
        const list = new net.BlockList()
        list.addAddress(formatNetwork(network), network.family === 4 ? 'ipv4' : 'ipv6')
        expect(list.check(candidate, net.isIP(candidate) === 4 ? 'ipv4' : 'ipv6')).toBe(true)
      }),
      { numRuns: 3000 },
    )
  })

  it('lie in a network when their first bits do', () => {
    fc.assert(
      fc.property(fc.ipV4(), fc.ipV4(), fc.nat(32), (inner, outer, length) => {
        const list = new net.BlockList()
        list.addSubnet(outer, length)
        expect(covers(read(`${outer}/${length}`), read(inner))).toBe(list.check(inner))
      }),
    )
    expect(covers(read('2001:db8::/32'), read('2001:db8::7'))).toBe(true)
    expect(covers(read('2001:db8::7'), read('2001:db8::/32'))).toBe(false)
    expect(covers(read('0.0.0.0/0'), read('::1'))).toBe(false)
  })

  it('are read from /proc/net/tcp and tcp6', () => {
    const proc = (hex: string): string | undefined => {
      const network = parseProcAddress(hex)
      return network && formatNetwork(network)
    }
    expect(proc('076433C6')).toBe('198.51.100.7')
    expect(proc('B80D0120000000000000000007000000')).toBe('2001:db8::7')
    expect(proc('0000000000000000FFFF0000076433C6')).toBe('198.51.100.7')
    expect(proc('00000000000000000000000001000000')).toBe('::1')
    expect([proc('local_address'), proc(''), proc('076433C')]).toEqual([undefined, undefined, undefined])
  })

  it('are known when they are our own', () => {
    expect(['127.0.0.1', '127.5.6.7', '::1', '::ffff:127.0.0.1'].map(text => isLoopback(read(text)))).toEqual([true, true, true, true])
    expect(['128.0.0.1', '::2', '::', '10.0.0.1'].map(text => isLoopback(read(text)))).toEqual([false, false, false, false])
  })
})
