"""Which thread each POSIX timer of a program notifies, by the numbers inside; seen by checkpoint/freeze.py at a save.

CRIU cannot tell (criu/restart_calls.c), and a restore needs it (criu/posix_timers.py). Read while the program stands
still: one small file of each process.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

# proc_pid_timers(5): blocks of lines, of which the first is the timer's number.
_TIMER = re.compile(r"ID: (\d+)\n.*\nnotify: \w+/tid\.(\d+)\n")

NotifiedThread = tuple[int, int, int]
"""(process, timer, thread), as numbered inside."""


def notified_threads(pids: Iterable[int]) -> Iterator[NotifiedThread]:
    """Every timer of these processes that notifies a thread."""
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            for timer, thread in _TIMER.findall(Path(f"/proc/{pid}/timers").read_text()):
                yield _inside(pid, pid), int(timer), _inside(pid, int(thread))


def _inside(pid: int, thread: int) -> int:
    status = Path(f"/proc/{pid}/task/{thread}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1])
