"""Where a process's bytes come from: CRIU's images, in a directory or in the engine, seen as numbered lazy pages.

`CriuImages` reads `pagemap-<pid>.img`, `mm-<pid>.img` and `pages-<n>.img` through a small `Files` protocol;
`DirectoryFiles` is a plain directory, `engine_source.EngineFiles` the storage engine. Called by `server`.

Which pages are lazy is CRIU's decision and has to be repeated exactly, or a page is restored by nobody: a pagemap
entry with PE_LAZY was left out by `criu restore --lazy-pages` (criu/mem.c, restore_priv_vma_content), every other one
was read by CRIU itself. Which mappings are registered: private anonymous ones that are neither locked nor hugetlb
(criu/include/vma.h, vma_entry_can_be_lazy), whether they have lazy pages or not.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from ijfs.live.pager.plan import PAGE, Mapping, MemoryImage, Run
from ijfs_engine._native.pagemaps import pagemap_entries, pagemap_head
from ijfs_engine.errors import CorruptError
from ijfs_engine.util import io_wait

_COMMON_MAGIC: Final = 0x54564319  # criu/include/magic.h
_HEAD: Final = 8
_PAGEMAP_MAGIC: Final = 0x56084025
_MM_MAGIC: Final = 0x57492820

_PE_PARENT: Final = 1  # criu/include/pagemap.h
PE_LAZY: Final = 2
PE_PRESENT: Final = 4

_MAP_PRIVATE: Final = 0x02
_MAP_ANONYMOUS: Final = 0x20
MAP_LOCKED: Final = 0x2000
MAP_HUGETLB: Final = 0x40000
_MAP_LAZY_MASK: Final = _MAP_PRIVATE | _MAP_ANONYMOUS | MAP_LOCKED | MAP_HUGETLB
_MADV_WIPEONFORK: Final = 18


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

    def memory(self, pid: int) -> MemoryImage: ...
    def locate(self) -> None:
        """Find out where the pages of the images asked for are, ahead of reading them. Errors as of `read`."""
        ...

    def zero_pages(self, image: MemoryImage, ranges: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
        """Those of these pages that are known to be all zero, as (first, count) in the same order."""
        ...

    def read(self, image: MemoryImage, ranges: Iterable[tuple[int, int]], buffer: memoryview) -> None:
        """Fill `buffer` with the pages of these (first, count), one range after the other.

        CorruptError, StorageError, OSError; never wrong bytes.
        """
        ...


class CriuImages:
    """A `PageSource` over CRIU's image files."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._pages: dict[int, tuple[str, PagesFile]] = {}

    def memory(self, pid: int) -> MemoryImage:
        """The lazy pages and registered mappings of one process. CorruptError for images that make no sense."""
        name = f"pagemap-{pid}.img"
        pagemap = self._files.open(name)
        mm_name = f"mm-{pid}.img"
        mm = self._files.open(mm_name)
        mappings = list(parse_mappings(mm_name, mm.read(0, mm.size)))
        pages_id, entries = parse_pagemap(name, pagemap.read(0, pagemap.size))
        image = MemoryImage(pid, list(_runs(name, entries, mappings)), mappings)
        if image.pages:
            pages_name = f"pages-{pages_id}.img"
            pages = self._files.open(pages_name)
            self._pages[pid] = pages_name, pages
            end = max(run.offset + run.pages * PAGE for run in image.runs)
            if end > pages.size:
                raise CorruptError(f"{pages_name} has {pages.size} bytes, its pagemap needs {end}")
        return image

    def locate(self) -> None:
        for _, pages in list(self._pages.values()):
            pages.locate()

    def zero_pages(self, image: MemoryImage, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        _, pages = self._pages[image.pid]
        ranges = list(ranges)
        stretches = (
            (-(-(at + start - offset) // PAGE), (at + start - offset + size) // PAGE)
            for offset, at, length in _segments(image, ranges)
            for start, size in pages.zeros(offset, length)
        )
        return _numbered(ranges, stretches)

    def read(self, image: MemoryImage, ranges: Iterable[tuple[int, int]], buffer: memoryview) -> None:
        name, pages = self._pages[image.pid]
        wanted = [(offset, buffer[at : at + length]) for offset, at, length in _segments(image, ranges)]
        got = pages.read_many(wanted)
        if got != (needed := sum(len(view) for _, view in wanted)):
            raise CorruptError(f"{name} gave {got} bytes where {needed} were to be read")


def _segments(image: MemoryImage, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Reads for pages (first, count)…: (file offset, offset in the buffer, bytes), neighbours in the file merged."""
    start = at = length = 0
    for first, count in ranges:
        for run, inside, pages in image.pieces(first, count):
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
        io_wait.pause(self._delay_s)
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
        os.close(self._fd)


class DirectoryFiles:
    """`Files` in a plain directory, as `criu dump` leaves them."""

    def __init__(self, path: Path, delay_s: float = 0.0) -> None:
        self._path = path
        self._delay_s = delay_s

    def open(self, name: str) -> DirectoryFile:
        return DirectoryFile(self._path / name, self._delay_s if name.startswith("pages-") else 0.0)

    def pids(self) -> list[int]:
        return pids_of(os.listdir(self._path))


def pids_of(names: Iterable[str]) -> list[int]:
    """The processes that an image directory with these files describes."""
    found = (name[3:-4] for name in names if name.startswith("mm-") and name.endswith(".img"))
    return sorted(int(pid) for pid in found if pid.isdecimal())


def parse_pagemap(name: str, data: bytes) -> tuple[int, list[tuple[int, int, int]]]:
    """(number of the pages file, entries (vaddr, pages, flags)) of a pagemap image (images/pagemap.proto)."""
    if not _has_magic(name, data, _PAGEMAP_MAGIC) or len(data) == _HEAD:
        return 0, []
    try:
        pages_id, at = pagemap_head(data, _HEAD)
        entries = pagemap_entries(data, at)
    except ValueError as error:
        raise CorruptError(f"{name} cannot be read: {error}") from error
    return pages_id or 0, [(first * PAGE, pages, flags) for first, pages, flags in entries]


class Area(NamedTuple):
    """One mapping of an mm image: where, its mmap flags, the shared memory it shows (0: none), its madvise bits."""

    start: int
    end: int
    flags: int
    shmid: int
    advice: int


def parse_areas(name: str, data: bytes) -> Iterator[Area]:
    """All mappings of an mm image (images/mm.proto, vma.proto), in their order."""
    record = next(parse_records(name, data, _MM_MAGIC), None)
    if record is None:
        raise CorruptError(f"{name} is empty")
    for field, value in parse_fields(name, data, *record):
        if field == 14 and isinstance(value, tuple):
            vma = dict(_varints(name, data, *value))
            yield Area(vma.get(1, 0), vma.get(2, 0), vma.get(6, 0), vma.get(4, 0), vma.get(9, 0))


def parse_mappings(name: str, data: bytes) -> Iterator[Mapping]:
    """The mappings that CRIU registers with the userfaultfd, of an mm image."""
    for area in parse_areas(name, data):
        if (area.flags & _MAP_LAZY_MASK) == (_MAP_PRIVATE | _MAP_ANONYMOUS):
            yield Mapping(area.start, area.end, bool(area.advice >> _MADV_WIPEONFORK & 1))


def _runs(name: str, entries: list[tuple[int, int, int]], mappings: list[Mapping]) -> Iterator[Run]:
    """Lazy entries as runs, split where one mapping ends and the next begins (a copy may not cross that)."""
    offset = at = previous = 0
    for vaddr, pages, flags in entries:
        if vaddr % PAGE or vaddr < previous or not 0 < pages < 1 << 40:
            raise CorruptError(f"{name}: entry {vaddr:#x} with {pages} pages is out of order or not page-aligned")
        previous = end = vaddr + pages * PAGE
        if flags & _PE_PARENT:
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


def _has_magic(name: str, data: bytes, magic: int) -> bool:
    """Whether there is anything: CRIU leaves an empty file for a task without memory of its own. CorruptError."""
    if data and (len(data) < _HEAD or struct.unpack_from("<II", data) != (_COMMON_MAGIC, magic)):
        raise CorruptError(f"{name} does not begin as a CRIU image of its kind does")
    return bool(data)


def parse_records(name: str, data: bytes, magic: int) -> Iterator[tuple[int, int]]:
    """Where the length-prefixed messages of a CRIU image are: (begin, end)."""
    at = _HEAD if _has_magic(name, data, magic) else len(data)
    while at < len(data):
        if at + 4 > len(data):
            raise CorruptError(f"{name} ends inside a record")
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if at + length > len(data):
            raise CorruptError(f"{name} ends inside a record")
        yield at, at + length
        at += length


def _varints(name: str, data: bytes, begin: int, end: int) -> Iterator[tuple[int, int]]:
    return ((field, value) for field, value in parse_fields(name, data, begin, end) if isinstance(value, int))


def parse_fields(name: str, data: bytes, begin: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """Fields of one protobuf message: (number, value) for varints, (number, (begin, end)) for nested bytes."""
    at = begin
    while at < end:
        key, at = _varint(name, data, at, end)
        kind = key & 7
        if kind == 0:
            value, at = _varint(name, data, at, end)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(name, data, at, end)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise CorruptError(f"{name}: wire type {kind} is not one that protobuf has")
        if at + length > end:
            raise CorruptError(f"{name} ends inside a field")
        if kind == 2:
            yield key >> 3, (at, at + length)
        at += length


def _varint(name: str, data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise CorruptError(f"{name} ends inside a number")
