"""How memory that forked processes share is laid out for `criu restore`: once, and not once for each process.

CRIU reads a page from a *parent image* where its entry says so (PE_PARENT; meant for incremental dumps). So the pages
that a process lends to those it forked stand in a pages file of its own in the directory `parent`, and the pagemap
there of each of them, lender and borrowers, is the same. A process has one parent image: it borrows from whom it has
most of, and what it has of others it gets as pages of its own. Called by stage_images.py with what forked_memory.py
found.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ijfs.live.criu.forked_memory import Span, union
from ijfs.live.criu.image_format import PE_LAZY, PE_PARENT, PE_PRESENT, PagemapEntry
from ijfs_engine import PAGE


class Copy(NamedTuple):
    """Bytes [start, end) of a stored pages file, and where they go in the file that CRIU reads."""

    start: int
    end: int
    at: int


class Part(NamedTuple):
    """One process's part in it: whose parent image it reads from, what of it stands there, and what else that it shares
    CRIU is to read from the process's own pages."""

    lender: int
    lent: list[Span]
    own: list[Span]
    dropped: tuple[Span, ...] = ()
    """What the process is not to have again (wiped.py)."""

    @property
    def present(self) -> list[Span]:
        """All that is as it shall be before the process runs."""
        return union([*self.lent, *self.own, *self.dropped])


class Lending(NamedTuple):
    """Each process's part, and what the parent image of each lender holds."""

    parts: dict[int, Part]
    held: dict[int, list[Span]]


def arrange(shared: Mapping[int, list[Span]], parents: Mapping[int, int]) -> Lending:
    """Who lends what to whom. `shared`: what each process shares with its parent, parents before children."""
    origins: dict[int, list[tuple[Span, int]]] = {}
    for pid, spans in shared.items():
        origins[pid] = list(_origins(spans, parents[pid], origins.get(parents[pid], [])))
    lenders = {pid: _most(found) for pid, found in origins.items() if found}
    held: dict[int, list[Span]] = {}
    owed: dict[int, list[Span]] = {}
    for pid, found in origins.items():
        for span, origin in found:
            owed.setdefault(origin, []).append(span)
            if origin == lenders[pid]:
                held.setdefault(origin, []).append(span)
    held = {lender: union(spans) for lender, spans in held.items()}
    parts = {lender: Part(lender, held.get(lender, []), union(spans)) for lender, spans in owed.items()}
    for pid, lender in lenders.items():
        others = [span for span, origin in origins[pid] if origin != lender]
        borrowed = [span for span, origin in origins[pid] if origin == lender]
        parts[pid] = Part(lender, union(borrowed), union([*others, *owed.get(pid, [])]))
    return Lending(parts, held)


def _origins(spans: Iterable[Span], parent: int, of_parent: list[tuple[Span, int]]) -> Iterator[tuple[Span, int]]:
    """Whose the pages are that a process shares with its parent: the parent's, or of whom the parent has them. Both
    in the order of their addresses."""
    at = 0
    for start, end in spans:
        while at < len(of_parent) and of_parent[at][0].end <= start:
            at += 1
        after = at
        while after < len(of_parent) and of_parent[after][0].start < end:
            (begin, stop), origin = of_parent[after]
            if begin > start:
                yield Span(start, begin), parent
            yield Span(max(start, begin), min(end, stop)), origin
            start, after = min(end, stop), after + 1
        if start < end:
            yield Span(start, end), parent


def _most(found: Iterable[tuple[Span, int]]) -> int:
    sizes: Counter[int] = Counter()
    for span, origin in found:
        sizes[origin] += span.end - span.start
    return sizes.most_common(1)[0][0]


def pagemap_of(
    entries: Iterable[PagemapEntry], part: Part, *, lazy: bool
) -> tuple[list[PagemapEntry], list[Copy], int]:
    """A process's pagemap as CRIU is to read it; what of its stored pages file CRIU needs, and where; how large that
    file is to CRIU. Without `lazy` CRIU needs everything that is not lent."""
    lent, own, dropped = _edges(part.lent), _edges(part.own), _edges(part.dropped)
    cuts = sorted({*lent, *own, *dropped})
    out: list[PagemapEntry] = []
    copies: list[Copy] = []
    offset = at = 0
    for vaddr, pages, flags in entries:
        for start, end in _pieces(vaddr, vaddr + pages * PAGE, cuts):
            count, present = (end - start) // PAGE, not flags or bool(flags & PE_PRESENT)
            if _inside(start, dropped) or (present and _inside(start, lent)):
                if not _inside(start, dropped):
                    out.append((start, count, PE_PARENT))
                offset += (end - start) * present
                continue
            kept = flags & ~PE_LAZY if _inside(start, own) else flags
            out.append((start, count, kept))
            if present:
                if not lazy or not kept & PE_LAZY:
                    copies.append(Copy(offset, offset + end - start, at))
                offset, at = offset + end - start, at + end - start
    return out, copies, at


def parent_image(entries: Iterable[PagemapEntry], held: list[Span]) -> tuple[list[PagemapEntry], list[Copy], int]:
    """The pagemap of a lender's parent image; what it takes of the lender's stored pages file, and where; its size."""
    edges = _edges(held)
    out: list[PagemapEntry] = []
    copies: list[Copy] = []
    offset = at = 0
    for vaddr, pages, flags in entries:
        for start, end in _pieces(vaddr, vaddr + pages * PAGE, edges) if not flags or flags & PE_PRESENT else ():
            if _inside(start, edges):
                out.append((start, (end - start) // PAGE, PE_PRESENT))
                copies.append(Copy(offset, offset + end - start, at))
                at += end - start
            offset += end - start
    return out, copies, at


def _edges(spans: Iterable[Span]) -> list[int]:
    return [edge for span in spans for edge in span]


def _inside(address: int, edges: list[int]) -> bool:
    return bisect.bisect_right(edges, address) % 2 == 1


def _pieces(start: int, end: int, cuts: list[int]) -> Iterator[tuple[int, int]]:
    """[start, end), cut there."""
    for cut in cuts[bisect.bisect_right(cuts, start) : bisect.bisect_left(cuts, end)]:
        yield start, cut
        start = cut
    yield start, end
