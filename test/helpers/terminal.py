"""Runs a program on a pseudo-terminal and answers its questions.

usage: terminal.py QUESTION=ANSWER ... -- PROGRAM [ARG ...]
Each answer is typed once, when its question has appeared. Prints what the terminal showed; exits as the program did.
"""

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time

split = sys.argv.index("--")
answers = [pair.split("=", 1) for pair in sys.argv[1:split]]
program = sys.argv[split + 1 :]

pid, terminal = pty.fork()
if pid == 0:
    # 30 rows of 110 columns: tty_ioctl(4), TIOCSWINSZ.
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 110, 0, 0))
    os.execv(program[0], program)

shown = b""
since = 0
deadline = time.monotonic() + 120
while time.monotonic() < deadline:
    ready, _, _ = select.select([terminal], [], [], 0.2)
    if ready:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    if answers and answers[0][0].encode() in shown[since:]:
        since = len(shown)
        # 'hangup' as an answer closes the terminal, as a lost SSH session does.
        if answers[0][1] == "hangup":
            os.close(terminal)
            _, status = os.waitpid(pid, 0)
            sys.stdout.buffer.write(shown)
            sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
        os.write(terminal, answers.pop(0)[1].encode() + b"\r")

_, status = os.waitpid(pid, 0)
sys.stdout.buffer.write(shown)
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
