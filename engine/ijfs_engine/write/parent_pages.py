"""The parent's image of an address space, as a save compares against it: pages by address, fingerprints, extents."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Final, NamedTuple

from ijfs_engine._native import extent_columns, page_scan
from ijfs_engine._native.page_scan import PAGE
from ijfs_engine.errors import CorruptError
from ijfs_engine.format.extents import ExtentSource, LeafMap
from ijfs_engine.format.page_layout import LEAF_PAGES, PageLayout
from ijfs_engine.format.records import ObjectId
from ijfs_engine.read import bulk
from ijfs_engine.read.reader import Reader
from ijfs_engine.read.stored_file import StoredFile
from ijfs_engine.util.byte_lru import ByteLru
from ijfs_engine.write import fingerprints
from ijfs_engine.write.fingerprints import Fingerprints, LeafShape
from ijfs_engine.write.kept_prints import KeptPrints

# Leaves of the two images are nearly always in step, so each is looked at once or twice, by one thread: those of a few
# tasks are kept. A leaf has 3 KiB of fingerprints, and seldom a shape of its own.
_KNOWN_CACHE: Final = 2 << 20
_KNOWN_SIZE: Final = 8 << 10
_KNOWN_OVERHEAD: Final = 100


class Match(NamedTuple):
    """Pages from page `own` of a leaf stand at the same addresses as those from page `theirs` of the parent's file."""

    own: int
    theirs: int
    pages: int


class KnownPages(NamedTuple):
    """A leaf of the parent: where its groups begin, their shape, its fingerprints."""

    block: int
    shape: LeafShape
    prints: Fingerprints


class ParentPages:
    """Safe to use from several threads."""

    def __init__(
        self,
        reader: Reader,
        file: StoredFile,
        layout: PageLayout,
        key: bytes,
        worn: set[bytes] | None = None,
        kept: KeptPrints | None = None,
    ) -> None:
        """`kept`: what is known of its pages' fingerprints without reading any."""
        self.reader = reader
        self._kept = kept
        self._worn = worn
        self._file = file
        self._layout = layout
        self._key = key
        self._leaves = file.leaves()
        self._starts = list(accumulate((size // PAGE for _, size in self._leaves), initial=0))
        self._attached: ByteLru[bytes] = ByteLru(_KNOWN_CACHE)
        self._known: ByteLru[KnownPages] = ByteLru(_KNOWN_CACHE)

    @cached_property
    def _by_address(self) -> dict[int, int]:
        """Numbers of leaves by the first page number they hold."""
        return {self._layout.address_of(start) // PAGE: at for at, start in enumerate(self._starts[:-1])}

    def twin(self, pieces: Sequence[tuple[int, int]]) -> int | None:
        """The number of the parent's leaf that has exactly these (first page number, pages), if there is one."""
        at = self._by_address.get(pieces[0][0])
        return at if at is not None and self._pieces_of(at) == pieces else None

    def twin_match(self, at: int) -> Match:
        """How leaf number `at` lies under its twin."""
        return Match(0, self._starts[at], self._starts[at + 1] - self._starts[at])

    def matches(self, pieces: Iterable[tuple[int, int]]) -> list[Match]:
        """What the parent has at the addresses of a leaf of these (first page number, pages)."""
        found: list[Match] = []
        own = 0
        for first, pages in pieces:
            for number, theirs, n in self._layout.locate(first, pages):
                _extend(found, Match(own + number - first, theirs, n))
            own += pages
        return found

    def leaves_under(self, matches: Iterable[Match]) -> list[ExtentSource]:
        """The parent's leaves under these pages, for `Assembly.under`: (its page, pages, columns, 0). CorruptError."""
        wanted = list(dict.fromkeys(at for match in matches for at in self._leaves_of(match)))
        leaves = self.reader.leaves([self._leaves[at][0] for at in wanted])
        return [
            (self._starts[at], self._pages_of(at, leaf), leaf.columns, 0)
            for at, leaf in zip(wanted, leaves, strict=True)
        ]

    def _pages_of(self, at: int, leaf: LeafMap) -> int:
        if leaf.size != self._leaves[at][1]:
            raise CorruptError(f"leaf {self._leaves[at][0].hex()[:12]} is not as long as its file says")
        return leaf.size // PAGE

    def extents_under(self, matches: Iterable[Match]) -> list[ExtentSource]:
        """The same by the pages of the matches: (own page, pages, columns, page in them), for `Assembly.pages`."""
        matches = list(matches)
        leaves = {source[0]: source for source in self.leaves_under(matches)}
        found: list[ExtentSource] = []
        for own, theirs, pages in matches:
            for at in self._leaves_of(Match(own, theirs, pages)):
                start, count, columns, _ = leaves[self._starts[at]]
                low, high = max(theirs, start), min(theirs + pages, start + count)
                found.append((own + low - theirs, high - low, columns, low - start))
        return found

    def worn_pages(self, matches: Iterable[Match], pages: int) -> bytearray | None:
        """A byte for each of so many own pages: 1 where the parent has it in a chunk of which little is in use any more
        (storage/worn.py). None where there are no such chunks. CorruptError."""
        if not self._worn:
            return None
        marks = bytearray(pages)
        extent_columns.mark_pages_of(self._worn, marks, self.extents_under(matches))
        return marks if any(marks) else None

    def read_pages(self, theirs: memoryview, sources: list[ExtentSource], buffer: memoryview) -> None:
        """Page i of `buffer` becomes the parent's page theirs[i], where that is not negative. CorruptError."""
        for at in range(0, len(theirs), LEAF_PAGES):
            what = bulk.new_read(self.reader.store.crypt)
            what.add_pages(theirs[at : at + LEAF_PAGES], sources, buffer[at * PAGE : (at + LEAF_PAGES) * PAGE])
            self.reader.fill(what)

    def read_many(self, wanted: Iterable[tuple[int, memoryview]]) -> None:
        """Fill each buffer with the parent's pages from a page number on. CorruptError."""
        self._file.read_many((page * PAGE, buffer) for page, buffer in wanted)

    def prints_of(self, at: int) -> bytes | None:
        """The fingerprints of the pages of leaf number `at`, 16 bytes each; None unless they are kept."""
        return self._kept.get(self.leaf_id(at)) if self._kept is not None else None

    def prints_under(self, matches: Sequence[Match], first: int, count: int) -> bytes | None:
        """The fingerprints of what the parent has under `count` pages from own page `first` on, 16 bytes each, zeros
        where it has nothing. None unless those of all leaves there are kept."""
        if not matches:
            return None
        out = bytearray(16 * count)
        for own, theirs, pages in matches:
            for at in self._leaves_of(Match(own, theirs, pages)):
                prints = self.prints_of(at)
                if prints is None:
                    return None
                low, high = max(theirs, self._starts[at]), min(theirs + pages, self._starts[at + 1])
                place, inside = own + low - theirs - first, low - self._starts[at]
                out[16 * place : 16 * (place + high - low)] = prints[16 * inside : 16 * (inside + high - low)]
        return bytes(out)

    def leaf_id(self, at: int) -> ObjectId:
        """The id of leaf number `at`."""
        return self._leaves[at][0]

    def load(self, matches: Iterable[Match]) -> None:
        """Read the fingerprints of the leaves under these pages, in one request."""
        wanted = dict.fromkeys(at for match in matches for at in self._leaves_of(match))
        missing = [at for at in wanted if _key(at) not in self._attached]
        attached = self.reader.store.sidecars([self._leaves[at][0] for at in missing]) if missing else ()
        for at, data in zip(missing, attached, strict=True):
            self._attached.put(_key(at), data or b"", len(data or b"") + _KNOWN_OVERHEAD)

    def attached(self, at: int) -> bytes:
        """The fingerprints of leaf number `at` as they are stored; none where they were dropped."""
        data = self._attached.get(_key(at))
        return data if data is not None else self.reader.store.sidecars([self._leaves[at][0]])[0] or b""

    def known(self, at: int) -> KnownPages:
        """Leaf number `at`. CorruptError."""
        known = self._known.get(_key(at))
        if known is None:
            known = self._parse(at, self.attached(at))
            self._known.put(_key(at), known, _KNOWN_SIZE)
        return known

    def groups(self, matches: Sequence[Match]) -> dict[tuple[int, int], bytes]:
        """Fingerprints of the groups under these pages, by (block, mask): the same group means the same addresses."""
        found: dict[tuple[int, int], bytes] = {}
        for at in dict.fromkeys(at for match in matches for at in self._leaves_of(match)):
            known = self.known(at)
            for number, group in enumerate(known.shape.groups):
                found[known.block + group.block, group.mask] = known.prints.groups[16 * number : 16 * number + 16]
        return found

    def hints(self, matches: Sequence[Match], count: int) -> bytes:
        """The hints of the parent's pages at the addresses of a leaf of `count` pages; zeros where it has nothing."""
        out = bytearray(2 * count)
        for own, theirs, pages in matches:
            at = bisect_right(self._starts, theirs) - 1
            while pages:
                inside = theirs - self._starts[at]
                step = min(pages, self._starts[at + 1] - theirs)
                out[2 * own : 2 * (own + step)] = self.known(at).prints.hints[2 * inside : 2 * (inside + step)]
                own, theirs, pages, at = own + step, theirs + step, pages - step, at + 1
        return bytes(out)

    def _leaves_of(self, match: Match) -> range:
        first = bisect_right(self._starts, match.theirs) - 1
        return range(first, bisect_left(self._starts, match.theirs + match.pages))

    def _pieces_of(self, at: int) -> list[tuple[int, int]]:
        return list(self._layout.pieces(self._starts[at], self._starts[at + 1] - self._starts[at]))

    def _parse(self, at: int, attached: bytes) -> KnownPages:
        start, count = self._starts[at], self._starts[at + 1] - self._starts[at]
        pieces = self._pieces_of(at)
        shape = fingerprints.shape_of(pieces)
        known = fingerprints.parse(attached, count, shape, self.leaf_id(at), self._key)
        prints = known or self._made_anew(start, count, pieces)
        return KnownPages(fingerprints.first_block(pieces), shape, prints)

    def _made_anew(self, start: int, count: int, pieces: list[tuple[int, int]]) -> Fingerprints:
        """Out of the leaf's bytes: its attachment was dropped. CorruptError."""
        data = memoryview(bytearray(count * PAGE))
        self.read_many([(start, data)])
        every = bytearray(16 * count)
        page_scan.scan_pages(data, self._key, every, bytearray(count))
        return fingerprints.fold(every, pieces, self._key)


def _key(at: int) -> bytes:
    # By number, not by id: the same leaf may stand at several addresses.
    return at.to_bytes(8, "little")


def _extend(found: list[Match], match: Match) -> None:
    last = found[-1] if found else None
    if last and last.own + last.pages == match.own and last.theirs + last.pages == match.theirs:
        found[-1] = Match(last.own, last.theirs, last.pages + match.pages)
    else:
        found.append(match)
