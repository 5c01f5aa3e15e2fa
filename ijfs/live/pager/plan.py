"""What is still missing where: the bookkeeping of one paged address space, without any I/O.

A saved process's lazy pages are numbered 0, 1, 2… in the order of their addresses (`ProcessMemory`); that number never
changes. A `Plan` says where each of them is to go *now*: the program (and its forked children, each with a
space of its own) may have moved, unmapped or dropped mappings since. Used by `server`; pure, so that a property test
can drive it against a naive model (tests/live/test_pager_plan.py).
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol, overload

from ijfs_engine import PAGE

MISSING: Final = 0
"""The saved bytes have to be copied there."""
IN: Final = 1
"""They were."""
ZERO: Final = 2
"""A fault there is answered with zeros: all zero when it was saved, or dropped or unmapped by the program since."""
POISONED: Final = 3
"""Its bytes cannot be had; a touch is a SIGBUS."""

_MISSING_RUN: Final = re.compile(rb"\x00+")


class Run(NamedTuple):
    """Pages that follow one another both in memory and in the pages file, inside one mapping."""

    vaddr: int
    pages: int
    offset: int
    """Byte offset of the first one in the pages file."""


class Mapping(NamedTuple):
    """A mapping that CRIU registers with the userfaultfd, [start, end)."""

    start: int
    end: int
    wiped_on_fork: bool = False
    """MADV_WIPEONFORK: a forked child sees zeros there."""


class ProcessMemory:
    """One saved process's lazy pages, numbered in address order."""

    def __init__(self, pid: int, runs: Sequence[Run], mappings: Sequence[Mapping]) -> None:
        self.pid = pid
        self.runs = sorted(runs)
        self.mappings = sorted(mappings)
        self.vaddrs = [run.vaddr for run in self.runs]
        self.firsts: list[int] = []
        self.pages = 0
        for run in self.runs:
            self.firsts.append(self.pages)
            self.pages += run.pages

    def index_of(self, vaddr: int) -> int | None:
        """The number of the page at this address when it was saved; None where there was no lazy page."""
        at = bisect_right(self.vaddrs, vaddr) - 1
        if at < 0:
            return None
        delta = (vaddr - self.vaddrs[at]) // PAGE
        return self.firsts[at] + delta if delta < self.runs[at].pages else None

    def numbers_in(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The numbers (first, count) of the pages at image addresses [start, end)."""
        for at in range(max(bisect_right(self.vaddrs, start) - 1, 0), bisect_left(self.vaddrs, end)):
            run = self.runs[at]
            low, high = max(start, run.vaddr), min(end, run.vaddr + run.pages * PAGE)
            if low < high:
                yield self.firsts[at] + (low - run.vaddr) // PAGE, (high - low) // PAGE

    def wiped_on_fork(self) -> Iterator[tuple[int, int]]:
        """Page numbers (first, count) that a forked child sees as zeros, wherever they have been moved."""
        wiped = [mapping for mapping in self.mappings if mapping.wiped_on_fork]
        for run, first in zip(self.runs, self.firsts, strict=True) if wiped else ():
            if any(mapping.start <= run.vaddr < mapping.end for mapping in wiped):
                yield first, run.pages

    def pieces(self, first: int, count: int) -> Iterator[tuple[Run, int, int]]:
        """Split page numbers [first, first + count) at run boundaries: (run, page within it, pages)."""
        at = bisect_right(self.firsts, first) - 1
        end = first + count
        while first < end:
            run = self.runs[at]
            inside = first - self.firsts[at]
            pages = min(run.pages - inside, end - first)
            yield run, inside, pages
            first += pages
            at += 1


class States(Protocol):
    """One byte per page: a bytearray, or shared memory that outlives the pager (`ledger`)."""

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> bytes | bytearray: ...
    @overload
    def __setitem__(self, index: int, value: int) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: bytes) -> None: ...
    def find(self, sub: bytes, start: int, end: int) -> int: ...


class _Extent(NamedTuple):
    vaddr: int
    first: int
    pages: int


class _Extents:
    """Which page number lies at which address now; found by either."""

    def __init__(self) -> None:
        self._by_vaddr: list[_Extent] = []
        self._vaddrs: list[int] = []
        self._by_first: list[_Extent] = []
        self._firsts: list[int] = []

    def add(self, extent: _Extent) -> None:
        for keys, extents, key in (
            (self._vaddrs, self._by_vaddr, extent.vaddr),
            (self._firsts, self._by_first, extent.first),
        ):
            at = bisect_left(keys, key)
            keys.insert(at, key)
            extents.insert(at, extent)

    def _discard(self, extent: _Extent) -> None:
        for keys, extents, key in (
            (self._vaddrs, self._by_vaddr, extent.vaddr),
            (self._firsts, self._by_first, extent.first),
        ):
            at = bisect_left(keys, key)
            del keys[at], extents[at]

    def at(self, vaddr: int) -> _Extent | None:
        at = bisect_right(self._vaddrs, vaddr) - 1
        if at < 0:
            return None
        extent = self._by_vaddr[at]
        return extent if vaddr < extent.vaddr + extent.pages * PAGE else None

    def of_pages(self, first: int, count: int) -> list[_Extent]:
        """The parts of [first, first + count) that lie anywhere, each as an extent of its own."""
        low = max(bisect_right(self._firsts, first) - 1, 0)
        found = self._by_first[low : bisect_left(self._firsts, first + count)]
        # Only the outer two can reach over an edge.
        for at in {0, len(found) - 1} if found else ():
            extent = found[at]
            begin = max(extent.first, first)
            pages = min(extent.first + extent.pages, first + count) - begin
            found[at] = _Extent(extent.vaddr + (begin - extent.first) * PAGE, begin, pages)
        return found if not found or found[0].pages > 0 else found[1:]

    def cut(self, start: int, end: int) -> list[_Extent]:
        """Take out everything at addresses [start, end), splitting what reaches over an edge."""
        at = max(bisect_right(self._vaddrs, start) - 1, 0)
        touched = []
        for extent in self._by_vaddr[at:]:
            if extent.vaddr >= end:
                break
            if extent.vaddr + extent.pages * PAGE > start:
                touched.append(extent)
        return [self._cut_one(extent, start, end) for extent in touched]

    def _cut_one(self, extent: _Extent, start: int, end: int) -> _Extent:
        self._discard(extent)
        stop = extent.vaddr + extent.pages * PAGE
        begin, finish = max(extent.vaddr, start), min(stop, end)
        skipped = (begin - extent.vaddr) // PAGE
        if skipped:
            self.add(_Extent(extent.vaddr, extent.first, skipped))
        taken = (finish - begin) // PAGE
        if finish < stop:
            self.add(_Extent(finish, extent.first + skipped + taken, (stop - finish) // PAGE))
        return _Extent(begin, extent.first + skipped, taken)

    def copy(self) -> _Extents:
        other = _Extents()
        other._by_vaddr, other._vaddrs = self._by_vaddr[:], self._vaddrs[:]
        other._by_first, other._firsts = self._by_first[:], self._firsts[:]
        return other

    def __iter__(self) -> Iterator[_Extent]:
        return iter(self._by_vaddr)


class Plan:
    """Where the pages of one saved process go in one address space, and which of them are still missing.

    `states` is kept by the caller (it may be shared memory with a predecessor's marks in it) and holds one of MISSING,
    IN, ZERO, POISONED per page number. Addresses and lengths are in bytes, whole pages.
    """

    def __init__(self, memory: ProcessMemory, states: States) -> None:
        self.memory = memory
        self.states = states
        self._extents = _Extents()
        for run, first in zip(memory.runs, memory.firsts, strict=True):
            self._extents.add(_Extent(run.vaddr, first, run.pages))

    def fork(self, states: States) -> Plan:
        """The child of a fork. `states` has to be a copy of this space's, to be kept by the child alone."""
        child = Plan.__new__(Plan)
        child.memory, child.states = self.memory, states
        child._extents = self._extents.copy()
        for first, count in self.memory.wiped_on_fork():
            child.mark(first, count, ZERO)
        return child

    def page_at(self, vaddr: int) -> int | None:
        """The number of the page that belongs at this address now; None where zeros do."""
        extent = self._extents.at(vaddr)
        return None if extent is None else extent.first + (vaddr - extent.vaddr) // PAGE

    def missing_runs(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """The missing pages among [first, first + count), as (first, count) in ascending order."""
        for found in _MISSING_RUN.finditer(self.states[first : first + count]):
            yield first + found.start(), found.end() - found.start()

    def places(self, first: int, count: int) -> Sequence[tuple[int, int, int]]:
        """Where those of [first, first + count) go now that go anywhere: (address, first page, pages), none twice."""
        return self._extents.of_pages(first, count)

    def mark(self, first: int, count: int, state: int) -> None:
        """Set the state of pages."""
        self.states[first : first + count] = bytes((state,)) * count

    def drop(self, start: int, end: int) -> None:
        """[start, end) was unmapped, or emptied by madvise: the saved bytes must not appear there any more."""
        for extent in self._extents.cut(start, end):
            self.mark(extent.first, extent.pages, ZERO)

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any saved page belongs somewhere in [start, end) now."""
        return next(iter(self._extents_in(start, end)), None) is not None

    def move(self, source: int, destination: int, length: int) -> None:
        """mremap moved a mapping."""
        moved = self._extents.cut(source, source + length)
        self.drop(destination, destination + length)
        for extent in moved:
            self._extents.add(extent._replace(vaddr=extent.vaddr + destination - source))

    def _extents_in(self, start: int, end: int) -> Iterator[_Extent]:
        return (e for e in self._extents if e.vaddr < end and e.vaddr + e.pages * PAGE > start)
