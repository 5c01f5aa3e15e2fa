"""Memory that is faulted in before a dump, handed out to the files of the dump as they grow.

The first touch of fresh memory is the limit while a program is frozen (0.2–2.4 GB/s in 4 KiB pages, against 3.5–8 for
a copy): so the keeper calls `prefault` while the program still runs, and a dump's files then only copy.
`ijfs.live.criu.image_stream` and `ijfs.live.checkpoint.workspace` write here; the ingest reads the files as `Segments`,
without another copy.

An arena may be bounded. What does not fit goes into a file on disk that is mapped behind the memory: writers and
readers see no difference but the time it takes, and the kernel writes it out when it needs the memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import threading
import weakref
from pathlib import Path
from typing import Final

from ijfs_engine.errors import StorageError

# linux/mman.h; Linux 5.14 and later. Python 3.11 names neither.
_MADV_POPULATE_WRITE: Final = 23
_MAP_NORESERVE: Final = 0x4000
_MADV_FREE: Final = 8
# A file takes its first piece of this size, each next one as large as the file then is, up to the largest: a thousand
# threads are a thousand images of 1 KiB, and a pages file has a few hundred pieces at most. With first pieces of 64 KiB
# and more, the images of 600 threads were 600 MiB, and the pause 3.7 s of first touches instead of 0.35.
_FIRST_PIECE: Final = 4 << 10
_LARGEST_PIECE: Final = 8 << 20
# Pieces smaller than a page begin at multiples of this, a line of the processor's cache; larger ones at a page.
_ALIGNMENT: Final = 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class ArenaFullError(StorageError):
    """A dump grew past the arena."""

    default_hint = "the program has more memory than was measured before the save; try the save again"


class Segments(tuple[memoryview, ...]):
    """The bytes of one file as pieces of memory that follow one another; nothing is copied.

    They stay valid until their arena is reset.
    """

    __slots__ = ()

    @property
    def nbytes(self) -> int:
        """Bytes in all."""
        return sum(piece.nbytes for piece in self)


class Arena:
    """`capacity` bytes of address space, rounded up to pages; memory is taken when touched or by `prefault`.

    With `spill`, a directory, as many bytes again may lie in a file there: what is taken when `limit` bytes of memory
    are given away (all of them, unless `reset` says less). One thread at a time may write to one file; different files
    may grow from different threads.
    """

    def __init__(self, capacity: int, *, spill: Path | None = None) -> None:
        self.capacity = _whole_pages(max(capacity, 1))
        # NORESERVE: the address space is a limit, not a promise; pages count when they are touched.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._map = mmap.mmap(-1, self.capacity, flags=flags)
        except OSError as error:
            raise StorageError(f"no address space for an arena of {capacity} bytes: {error}") from error
        with contextlib.suppress(OSError):
            # A huge page is one fault instead of 512.
            self._map.madvise(mmap.MADV_HUGEPAGE)
            # A child would share the pages, and each next write here would copy one.
            self._map.madvise(mmap.MADV_DONTFORK)
        self._memory = memoryview(self._map)
        self._spill: _Spill | None = None
        self._spill_place = spill
        # Where pieces of the file begin: not next to the memory, or the last and the first would look like one.
        self._behind = self.capacity + mmap.PAGESIZE
        self._lock = threading.Lock()
        self._limit = self.capacity
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes of memory handed out to files, the room they have left included."""
        return self._used

    @property
    def limit(self) -> int:
        """Bytes of memory that may be handed out."""
        return self._limit

    @property
    def spilled(self) -> int:
        """Bytes that lie on disk, because they were more than the memory."""
        return self._spill.used if self._spill is not None else 0

    def prefault(self, length: int) -> None:
        """Fault in the first `length` bytes (those that are next handed out first). Blocks, without the GIL.

        StorageError where the machine has not so much memory.
        """
        code = self._advise(min(_whole_pages(length), self._limit), _MADV_POPULATE_WRITE)
        if code not in (0, errno.EINVAL):  # before Linux 5.14: pages are then faulted in as the dump touches them
            raise StorageError(f"cannot get {length} bytes of memory for a dump: {os.strerror(code)}")

    def rest(self) -> None:
        """Nobody needs what is in it any more: the kernel may take the memory when it is short of it. What it leaves
        is there, faulted in, for the next dump."""
        self.reset()
        self._advise(self.capacity, _MADV_FREE)

    def _advise(self, length: int, advice: int) -> int:
        """madvise(2) for the first `length` bytes; errno, or 0."""
        if length <= 0:
            return 0
        first = ctypes.c_char.from_buffer(self._map)
        try:
            result = _libc.madvise(ctypes.addressof(first), length, advice)
        finally:
            del first
        return ctypes.get_errno() if result != 0 else 0

    def new_file(self, expected: int = 0) -> ArenaFile:
        """An empty file. Of one that will have `expected` bytes, no more than those are set aside."""
        return ArenaFile(self, expected)

    def reset(self, *, limit: int | None = None, spill: Path | None = None) -> None:
        """Hand out everything anew, at most `limit` bytes of memory. Files and Segments of before must not be used any
        more: they would show the bytes of the next dump. The memory stays faulted in."""
        with self._lock:
            self._used = 0
            self._limit = min(_whole_pages(limit), self.capacity) if limit is not None else self.capacity
            self._spill = None
            self._spill_place = spill

    def _take(self, want: int) -> tuple[int, int]:
        """`want` bytes, or what is left of them in one piece: (start, end), for `_view`."""
        alignment = _ALIGNMENT if want < mmap.PAGESIZE else mmap.PAGESIZE
        want = _rounded(want, alignment)
        with self._lock:
            start = _rounded(self._used, alignment)
            end = min(start + want, self._limit)
            if end > start:
                self._used = end
                return start, end
            if self._spill_place is None:
                raise ArenaFullError(f"a dump needs more than the {self._limit} bytes set aside for it")
            if self._spill is None:
                self._spill = _Spill(self._spill_place, self.capacity)
            start, end = self._spill.take(want)
            return self._behind + start, self._behind + end

    def _view(self, start: int, end: int) -> memoryview:
        """The bytes of a piece, or of a part of it."""
        if start < self._behind:
            return self._memory[start:end]
        assert self._spill is not None
        return self._spill.memory[start - self._behind : end - self._behind]


class _Spill:
    """The part of an arena that is a file without a name, mapped. The file is gone with the last view of it."""

    def __init__(self, directory: Path, capacity: int) -> None:
        self.used = 0
        self._capacity = capacity
        try:
            self._fd = os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            weakref.finalize(self, os.close, self._fd)
            os.ftruncate(self._fd, capacity)
            self.memory = memoryview(mmap.mmap(self._fd, capacity))
        except OSError as error:
            raise StorageError(f"no room on disk for what does not fit into memory: {error.strerror}") from error

    def take(self, want: int) -> tuple[int, int]:
        """The next bytes, which the disk has promised: without that, a full disk would be a signal at some write."""
        start = self.used
        end = min(start + want, self._capacity)
        if end == start:
            raise ArenaFullError(f"a dump needs more than the {self._capacity} bytes beyond its memory")
        try:
            os.posix_fallocate(self._fd, start, end - start)
        except OSError as error:
            raise StorageError(f"no room on disk for what does not fit into memory: {error.strerror}") from error
        self.used = end
        return start, end


def _whole_pages(length: int) -> int:
    return _rounded(length, mmap.PAGESIZE)


def _rounded(length: int, unit: int) -> int:
    return -(-length // unit) * unit


class ArenaFile:
    """A file in an arena: it grows at its end, by what is filled in of a `tail`."""

    def __init__(self, arena: Arena, expected: int = 0) -> None:
        self._arena = arena
        self._expected = expected
        self._pieces: list[list[int]] = []
        self.size = 0
        """Bytes in it."""
        self._room = 0

    def tail(self, want: int) -> memoryview:
        """Writable memory that follows the file's end: 1 to `want` bytes. `advance` says how much was filled."""
        if not self._room:
            last = self._pieces[-1][1] if self._pieces else -1
            start, end = self._arena._take(self._next_piece(want))
            if start == last:
                self._pieces[-1][1] = end
            else:
                self._pieces.append([start, end])
            self._room = end - start
        end = self._pieces[-1][1]
        start = end - self._room
        return self._arena._view(start, start + min(want, self._room))

    def _next_piece(self, want: int) -> int:
        left = self._expected - self.size
        if left > 0:
            return min(left, _LARGEST_PIECE)
        return max(min(max(_FIRST_PIECE, self.size), _LARGEST_PIECE), min(want, _LARGEST_PIECE))

    def advance(self, length: int) -> None:
        """The first `length` bytes of the last `tail` belong to the file now."""
        if not 0 <= length <= self._room:
            raise ValueError("more than the tail has")
        self._room -= length
        self.size += length

    def segments(self) -> Segments:
        """Its bytes, as they lie in the arena."""
        return Segments(view.toreadonly() for view in self._views())

    def part(self, offset: int, length: int) -> memoryview:
        """Bytes [offset, offset + length) to be read and written, as far as they lie in one piece."""
        for view in self._views():
            if offset < len(view):
                return view[offset : offset + length]
            offset -= len(view)
        return memoryview(b"")

    def _views(self) -> list[memoryview]:
        if not self._pieces:
            return []
        ends = [end for _, end in self._pieces]
        ends[-1] -= self._room
        view = self._arena._view
        return [view(start, end) for (start, _), end in zip(self._pieces, ends, strict=True) if end > start]
