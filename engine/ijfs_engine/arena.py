"""Memory that is faulted in before a dump, handed out to the files of the dump as they grow.

The first touch of fresh memory is the limit while a program is frozen (0.2–2.4 GB/s in 4 KiB pages, against 3.5–8 for
a copy): so the keeper calls `prefault` while the program still runs, and a dump's files then only copy. `ijfs.fs.sink`
and `ijfs.live.stream` write here; the ingest reads the files as `Segments`, without another copy.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import threading
from typing import Final

from .errors import StorageError

PAGE: Final = mmap.PAGESIZE
# linux/mman.h; Linux 5.14 and later. Python 3.11 names neither.
_MADV_POPULATE_WRITE: Final = 23
_MAP_NORESERVE: Final = 0x4000
# A file takes its first piece of this size, each next one as large as the file then is, up to the largest: a hundred
# small images waste 6 MiB of address space, and a pages file has a few hundred pieces at most.
_FIRST_PIECE: Final = 64 << 10
_LARGEST_PIECE: Final = 8 << 20

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

    One thread at a time may write to one file; different files may grow from different threads.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = -(-max(capacity, 1) // PAGE) * PAGE
        # NORESERVE: the address space is a limit, not a promise; pages count when they are touched.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._map = mmap.mmap(-1, self.capacity, flags=flags)
        except OSError as error:
            raise StorageError(f"no address space for an arena of {capacity} bytes: {error}") from error
        # A huge page is one fault instead of 512.
        with contextlib.suppress(OSError):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._memory = memoryview(self._map)
        self._lock = threading.Lock()
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes handed out to files, the room they have left included."""
        return self._used

    def prefault(self, length: int) -> None:
        """Fault in the first `length` bytes (those that are next handed out first). Blocks, without the GIL.

        StorageError where the machine has not so much memory.
        """
        length = min(-(-length // PAGE) * PAGE, self.capacity)
        if length <= 0:
            return
        first = ctypes.c_char.from_buffer(self._map)
        try:
            result = _libc.madvise(ctypes.addressof(first), length, _MADV_POPULATE_WRITE)
        finally:
            del first
        if result != 0:
            code = ctypes.get_errno()
            if code != errno.EINVAL:  # before Linux 5.14: pages are then faulted in as the dump touches them
                raise StorageError(f"cannot get {length} bytes of memory for a dump: {os.strerror(code)}")

    def new_file(self) -> ArenaFile:
        """An empty file."""
        return ArenaFile(self)

    def reset(self) -> None:
        """Hand out everything anew. Files and Segments of before must not be used any more: they would show the
        bytes of the next dump. The memory stays faulted in."""
        with self._lock:
            self._used = 0

    def _take(self, want: int) -> tuple[int, int]:
        """`want` bytes, or what is left of them: (start, end)."""
        with self._lock:
            start = self._used
            end = min(start + -(-want // PAGE) * PAGE, self.capacity)
            if end == start:
                raise ArenaFullError(f"a dump needs more than the {self.capacity} bytes set aside for it")
            self._used = end
            return start, end


class ArenaFile:
    """A file in an arena: grows at its end, may be overwritten anywhere."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._pieces: list[list[int]] = []
        self.size = 0
        """Bytes in it."""
        self._room = 0

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Copy `data` to `offset`, with zeros before it where the file was shorter; all of it or ArenaFullError."""
        view = memoryview(data)
        if offset > self.size:
            self.truncate(offset)
        length = view.nbytes
        inside = min(self.size - offset, length)
        if inside:
            self._overwrite(offset, view[:inside])
        at = inside
        while at < length:
            tail = self.tail(length - at)
            tail[:] = view[at : at + len(tail)]
            self.advance(len(tail))
            at += len(tail)
        return length

    def tail(self, want: int) -> memoryview:
        """Writable memory that follows the file's end: 1 to `want` bytes. `advance` says how much was filled."""
        if not self._room:
            piece = min(max(_FIRST_PIECE, self.size), _LARGEST_PIECE)
            last = self._pieces[-1][1] if self._pieces else -1
            start, end = self._arena._take(max(piece, min(want, _LARGEST_PIECE)))
            if start == last:
                self._pieces[-1][1] = end
            else:
                self._pieces.append([start, end])
            self._room = end - start
        end = self._pieces[-1][1]
        start = end - self._room
        return self._arena._memory[start : start + min(want, self._room)]

    def advance(self, length: int) -> None:
        """The first `length` bytes of the last `tail` belong to the file now."""
        if not 0 <= length <= self._room:
            raise ValueError("more than the tail has")
        self._room -= length
        self.size += length

    def truncate(self, size: int) -> None:
        """Cut to `size` bytes, or extend with zeros to it."""
        while self.size < size:
            tail = self.tail(size - self.size)
            ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(tail)), 0, len(tail))
            self.advance(len(tail))
        while self.size > size:
            start, end = self._pieces[-1]
            cut = min(self.size - size, end - self._room - start)
            self.size -= cut
            self._room += cut
            if self._room == end - start and self.size:
                self._pieces.pop()
                self._room = 0

    def segments(self) -> Segments:
        """Its bytes, as they lie in the arena."""
        if not self._pieces:
            return Segments()
        ends = [end for _, end in self._pieces]
        ends[-1] -= self._room
        memory = self._arena._memory
        return Segments(
            memory[start:end].toreadonly() for (start, _), end in zip(self._pieces, ends, strict=True) if end > start
        )

    def _overwrite(self, offset: int, view: memoryview) -> None:
        for start, end in self._pieces:
            if offset < end - start and len(view):
                part = min(end - start - offset, len(view))
                self._arena._memory[start + offset : start + offset + part] = view[:part]
                view = view[part:]
                offset = 0
            else:
                offset -= end - start
