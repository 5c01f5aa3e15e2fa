"""Lock files: a flock on a file of one's own says "I live" in a way that no crash can leave behind.

Sessions, pins, packs being written and gc use them; docs/concurrency.md names each. The kernel drops a flock when the
last descriptor of that open goes, so a holder that is killed vanishes by itself. Descriptors are close-on-exec; a
holder must not fork children that outlive it without exec.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ijfs_engine.errors import LockedError
from ijfs_engine.storage import disk


class LockFile:
    """A file that this process holds by an exclusive flock, and removes when it lets go."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self.path = path

    @classmethod
    def create(cls, directory: Path) -> LockFile:
        """A new one with a name of its own. OSError passes through."""
        while True:
            path = directory / f"{os.getpid()}-{os.urandom(6).hex()}"
            fd = disk.create(path)
            fcntl.flock(fd, fcntl.LOCK_EX)
            # gc may have taken the file for a dead one's between the create and the flock, and removed it.
            if os.fstat(fd).st_nlink:
                return cls(fd, path)
            os.close(fd)

    def write(self, data: bytes) -> None:
        """Replace the content (not durable: it has no meaning without its holder)."""
        os.ftruncate(self._fd, 0)
        disk.write(self._fd, self.path, data, 0)

    def close(self) -> None:
        """Remove the file and let go; safe to call twice."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                disk.unlink(self.path)
            os.close(self._fd)
            self._fd = -1


def try_take(path: Path) -> int | None:
    """The file's descriptor with an exclusive flock on it, or None while its holder lives or it is gone. OSError."""
    try:
        # For reading: where the repository can only be read, a lock can be looked at all the same.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def live_files(directory: Path) -> Iterator[tuple[Path, bytes]]:
    """The lock files whose holders live, with their content. Those of dead holders are removed if possible."""
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            continue  # nothing of ours
        fd = try_take(path)
        if fd is not None:
            with disk.if_writable():
                disk.unlink(path)
            os.close(fd)
            continue
        with contextlib.suppress(FileNotFoundError):
            yield path, path.read_bytes()


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a named lock for the block; LockedError if another process (or thread) holds it.

    On a read-only repository the lock file cannot be opened; the caller then runs without the lock, because it can only
    read.
    """
    fd = -1
    with disk.if_writable():
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
