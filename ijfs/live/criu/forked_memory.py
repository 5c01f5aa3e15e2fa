"""Which pages of a process are those of its parent: memory that fork shared and that neither has written since.

CRIU keeps such memory shared: it fills the parent, forks, and compares each page that it reads for the child with what
is there. Memory that comes in lazily comes after the forks, once for each process: 310 MB of a parent and four
children became 1.5 GB. So what is shared is found here, by the chunks that the store has it in; stage_images.py then
has CRIU read it, once for all of them (lending.py).

Chunks have 64 KiB on average: where a process has written one page in sixteen, most of its chunks are its own, and
most of what is in them is not. So the bytes of those are compared, too, where enough of the memory is in the same
chunks. Without the pager CRIU compares by itself.

Only where CRIU would share it (check_cow_vmas in criu/mem.c): in private mappings that begin and end alike in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
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
from ijfs_engine.errors import CorruptError, IjfsError

WORTH_BYTES = 4 << 20
"""So much has to be shared by a program's processes before any of it is read ahead, which takes 10 ms."""

SHORTEST_BYTES = 4 * PAGE
"""A shorter stretch is not worth an entry of its own in the pagemap."""

COMPARED_AT_MOST = 4
"""Times as much as is in the same chunks may be compared byte by byte: a restore waits for it."""

TOGETHER_BYTES = 4 << 20
"""So much of each of two files is compared at once."""

_ZEROS = bytes(PAGE)


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
    def read_many(self, wanted: Iterable[tuple[int, memoryview]]) -> int: ...


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


def find(
    images: Mapping[str, bytes], open_pages: Callable[[str], PagesFile], *, lazy: bool, far: bool = False
) -> dict[int, list[Span]]:
    """What each process shares with its parent, by its number, parents before children; empty where that is little.

    `lazy` restores leave zeros to the pager, which takes no memory for them. `far`: the pages come over a network, and
    are not read to be compared.
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
        pid: _shared(common[pid], opened[processes[pid].pages], opened[processes[parent].pages], lazy=lazy, far=far)
        for pid, parent in pairs.items()
    }
    return found if sum(map(span_bytes, found.values())) >= WORTH_BYTES else {}


def span_bytes(spans: Iterable[Span]) -> int:
    """How much they are together."""
    return sum(end - start for start, end in spans)


def _shared(common: Sequence[_Common], mine: PagesFile, theirs: PagesFile, *, lazy: bool, far: bool) -> list[Span]:
    equal = [span for stretch in common for span in _equal(stretch, mine, theirs, zeros=not lazy)]
    rest = list(_gaps(common, equal)) if lazy and not far else []
    if 0 < sum(gap.end - gap.start for gap in rest) <= COMPARED_AT_MOST * span_bytes(equal):
        equal = union([*equal, *_compared(rest, mine, theirs)])
    return [span for span in equal if span.end - span.start >= SHORTEST_BYTES]


def union(spans: Iterable[Span]) -> list[Span]:
    """The same addresses, sorted, none twice, neighbours as one."""
    out: list[Span] = []
    for start, end in sorted(spans):
        if out and start <= out[-1].end:
            out[-1] = Span(out[-1].start, max(end, out[-1].end))
        else:
            out.append(Span(start, end))
    return out


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
    if last > first:
        yield Span(base + first, base + last)


def _gaps(common: Iterable[_Common], equal: Sequence[Span]) -> Iterator[_Common]:
    """The parts of these stretches that are not among those spans; all in the order of their addresses."""
    at = 0
    for stretch in common:
        begin = stretch.start
        while at < len(equal) and equal[at].start < stretch.end:
            yield from _part(stretch, begin, equal[at].start)
            begin, at = equal[at].end, at + 1
        yield from _part(stretch, begin, stretch.end)


def _part(stretch: _Common, start: int, end: int) -> Iterator[_Common]:
    """It from `start` to `end`, in pieces that can be read at once."""
    for begin in range(start, end, TOGETHER_BYTES):
        by = begin - stretch.start
        yield _Common(begin, min(end, begin + TOGETHER_BYTES), stretch.mine + by, stretch.theirs + by)


def _compared(pieces: Iterable[_Common], mine: PagesFile, theirs: PagesFile) -> Iterator[Span]:
    """Pages of these pieces that have the same bytes in both files, but for zeros, which are the pager's."""
    for batch in _batches(pieces):
        try:
            ours = _read(mine, [(piece.mine, piece.end - piece.start) for piece in batch])
            others = _read(theirs, [(piece.theirs, piece.end - piece.start) for piece in batch])
        except IjfsError:  # the pager meets it, too, and knows what becomes of the program then
            continue
        pages = (page for piece in batch for page in range(piece.start, piece.end, PAGE))
        for at, page in zip(range(0, len(ours), PAGE), pages, strict=True):
            found = ours[at : at + PAGE]
            if found == others[at : at + PAGE] and found != _ZEROS:
                yield Span(page, page + PAGE)


def _batches(pieces: Iterable[_Common]) -> Iterator[list[_Common]]:
    batch: list[_Common] = []
    size = 0
    for piece in pieces:
        if batch and size + piece.end - piece.start > TOGETHER_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.end - piece.start
    if batch:
        yield batch


def _read(file: PagesFile, ranges: Sequence[tuple[int, int]]) -> bytearray:
    """These (offset, length), one behind the other, in one request."""
    buffer = bytearray(sum(length for _, length in ranges))
    with memoryview(buffer) as view:
        ends = list(accumulate(length for _, length in ranges))
        parts = [(offset, view[end - length : end]) for (offset, length), end in zip(ranges, ends, strict=True)]
        read = file.read_many(parts)
        for _, part in parts:
            part.release()
    if read != len(buffer):
        raise CorruptError("a pages file ends before its pagemap says")
    return buffer
