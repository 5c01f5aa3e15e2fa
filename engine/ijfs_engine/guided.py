"""Storing a process's pages against its parent's: compare by address, refer to what is the same, store the rest.

Per leaf (at most 4 MiB): one pass over the memory fingerprints its pages; groups of pages with the parent's fingerprint
are the same, the pages of others are where the parent's bytes say so, and only what is left is hashed, compressed and
written. Called by ingest, a few leaves per task.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice

from . import native
from . import prints as kept
from .differences import NOTHING, Differences, Under
from .extents import Slice, leaf_of
from .frames import Kind
from .native import FRESH, PAGE, SAME, ZERO
from .pages import PageLayout
from .parentpages import Match, ParentPages
from .records import ObjectId, encode_leaf
from .regions import StoredRegion, store_region
from .session import Session
from .sources import Opened

Runs = list[tuple[int, int]]


class PageFile:
    """One pages file on its way in; `store_leaves` for its leaves, from any thread."""

    def __init__(
        self, session: Session, source: Opened, layout: PageLayout, key: bytes, parent: ParentPages | None
    ) -> None:
        self._session = session
        self._source = source
        self._layout = layout
        self._key = key
        self._parent = parent

    def store_leaves(self, spans: Sequence[tuple[int, int]]) -> list[tuple[ObjectId, int]]:
        """Store pages [page, page + count) of each span as a leaf: (id, plain bytes). StorageError, CorruptError."""
        parent = self._parent
        matches = [parent.matches(self._layout, page, count) if parent else [] for page, count in spans]
        if parent:
            parent.load(matches)
        return [self._store_leaf(page, count, found) for (page, count), found in zip(spans, matches, strict=True)]

    def _store_leaf(self, page: int, count: int, matches: list[Match]) -> tuple[ObjectId, int]:
        scanned = _Scan(self._source, self._layout, self._key, page, count)
        parent = self._parent
        if parent and matches:
            at = parent.whole_leaf(matches, count)
            if at is not None and parent.known(at).prints == scanned.prints():
                return parent.leaf_id(at), count * PAGE
            scanned.mark_same(parent.groups(matches))
        writer = _LeafWriter(self._session, self._source, scanned, matches, parent)
        ident = self._session.put_object(Kind.LEAF, encode_leaf(leaf_of(writer.slices())))
        self._session.put_sidecar(ident, kept.encode(scanned.prints(), scanned.groups))
        return ident, count * PAGE


class _Scan:
    """A leaf's pages: their kinds and fingerprints."""

    def __init__(self, source: Opened, layout: PageLayout, key: bytes, page: int, count: int) -> None:
        self.page = page
        self.kinds = bytearray(count)
        self._key = key
        self._prints = bytearray(16 * count)
        self._pieces = list(layout.pieces(page, count))
        self._folded: kept.Prints | None = None
        source.scan(page * PAGE, key, self._prints, self.kinds)

    @cached_property
    def groups(self) -> list[kept.Group]:
        """The groups of its pages."""
        return kept.groups_of(self._pieces)

    def prints(self) -> kept.Prints:
        """What is kept of its fingerprints."""
        if self._folded is None:
            self._folded = kept.fold(self._prints, self._pieces, self._key)
        return self._folded

    def mark_same(self, theirs: Mapping[tuple[int, int], bytes]) -> None:
        """Class as SAME the pages of groups whose fingerprint the parent's group of the same pages has."""
        prints = self.prints().groups
        for number, group in enumerate(self.groups):
            if theirs.get((group.block, group.mask)) == prints[16 * number : 16 * number + 16]:
                for page in range(group.first, group.first + group.pages):
                    if self.kinds[page] == FRESH:
                        self.kinds[page] = SAME

    def fingerprint_again(self, runs: Runs, data: memoryview) -> None:
        """Of these pages, whose bytes are in `data`: a file may have changed since the scan, and what is kept has to
        be the fingerprints of the bytes that are stored."""
        anew = bytearray(len(data) // PAGE * 16)
        native.scan_pages(data, self._key, anew, bytearray(len(data) // PAGE))
        at = 0
        for first, count in runs:
            self._prints[16 * first : 16 * (first + count)] = anew[16 * at : 16 * (at + count)]
            at += count
        self._folded = None


class _Placed:
    """Where the fresh pages of a leaf are now: pieces of regions, found by the leaf's pages."""

    def __init__(self, pieces: list[tuple[int, int, StoredRegion, int]]) -> None:
        """Of (own, pages, region, at): `pages` pages from page `own` of the leaf are those from `at` of a region."""
        self._pieces = sorted(pieces, key=lambda piece: piece[0])
        self._starts = [piece[0] for piece in self._pieces]

    def slices(self, first: int, count: int) -> Iterator[Slice]:
        """What pages [first, first + count) are made of; all of them are here."""
        at = bisect_right(self._starts, first) - 1
        while count > 0:
            own, pages, region, inside = self._pieces[at]
            step = min(count, own + pages - first)
            yield from region.slices((inside + first - own) * PAGE, step * PAGE)
            first, count, at = first + step, count - step, at + 1


class _LeafWriter:
    """The extents of one leaf whose pages have been scanned."""

    def __init__(
        self,
        session: Session,
        source: Opened,
        scanned: _Scan,
        matches: Sequence[Match],
        parent: ParentPages | None,
    ) -> None:
        self._session, self._source = session, source
        self._scanned, self._matches, self._parent = scanned, matches, parent
        self._owns = [match.own for match in matches]

    def slices(self) -> Iterator[Slice]:
        """What the leaf is made of, in order; what is fresh is stored first."""
        placed = self._store(
            [(first, count) for first, count, kind in native.runs(self._scanned.kinds) if kind == FRESH]
        )
        for first, count, kind in native.runs(self._scanned.kinds):
            if kind == ZERO:
                yield Slice(None, 0, count * PAGE)
            elif kind == FRESH:
                yield from placed.slices(first, count)
            elif kind == SAME and self._parent:
                for _, theirs, pages in self._matched(first, count):
                    yield from self._parent.slices(theirs, pages)

    def _matched(self, first: int, count: int) -> Iterator[Match]:
        """The parts of the matches that lie in pages [first, first + count), in order."""
        at = max(bisect_right(self._owns, first) - 1, 0)
        for own, theirs, pages in islice(self._matches, at, None):
            if own >= first + count:
                return
            low, high = max(own, first), min(own + pages, first + count)
            if low < high:
                yield Match(low, theirs + low - own, high - low)

    def _store(self, runs: Runs) -> _Placed:
        """Store these pages; those whose bytes turn out to be the parent's are classed as SAME instead."""
        if not runs:
            return _Placed([])
        data = self._read(runs)
        under = self._under(runs) if self._parent else []
        if self._parent is None or not any(page.theirs >= 0 for page in under):
            return _Placed(list(_pieces(runs, store_region(self._session, data))))
        differences = Differences(self._parent, data, under)
        numbers = [page for first, count in runs for page in range(first, first + count)]
        for number in differences.same():
            self._scanned.kinds[numbers[number]] = SAME
        pieces: list[tuple[int, int, StoredRegion, int]] = []
        for part in differences.parts():
            region = store_region(self._session, part.data, partial(differences.base_for, part))
            pieces += _pieces(_runs_of([numbers[number] for number in part.pages]), region)
        return _Placed(pieces)

    def _read(self, runs: Runs) -> memoryview:
        """The bytes of these runs, one behind the other."""
        start = self._scanned.page
        if len(runs) == 1:
            data = self._source.view((start + runs[0][0]) * PAGE, runs[0][1] * PAGE)
        else:
            data = memoryview(bytearray(sum(count for _, count in runs) * PAGE))
            at = 0
            for first, count in runs:
                self._source.read_into((start + first) * PAGE, data[at : at + count * PAGE])
                at += count * PAGE
        if not self._source.stable:
            self._scanned.fingerprint_again(runs, data)
        return data

    def _under(self, runs: Runs) -> list[Under]:
        """What the parent has under each fresh page."""
        assert self._parent is not None
        own = memoryview(self._scanned.prints().hints).cast("H")
        theirs = memoryview(self._parent.hints(self._matches, len(own))).cast("H")
        found: list[Under] = []
        for first, count in runs:
            under = [NOTHING] * count
            for at, page, pages in self._matched(first, count):
                for i in range(pages):
                    if theirs[at + i]:
                        under[at + i - first] = Under(page + i, theirs[at + i] == own[at + i])
            found += under
        return found


def _pieces(runs: Runs, region: StoredRegion) -> Iterator[tuple[int, int, StoredRegion, int]]:
    """Runs of a leaf's pages whose bytes follow one another in a region."""
    at = 0
    for first, count in runs:
        yield first, count, region, at
        at += count


def _runs_of(pages: Sequence[int]) -> Runs:
    """Ascending page numbers as runs."""
    found: Runs = []
    for page in pages:
        if found and found[-1][0] + found[-1][1] == page:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((page, 1))
    return found
