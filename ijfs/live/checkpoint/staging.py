"""Copies of files, on disk, until a save is stored: of what is too large for memory, or may change meanwhile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ijfs_engine.errors import StorageError


class Staging:
    """A directory for such copies, made with the first."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._copies = 0

    def copy(self, fd: int, size: int) -> Path:
        """A copy of an open file, holes kept. OSError, StorageError."""
        self._directory.mkdir(exist_ok=True)
        self._copies += 1
        path = self._directory / str(self._copies)
        out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(out, size)
            for start, end in _data_ranges(fd, size):
                _copy_range(fd, out, start, end)
        finally:
            os.close(out)
        return path

    def discard(self) -> None:
        """Remove them."""
        if self._copies:
            shutil.rmtree(self._directory, ignore_errors=True)


def _data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole from here
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    os.lseek(source, start, os.SEEK_SET)
    os.lseek(target, start, os.SEEK_SET)
    while start < end:
        count = os.copy_file_range(source, target, end - start)
        if count == 0:
            raise StorageError("a file became shorter while it was read")
        start += count
