"""Files that another process has open, read without opening them anew.

Opening is no mere look: it breaks a write lease (F_SETLEASE), whose holder is told so by SIGIO, which ends who does not
listen; and while the holder stands still, the open waits for it (45 s, /proc/sys/fs/lease-break-time). Called by
checks/blockers.py and checkpoint/workspace.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ijfs.live.process import syscalls

FileId = tuple[int, int]
"""Device and inode."""

Leases = dict[FileId, tuple[int, int]]
"""Files with a write lease: (pid, descriptor) of its holder."""


def borrowed(pid: int, fd: int) -> int:
    """A descriptor of what process `pid` has open as `fd`, with the same position: read it by pread(2). The caller
    closes it. OSError where there is no such process or descriptor."""
    pidfd = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        found: int = libc.syscall(ctypes.c_long(syscalls.number("pidfd_getfd")), pidfd, fd, 0)
        if found < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return found
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def opened(path: bytes, holder: tuple[int, int] | None, directory: int) -> Iterator[int]:
    """A descriptor to read a regular file by, in a directory that is open: opened, or borrowed of who has a write lease
    on it and stands still; the position is there afterwards where it was."""
    if holder is None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
        at = 0
    else:
        fd = borrowed(*holder)
        at = os.lseek(fd, 0, os.SEEK_CUR)
        os.lseek(fd, 0, os.SEEK_SET)
    try:
        yield fd
    finally:
        if holder is not None:
            os.lseek(fd, at, os.SEEK_SET)
        os.close(fd)


def leased_for_writing(pids: Sequence[int]) -> Leases:
    """Files on which one of these processes has a write lease. Empty, and cheap, where nobody has one."""
    if b" LEASE " not in Path("/proc/locks").read_bytes():
        return {}
    found: Leases = {}
    for pid in pids:
        for fd in _descriptors(pid):
            with contextlib.suppress(OSError):
                if _has_write_lease(Path(f"/proc/{pid}/fdinfo/{fd}").read_text()):
                    status = os.stat(f"/proc/{pid}/fd/{fd}")
                    found[status.st_dev, status.st_ino] = (pid, fd)
    return found


def locked_files(pids: Sequence[int]) -> Iterator[str]:
    """Paths, as the programs see them, of files on which one of these processes has a lock (flock or fcntl)."""
    for pid in pids:
        for fd in _descriptors(pid):
            with contextlib.suppress(OSError):
                if "\nlock:" in Path(f"/proc/{pid}/fdinfo/{fd}").read_text():
                    yield os.readlink(f"/proc/{pid}/fd/{fd}")


def _descriptors(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from map(int, os.listdir(f"/proc/{pid}/fd"))


def _has_write_lease(fdinfo: str) -> bool:
    """By lines such as `lock: 1: LEASE  ACTIVE    WRITE 4711 fe:00:1234 0 EOF` (proc(5))."""
    return any(line.startswith("lock:") and " LEASE " in line and " WRITE " in line for line in fdinfo.splitlines())
