"""A walk through a directory tree by descriptors: never through a symbolic link, however long the paths become.

Export, import and a restored workspace go this way. One descriptor is open at a time: the way back up is `..`, and it
is taken only if it leads to the directory that the walk came from.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

# What the kernel takes in one piece (PATH_MAX), less a margin for one more name.
_LONGEST_PATH: Final = 3_800
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_directory(name: bytes, above: int) -> int:
    """A directory's descriptor by its name in another. OSError: NotADirectoryError for a symbolic link."""
    return os.open(name, _DIRECTORY, dir_fd=above)


def open_long(path: bytes, flags: int) -> int:
    """`os.open` of a path that may be longer than the system takes in one piece. OSError."""
    if len(path) <= _LONGEST_PATH:
        return os.open(path, flags)
    here = os.open(b"/" if path.startswith(b"/") else b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *above, last = _pieces(path)
        for piece in above:
            left, here = here, os.open(piece, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
            os.close(left)
        return os.open(last, flags, dir_fd=here)
    finally:
        os.close(here)


def _pieces(path: bytes) -> list[bytes]:
    """A path in relative pieces that are short enough."""
    pieces = [b""]
    for name in filter(None, path.split(b"/")):
        if len(pieces[-1]) + len(name) > _LONGEST_PATH:
            pieces.append(b"")
        pieces[-1] += (b"/" if pieces[-1] else b"") + name
    return pieces


def by_descriptor(directory: int, name: bytes) -> bytes:
    """A path for system calls that take no descriptor of a directory. Whether a symbolic link at `name` is followed
    is up to the system call."""
    return b"/proc/self/fd/%d/%b" % (directory, name)


class Descent:
    """Where a walk is. A context manager; it closes what it opened, and not the descriptor that it began with."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._above: list[tuple[int, int]] = []
        self.here = top
        """The descriptor of the directory that the walk is in."""
        self.names: list[bytes] = []
        """The names from the top to here."""

    def enter(self, name: bytes) -> None:
        """Go down. OSError if there is no directory of that name, or if it is no name."""
        if b"/" in name or name in (b"", b".", b".."):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        below = open_directory(name, self.here)
        self._above.append(_identity(self.here))
        self.names.append(name)
        self._go(below)

    def leave(self, last: Callable[[int], None] | None = None) -> None:
        """Go up; `last` is called with the descriptor of what is left, when it may take away the right to search it."""
        above = os.open(b"..", _DIRECTORY, dir_fd=self.here)
        try:
            if _identity(above) != self._above[-1]:
                raise OSError(errno.ESTALE, "the directory was moved meanwhile")
            if last is not None:
                last(self.here)
        except BaseException:
            os.close(above)
            raise
        self._above.pop()
        self.names.pop()
        self._go(above)

    def path(self, name: bytes = b"") -> bytes:
        """The way from the top to here, or to something here: for a person."""
        return b"/".join([*self.names, name] if name else self.names)

    def close(self) -> None:
        """Let go of the directory that the walk is in; it is at the top again. Safe to call twice."""
        self._above.clear()
        self.names.clear()
        self._go(self._top)

    def __enter__(self) -> Descent:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _go(self, to: int) -> None:
        left, self.here = self.here, to
        if left not in (self._top, to):
            os.close(left)


def descend(top: int, names: Sequence[bytes]) -> int:
    """A descriptor of the directory that these names lead to from `top`; of `top` itself, a duplicate. OSError."""
    here = os.dup(top)
    try:
        for name in names:
            left, here = here, open_directory(name, here)
            os.close(left)
    except BaseException:
        os.close(here)
        raise
    return here


def _identity(directory: int) -> tuple[int, int]:
    info = os.fstat(directory)
    return info.st_dev, info.st_ino
