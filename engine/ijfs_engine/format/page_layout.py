"""Page layouts: which virtual addresses the pages of a process image's file belong to, and how it is cut into leaves.

write/criu_pagemap.py makes a layout from what CRIU wrote; it is kept as a LAYOUT object beside the file. The writer
uses it to find the parent's page at the same address, the reader and the pager for address ranges. docs/format.md
("Page layouts") has the bytes.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, NamedTuple

from ijfs_engine._native.page_scan import PAGE
from ijfs_engine.errors import CorruptError
from ijfs_engine.format.records import LEAF_SPAN

LEAF_PAGES: Final = LEAF_SPAN // PAGE
# A leaf ends at a multiple of its span in addresses once it has this many pages, or where what follows up to the next
# multiple has no room in it: so the leaves of two images fall into step again behind a mapping that only one of them
# has, and hundreds of small mappings share a leaf.
_MIN_LEAF_PAGES: Final = 256
_MAX_ADDRESS_PAGES: Final = 1 << 52
_HEAD: Final = struct.Struct("<BBHI")
_VERSION: Final = 1


class PageRun(NamedTuple):
    """`pages` pages from page number `first` (virtual address / 4096), which follow one another in the file."""

    first: int
    pages: int


class PageLayout:
    """The runs of a pages file, in file order: page i of the file is at `address_of(i)`. Immutable.

    Runs do not overlap in addresses. Raises ValueError for runs that do, or that leave the 64-bit address space.
    """

    def __init__(self, runs: list[PageRun] | tuple[PageRun, ...]) -> None:
        self.runs = tuple(runs)
        self._starts = [0, *accumulate(run.pages for run in self.runs)]
        self.pages = self._starts.pop()
        """Pages in the file."""
        self._by_address = sorted(range(len(self.runs)), key=lambda i: self.runs[i].first)
        self._addresses = [self.runs[i].first for i in self._by_address]
        self._check()

    def _check(self) -> None:
        end = 0
        for i in self._by_address:
            first, count = self.runs[i]
            if count <= 0 or first < end or first + count > _MAX_ADDRESS_PAGES:
                raise ValueError(f"pages {first:#x}+{count} overlap others or are no address")
            end = first + count

    def address_of(self, page: int) -> int:
        """The virtual address of a page of the file."""
        at = bisect_right(self._starts, page) - 1
        return (self.runs[at].first + page - self._starts[at]) * PAGE

    def pieces(self, page: int, count: int) -> Iterator[tuple[int, int]]:
        """(first page number, count) of what file pages [page, page + count) hold, in file order."""
        at = bisect_right(self._starts, page) - 1
        while count > 0:
            inside = page - self._starts[at]
            step = min(count, self.runs[at].pages - inside)
            yield self.runs[at].first + inside, step
            page, count, at = page + step, count - step, at + 1

    def locate(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Where page numbers [first, first + count) lie: (page number, page of the file, count), by address.

        What the file does not hold is left out.
        """
        at = max(bisect_right(self._addresses, first) - 1, 0)
        end = first + count
        while at < len(self._by_address):
            i = self._by_address[at]
            run = self.runs[i]
            if run.first >= end:
                return
            low, high = max(first, run.first), min(end, run.first + run.pages)
            if low < high:
                yield low, self._starts[i] + low - run.first, high - low
            at += 1

    def overlap(self, other: PageLayout) -> int:
        """How many page addresses both have."""
        return sum(n for run in self.runs for _, _, n in other.locate(run.first, run.pages))

    def leaf_counts(self) -> Iterator[int]:
        """How many pages each leaf of the file takes, in file order: a function of the layout alone."""
        size, span = 0, -1
        for first, count in self.runs:
            while count:
                step = min(count, LEAF_PAGES - first % LEAF_PAGES)
                if size + step > LEAF_PAGES or (size >= _MIN_LEAF_PAGES and first // LEAF_PAGES != span):
                    yield size
                    size = 0
                span = first // LEAF_PAGES
                size, first, count = size + step, first + step, count - step
        if size:
            yield size

    def encode(self) -> bytes:
        """The LAYOUT object: head, the runs' first page numbers (u64), their lengths in pages (u64)."""
        firsts = array("Q", [run.first for run in self.runs])
        counts = array("Q", [run.pages for run in self.runs])
        return _HEAD.pack(_VERSION, PAGE.bit_length() - 1, 0, len(self.runs)) + _little(firsts) + _little(counts)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> PageLayout:
        """Parse and check; CorruptError."""
        if len(data) < _HEAD.size:
            raise CorruptError("a page layout is cut short")
        version, shift, reserved, n = _HEAD.unpack_from(data)
        if (version, 1 << shift, reserved) != (_VERSION, PAGE, 0) or len(data) != _HEAD.size + 16 * n:
            raise CorruptError("a page layout has a form that is not known, or columns that do not fill it")
        numbers = array("Q")
        numbers.frombytes(data[_HEAD.size :])
        if sys.byteorder == "big":
            numbers.byteswap()
        try:
            return cls([PageRun(first, count) for first, count in zip(numbers[:n], numbers[n:], strict=True)])
        except ValueError as error:
            raise CorruptError(f"a page layout makes no sense: {error}") from error


def _little(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
