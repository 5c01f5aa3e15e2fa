"""Where a process's bytes come from: CRIU's images, in a directory or in the engine, seen as numbered lazy pages.

`CriuImages` reads `pagemap-<pid>.img`, `mm-<pid>.img` and `pages-<n>.img` through a small `Files` protocol;
`DirectoryFiles` is a plain directory, `engine_files.EngineFiles` the storage engine. Called by `server`.

Which pages are lazy is CRIU's decision and has to be repeated exactly, or a page is restored by nobody: a pagemap
entry with PE_LAZY was left out by `criu restore --lazy-pages` (criu/mem.c, restore_priv_vma_content), every other one
was read by CRIU itself. Which mappings are registered: private anonymous ones that are neither locked nor hugetlb
(criu/include/vma.h, vma_entry_can_be_lazy), whether they have lazy pages or not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol

from ijfs.live.criu.image_format import (
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_PRIVATE,
    PE_LAZY,
    PE_PARENT,
    PE_PRESENT,
    PagemapEntry,
    parse_areas,
    parse_pagemap_entries,
)
from ijfs.live.pager.plan import Mapping, ProcessMemory, Run
from ijfs_engine import PAGE, is_pages, pages_name, simulate_latency
from ijfs_engine.errors import CorruptError

_LAZY_MASK: Final = MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_HUGETLB


class PagesFile(Protocol):
    """One stored image file, readable from several threads."""

    size: int

    def read(self, offset: int, length: int) -> bytes: ...
    def read_many(self, wanted: Iterable[tuple[int, memoryview]]) -> int:
        """Fill several (offset, buffer) at once, in one request where there is such a thing; the bytes there were."""
        ...

    def locate(self) -> None:
        """Find out where the bytes are, ahead of reading them."""
        ...

    def zeros(self, offset: int, length: int) -> Iterable[tuple[int, int]]:
        """Stretches (byte offset, length) of these bytes that are known to be zeros without being read."""
        ...


class Files(Protocol):
    """A directory of CRIU images."""

    def open(self, name: str) -> PagesFile: ...


class PageSource(Protocol):
    """What the server needs of the place where the bytes are."""

    def memory(self, pid: int) -> ProcessMemory: ...
    def locate(self) -> None:
        """Find out where the pages of the images asked for are, ahead of reading them. Errors as of `read`."""
        ...

    def zero_pages(self, memory: ProcessMemory, ranges: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
        """Those of these pages that are known to be all zero, as (first, count) in the same order."""
        ...

    def read(self, memory: ProcessMemory, ranges: Iterable[tuple[int, int]], buffer: memoryview) -> None:
        """Fill `buffer` with the pages of these (first, count), one range after the other.

        CorruptError, StorageError, OSError; never wrong bytes.
        """
        ...


class CriuImages:
    """A `PageSource` over CRIU's image files."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._pages: dict[int, tuple[str, PagesFile]] = {}

    def memory(self, pid: int) -> ProcessMemory:
        """The lazy pages and registered mappings of one process. CorruptError for images that make no sense."""
        name = f"pagemap-{pid}.img"
        pagemap = self._files.open(name)
        mm_name = f"mm-{pid}.img"
        mm = self._files.open(mm_name)
        mappings = list(parse_mappings(mm_name, mm.read(0, mm.size)))
        pages_id, entries = parse_pagemap_entries(name, pagemap.read(0, pagemap.size))
        memory = ProcessMemory(pid, list(_runs(name, entries, mappings)), mappings)
        if memory.pages:
            file_name = pages_name(pages_id)
            pages = self._files.open(file_name)
            self._pages[pid] = file_name, pages
            end = max(run.offset + run.pages * PAGE for run in memory.runs)
            if end > pages.size:
                raise CorruptError(f"{file_name} has {pages.size} bytes, its pagemap needs {end}")
        return memory

    def locate(self) -> None:
        for _, pages in list(self._pages.values()):
            pages.locate()

    def zero_pages(self, memory: ProcessMemory, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        _, pages = self._pages[memory.pid]
        ranges = list(ranges)
        stretches = (
            (-(-(at + start - offset) // PAGE), (at + start - offset + size) // PAGE)
            for offset, at, length in _segments(memory, ranges)
            for start, size in pages.zeros(offset, length)
        )
        return _numbered(ranges, stretches)

    def read(self, memory: ProcessMemory, ranges: Iterable[tuple[int, int]], buffer: memoryview) -> None:
        name, pages = self._pages[memory.pid]
        wanted = [(offset, buffer[at : at + length]) for offset, at, length in _segments(memory, ranges)]
        got = pages.read_many(wanted)
        if got != (needed := sum(len(view) for _, view in wanted)):
            raise CorruptError(f"{name} gave {got} bytes where {needed} were to be read")


def _segments(memory: ProcessMemory, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Reads for pages (first, count)…: (file offset, offset in the buffer, bytes), neighbours in the file merged."""
    start = at = length = 0
    for first, count in ranges:
        for run, inside, pages in memory.pieces(first, count):
            offset = run.offset + inside * PAGE
            if length and offset == start + length:
                length += pages * PAGE
                continue
            if length:
                yield start, at, length
            start, at, length = offset, at + length, pages * PAGE
    if length:
        yield start, at, length


def _numbered(ranges: Iterable[tuple[int, int]], stretches: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Pages [begin, end)… of those that (first, count)… are one after the other, as (first, count) by their numbers."""
    walk = iter(ranges)
    at = first = count = 0
    for begin, end in stretches:
        while begin < end:
            while begin >= at + count:
                at += count
                first, count = next(walk)
            stop = min(end, at + count)
            yield first + begin - at, stop - begin
            begin = stop


class DirectoryFile:
    """A `PagesFile` on disk; `delay_s` is waited before each read, to stand for a slow place (tests, benchmarks)."""

    def __init__(self, path: Path, delay_s: float = 0.0) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size
        self._delay_s = delay_s

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def read_many(self, wanted: Iterable[tuple[int, memoryview]]) -> int:
        simulate_latency(self._delay_s)
        return sum(self._read_into(offset, buffer) for offset, buffer in wanted)

    def locate(self) -> None:
        pass

    def zeros(self, offset: int, length: int) -> Iterable[tuple[int, int]]:
        return ()

    def _read_into(self, offset: int, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer):
            got = os.preadv(self._fd, [buffer[done:]], offset + done)
            if got == 0:
                break
            done += got
        return done

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            os.close(self._fd)


class DirectoryFiles:
    """`Files` in a plain directory, as `criu dump` leaves them."""

    def __init__(self, path: Path, delay_s: float = 0.0) -> None:
        self._path = path
        self._delay_s = delay_s

    def open(self, name: str) -> DirectoryFile:
        return DirectoryFile(self._path / name, self._delay_s if is_pages(name) else 0.0)

    def pids(self) -> list[int]:
        return pids_of(os.listdir(self._path))


def pids_of(names: Iterable[str]) -> list[int]:
    """The processes that an image directory with these files describes."""
    found = (name[3:-4] for name in names if name.startswith("mm-") and name.endswith(".img"))
    return sorted(int(pid) for pid in found if pid.isdecimal())


def parse_mappings(name: str, data: bytes) -> Iterator[Mapping]:
    """The mappings that CRIU registers with the userfaultfd, of an mm image."""
    for area in parse_areas(name, data):
        if (area.flags & _LAZY_MASK) == (MAP_PRIVATE | MAP_ANONYMOUS):
            yield Mapping(area.start, area.end, bool(area.advice >> MADV_WIPEONFORK & 1))


def _runs(name: str, entries: list[PagemapEntry], mappings: list[Mapping]) -> Iterator[Run]:
    """Lazy entries as runs, split where one mapping ends and the next begins (a copy may not cross that)."""
    offset = at = previous = 0
    for vaddr, pages, flags in entries:
        if vaddr % PAGE or vaddr < previous or not 0 < pages < 1 << 40:
            raise CorruptError(f"{name}: entry {vaddr:#x} with {pages} pages is out of order or not page-aligned")
        previous = end = vaddr + pages * PAGE
        if flags & PE_PARENT:
            raise CorruptError(f"{name}: pages at {vaddr:#x} are in a parent image", hint="merge the images first")
        start, where = vaddr, offset
        if flags & PE_PRESENT or not flags:
            offset += pages * PAGE
        if not flags & PE_LAZY:
            continue
        while start < end:
            while at < len(mappings) and mappings[at].end <= start:
                at += 1
            if at == len(mappings) or mappings[at].start > start:
                raise CorruptError(f"{name}: lazy pages at {start:#x} lie in no mapping that can be lazy")
            stop = min(end, mappings[at].end)
            yield Run(start, (stop - start) // PAGE, where)
            where += stop - start
            start = stop
