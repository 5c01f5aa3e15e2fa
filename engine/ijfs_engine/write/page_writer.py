"""Storing a process's pages against its parent's: compare by address, refer to what is the same, store the rest.

A few leaves at a time: one pass over the memory fingerprints their pages. A group with the parent's fingerprint is
unchanged. In other groups the pages are compared byte by byte. Only what differs is hashed, compressed and written, as
one region over all of these leaves. Called by file_writer.py, from many threads.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Final, TypeAlias

from ijfs_engine._native import copies, extent_columns, page_scan
from ijfs_engine._native.extent_columns import Assembly, Columns
from ijfs_engine._native.page_scan import FRESH, PAGE, SAME
from ijfs_engine.format.extents import ExtentSource, leaf_from
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.page_layout import PageLayout
from ijfs_engine.format.records import ObjectId, encode_leaf
from ijfs_engine.storage.session import Session
from ijfs_engine.util import buffers
from ijfs_engine.write import fingerprints
from ijfs_engine.write.kept_prints import KeptPrints
from ijfs_engine.write.page_deltas import PageDeltas
from ijfs_engine.write.parent_pages import Match, ParentPages
from ijfs_engine.write.regions import store_region
from ijfs_engine.write.sources import Opened

_FRESH: Final = bytes([FRESH])
_SAME: Final = bytes([SAME])

Runs: TypeAlias = list[tuple[int, int]]
"""(first page, pages)."""


class PageFile:
    """One pages file that is being stored. Threads call `store_leaves` for its leaves."""

    def __init__(
        self,
        session: Session,
        source: Opened,
        layout: PageLayout,
        key: bytes,
        parent: ParentPages | None,
        kept: KeptPrints | None = None,
    ) -> None:
        """`kept` gets the fingerprints of all pages."""
        self.session = session
        self.source = source
        self.layout = layout
        self.key = key
        self.parent = parent
        self.kept = kept

    def store_leaves(self, spans: Sequence[tuple[int, int]]) -> list[tuple[ObjectId, int]]:
        """Store pages [page, page + count) of each span, which follow one another, as a leaf: (id, plain bytes).

        StorageError, CorruptError.
        """
        return _Task(self, spans).run()


class _Leaf:
    """One of the leaves of a task; pages are counted from the task's first."""

    def __init__(self, file: PageFile, page: int, first: int, count: int) -> None:
        self.first = first
        self.count = count
        self.pieces = list(file.layout.pieces(page, count))
        self.twin = file.parent.twin(self.pieces) if file.parent else None
        """The number of the parent's leaf with the same addresses."""
        self.matches = self._matches(file.parent) if file.parent else []
        self.known = self._known(file.parent) if file.parent else None
        """The fingerprints of the parent's pages at its addresses, where they need not be read."""
        self.same: ObjectId | None = None
        """The parent's leaf with the same bytes, once that is known."""

    def _matches(self, parent: ParentPages) -> list[Match]:
        found = parent.matches(self.pieces) if self.twin is None else [parent.twin_match(self.twin)]
        return [match._replace(own=self.first + match.own) for match in found]

    def _known(self, parent: ParentPages) -> bytes | None:
        if self.twin is not None:
            return parent.prints_of(self.twin)
        return parent.prints_under(self.matches, self.first, self.count)

    @cached_property
    def shape(self) -> fingerprints.LeafShape:
        """How its pages lie in blocks."""
        return fingerprints.shape_of(self.pieces)


class _Task:
    """A few leaves of a file, from their bytes to their objects."""

    def __init__(self, file: PageFile, spans: Sequence[tuple[int, int]]) -> None:
        self._file = file
        self._page = spans[0][0]
        self._leaves = [_Leaf(file, page, page - self._page, count) for page, count in spans]
        total = sum(count for _, count in spans)
        self._prints = bytearray(16 * total)
        self._kinds = bytearray(total)
        self._pages = memoryview(b"")
        self._folded: dict[int, fingerprints.Fingerprints] = {}
        self._worn: bytearray | None = None
        self._matches = [match for leaf in self._leaves for match in leaf.matches]

    def run(self) -> list[tuple[ObjectId, int]]:
        """(id, plain bytes) of each leaf."""
        if self._file.parent:
            self._file.parent.load(match for leaf in self._leaves if leaf.known is None for match in leaf.matches)
            self._worn = self._file.parent.worn_pages(self._matches, len(self._kinds))
        self._pages = self._file.source.scan(self._page * PAGE, self._file.key, self._prints, self._kinds)
        for leaf in self._leaves:
            self._recognise(leaf)
        placed = self._store([(first, count) for first, count, kind in page_scan.runs(self._kinds) if kind == FRESH])
        if self._worn is not None:
            placed = sorted([*placed, *self._renew(self._worn)], key=lambda piece: piece[0])
        found = [(leaf.same or self._write(leaf, placed), leaf.count * PAGE) for leaf in self._leaves]
        if self._file.kept is not None:
            for leaf, (ident, _) in zip(self._leaves, found, strict=True):
                self._keep(self._file.kept, leaf, ident)
        return found

    def _keep(self, kept: KeptPrints, leaf: _Leaf, ident: ObjectId) -> None:
        if leaf.same is not None and leaf.known is not None:
            kept.put_again(ident)
        else:
            kept.put(ident, bytes(self._prints_of(leaf)))

    def _prints_of(self, leaf: _Leaf) -> memoryview:
        return memoryview(self._prints)[16 * leaf.first : 16 * (leaf.first + leaf.count)]

    def _fold(self, leaf: _Leaf) -> fingerprints.Fingerprints:
        """What is kept of a leaf's fingerprints."""
        folded = self._folded.get(leaf.first)
        if folded is None:
            folded = self._folded[leaf.first] = fingerprints.fold(self._prints_of(leaf), leaf.pieces, self._file.key)
        return folded

    def _recognise(self, leaf: _Leaf) -> None:
        """Find the parent's leaf that this one is, or class as SAME pages that the parent has."""
        parent = self._file.parent
        if not parent or not leaf.matches:
            return
        if leaf.known is not None:
            self._compare_pages(parent, leaf, leaf.known)
        else:
            self._compare_groups(parent, leaf)

    def _compare_pages(self, parent: ParentPages, leaf: _Leaf, known: bytes) -> None:
        kinds = memoryview(self._kinds)[leaf.first : leaf.first + leaf.count]
        different = page_scan.mark_same_prints(self._prints_of(leaf), known, kinds)
        if leaf.twin is not None and not different:
            self._take(leaf, parent.leaf_id(leaf.twin))

    def _take(self, leaf: _Leaf, theirs: ObjectId) -> None:
        """The leaf is one that the parent has."""
        leaf.same = theirs
        self._kinds[leaf.first : leaf.first + leaf.count] = _SAME * leaf.count

    def _compare_groups(self, parent: ParentPages, leaf: _Leaf) -> None:
        own = self._fold(leaf)
        if leaf.twin is None:
            theirs = parent.groups(leaf.matches)
            block = fingerprints.first_block(leaf.pieces)
            beside = [theirs.get((block + group.block, group.mask), b"") for group in leaf.shape.groups]
        elif parent.attached(leaf.twin) == self._sealed(leaf, parent.leaf_id(leaf.twin)):
            self._take(leaf, parent.leaf_id(leaf.twin))
            return
        else:
            groups = parent.known(leaf.twin).prints.groups
            beside = [groups[number : number + 16] for number in range(0, len(groups), 16)]
        self._mark_same(leaf, own.groups, beside)

    def _mark_same(self, leaf: _Leaf, own: bytes, theirs: Sequence[bytes]) -> None:
        for number, group in enumerate(leaf.shape.groups):
            if own[16 * number : 16 * number + 16] == theirs[number]:
                first = leaf.first + group.first
                pages = self._kinds[first : first + group.pages]
                self._kinds[first : first + group.pages] = pages.replace(_FRESH, _SAME)

    def _write(self, leaf: _Leaf, placed: list[ExtentSource]) -> ObjectId:
        kinds = memoryview(self._kinds)[leaf.first : leaf.first + leaf.count]
        parent = self._file.parent
        same = parent.extents_under(leaf.matches) if parent and SAME in kinds else []
        own = [
            source for source in placed if source[0] < leaf.first + leaf.count and source[0] + source[1] > leaf.first
        ]
        assembly = Assembly()
        assembly.pages(kinds, leaf.first, same, own)
        ident = self._file.session.put_object(FrameKind.LEAF, encode_leaf(leaf_from(assembly)))
        self._file.session.put_sidecar(ident, self._sealed(leaf, ident))
        return ident

    def _sealed(self, leaf: _Leaf, ident: ObjectId) -> bytes:
        """The fingerprints of a leaf as they would be attached to the leaf of this id."""
        return fingerprints.encode(self._fold(leaf), leaf.shape, ident, self._file.key)

    def _store(self, runs: Runs) -> list[ExtentSource]:
        """Store these pages and say where they are. Those that turn out to be the parent's are classed as SAME."""
        if not runs:
            return []
        session, parent = self._file.session, self._file.parent
        if parent is None:
            return _pieces(runs, store_region(session, self._read(runs)))
        numbers, theirs, likely = self._under(parent)
        data = self._read(runs)
        if max(theirs) < 0:
            return _pieces(runs, store_region(session, data))
        differences = PageDeltas(parent, data, theirs, likely, parent.leaves_under(self._matches))
        extent_columns.mark_same(self._kinds, numbers, differences.changed)
        if self._worn is not None:
            differences.leave_out([at for at, page in enumerate(numbers) if self._worn[page]])
        pieces: list[ExtentSource] = []
        for part in differences.parts():
            region = store_region(session, part.data, partial(differences.base_for, part))
            pieces += _pieces(_runs_of([numbers[number] for number in part.pages]), region)
        return sorted(pieces, key=lambda piece: piece[0])

    def _renew(self, worn: bytearray) -> list[ExtentSource]:
        """Store anew the parent's pages that are in chunks of which little is in use; where they are."""
        for leaf in self._leaves:
            if 1 in worn[leaf.first : leaf.first + leaf.count]:
                leaf.same = None
        rest = [page for page, mark in enumerate(worn) if mark and self._kinds[page] == SAME]
        for page in rest:
            self._kinds[page] = FRESH
        runs = _runs_of(rest)
        return _pieces(runs, store_region(self._file.session, self._read(runs))) if runs else []

    def _read(self, runs: Runs) -> memoryview:
        """The bytes of these runs, one behind the other."""
        if len(runs) == 1:
            return self._pages[runs[0][0] * PAGE : (runs[0][0] + runs[0][1]) * PAGE]
        data = buffers.take("read", sum(count for _, count in runs) * PAGE)
        pieces, at = array("Q"), 0
        for first, count in runs:
            pieces.extend((first * PAGE, at * PAGE, count * PAGE))
            at += count
        copies.copy_runs(self._pages, data, pieces)
        return data

    def _under(self, parent: ParentPages) -> tuple[memoryview, memoryview, memoryview]:
        """Of each fresh page its number, the parent's page under it (-1: none), and whether the hints agree."""
        own = page_scan.hints_of(self._prints)
        unknown = [match for leaf in self._leaves if leaf.known is None for match in leaf.matches]
        theirs = bytearray(parent.hints(unknown, len(self._kinds)))
        for leaf in self._leaves:
            if leaf.known is not None:
                theirs[2 * leaf.first : 2 * (leaf.first + leaf.count)] = page_scan.hints_of(leaf.known)
        numbers, under, likely = extent_columns.fresh_pages(
            self._kinds, memoryview(own).cast("H"), memoryview(theirs).cast("H"), self._matches
        )
        return memoryview(numbers).cast("I"), memoryview(under).cast("q"), memoryview(likely)


def _pieces(runs: Runs, region: Columns) -> list[ExtentSource]:
    """Runs of pages whose bytes follow one another in a region."""
    found: list[ExtentSource] = []
    at = 0
    for first, count in runs:
        found.append((first, count, region, at))
        at += count
    return found


def _runs_of(pages: Sequence[int]) -> Runs:
    """Ascending page numbers as runs."""
    found: Runs = []
    for page in pages:
        if found and found[-1][0] + found[-1][1] == page:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((page, 1))
    return found
