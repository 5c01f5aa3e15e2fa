"""Fresh pages over the parent's at the same address: which pay as differences, and to what. Called by page_writer.py.

A page with few changed cache lines ("sparse") is stored as XOR against the parent's page, in a region of its own so
that such pages compress together; others only where they look like floats, whose XOR keeps sign and exponent quiet.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from ijfs_engine._native import copies, extent_columns
from ijfs_engine._native.page_scan import PAGE
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.extents import ExtentSource
from ijfs_engine.format.frames import MAX_BASES
from ijfs_engine.util import buffers
from ijfs_engine.write.parent_pages import ParentPages

# Of 64. Beyond it the difference of two objects was larger than either (measured on kernel images).
SPARSE_LINES: Final = 24
# A run of fresh pages this long is looked at in a few places before all of the parent's bytes under it are decoded.
_PROBED_RUN: Final = 32
_PROBES: Final = 4


class DeltaPart(NamedTuple):
    """Pages that form a region: their numbers among those looked at, their bytes, and the parent's under them."""

    pages: Sequence[int]
    data: memoryview
    base: memoryview
    theirs: memoryview
    """Per page the parent's page that lies under it (i64); -1 where `base` holds nothing that counts."""
    sparse: bool


class PageDeltas:
    """What the parent has under the pages of a few leaves that are not known to be the same."""

    def __init__(
        self, parent: ParentPages, data: memoryview, theirs: memoryview, likely: memoryview, sources: list[ExtentSource]
    ) -> None:
        """`theirs`: for each page of `data` the parent's page under it (i64; -1: none). `likely`: whether their hints
        agree.

        `sources` are the parent's leaves (`ParentPages.beneath`). CorruptError.
        """
        self._parent = parent
        self._data = data
        self._base = buffers.take("base", len(data))
        self._theirs = theirs
        self._sources = sources
        self._depths: dict[bytes, int] = {}
        self.changed = memoryview(bytearray(b"\xff" * len(theirs)))
        """How many of a page's lines differ; 255 where it was not compared. 0: the page is the parent's."""
        self._leave_out(extent_columns.long_runs(theirs, likely, _PROBED_RUN))
        parent.read_pages(theirs, sources, self._base)
        extent_columns.compare_pages(data, self._base, theirs, self.changed)

    def _leave_out(self, runs: Sequence[tuple[int, int]]) -> None:
        """Compare a few pages of each long run. Where none resembles the parent's, the run is stored by itself."""
        if not runs:
            return
        probes = [[start + count * i // _PROBES for i in range(_PROBES)] for start, count in runs]
        places = array("q", bytes(b"\xff" * 8 * len(self._theirs)))
        for page in (page for pages in probes for page in pages):
            places[page] = self._theirs[page]
        self._parent.read_pages(memoryview(places), self._sources, self._base)
        extent_columns.compare_pages(self._data, self._base, places, self.changed)
        for (start, count), pages in zip(runs, probes, strict=True):
            if not self._promising(pages):
                self._theirs[start : start + count] = memoryview(array("q", [-1]) * count)
                for page in pages:
                    self.changed[page] = 0xFF

    def leave_out(self, pages: Sequence[int]) -> None:
        """Have these pages stored by themselves, but for those that are the parent's."""
        for page in pages:
            if self.changed[page]:
                self._theirs[page], self.changed[page] = -1, 0xFF

    def _promising(self, pages: Sequence[int]) -> bool:
        if any(self.changed[page] <= SPARSE_LINES for page in pages):
            return True
        spans = [slice(page * PAGE, (page + 1) * PAGE) for page in pages]
        return any(chunk_codec.is_quieter(self._data[span], self._base[span]) for span in spans)

    def parts(self) -> Iterator[DeltaPart]:
        """The regions in which pages that differ are stored: sparse pages, then the others, if there are any."""
        for sparse in (True, False):
            low, high = (1, SPARSE_LINES) if sparse else (SPARSE_LINES + 1, 0xFF)
            pages = [page for page, lines in enumerate(self.changed) if low <= lines <= high]
            if len(pages) == len(self._theirs):
                yield DeltaPart(pages, self._data, self._base, self._theirs, sparse)
            elif pages:
                theirs = memoryview(array("q", [self._theirs[page] for page in pages]))
                data, base = (
                    _gather(name, whole, pages) for name, whole in (("own", self._data), ("under", self._base))
                )
                yield DeltaPart(pages, data, base, theirs, sparse)

    def base_for(self, part: DeltaPart, start: int, end: int) -> chunk_codec.Base | None:
        """What bytes [start, end) of a part may be stored as a difference to."""
        plain, base = part.data[start:end], part.base[start:end]
        if not part.sparse:
            under = part.theirs[start // PAGE : -(-end // PAGE)]
            if min(under) < 0 or not chunk_codec.is_quieter(plain, base):
                return None
        extents = extent_columns.Assembly()
        extents.under(part.theirs, start, end, self._sources)
        if len(extents) > MAX_BASES:
            return None
        return chunk_codec.Base(base, extents.bases(), self._depth(extents.ids()), sure=not part.sparse)

    def _depth(self, ids: list[bytes]) -> int:
        """Of the deepest chunk among these."""
        new = [ident for ident in ids if ident not in self._depths]
        if new:
            infos = self._parent.reader.store.chunk_info(new)
            self._depths.update((ident, info.depth if info else 0) for ident, info in zip(new, infos, strict=True))
        return max((self._depths[ident] for ident in ids), default=0)


def _gather(name: str, data: memoryview, pages: Sequence[int]) -> memoryview:
    out = buffers.take(name, len(pages) * PAGE)
    copies.copy_runs(
        data, out, array("Q", [x for at, page in enumerate(pages) for x in (page * PAGE, at * PAGE, PAGE)])
    )
    return out
