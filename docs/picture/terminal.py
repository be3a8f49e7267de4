"""Types one command at a shell on a terminal of its own and writes all that the terminal got to standard output.

python3 terminal.py COLUMNS ROWS PROMPT SECONDS COMMAND: it is over when the prompt comes back. Exit code: that of the command.
"""
import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time

columns, rows, limit = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[4])
prompt, command = sys.argv[3], sys.argv[5]
until = time.monotonic() + limit

pid, terminal = pty.fork()
if pid == 0:
    # -i: it prompts. Nothing else of whoever runs this reaches the shell.
    environment = {'PATH': '/opt/ir/bin:/usr/sbin:/usr/bin:/sbin:/bin', 'HOME': '/root', 'TERM': 'xterm-256color', 'PS1': prompt, 'LANG': 'C.UTF-8'}
    os.execve('/bin/sh', ['sh', '-i'], environment)
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))


def read_until_prompt():
    """All that comes until the prompt stands at the end."""
    got = b''
    while not got.endswith(prompt.encode()):
        left = until - time.monotonic()
        if left <= 0 or not select.select([terminal], [], [], left)[0]:
            sys.exit('the prompt did not come back')
        got += os.read(terminal, 65536)
    return got


got = read_until_prompt()
os.write(terminal, command.encode() + b'\r')
got += read_until_prompt()
os.write(terminal, b'exit $?\r')
_, status = os.waitpid(pid, 0)
sys.stdout.buffer.write(got)
sys.exit(os.waitstatus_to_exitcode(status))
