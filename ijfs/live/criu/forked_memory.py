"""Which pages of a process are those of its parent: memory that fork shared and that neither has written since.

CRIU keeps such memory shared: it fills the parent, forks, and compares each page that it reads for the child with what
is there. Memory that comes in lazily comes after the forks, once for each process: 310 MB of a parent and four
children became 1.5 GB. So what is shared is found here, by the chunks that the store has it in, without reading a
byte; stage_images.py then has CRIU read it, once for all of them (lending.py).

Pages are found that are in the same chunks, 64 KiB on average: where one page in eight was written, hardly any is.
Only where CRIU would share it (check_cow_vmas in criu/mem.c): in private mappings that begin and end alike in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from ijfs.live.criu.image_format import (
    MAP_ANONYMOUS,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    PE_PRESENT,
    VMA_REGULAR,
    Area,
    PagemapEntry,
    parse_areas,
    parse_pagemap_entries,
    parse_parents,
)
from ijfs_engine import PAGE, pages_name

WORTH_BYTES = 4 << 20
"""So much has to be shared by a program's processes before any of it is read ahead, which takes 10 ms."""

SHORTEST_BYTES = 4 * PAGE
"""A shorter stretch is not worth an entry of its own in the pagemap."""


class Span(NamedTuple):
    """Addresses [start, end), whole pages."""

    start: int
    end: int


class Piece(Protocol):
    """A part of a stored file (ijfs_engine's Slice): bytes of a chunk, or zeros where there is no id."""

    @property
    def id(self) -> bytes | None: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...


class PagesFile(Protocol):
    """A stored file of pages."""

    def slices(self, offset: int, length: int) -> Iterable[Piece]: ...


class Process(NamedTuple):
    """What the images say of one process's memory."""

    areas: list[Area]
    entries: list[PagemapEntry]
    pages: str
    """Its pages file."""


class _Stretch(NamedTuple):
    """Pages in the image that follow one another: their addresses, where they are in the pages file."""

    start: int
    end: int
    offset: int


class _Common(NamedTuple):
    """Pages that the images of a process and of its parent both have: their addresses, where they are in both files."""

    start: int
    end: int
    mine: int
    theirs: int


_SpanT = TypeVar("_SpanT", _Stretch, Span)


def parse_processes(images: Mapping[str, bytes]) -> dict[int, Process]:
    """Every process that has memory, by its number in the images. CorruptError."""
    found = {}
    for name, data in images.items():
        pid = name.removeprefix("pagemap-").removesuffix(".img")
        if name.startswith("pagemap-") and pid.isdecimal() and f"mm-{pid}.img" in images:
            number, entries = parse_pagemap_entries(name, data)
            areas = sorted(parse_areas(f"mm-{pid}.img", images[f"mm-{pid}.img"]))
            found[int(pid)] = Process(areas, entries, pages_name(number))
    return found


def find(images: Mapping[str, bytes], open_pages: Callable[[str], PagesFile], *, lazy: bool) -> dict[int, list[Span]]:
    """What each process shares with its parent, by its number, parents before children; empty where that is little.

    `lazy` restores leave zeros to the pager, which takes no memory for them.
    """
    parents = parse_parents("pstree.img", images.get("pstree.img", b""))
    if not any(parents.values()):
        return {}
    processes = parse_processes(images)
    pairs = {pid: parent for pid, parent in parents.items() if pid in processes and parent in processes}
    common = {pid: list(_common(processes[pid], processes[parent])) for pid, parent in pairs.items()}
    if sum(stretch.end - stretch.start for of_one in common.values() for stretch in of_one) < WORTH_BYTES:
        return {}
    files = {processes[pid].pages for pair in pairs.items() for pid in pair}
    opened = {name: open_pages(name) for name in files}
    found = {
        pid: list(_shared(common[pid], opened[processes[pid].pages], opened[processes[parent].pages], zeros=not lazy))
        for pid, parent in pairs.items()
    }
    return found if sum(map(span_bytes, found.values())) >= WORTH_BYTES else {}


def span_bytes(spans: Iterable[Span]) -> int:
    """How much they are together."""
    return sum(end - start for start, end in spans)


def _shared(common: Iterable[_Common], mine: PagesFile, theirs: PagesFile, *, zeros: bool) -> Iterator[Span]:
    for stretch in common:
        yield from _equal(stretch, mine, theirs, zeros=zeros)


def _common(process: Process, parent: Process) -> Iterator[_Common]:
    """What both images have, in mappings of which CRIU would share the pages."""
    kinds = {_kind(area) for area in parent.areas}
    shareable = [Span(area.start, area.end) for area in process.areas if _may_be_shared(area) and _kind(area) in kinds]
    mine = _within(_stretches(process.entries), shareable)
    for one, other in _overlaps(mine, list(_within(_stretches(parent.entries), shareable))):
        start, end = max(one.start, other.start), min(one.end, other.end)
        yield _Common(start, end, one.offset + start - one.start, other.offset + start - other.start)


def _may_be_shared(area: Area) -> bool:
    return bool(area.flags & MAP_PRIVATE and area.status & VMA_REGULAR)


def _kind(area: Area) -> tuple[int, int, int, int]:
    flags = area.flags & (MAP_PRIVATE | MAP_GROWSDOWN | MAP_ANONYMOUS)
    return area.start, area.end, flags, 0 if flags & MAP_ANONYMOUS else area.shmid


def _stretches(entries: Iterable[PagemapEntry]) -> Iterator[_Stretch]:
    offset = 0
    for vaddr, pages, flags in entries:
        if flags and not flags & PE_PRESENT:
            continue
        yield _Stretch(vaddr, vaddr + pages * PAGE, offset)
        offset += pages * PAGE


def _within(stretches: Iterable[_Stretch], spans: list[Span]) -> Iterator[_Stretch]:
    for stretch, span in _overlaps(stretches, spans):
        start = max(stretch.start, span.start)
        yield _Stretch(start, min(stretch.end, span.end), stretch.offset + start - stretch.start)


def _overlaps(ones: Iterable[_Stretch], others: Sequence[_SpanT]) -> Iterator[tuple[_Stretch, _SpanT]]:
    """Every two that have addresses in common; both in the order of their addresses."""
    at = 0
    for one in ones:
        while at < len(others) and others[at].end <= one.start:
            at += 1
        after = at
        while after < len(others) and others[after].start < one.end:
            yield one, others[after]
            after += 1


def _equal(stretch: _Common, mine: PagesFile, theirs: PagesFile, *, zeros: bool) -> Iterator[Span]:
    """The whole pages of a stretch that are the same bytes of the same chunks in both files."""
    size = stretch.end - stretch.start
    begin = at = 0
    for length, equal in _lockstep(mine.slices(stretch.mine, size), theirs.slices(stretch.theirs, size), zeros=zeros):
        if not equal:
            yield from _whole_pages(stretch.start, begin, at)
            begin = at + length
        at += length
    yield from _whole_pages(stretch.start, begin, at)


def _lockstep(ones: Iterable[Piece], others: Iterable[Piece], *, zeros: bool) -> Iterator[tuple[int, bool]]:
    """(bytes, whether they are the same in both) all along two files."""
    rest = iter(others)
    other, used = next(rest, None), 0
    for one in ones:
        done = 0
        while done < one.length and other is not None:
            length = min(one.length - done, other.length - used)
            same = one.id == other.id and (one.id is None or one.offset + done == other.offset + used)
            yield length, same and (zeros or one.id is not None)
            done, used = done + length, used + length
            if used == other.length:
                other, used = next(rest, None), 0


def _whole_pages(base: int, begin: int, end: int) -> Iterator[Span]:
    first, last = -(-begin // PAGE) * PAGE, end // PAGE * PAGE
    if last - first >= SHORTEST_BYTES:
        yield Span(base + first, base + last)
