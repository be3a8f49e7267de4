"""A process that is easy to find in an image of memory: 16,384 pages, each stamped with a mark of this run and its own number, and
an open file. `python3 canary.py READY OPEN` opens the file OPEN, writes its pid and mark to READY, and waits; it does nothing else."""
import json
import mmap
import os
import signal
import sys

PAGE = 4096
PAGES = 16384

ready, opened = sys.argv[1:]
mark = os.urandom(16)
memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for number in range(PAGES):
    stamp = mark + number.to_bytes(4, 'little')
    memory[number * PAGE:(number + 1) * PAGE] = stamp + bytes([number % 255]) * (PAGE - len(stamp))
kept = open(opened, 'w')
with open(ready + '.part', 'w') as file:
    json.dump({'pid': os.getpid(), 'mark': mark.hex(), 'pages': PAGES}, file)
os.rename(ready + '.part', ready)
signal.pause()
