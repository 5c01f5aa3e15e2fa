"""`keeper.lock`: one process at a time makes an instance, keeps it, or takes it away (flock).

A client takes it before it touches the instance's directory, and hands the locked descriptor to the keeper that it has
forked (process/fork_request.py): so there is no moment at which another client finds the name free. The keeper has it
for as long as it lives. Taken by client/claim.py and client/instances.py, and by who sweeps up what killed processes
left (sandbox/cleanup.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from types import TracebackType

from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import Process
from ijfs.live.process import procfs
from ijfs_engine.errors import IjfsError

KEEPER_END_S = 5.0
"""A keeper unmounts and writes its record within some 10 ms of the program's end; a busy machine gets more."""

PROBE_S = 0.5
"""Who only looks whether it is taken (`is_kept`) has it for some µs: another try after that finds it free."""

_PAUSE_S = 0.02


class KeeperLock:
    """The lock of one instance, held by this process, and by whom it was handed to, until all have closed it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def take(cls, paths: InstancePaths) -> KeeperLock | None:
        """Take it; None where another has it, or where there is no such directory (any more). OSError."""
        try:
            fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(paths.lock)):  # not one that was swept away meanwhile
                return cls(fd)
        except (BlockingIOError, FileNotFoundError, NotADirectoryError):
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    @classmethod
    def take_soon(cls, paths: InstancePaths) -> KeeperLock | None:
        """Take it; who is only looking is waited for."""
        deadline = time.monotonic() + PROBE_S
        while (lock := cls.take(paths)) is None and paths.root.is_dir() and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        return lock

    def fileno(self) -> int:
        """The locked descriptor, to hand over."""
        return self._fd

    @property
    def is_held(self) -> bool:
        """Whether this process has not let go of it."""
        return self._fd >= 0

    def close(self) -> None:
        """Let go of it in this process."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> KeeperLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def keeper_ended(paths: InstancePaths, process: Process | None = None) -> bool:
    """Whether no keeper holds the instance; that of a program which has just ended gets a moment to clean up, and as
    long as it takes to store what was saved. `process`: that one has to be gone too, its mounts with it."""
    deadline = time.monotonic() + KEEPER_END_S
    if not paths.root.exists():
        return True
    while is_kept(paths):
        if time.monotonic() > deadline and not is_saving(paths):
            return False
        time.sleep(_PAUSE_S)
    while procfs.is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.005)
    return True


def is_kept(paths: InstancePaths) -> bool:
    """Whether somebody holds the instance now. Changes nothing: a lock that is not there is held by nobody. Who looks
    at the same time sees no lock in the other's look."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), paths.lock.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def is_saving(paths: InstancePaths) -> bool:
    """Whether a keeper is storing what was saved of it."""
    with contextlib.suppress(IjfsError):
        record = read_record(paths)
        return record.saving > 0 and procfs.is_alive(record.keeper)
    return False


def is_ending(paths: InstancePaths) -> bool:
    """Whether the keeper of a program that has ended still cleans up, or stores what was saved."""
    with contextlib.suppress(IjfsError):
        record = read_record(paths)
        return procfs.is_alive(record.keeper) and not procfs.is_alive(record.program)
    return False
