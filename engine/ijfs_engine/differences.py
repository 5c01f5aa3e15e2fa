"""Fresh pages over the parent's at the same address: which pay as differences, and to what. Called by guided.

A page with few changed cache lines ("sparse") is stored as XOR against the parent's page, in a region of its own so
that such pages compress together; others only where they look like floats, whose XOR keeps sign and exponent quiet.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from . import codec, native
from .frames import ID_SIZE, MAX_BASES, pack_bases
from .native import PAGE
from .parentpages import ParentPages

# Of 64. Beyond it the difference of two objects was larger than either (measured on kernel images).
SPARSE_LINES: Final = 24
# A run of fresh pages this long is looked at in a few places before all of the parent's bytes under it are decoded.
_PROBED_RUN: Final = 32
_PROBES: Final = 4
_ZERO_ID: Final = bytes(ID_SIZE)


class Part(NamedTuple):
    """Pages that form a region: their numbers among those looked at, their bytes, and the parent's under them."""

    pages: Sequence[int]
    data: memoryview
    base: memoryview
    theirs: Sequence[int]
    """Per page the parent's page that lies under it; -1 where `base` holds zeros."""
    sparse: bool


class Under(NamedTuple):
    """What the parent has under a page: its page number `theirs` (-1: nothing, or zeros); whether the hints agree."""

    theirs: int
    likely: bool


NOTHING: Final = Under(-1, False)


class Differences:
    """What the parent has under the pages of one leaf that are not known to be the same."""

    def __init__(self, parent: ParentPages, data: memoryview, under: Sequence[Under]) -> None:
        """`under`: of each page of `data`. CorruptError."""
        self._parent = parent
        self._data = data
        self._base = memoryview(bytearray(len(data)))
        self._theirs = [page.theirs for page in under]
        self._depths: dict[bytes, int] = {}
        self._changed = memoryview(bytearray(b"\xff" * len(under)))
        runs = list(_stretches(under))
        vain = [
            (start, count)
            for start, count in runs
            if count >= _PROBED_RUN and not under[start].likely and not self._promising(start, count)
        ]
        for start, count in vain:
            self._theirs[start : start + count] = [-1] * count
        self._compare([run for run in runs if self._theirs[run[0]] >= 0])

    def same(self) -> list[int]:
        """The pages whose bytes are the parent's."""
        return [page for page, lines in enumerate(self._changed) if lines == 0]

    def _compare(self, runs: Sequence[tuple[int, int]]) -> None:
        """Read the parent's pages under these runs (first, count) and count the lines that differ."""
        spans = [slice(start * PAGE, (start + count) * PAGE) for start, count in runs]
        self._parent.read_many((self._theirs[run[0]], self._base[span]) for run, span in zip(runs, spans, strict=True))
        for (start, count), span in zip(runs, spans, strict=True):
            native.changed_lines(self._data[span], self._base[span], self._changed[start : start + count])

    def _promising(self, start: int, count: int) -> bool:
        """Look at a few pages; where that is vain, `base` holds zeros again."""
        pages = [start + count * i // _PROBES for i in range(_PROBES)]
        self._compare([(page, 1) for page in pages])
        spans = [slice(page * PAGE, (page + 1) * PAGE) for page in pages]
        if any(self._changed[page] <= SPARSE_LINES for page in pages):
            return True
        if any(codec.is_quieter(self._data[span], self._base[span]) for span in spans):
            return True
        for page, span in zip(pages, spans, strict=True):
            self._base[span] = bytes(PAGE)
            self._changed[page] = 0xFF
        return False

    def parts(self) -> Iterator[Part]:
        """The regions in which what is not the same is best stored: sparse pages, the others; empty ones left out."""
        for sparse in (True, False):
            low, high = (1, SPARSE_LINES) if sparse else (SPARSE_LINES + 1, 0xFF)
            pages = [page for page, lines in enumerate(self._changed) if low <= lines <= high]
            if len(pages) == len(self._theirs):
                yield Part(pages, self._data, self._base, self._theirs, sparse)
            elif pages:
                theirs = [self._theirs[page] for page in pages]
                yield Part(pages, _gather(self._data, pages), _gather(self._base, pages), theirs, sparse)

    def base_for(self, part: Part, start: int, end: int) -> codec.Base | None:
        """What bytes [start, end) of a part may be stored as a difference to."""
        plain, base = part.data[start:end], part.base[start:end]
        if not part.sparse:
            under = part.theirs[start // PAGE : -(-end // PAGE)]
            if min(under) < 0 or not codec.is_quieter(plain, base):
                return None
        extents = list(self._extents(part.theirs, start, end))
        if len(extents) > MAX_BASES:
            return None
        return codec.Base(base, pack_bases(extents), self._depth(extents), sure=not part.sparse)

    def _depth(self, extents: list[tuple[bytes, int, int]]) -> int:
        """Of the deepest chunk among these."""
        ids = list({ident for ident, _, _ in extents} - self._depths.keys())
        if ids:
            infos = self._parent.reader.store.chunk_info(ids)
            self._depths.update((ident, info.depth if info else 0) for ident, info in zip(ids, infos, strict=True))
        return max(self._depths[ident] for ident, _, _ in extents)

    def _extents(self, theirs: Sequence[int], start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Where the parent keeps what lies under bytes [start, end); neighbours merged."""
        last: tuple[bytes, int, int] | None = None
        for first, count in _following(theirs, start // PAGE, -(-end // PAGE)):
            low, high = max(start, first * PAGE), min(end, (first + count) * PAGE)
            for ident, offset, length in self._parent.slices_of(theirs[first], low - first * PAGE, high - low):
                if last and last[0] == ident and last[1] + last[2] == offset:
                    last = (ident, last[1], last[2] + length)
                    continue
                if last:
                    yield last
                last = (ident or _ZERO_ID, offset, length)
        if last:
            yield last


def _following(theirs: Sequence[int], first: int, end: int) -> Iterator[tuple[int, int]]:
    """(first, count) of pages [first, end) over pages of the parent that follow one another; those over none by one."""
    while first < end:
        count = 1
        while theirs[first] >= 0 and first + count < end and theirs[first + count] == theirs[first] + count:
            count += 1
        yield first, count
        first += count


def _stretches(under: Sequence[Under]) -> Iterator[tuple[int, int]]:
    """(first, count) of pages over pages of the parent that follow one another, all likely to be the same or none."""
    start = 0
    for at in range(1, len(under) + 1):
        if at == len(under) or under[at] != (under[at - 1].theirs + 1, under[at - 1].likely) or under[at].theirs <= 0:
            if under[start].theirs >= 0:
                yield start, at - start
            start = at


def _gather(data: memoryview, pages: Sequence[int]) -> memoryview:
    out = memoryview(bytearray(len(pages) * PAGE))
    native.copy_runs(
        data, out, array("Q", [x for at, page in enumerate(pages) for x in (page * PAGE, at * PAGE, PAGE)])
    )
    return out
