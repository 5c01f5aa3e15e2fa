"""Lock files: a flock on a file of one's own says "I live" in a way that no crash can leave behind.

Sessions, pins, packs being written and gc use them; docs/concurrency.md names each. The kernel drops a flock when the
last descriptor of that open goes, so a holder that is killed vanishes by itself. Descriptors are close-on-exec; a
holder must not fork children that outlive it without exec.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ijfs_engine.errors import LockedError
from ijfs_engine.storage import disk

# What `LockFile.create` calls its files: nothing else in their directory is looked at, and nothing else removed.
_NAME: Final = re.compile(r"\d{1,10}-[0-9a-f]{12}", re.ASCII)
# For reading: where the repository can only be read, a lock can be looked at all the same.
_LOOK: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LONGEST: Final = 1 << 16


class LockFile:
    """A file that this process holds by an exclusive flock, and removes when it lets go."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self.path = path

    @classmethod
    def create(cls, directory: Path) -> LockFile:
        """A new one with a name of its own; those of the dead are cleared away. OSError passes through."""
        clear_dead(directory)
        while True:
            path = directory / f"{os.getpid()}-{os.urandom(6).hex()}"
            made = cls(disk.create(path), path)
            try:
                fcntl.flock(made._fd, fcntl.LOCK_EX)
                # gc may have taken the file for a dead one's between the create and the flock, and removed it.
                if os.fstat(made._fd).st_nlink:
                    return made
            except BaseException:
                made.close()
                raise
            made.close()

    def write(self, data: bytes) -> None:
        """Replace the content (not durable: it has no meaning without its holder)."""
        os.ftruncate(self._fd, 0)
        disk.write(self._fd, self.path, data, 0)

    def close(self) -> None:
        """Remove the file and let go; safe to call twice."""
        if self._fd < 0:
            return
        # First forgotten, then closed: Ctrl-C comes out of the close when the number is free for others already.
        fd, self._fd = self._fd, -1
        try:
            with contextlib.suppress(OSError):
                disk.unlink(self.path)
        finally:
            os.close(fd)


def try_take(path: Path) -> int | None:
    """The file's descriptor with an exclusive flock on it, or None while its holder lives or it is gone. OSError."""
    try:
        fd = os.open(path, _LOOK)
    except FileNotFoundError:
        return None
    # Its holder may have removed it meanwhile, and another one may have made one of the same name.
    if _lock(fd, fcntl.LOCK_EX) and os.fstat(fd).st_nlink:
        return fd
    os.close(fd)
    return None


def is_free(path: Path) -> bool:
    """Whether a file is there that nobody holds. OSError."""
    fd = try_take(path)
    if fd is None:
        return False
    os.close(fd)
    return True


def live_files(directory: Path) -> list[tuple[Path, bytes]]:
    """The lock files whose holders live, with their content. Changes nothing. OSError."""
    found: list[tuple[Path, bytes]] = []
    for name, fd in _lock_files(directory):
        # Shared, so that two who look do not take each other for holders.
        if not _lock(fd, fcntl.LOCK_SH) and os.fstat(fd).st_nlink:
            found.append((directory / name, os.pread(fd, _LONGEST, 0)))
    return found


def clear_dead(directory: Path) -> None:
    """Remove the lock files whose holders died. OSError."""
    for name, fd in _lock_files(directory):
        if _lock(fd, fcntl.LOCK_EX):
            with disk.if_writable():
                disk.unlink(directory / name)


def _lock_files(directory: Path) -> Iterator[tuple[str, int]]:
    """Name and descriptor, open for the moment, of each file that `LockFile` may have made; others are not touched."""
    where = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name in sorted(filter(_NAME.fullmatch, os.listdir(where))):
            try:
                fd = os.open(name, _LOOK, dir_fd=where)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                    continue  # gone meanwhile; or a symbolic link, a socket: nothing of ours
                raise
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    yield name, fd
            finally:
                os.close(fd)
    finally:
        os.close(where)


def _lock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def exclusive(path: Path, what: str, *, looking: bool = False) -> Iterator[None]:
    """Hold a named lock for the block; LockedError if another process (or thread) holds it.

    On a read-only repository the lock file may not be there; the caller then runs without the lock, because it can only
    read. Who is only `looking` writes nothing, and does not make it either.
    """
    fd = -1
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError), disk.if_writable():
        fd = os.open(path, flags if looking else flags | os.O_CREAT, 0o600)
    if fd < 0:
        yield
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{what} is already running", hint="wait until it ends, then try again") from None
        yield
    finally:
        os.close(fd)
