"""How much of a snapshot's memory CRIU reads itself at a lazy restore, before the program runs, and why.

A pager can bring in later what is private, anonymous, and neither locked, huge nor under a stack pointer. The rest
stands in pagemap entries without PE_LAZY. Called by stage_images.py, which reads those bytes ahead, and by
checkpoint/restore.py, which tells the user how much there was of each kind.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ijfs.live.criu.image_format import (
    MAP_HUGETLB,
    MAP_LOCKED,
    PE_LAZY,
    PE_PARENT,
    PE_PRESENT,
    Area,
    PagemapEntry,
    parse_areas,
    parse_memfds,
    parse_pagemap_entries,
)
from ijfs_engine import PAGE
from ijfs_engine.errors import CorruptError

SHARED, MEMFD, HUGETLB, LOCKED, PRIVATE, FORKED = "shared", "memfd", "hugetlb", "locked", "private", "forked"
"""The reasons: shared memory, memfds, huge pages of either kind, locked pages; stacks and changed pages of files; what
forked processes share (counted in each of them; it is read once)."""


class Range(NamedTuple):
    """Bytes [start, end) of a pages file."""

    start: int
    end: int


def eager_ranges(name: str, data: bytes) -> tuple[int, list[Range]]:
    """(number of the pages file, the ranges of it that CRIU reads although a pager is there) of a pagemap image."""
    number, entries = parse_pagemap_entries(name, data)
    return number, list(_merged(entries))


def reasons(images: Mapping[str, bytes]) -> dict[str, int]:
    """Bytes that CRIU reads itself, by why, from the small images by name. CorruptError."""
    areas = {name[3:-4]: sorted(parse_areas(name, data)) for name, data in images.items() if _is("mm-", name)}
    memfds, huge = _memfds(images.get("memfd.img", b""))
    huge |= {area.shmid for of_one in areas.values() for area in of_one if area.flags & MAP_HUGETLB}
    found: Counter[str] = Counter()
    for name, data in images.items():
        if _is("pagemap-shmem-", name):
            shmid = _number(name, "pagemap-shmem-")
            why = HUGETLB if shmid in huge else MEMFD if shmid in memfds else SHARED
            found[why] += sum(end - start for start, end in eager_ranges(name, data)[1])
        elif _is("pagemap-", name):
            for why, size in _of_process(areas.get(name[8:-4], []), parse_pagemap_entries(name, data)[1]):
                found[why] += size
    return dict(found)


def _of_process(areas: list[Area], entries: Iterable[PagemapEntry]) -> Iterator[tuple[str, int]]:
    """Eager pages of one process, by the mapping they lie in."""
    starts = [area.start for area in areas]
    for vaddr, pages, flags in entries:
        at, end = vaddr, vaddr + pages * PAGE
        while not flags & PE_LAZY and at < end:
            number = bisect.bisect_right(starts, at) - 1
            inside = number >= 0 and at < areas[number].end
            stop = min(end, areas[number].end) if inside else end
            yield FORKED if flags & PE_PARENT else _why(areas[number].flags if inside else 0), stop - at
            at = stop


def _why(flags: int) -> str:
    return HUGETLB if flags & MAP_HUGETLB else LOCKED if flags & MAP_LOCKED else PRIVATE


def _memfds(data: bytes) -> tuple[set[int], set[int]]:
    """(memfds, those of huge pages) by their numbers as shared memory. A shared anonymous mapping is a memfd under the
    name that /proc/PID/maps shows for it."""
    found = list(parse_memfds("memfd.img", data))
    huge = {memfd.shmid for memfd in found if memfd.huge}
    return {memfd.shmid for memfd in found if not memfd.huge and memfd.name != b"/dev/zero"}, huge


def _merged(entries: list[PagemapEntry]) -> Iterator[Range]:
    """Present, not lazy pages in file order; neighbours as one range."""
    at = start = end = 0
    for _, pages, flags in entries:
        if flags and not flags & PE_PRESENT:
            continue
        length = pages * PAGE
        if not flags & PE_LAZY:
            if at != end:
                if end > start:
                    yield Range(start, end)
                start = at
            end = at + length
        at += length
    if end > start:
        yield Range(start, end)


def _is(kind: str, name: str) -> bool:
    return name.startswith(kind) and name.endswith(".img")


def _number(name: str, kind: str) -> int:
    try:
        return int(name[len(kind) : -len(".img")])
    except ValueError:
        raise CorruptError(f"{name} has no number") from None
