"""Small files of an export that nobody looks at before it is done: made many in one call, by several threads.

Made by export.py. 50,000 files took 1.5 s of processor one by one, half of it the interpreter's.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ijfs_engine._native.small_files import write_files
from ijfs_engine.format.chunk_codec import Plain
from ijfs_engine.format.records import Entry
from ijfs_engine.read.inode_numbers import InodeNumbers
from ijfs_engine.read.writing import writing
from ijfs_engine.util.pipeline import Pipeline

if TYPE_CHECKING:
    from concurrent.futures import Future

# Directories that are held open for what is still to be written into them.
_MOST_OPEN: Final = 64


Small = tuple[Entry, Plain, int]
"""A file, its bytes, the inode number that it is to have (0: any)."""


class SmallFiles:
    """Files on their way. `owners`: they get their owner and group, and all bits of their mode."""

    def __init__(self, pipeline: Pipeline, numbers: InodeNumbers | None, *, owners: bool) -> None:
        self._pipeline = pipeline
        self._numbers = numbers
        self._owners = owners
        self._mode = 0o7777 if owners else 0o1777
        self._under_way: deque[tuple[int, Future[None]]] = deque()

    def add(self, directory: int, shown: str, files: Sequence[Small]) -> None:
        """Begin files in a directory, whose path is `shown`. StorageError and CorruptError of earlier ones."""
        while len(self._under_way) >= _MOST_OPEN:
            self._end_oldest()
        own = os.dup(directory)
        try:
            self._under_way.append((own, self._pipeline.submit(self.write, own, shown, files)))
        except BaseException:
            os.close(own)
            raise

    def finish(self) -> None:
        """All of them are there. StorageError, CorruptError."""
        while self._under_way:
            self._end_oldest()

    def close(self) -> None:
        """Let go, after the pipeline has ended."""
        while self._under_way:
            os.close(self._under_way.popleft()[0])

    def _end_oldest(self) -> None:
        self._under_way[0][1].result()
        os.close(self._under_way.popleft()[0])

    def write(self, directory: int, shown: str, files: Sequence[Small]) -> None:
        """Make files at once. StorageError, CorruptError."""
        name = b""

        def path() -> str:
            return os.path.join(shown, os.fsdecode(name))

        with writing(path):
            rows = [
                (entry.name, plain, entry.mode & self._mode, entry.uid, entry.gid, entry.mtime_ns, number)
                for entry, plain, number in files
            ]
            try:
                self._made(directory, rows)
            except OSError as error:
                name = error.filename
                raise

    def _made(self, directory: int, rows: Sequence[tuple[bytes, Plain, int, int, int, int, int]]) -> None:
        if self._numbers is None:
            write_files(directory, rows, self._owners)
            return
        with self._numbers.turn:
            write_files(directory, rows, self._owners, self._numbers.goal)


def is_one(entry: Entry) -> bool:
    """Whether a file can be made so: it has one name, and no attributes."""
    return entry.kind == "f" and not entry.link and not entry.xattrs
