/**
 * Makes and answers traffic inside a network namespace, as traffic.ts tells it: a JSON object a line on standard input,
 * each answered by one on standard output. Servers echo what they get.
 */
import { randomBytes } from 'node:crypto'
import dgram from 'node:dgram'
import net from 'node:net'
import { createInterface } from 'node:readline'

const flows = []

const commands = {
  async listen({ address, port }) {
    const server = net.createServer(socket => socket.on('error', () => {}).pipe(socket))
    const udp = dgram.createSocket(address.includes(':') ? 'udp6' : 'udp4')
    udp.on('message', (message, from) => udp.send(message, from.port, from.address))
    udp.on('error', () => {})
    await Promise.all([
      new Promise((resolve, reject) => server.once('error', reject).listen({ host: address, port }, resolve)),
      new Promise((resolve, reject) => udp.once('error', reject).bind({ address, port }, resolve)),
    ])
    return true
  },
  connect({ from, fromPort, to, port, timeout }) {
    return new Promise(resolve => {
      const socket = net.connect({ host: to, port, localAddress: from, localPort: fromPort })
      socket.on('error', () => finish(false))
      const timer = setTimeout(() => finish(false), timeout)
      const finish = answer => {
        clearTimeout(timer)
        if (answer === false) socket.destroy()
        resolve(answer)
      }
      socket.once('connect', () => finish(flows.push(socket) - 1))
    })
  },
  echo({ flow, timeout, bytes = 16 }) {
    const socket = flows[flow]
    const token = randomBytes(bytes / 2).toString('hex')
    let got = ''
    return new Promise(resolve => {
      const heard = chunk => {
        got += String(chunk)
        if (got.includes(token)) finish(true)
      }
      const timer = setTimeout(() => finish(false), timeout)
      const finish = answer => {
        clearTimeout(timer)
        socket.off('data', heard)
        resolve(answer)
      }
      socket.on('data', heard)
      socket.write(token)
    })
  },
  datagram({ from, to, port, timeout }) {
    const socket = dgram.createSocket(to.includes(':') ? 'udp6' : 'udp4')
    return new Promise(resolve => {
      const timer = setTimeout(() => finish(false), timeout)
      const finish = answer => {
        clearTimeout(timer)
        socket.close()
        resolve(answer)
      }
      socket.once('message', () => finish(true))
      socket.once('error', () => finish(false))
      // An OUTPUT drop shows as EPERM here: the answer is the same as none.
      socket.bind({ address: from }, () => socket.send('question', port, to, error => error && finish(false)))
    })
  },
}

const lines = createInterface({ input: process.stdin })
lines.on('line', async line => {
  const { id, command, ...options } = JSON.parse(line)
  let answer
  try {
    answer = { id, value: await commands[command](options) }
  } catch (error) {
    answer = { id, error: String(error) }
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`)
})
lines.on('close', () => process.exit(0))
