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
    """Pages that form a region: their numbers among the fresh pages, their bytes, and the parent's under them."""

    pages: Sequence[int]
    data: memoryview
    base: memoryview
    theirs: Sequence[int]
    """Per page the parent's page that lies under it; -1 where `base` holds zeros."""
    sparse: bool


class Differences:
    """What the parent has under the fresh pages of one leaf."""

    def __init__(self, parent: ParentPages, data: memoryview, theirs: list[int]) -> None:
        """`theirs`: per page of `data` the parent's page at its address, or -1. CorruptError."""
        self._parent = parent
        self._data = data
        self._base = memoryview(bytearray(len(data)))
        self._theirs = theirs
        self._changed = memoryview(bytearray(len(theirs)))
        runs = list(_stretches(theirs))
        vain = [run for run in runs if run[1] >= _PROBED_RUN and not self._promising(*run)]
        for start, count in vain:
            theirs[start : start + count] = [-1] * count
        self._compare([run for run in runs if theirs[run[0]] >= 0])

    def _compare(self, runs: Sequence[tuple[int, int]]) -> None:
        """Read the parent's pages under these runs (first, count) and count the lines that differ."""
        spans = [slice(start * PAGE, (start + count) * PAGE) for start, count in runs]
        self._parent.read_many((self._theirs[run[0]], self._base[span]) for run, span in zip(runs, spans, strict=True))
        for (start, count), span in zip(runs, spans, strict=True):
            changed = self._changed[start : start + count]
            native.changed_lines(self._data[span], self._base[span], changed)

    def _promising(self, start: int, count: int) -> bool:
        """Look at a few pages; whatever the answer, `base` holds zeros again where the parent is not used."""
        pages = [start + count * i // _PROBES for i in range(_PROBES)]
        self._compare([(page, 1) for page in pages])
        spans = [slice(page * PAGE, (page + 1) * PAGE) for page in pages]
        if any(self._changed[page] <= SPARSE_LINES for page in pages):
            return True
        if any(codec.float_shape(self._data[span]) for span in spans):
            return True
        for span in spans:
            self._base[span] = bytes(PAGE)
        return False

    def parts(self) -> Iterator[Part]:
        """The regions in which the pages are best stored: sparse ones, the others; empty ones left out."""
        chosen = [
            their >= 0 and lines <= SPARSE_LINES for their, lines in zip(self._theirs, self._changed, strict=True)
        ]
        if len(set(chosen)) == 1:
            yield Part(range(len(chosen)), self._data, self._base, self._theirs, chosen[0])
            return
        for sparse in (True, False):
            pages = [page for page, choice in enumerate(chosen) if choice is sparse]
            theirs = [self._theirs[page] for page in pages]
            yield Part(pages, _gather(self._data, pages), _gather(self._base, pages), theirs, sparse)

    def base_for(self, part: Part, start: int, end: int) -> codec.Base | None:
        """What bytes [start, end) of a part may be stored as a difference to."""
        under = part.theirs[start // PAGE : -(-end // PAGE)]
        if not part.sparse and (min(under) < 0 or codec.float_shape(part.data[start:end]) is None):
            return None
        extents = list(self._extents(part, start, end))
        if len(extents) > MAX_BASES:
            return None
        ids = list({ident for ident, _, _ in extents})
        depth = max((info.depth for info in self._parent.reader.store.chunk_info(ids) if info), default=0)
        return codec.Base(part.base[start:end], pack_bases(extents), depth)

    def _extents(self, part: Part, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Where the parent keeps what lies under bytes [start, end) of a part; neighbours merged."""
        last: tuple[bytes, int, int] | None = None
        for page in range(start // PAGE, -(-end // PAGE)):
            low, high = max(start - page * PAGE, 0), min(end - page * PAGE, PAGE)
            for ident, offset, length in self._parent.slices_of(part.theirs[page], low, high - low):
                if last and last[0] == ident and last[1] + last[2] == offset:
                    last = (ident, last[1], last[2] + length)
                    continue
                if last:
                    yield last
                last = (ident or _ZERO_ID, offset, length)
        if last:
            yield last


def _stretches(theirs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of pages whose parent's pages follow one another; those without one left out."""
    start = 0
    for at in range(1, len(theirs) + 1):
        if at == len(theirs) or theirs[at] < 0 or theirs[at] != theirs[at - 1] + 1:
            if theirs[start] >= 0:
                yield start, at - start
            start = at


def _gather(data: memoryview, pages: Sequence[int]) -> memoryview:
    out = memoryview(bytearray(len(pages) * PAGE))
    native.copy_runs(
        data, out, array("Q", [x for at, page in enumerate(pages) for x in (page * PAGE, at * PAGE, PAGE)])
    )
    return out
