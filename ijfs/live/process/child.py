"""Processes with the part of Popen's interface that a pager's owner uses: a forked child, one that another forked; and
a name for them in `ps`."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import NoReturn


class ForkedChild:
    """A child of this process. Thread-safe; only a process with a single thread may make one."""

    def __init__(self, run: Callable[[], int], keep: Collection[int]) -> None:
        """Fork; the child leads a session of its own, closes all descriptors but 0, 1, 2 and `keep`, and ends with
        what `run` returns."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(run, keep)
        self._pidfd = os.pidfd_open(self.pid)
        self._status: int | None = None
        self._guard = threading.Lock()

    def poll(self) -> int | None:
        """The exit status (negative: the signal), None while it runs."""
        with self._guard:
            if self._status is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self._status = os.waitstatus_to_exitcode(status)
            return self._status

    def wait(self) -> int:
        """Block until it has ended."""
        while (status := self.poll()) is None:
            _has_ended(self._pidfd, None)
        return status

    def kill(self) -> None:
        """SIGKILL, where it still runs."""
        with self._guard:
            if self._status is None:
                os.kill(self.pid, signal.SIGKILL)

    def __del__(self) -> None:
        # Not when the end is seen: another thread may be waiting at the number, which would soon be something else's.
        with suppress(AttributeError):
            os.close(self._pidfd)


class UnrelatedProcess:
    """The same for a process that is no child of this one. How it ended is not known: its status is -SIGKILL."""

    def __init__(self, pid: int) -> None:
        """OSError where it is gone already."""
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return -signal.SIGKILL if _has_ended(self._pidfd, 0) else None

    def wait(self) -> int:
        _has_ended(self._pidfd, None)
        return -signal.SIGKILL

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def __del__(self) -> None:
        with suppress(AttributeError):
            os.close(self._pidfd)


def _has_ended(pidfd: int, timeout_ms: int | None) -> bool:
    """Wait for the end of a process. By poll(2): select(2) takes no number above 1023."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_ms))


def _become(run: Callable[[], int], keep: Collection[int]) -> NoReturn:
    status = 70
    try:
        os.setsid()
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd not in keep:
                with suppress(OSError):  # the one that was listing the directory
                    os.close(fd)
        status = run()
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stderr.flush()
        os._exit(status)


def name_process(title: str) -> None:
    """What `ps` and `top` show for this process instead of what it was started as, as far as that has room."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(title.split()[0])
    with suppress(OSError, IndexError, ValueError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: proc(5), counted from the state
        ctypes.memmove(start, os.fsencode(title)[: end - start - 1].ljust(end - start, b"\0"), end - start)
