"""Storing a process's pages against its parent's: compare by address, refer to what is the same, store the rest.

Per leaf (at most 4 MiB): the parent's fingerprints of the pages at the same addresses are put beside this image's, one
pass over the memory says of each page whether it is zero, the same or fresh, and only the fresh ones are hashed,
compressed and written. Called by ingest, one leaf per task.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

from . import native, prints
from .differences import Differences
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
        parent = self._parent
        base = parent.prints(matches, count) if parent and matches else None
        scanned = _Scan(self._source, self._key, page, count, base)
        same = parent.whole_leaf(matches, count) if parent else None
        if same is not None and bytes(scanned.prints) == base:
            return same, count * PAGE
        writer = _LeafWriter(self._session, self._source, self._key, scanned, matches, parent)
        ident = self._session.put_object(Kind.LEAF, encode_leaf(leaf_of(writer.slices())))
        self._attach(ident, scanned, same)
        return ident, count * PAGE

    def _attach(self, ident: ObjectId, scanned: _Scan, same: ObjectId | None) -> None:
        """Keep the fingerprints: only the new ones where a leaf of the parent has these very pages."""
        depth = self._parent.depth(same) if self._parent and same else prints.MAX_DEPTH
        lean = same if depth < prints.MAX_DEPTH else None
        self._session.put_sidecar(ident, prints.encode(scanned.prints, scanned.kinds, lean, depth))


class _Scan:
    """A leaf's pages, their fingerprints and kinds."""

    def __init__(self, source: Opened, key: bytes, page: int, count: int, base: bytes | None) -> None:
        self.page = page
        self.base = base
        self.prints = bytearray(16 * count)
        self.kinds = bytearray(count)
        source.scan(page * PAGE, key, base, self.prints, self.kinds)


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
        key: bytes,
        scanned: _Scan,
        matches: Sequence[Match],
        parent: ParentPages | None,
    ) -> None:
        self._session, self._source, self._key = session, source, key
        self._scanned, self._matches, self._parent = scanned, matches, parent
        self._owns = [match.own for match in matches]

    def slices(self) -> Iterator[Slice]:
        """What the leaf is made of, in order; what is fresh is stored first."""
        runs = native.runs(self._scanned.kinds)
        placed = self._store([(first, count) for first, count, kind in runs if kind == FRESH])
        for first, count, kind in runs:
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
        if not runs:
            return _Placed([])
        data = self._read(runs)
        theirs = self._theirs(runs) if self._parent else []
        if self._parent is None or max(theirs) < 0:
            return _Placed(list(_pieces(runs, store_region(self._session, data))))
        differences = Differences(self._parent, data, theirs)
        pieces: list[tuple[int, int, StoredRegion, int]] = []
        for part in differences.parts():
            region = store_region(self._session, part.data, partial(differences.base_for, part))
            pieces += _pieces(_among(runs, part.pages), region)
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
            self._fingerprint_again(runs, data)
        return data

    def _fingerprint_again(self, runs: Runs, data: memoryview) -> None:
        """A file may have changed since the scan: the fingerprints kept have to be those of the bytes stored."""
        anew = bytearray(len(data) // PAGE * 16)
        native.scan_pages(data, self._key, None, anew, bytearray(len(data) // PAGE))
        at = 0
        for first, count in runs:
            self._scanned.prints[16 * first : 16 * (first + count)] = anew[16 * at : 16 * (at + count)]
            at += count

    def _theirs(self, runs: Runs) -> list[int]:
        """Per fresh page the parent's page at its address, -1 where it has none or one of zeros."""
        base = self._scanned.base or b""
        found: list[int] = []
        for first, count in runs:
            under = [-1] * count
            for own, theirs, pages in self._matched(first, count):
                under[own - first : own - first + pages] = range(theirs, theirs + pages)
            found += under
        pages_of = [page for first, count in runs for page in range(first, first + count)]
        return [
            their if their >= 0 and any(base[16 * page : 16 * page + 16]) else -1
            for their, page in zip(found, pages_of, strict=True)
        ]


def _pieces(runs: Runs, region: StoredRegion) -> Iterator[tuple[int, int, StoredRegion, int]]:
    """Runs of a leaf's pages whose bytes follow one another in a region."""
    at = 0
    for first, count in runs:
        yield first, count, region, at
        at += count


def _among(runs: Runs, chosen: Sequence[int]) -> Runs:
    """The runs of the pages with these numbers, when the pages of `runs` are counted through."""
    if len(chosen) == sum(count for _, count in runs):
        return runs
    pages = [page for first, count in runs for page in range(first, first + count)]
    found: Runs = []
    for number in chosen:
        page = pages[number]
        if found and found[-1][0] + found[-1][1] == page:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((page, 1))
    return found
