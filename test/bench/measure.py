"""Runs one program and tells what it took: python3 measure.py REQUEST, both ways JSON.

Request:  argv, limit (seconds until SIGKILL), and optionally stdin (text), tree (sample its whole family).
Answer:   started (CLOCK_MONOTONIC), wall and cpu in seconds; at (seconds since the epoch when it was started);
          peak: bytes of the largest process of its family (wait4(2): ru_maxrss, descendants that were waited for included);
          family: the most bytes that all of them held at once, PSS, so that shared pages count once; null when not sampled;
          code: exit code, negative for a signal; stderr: its end.
Its standard output is dropped. Nothing of the caller's environment reaches it.
"""
import json
import os
import signal
import sys
import tempfile
import threading
import time

EVERY = 0.1
ENVIRONMENT = {'PATH': '/usr/sbin:/usr/bin:/sbin:/bin', 'HOME': '/nonexistent', 'LC_ALL': 'C', 'TZ': 'UTC'}


def family(pid):
    """A process with all its descendants, by the parents that /proc names (proc_pid_stat(5), field 4)."""
    children = {}
    for name in os.listdir('/proc'):
        if not name.isdigit():
            continue
        try:
            with open('/proc/%s/stat' % name, 'rb') as stat:
                parent = int(stat.read().rpartition(b')')[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(name))
    found = [pid]
    for one in found:
        found.extend(children.get(one, []))
    return found


def proportional(pid):
    """Proportional set size in bytes (proc_pid_smaps(5)); 0 of what is gone."""
    try:
        with open('/proc/%d/smaps_rollup' % pid, 'rb') as rollup:
            return sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith(b'Pss:'))
    except OSError:
        return 0


class Sampler(threading.Thread):
    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid = pid
        self.most = 0
        self.ended = threading.Event()

    def run(self):
        while not self.ended.wait(EVERY):
            self.most = max(self.most, sum(proportional(pid) for pid in family(self.pid)))


def run(request):
    said = tempfile.TemporaryFile()
    given = tempfile.TemporaryFile()
    given.write(request.get('stdin', '').encode())
    given.seek(0)
    argv = request['argv']
    actions = [
        (os.POSIX_SPAWN_DUP2, given.fileno(), 0),
        (os.POSIX_SPAWN_OPEN, 1, '/dev/null', os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, said.fileno(), 2),
    ]
    at = time.time()
    started = time.monotonic()
    pid = os.posix_spawn(argv[0], argv, ENVIRONMENT, file_actions=actions)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, request['limit'])
    sampler = Sampler(pid) if request.get('tree') else None
    if sampler:
        sampler.start()
    # WNOWAIT: as long as it is not waited for, its number is nobody else's, and the alarm kills nobody else.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    wall = time.monotonic() - started
    signal.setitimer(signal.ITIMER_REAL, 0)
    _, status, usage = os.wait4(pid, 0)
    if sampler:
        sampler.ended.set()
        sampler.join()
    said.seek(0)
    return {
        'started': started,
        'at': at,
        'wall': wall,
        'cpu': usage.ru_utime + usage.ru_stime,
        'peak': usage.ru_maxrss * 1024,
        'family': sampler.most if sampler else None,
        'code': -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status),
        'stderr': said.read()[-2000:].decode('utf-8', 'replace'),
    }


print(json.dumps(run(json.loads(sys.argv[1]))))
