"""A pager is two processes with one table of file descriptors: a worker, and a supervisor that waits for its death.

When the kernel tells of a fork it installs the child's userfaultfd in the table of whoever reads the event. Were that
the worker's alone and the worker killed in that moment, the child's missing memory would read as zeros. Shared, the
descriptor outlives the worker, and the `FdTable` with the ledgers says what each one is. The next worker starts at once
from the supervisor's memory: no interpreter, no file of this program (which an upgrade may be replacing) is read again.
The keeper's guardian (`api`) is for the case that both die.

fork() cannot share the table, hence clone(2) by number, once, while the process has a single thread. The worker's work
is done in a thread of its own: the C library's idea of a thread id is wrong in the cloned one, and right in any other.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from ijfs.live.process import syscalls

_CLONE_FILES: Final = 0x400
_PR_SET_PDEATHSIG: Final = 1
_MAX_DEATHS: Final = 5
_DEATHS_S: Final = 10.0

_HEAD: Final = struct.Struct("<iiii")
_ROW: Final = struct.Struct("<iii")
_ROWS: Final = 5000


class FdRow(NamedTuple):
    """One address space: its number between pager and keeper, its userfaultfd and its ledger."""

    number: int
    uffd: int
    ledger: int


class FdTable:
    """Which descriptor is what, in memory that the supervisor shares with each of its workers.

    Every change is one store of a few bytes, made after a descriptor exists and before it is closed.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _HEAD.size + _ROWS * _ROW.size)
        self.rows: dict[int, int] = {}
        """Where each number's row is."""

    def set_restore(self, *, listener: int | None, criu: int | None, number: int, resumed: bool) -> None:
        """The state of the conversation with CRIU."""
        _HEAD.pack_into(self._memory, 0, (listener or -1), (criu or -1), number, int(resumed))

    @property
    def restore(self) -> tuple[int | None, int | None, int, bool]:
        listener, criu, number, resumed = _HEAD.unpack_from(self._memory)
        return (listener if listener > 0 else None, criu if criu > 0 else None, number, bool(resumed))

    def add(self, row: FdRow) -> None:
        """An address space; beyond 5000 at a time they are left to the keeper's guardian."""
        taken = set(self.rows.values())
        at = next((at for at in range(_ROWS) if at not in taken), None)
        if at is not None:
            self.rows[row.number] = at
            _ROW.pack_into(self._memory, _HEAD.size + at * _ROW.size, *row)

    def remove(self, number: int) -> None:
        at = self.rows.pop(number, None)
        if at is not None:
            _ROW.pack_into(self._memory, _HEAD.size + at * _ROW.size, 0, 0, 0)

    def load(self) -> Iterator[FdRow]:
        """What a predecessor left; from then on this worker's own."""
        self.rows.clear()
        for at in range(_ROWS):
            row = FdRow(*_ROW.unpack_from(self._memory, _HEAD.size + at * _ROW.size))
            if row.number:
                self.rows[row.number] = at
                yield row

    def descriptors(self) -> set[int]:
        listener, criu, _, _ = self.restore
        found = {fd for fd in (listener, criu) if fd is not None}
        return found.union(*({row.uffd, row.ledger} for row in self.load()))


def run(work: Callable[[bool], int], keep: set[int], fd_table: FdTable) -> int:
    """Have `work(successor)` done by a worker; put another in its place when it is killed. The exit status.

    `work` is told whether a predecessor died. Descriptors that are neither in `keep` nor in the table are closed then.
    """
    deaths: list[float] = []
    successor = False
    while True:
        worker = _clone_sharing_files()
        if worker == 0:
            _become_worker(partial(work, successor), keep | fd_table.descriptors() if successor else None)
        _, status = os.waitpid(worker, 0)
        if os.WIFEXITED(status):
            return os.WEXITSTATUS(status)
        now = time.monotonic()
        deaths = [at for at in deaths if now - at < _DEATHS_S] + [now]
        if len(deaths) > _MAX_DEATHS:
            return 1
        successor = True


def _clone_sharing_files() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    child: int = libc.syscall(syscalls.number("clone"), _CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0)
    if child < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"clone: {os.strerror(number)}")
    return child


def _become_worker(work: Callable[[], int], keep: set[int] | None) -> None:
    """Never returns. The worker dies with its supervisor: two workers would answer the same program."""
    supervisor = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:
        os._exit(1)
    if keep is not None:
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd not in keep:
                _close(fd)
    status = [70]

    def call() -> None:
        status[0] = work()

    thread = threading.Thread(target=call, name="pager")
    thread.start()
    thread.join()
    os._exit(status[0])


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:  # the one that was listing the directory
        return
