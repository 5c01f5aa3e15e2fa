"""Where the bytes of a file to store come from: memory, pieces of memory (a dump in an arena), or a file on disk.

file_writer.py and page_writer.py read all of them through `Opened`: whole pages at a time, without a copy where the
bytes lie in one piece.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Protocol, TypeAlias

from ijfs_engine._native import page_scan
from ijfs_engine._native.page_scan import PAGE
from ijfs_engine.errors import StorageError
from ijfs_engine.util import buffers, inode_flags
from ijfs_engine.util.descent import open_long
from ijfs_engine.write.arena import Segments

Source: TypeAlias = bytes | memoryview | Segments | Path
"""What `SnapshotWriter.add_file` and `add_images` take; a Path is a regular file, read while the call lasts."""


class Opened(Protocol):
    """A source, open for reading from several threads."""

    size: int
    flags: str
    """The chattr flags of a file on disk, by their letters."""

    def view(self, offset: int, length: int) -> memoryview:
        """These bytes; valid as long as the source is open. StorageError if they are not there."""
        ...

    def scan(self, offset: int, key: bytes, prints: bytearray, kinds: bytearray) -> memoryview:
        """`page_scan.scan_pages` over len(kinds) pages from byte `offset`; the pages that it saw.

        They are this thread's until it calls `scan` again. A file may be written to meanwhile: it is read once."""
        ...

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """(start, end) of what may differ from zeros, in order: what lies between is a hole and need not be read."""
        ...


class _Memory:
    """One piece, or several that follow one another; only a view across a border copies."""

    flags = ""

    def __init__(self, pieces: tuple[memoryview, ...]) -> None:
        self._pieces = [piece for piece in (p.cast("B") for p in pieces) if len(piece)] or [memoryview(b"")]
        ends = list(accumulate(len(piece) for piece in self._pieces))
        self._starts = [0, *ends[:-1]]
        self.size = ends[-1]

    def view(self, offset: int, length: int) -> memoryview:
        if offset + length > self.size:
            raise StorageError(f"{length} bytes were asked for at {offset} of {self.size}")
        at = bisect_right(self._starts, offset) - 1
        inside = offset - self._starts[at]
        if inside + length <= len(self._pieces[at]):
            return self._pieces[at][inside : inside + length]
        joined = memoryview(bytearray(length))
        done = 0
        while done < length:
            part = self._pieces[at][inside : inside + length - done]
            joined[done : done + len(part)] = part
            done, at, inside = done + len(part), at + 1, 0
        return joined

    def scan(self, offset: int, key: bytes, prints: bytearray, kinds: bytearray) -> memoryview:
        pages = self.view(offset, len(kinds) * PAGE)
        page_scan.scan_pages(pages, key, prints, kinds)
        return pages

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        if self.size:
            yield 0, self.size


class _File:
    """A regular file; never mapped, since a file that is cut short while it is mapped kills the reader."""

    def __init__(self, fd: int, path: Path, size: int) -> None:
        self._fd, self._path, self.size = fd, path, size
        self.flags = inode_flags.of(fd)

    def view(self, offset: int, length: int) -> memoryview:
        buffer = memoryview(bytearray(length))
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise StorageError(f"cannot read {self._path}: {error.strerror}") from error
            if got == 0:
                raise self._shrank()
            done += got
        return buffer

    def scan(self, offset: int, key: bytes, prints: bytearray, kinds: bytearray) -> memoryview:
        pages = buffers.take("pages", len(kinds) * PAGE)
        try:
            page_scan.scan_file(self._fd, offset, key, prints, kinds, pages)
        except EOFError:
            raise self._shrank() from None
        except OSError as error:
            raise StorageError(f"cannot read {self._path}: {error.strerror}") from error
        return pages

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        at = 0
        while at < self.size:
            try:
                start = os.lseek(self._fd, at, os.SEEK_DATA)
                end = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError:  # ENXIO: only a hole is left; EINVAL: no such question on this filesystem
                start, end = self._tail(at)
            end = min(end, self.size)
            if start < end:
                yield start, end
            at = max(end, at + 1) if start < self.size else self.size

    def _tail(self, at: int) -> tuple[int, int]:
        try:
            os.lseek(self._fd, 0, os.SEEK_HOLE)
        except OSError:
            return at, self.size
        return self.size, self.size

    def _shrank(self) -> StorageError:
        return StorageError(f"{self._path} became shorter while it was read", hint="save or import it again")


@contextmanager
def opened(source: Source) -> Iterator[Opened]:
    """The source, open. StorageError if a Path cannot be read or is no regular file."""
    if not isinstance(source, Path):
        yield _Memory(source if isinstance(source, Segments) else (memoryview(source),))
        return
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        fd = open_long(os.fsencode(source), flags)
    except OSError as error:
        raise StorageError(f"cannot read {source}: {error.strerror}") from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise StorageError(f"{source} is no regular file any more", hint="save or import it again")
        yield _File(fd, source, info.st_size)
    finally:
        os.close(fd)
