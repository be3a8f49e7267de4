"""A FUSE file system with one program on it, run from there by a child; then its server falls silent.

Started under `unshare --mount`; takes an empty directory. Prints the child's process id and answers no request any more,
without closing anything: whoever asks waits, as for a network disk behind a cut. Ends, and frees them, with its input.
"""
import ctypes, errno, glob, os, select, struct, sys

root = sys.argv[1]
content = open('/usr/bin/sleep', 'rb').read()
fuse = os.open('/dev/fuse', os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f'fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other'.encode()
if libc.mount(b'silent', root.encode(), b'fuse', 0, options) != 0:
    sys.exit(f'mount: {os.strerror(ctypes.get_errno())}')


def attributes(node):
    mode, size = (0o40755, 0) if node == 1 else (0o100755, len(content))
    return struct.pack('<6Q3I7I', node, size, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(opcode, node, body):
    if opcode == 26:  # INIT
        return struct.pack('<IIIIHHIIHHI7I', 7, 31, 65536, 0, 16, 12, 65536, 1, 0, 0, 0, *[0] * 7)
    if opcode == 1:  # LOOKUP
        if body.rstrip(b'\0') != b'program':
            return errno.ENOENT
        return struct.pack('<4Q2I', 2, 0, 0, 0, 0, 0) + attributes(2)
    if opcode == 3:  # GETATTR, valid for no time: every stat asks again
        return struct.pack('<QII', 0, 0, 0) + attributes(node)
    if opcode in (14, 27):  # OPEN, OPENDIR
        return struct.pack('<QII', 0, 0, 0)
    if opcode == 15:  # READ
        offset, size = struct.unpack_from('<QI', body, 8)
        return content[offset:offset + size]
    if opcode in (18, 25, 29, 34):  # RELEASE, FLUSH, RELEASEDIR, ACCESS
        return b''
    return errno.ENOSYS


if os.fork() == 0:
    # The server must answer while a process becomes the program.
    os.execv(f'{root}/program', ['program', '300'])

running = None
while running is None:
    ready, _, _ = select.select([fuse], [], [], 0.2)
    if ready:
        request = os.read(fuse, 1 << 18)
        _, opcode, unique, node = struct.unpack_from('<IIQQ', request)
        if opcode not in (2, 42, 36):  # FORGET, BATCH_FORGET, INTERRUPT want no answer
            reply = answer(opcode, node, request[40:])
            code, data = (-reply, b'') if isinstance(reply, int) else (0, reply)
            os.write(fuse, struct.pack('<IiQ', 16 + len(data), code, unique) + data)
        continue
    for link in glob.glob('/proc/[0-9]*/exe'):
        try:
            if os.readlink(link) == f'{root}/program':
                running = int(link.split('/')[2])
        except OSError:
            pass
print(running, flush=True)
sys.stdin.read()
os.kill(running, 9)
