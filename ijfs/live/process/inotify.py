"""The kernel's notices of what changes in directories (inotify), by file descriptor. Called by client/watch.py."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MODIFY: Final = 0x2
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200

_ONLYDIR: Final = 0x01000000
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_EVENT = struct.Struct("iIII")
_READ = 64 << 10


class Inotify:
    """A set of watched directories; a context manager. `fileno` is readable when something has changed."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._checked(self._libc.inotify_init1(_NONBLOCK | _CLOEXEC))
        self._paths: dict[int, Path] = {}

    def fileno(self) -> int:
        """For a selector."""
        return self._fd

    def watch(self, directory: Path, what: int) -> None:
        """Hear of these changes in a directory. OSError where there is none."""
        number = self._checked(self._libc.inotify_add_watch(self._fd, os.fsencode(directory), what | _ONLYDIR))
        self._paths[number] = directory

    def changes(self) -> Iterator[tuple[Path, str]]:
        """The directory and the name of everything that has changed since; nothing where nothing has."""
        try:
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            number, _, _, length = _EVENT.unpack_from(data, at)
            name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            at += _EVENT.size + length
            if number in self._paths:  # -1: more happened than the kernel keeps; the next change is heard again
                yield self._paths[number], os.fsdecode(name)

    def close(self) -> None:
        """Hear nothing more."""
        os.close(self._fd)

    def _checked(self, result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result
