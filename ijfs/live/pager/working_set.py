"""The working set of a restore: which pages a program touched first, kept compactly and replayed next time.

Kept with the snapshot and never needed: one that is missing, damaged or of another version is as good as none.
Addresses, not page numbers, are kept, because those mean the same in a descendant of the snapshot.

    offset  bytes  content
         0      8  "ijfsord1"
         8      4  CRC-32 of the rest, little-endian like all numbers here
        12      …  zlib stream of records of 16 bytes: u32 pid, u32 pages, u64 address
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ijfs.live.pager.plan import ProcessMemory
from ijfs.live.pager.scheduler import AROUND_PAGES, BLOCK_PAGES
from ijfs.live.pager.task import PageRange
from ijfs_engine import PAGE

_MAGIC: Final = b"ijfsord1"
_RECORD: Final = struct.Struct("<IIQ")
_MAX_RECORDS: Final = 1 << 16
"""4 GiB in pieces of 64 KiB: whoever needs more at once needs all of it."""


class Touched(NamedTuple):
    """Pages of one process that were needed together."""

    pid: int
    vaddr: int
    pages: int


class Touches:
    """Collects what faults asked for, in order."""

    def __init__(self) -> None:
        self._touched: list[Touched] = []
        self._seen: set[tuple[int, int]] = set()

    def add(self, memory: ProcessMemory, page: int) -> None:
        """A fault needed this page: what is brought with it (AROUND_PAGES) counts as touched, once."""
        first = page // AROUND_PAGES * AROUND_PAGES
        if (memory.pid, first) in self._seen:
            return
        self._seen.add((memory.pid, first))
        count = min(AROUND_PAGES, memory.pages - first)
        for run, inside, pages in memory.pieces(first, count):
            vaddr = run.vaddr + inside * PAGE
            last = self._touched[-1] if self._touched else None
            if last and last.pid == memory.pid and last.vaddr + last.pages * PAGE == vaddr:
                self._touched[-1] = last._replace(pages=last.pages + pages)
            elif len(self._touched) < _MAX_RECORDS:
                self._touched.append(Touched(memory.pid, vaddr, pages))

    @property
    def touched(self) -> list[Touched]:
        return self._touched


def encode(touched: Iterable[Touched]) -> bytes:
    body = zlib.compress(b"".join(_RECORD.pack(t.pid, t.pages, t.vaddr) for t in touched), 6)
    return _MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def write(path: Path, touched: Iterable[Touched]) -> None:
    """Into a file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(encode(touched))
    partial.replace(path)


def merged(replayed: Sequence[Touched], missed: Sequence[Touched]) -> list[Touched] | None:
    """The order to keep: what was replayed, then what was touched all the same. None where that is not worth writing:
    nothing new, or under a tenth of what is known (stray touches that differ from one restore to the next)."""
    new = sum(item.pages for item in missed)
    if not new or new < sum(item.pages for item in replayed) // 10:
        return None
    return [*replayed, *missed][:_MAX_RECORDS]


def decode(data: bytes) -> list[Touched]:
    """What `encode` was given; an empty list for anything that is not whole."""
    if len(data) < 12 or data[:8] != _MAGIC or zlib.crc32(data[12:]) != struct.unpack_from("<I", data, 8)[0]:
        return []
    inflate = zlib.decompressobj()
    try:
        body = inflate.decompress(data[12:], _MAX_RECORDS * _RECORD.size)
    except zlib.error:
        return []
    whole = len(body) - len(body) % _RECORD.size
    return [Touched(pid, vaddr, pages) for pid, pages, vaddr in _RECORD.iter_unpack(body[:whole])]


def blocks(
    touched: Iterable[Touched], memories: Mapping[int, ProcessMemory]
) -> Iterator[tuple[ProcessMemory, list[PageRange]]]:
    """The working set as reads of at most BLOCK_PAGES, of what these memories have; several places per read, by
    address: neighbours share chunks."""
    current: ProcessMemory | None = None
    ranges: list[PageRange] = []
    room = BLOCK_PAGES
    for item in touched:
        memory = memories.get(item.pid)
        if memory is None:
            continue
        for first, count in _known(memory, item):
            while count:
                if current is not memory or not room:
                    if current is not None and ranges:
                        yield current, sorted(ranges)
                    current, ranges, room = memory, [], BLOCK_PAGES
                taken = min(count, room)
                ranges.append((first, taken))
                first, count, room = first + taken, count - taken, room - taken
    if current is not None and ranges:
        yield current, sorted(ranges)


def pages_of(touched: Iterable[Touched], memory: ProcessMemory) -> bytearray:
    """A byte per page of this memory: 1 where the working set has it."""
    found = bytearray(memory.pages)
    for item in touched:
        for first, count in _known(memory, item) if item.pid == memory.pid else ():
            found[first : first + count] = b"\1" * count
    return found


def _known(memory: ProcessMemory, item: Touched) -> Iterator[PageRange]:
    """The page numbers that this memory has for its addresses, run by run."""
    vaddr, end = item.vaddr, item.vaddr + min(item.pages, memory.pages) * PAGE
    while vaddr < end:
        page = memory.index_of(vaddr)
        if page is None:
            vaddr += PAGE
            continue
        run, inside, _ = next(memory.pieces(page, 1))
        pages = min(run.pages - inside, (end - vaddr) // PAGE)
        yield page, pages
        vaddr += pages * PAGE
