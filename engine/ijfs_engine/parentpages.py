"""The parent's image of an address space, as ingest compares against it: pages by address, fingerprints, extents."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from . import native, prints
from .extents import Slice
from .lru import ByteLru
from .native import PAGE
from .pages import PageLayout
from .reader import Reader, StoredFile
from .records import ObjectId

# Leaves of the two images are nearly always in step, so each is looked at once or twice, by one thread.
_PRINTS_CACHE = 2 << 20


class Match(NamedTuple):
    """Pages from page `own` of a leaf stand at the same addresses as those from page `theirs` of the parent's file."""

    own: int
    theirs: int
    pages: int


class Known(NamedTuple):
    """Fingerprints of a leaf of the parent, and how many differences they are away from a whole set."""

    prints: bytes
    depth: int


class ParentPages:
    """Safe to use from several threads."""

    def __init__(self, reader: Reader, file: StoredFile, layout: PageLayout, key: bytes) -> None:
        self.reader = reader
        self._file = file
        self._layout = layout
        self._key = key
        self._leaves = file.leaves()
        self._starts = list(accumulate((size // PAGE for _, size in self._leaves), initial=0))
        self._known: ByteLru[Known] = ByteLru(_PRINTS_CACHE)

    def matches(self, layout: PageLayout, page: int, count: int) -> list[Match]:
        """What the parent has at the addresses of pages [page, page + count) of a file with this layout."""
        found: list[Match] = []
        own = 0
        for first, pages in layout.pieces(page, count):
            for number, theirs, n in self._layout.locate(first, pages):
                _extend(found, Match(own + number - first, theirs, n))
            own += pages
        return found

    def slices(self, page: int, count: int) -> Iterator[Slice]:
        """What pages [page, page + count) of the parent's file are made of."""
        return self._file.slices(page * PAGE, count * PAGE)

    def slices_of(self, page: int, offset: int, length: int) -> Iterator[Slice]:
        """What `length` bytes from `offset` of one page are made of; zeros for page -1, which stands for none."""
        if page < 0:
            return iter((Slice(None, 0, length),))
        return self._file.slices(page * PAGE + offset, length)

    def read_many(self, wanted: Iterable[tuple[int, memoryview]]) -> None:
        """The parent's pages, from each page number as many as its buffer takes. CorruptError."""
        self._file.read_many((page * PAGE, buffer) for page, buffer in wanted)

    def whole_leaf(self, matches: Sequence[Match], count: int) -> ObjectId | None:
        """The parent's leaf that has exactly the pages of a leaf of `count` pages, if there is one."""
        if len(matches) != 1 or matches[0].own != 0 or matches[0].pages != count:
            return None
        at = bisect_left(self._starts, matches[0].theirs)
        fits = self._starts[at : at + 2] == [matches[0].theirs, matches[0].theirs + count]
        return self._leaves[at][0] if fits else None

    def load(self, matches: Iterable[Sequence[Match]]) -> None:
        """Read ahead the fingerprints that `prints` will be asked for, in a few requests. CorruptError."""
        wanted = {at: None for group in matches for match in group for at in self._leaves_of(match)}
        unknown = [at for at in wanted if self._known.get(self._leaves[at][0]) is None]
        loaded = self._load([self._leaves[at][0] for at in unknown])
        for at in unknown:
            ident, size = self._leaves[at]
            known = loaded.get(ident)
            if known is None or len(known.prints) != size // PAGE * 16:
                known = self._made_anew(at, size)
            self._known.put(ident, known, len(known.prints))

    def _leaves_of(self, match: Match) -> range:
        first = bisect_right(self._starts, match.theirs) - 1
        return range(first, bisect_left(self._starts, match.theirs + match.pages))

    def prints(self, matches: Sequence[Match], count: int) -> bytes:
        """The parent's fingerprints at the addresses of a leaf of `count` pages; zeros where it has nothing."""
        out = bytearray(16 * count)
        for own, theirs, pages in matches:
            at = bisect_right(self._starts, theirs) - 1
            while pages:
                inside = theirs - self._starts[at]
                step = min(pages, self._starts[at + 1] - theirs)
                known = self._leaf_prints(at)
                if step == count and len(known) == 16 * count:
                    return known
                out[16 * own : 16 * (own + step)] = known[16 * inside : 16 * (inside + step)]
                own, theirs, pages, at = own + step, theirs + step, pages - step, at + 1
        return bytes(out)

    def depth(self, leaf: ObjectId) -> int:
        """How many differences the fingerprints kept of a leaf are away from a whole set; the most if not known."""
        known = self._known.get(leaf)
        return known.depth if known is not None else prints.MAX_DEPTH

    def _leaf_prints(self, at: int) -> bytes:
        ident, size = self._leaves[at]
        known = self._known.get(ident)
        if known is None:
            self.load([[Match(0, self._starts[at], size // PAGE)]])
            return self._leaf_prints(at)
        return known.prints

    def _load(self, leaves: list[bytes]) -> dict[bytes, Known]:
        """Out of the attachments, and those that they lean on; without the leaves for which one is missing."""
        stored: dict[bytes, prints.Stored] = {}
        rounds = [leaves]
        while rounds[-1] and len(rounds) <= prints.MAX_DEPTH + 1:
            for leaf, data in zip(rounds[-1], self.reader.store.sidecars(rounds[-1]), strict=True):
                parsed = prints.parse(data) if data is not None else None
                if parsed is not None:
                    stored[leaf] = parsed
            bases = [stored[leaf].base for leaf in rounds[-1] if leaf in stored]
            rounds.append([base for base in dict.fromkeys(bases) if base is not None and base not in stored])
        known: dict[bytes, Known] = {}
        for leaf in sorted(stored, key=lambda leaf: stored[leaf].depth):
            base = known.get(stored[leaf].base or b"")
            whole = prints.resolve(stored[leaf], base.prints if base else b"")
            if whole is not None:
                known[leaf] = Known(whole, stored[leaf].depth)
        return known

    def _made_anew(self, at: int, size: int) -> Known:
        """Out of the leaf's bytes: its attachment was dropped, or leans on one that was. CorruptError."""
        data = memoryview(bytearray(size))
        self.read_many([(self._starts[at], data)])
        out = bytearray(size // PAGE * 16)
        native.scan_pages(data, self._key, None, out, bytearray(size // PAGE))
        # As deep as can be: nothing may lean on an attachment that is not there.
        return Known(bytes(out), prints.MAX_DEPTH)


def _extend(found: list[Match], match: Match) -> None:
    last = found[-1] if found else None
    if last and last.own + last.pages == match.own and last.theirs + last.pages == match.theirs:
        found[-1] = Match(last.own, last.theirs, last.pages + match.pages)
    else:
        found.append(match)
