"""What the images say: which pages are lazy, where they are in the pages file, and what is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_bytes import (
    MM_MAGIC,
    PAGEMAP_MAGIC,
    NotAnImageError,
    image_file,
    message,
    pagemap,
    twin_fields,
    twin_numbers,
    twin_records,
)
from pagerlab import BASE, PAGE, PID, mm, page_bytes, write_images

from ijfs.live.criu.image_format import parse_pagemap_entries
from ijfs.live.pager import working_set
from ijfs.live.pager.image_files import CriuImages, DirectoryFiles, parse_mappings
from ijfs.live.pager.plan import Mapping, ProcessMemory, Run
from ijfs_engine.errors import CorruptError

PARENT, LAZY, PRESENT = 1, 2, 4
END = BASE + 100 * PAGE


class Images:
    """`Files` made of bytes."""

    def __init__(self, entries: list[tuple[int, int, int]], mappings: list[tuple[int, int]], pages: int = 1000) -> None:
        self._files = {f"pagemap-{PID}.img": pagemap(entries), f"mm-{PID}.img": mm(mappings)}
        self._files["pages-1.img"] = bytes(pages * PAGE)

    def open(self, name: str) -> Bytes:
        return Bytes(self._files[name])


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def read_many(self, wanted: Iterable[tuple[int, memoryview]]) -> int:
        raise NotImplementedError

    def locate(self) -> None:
        raise NotImplementedError

    def zeros(self, offset: int, length: int) -> Iterable[tuple[int, int]]:
        for start, end in [(PAGE, 4 * PAGE + 100), (9 * PAGE - 1, 10 * PAGE + 1)]:
            if max(start, offset) < min(end, offset + length):
                yield max(start, offset), min(end, offset + length) - max(start, offset)


def runs(entries: list[tuple[int, int, int]], mappings: list[tuple[int, int]]) -> list[Run]:
    return CriuImages(Images(entries, mappings)).memory(PID).runs


def test_pages_that_criu_reads_itself_are_left_to_it_and_counted_in_the_file() -> None:
    entries = [(BASE, 2, PRESENT), (BASE + 4 * PAGE, 3, PRESENT | LAZY), (BASE + 9 * PAGE, 1, LAZY)]
    assert runs(entries, [(BASE, END)]) == [
        Run(BASE + 4 * PAGE, 3, 2 * PAGE),
        Run(BASE + 9 * PAGE, 1, 5 * PAGE),
    ]


def test_runs_end_where_mappings_do() -> None:
    entries = [(BASE, 10, PRESENT | LAZY)]
    assert runs(entries, [(BASE, BASE + 4 * PAGE), (BASE + 4 * PAGE, END)]) == [
        Run(BASE, 4, 0),
        Run(BASE + 4 * PAGE, 6, 4 * PAGE),
    ]


@pytest.mark.parametrize(
    ("entries", "mappings"),
    [
        ([(BASE, 2, PRESENT | LAZY)], [(BASE + PAGE, END)]),
        ([(BASE, 2, PRESENT | LAZY)], [(BASE, BASE + PAGE)]),
        ([(BASE, 2, PRESENT | LAZY), (BASE + PAGE, 2, PRESENT | LAZY)], [(BASE, END)]),
        ([(BASE + 1, 2, PRESENT | LAZY)], [(BASE, END)]),
        ([(BASE, 0, PRESENT | LAZY)], [(BASE, END)]),
        ([(BASE, 2, PARENT | LAZY)], [(BASE, END)]),
        ([(BASE, 90, PRESENT | LAZY)], [(BASE, END)]),
    ],
    ids=["before a mapping", "beyond a mapping", "overlap", "unaligned", "empty", "in a parent", "beyond the file"],
)
def test_images_that_make_no_sense_are_refused(
    entries: list[tuple[int, int, int]], mappings: list[tuple[int, int]]
) -> None:
    with pytest.raises(CorruptError):
        CriuImages(Images(entries, mappings, pages=89)).memory(PID)


def test_only_private_anonymous_unlocked_mappings_are_registered() -> None:
    def kept(flags: int) -> bool:
        return list(parse_mappings("mm", mm([(BASE, END)], flags=flags))) != []

    private, shared, anonymous, locked, hugetlb = 0x2, 0x1, 0x20, 0x2000, 0x40000
    assert kept(private | anonymous)
    assert kept(private | anonymous | 0x100)  # a stack
    assert not kept(private)
    assert not kept(shared | anonymous)
    assert not kept(private | anonymous | locked)
    assert not kept(private | anonymous | hugetlb)


def test_memory_that_a_fork_wipes_is_known() -> None:
    assert list(parse_mappings("mm", mm([(BASE, END)], madv=1 << 18))) == [Mapping(BASE, END, wiped_on_fork=True)]


def test_whole_zero_pages_inside_known_zero_ranges_are_found() -> None:
    source = CriuImages(Images([(BASE, 2, PRESENT), (BASE + 8 * PAGE, 20, PRESENT | LAZY)], [(BASE, END)]))
    image = source.memory(PID)
    # file pages 1-3 and 9 are zero; lazy page 0 is file page 2
    assert list(source.zero_pages(image, [(0, 20)])) == [(0, 2), (7, 1)]
    assert list(source.zero_pages(image, [(1, 3), (6, 2)])) == [(1, 1), (7, 1)]


def test_any_range_of_pages_reads_as_it_was_written(tmp_path: Path) -> None:
    stored = [(BASE, 5), (BASE + 7 * PAGE, 1), (BASE + 50 * PAGE, 40)]
    source = CriuImages(DirectoryFiles(write_images(tmp_path / "i", [(BASE, END)], stored)))
    image = source.memory(PID)
    expected = b"".join(page_bytes(vaddr + at * PAGE) for vaddr, pages in stored for at in range(pages))
    for ranges in [[(0, 46)], [(4, 3)], [(45, 1), (5, 1)], [(3, 2), (5, 2), (0, 1)]]:
        buffer = bytearray(sum(count for _, count in ranges) * PAGE)
        source.read(image, ranges, memoryview(buffer))
        assert buffer == b"".join(expected[first * PAGE : (first + count) * PAGE] for first, count in ranges)


@given(st.binary(max_size=200))
def test_hostile_images_give_a_clear_error_or_what_a_slow_twin_reads(data: bytes) -> None:
    for hostile in (data, image_file(PAGEMAP_MAGIC, [message((1, 1)), data]), image_file(MM_MAGIC, [data])):
        with contextlib.suppress(CorruptError):
            assert parse_pagemap_entries("pagemap", hostile) == twin_pagemap(hostile)
        with contextlib.suppress(CorruptError):
            assert list(parse_mappings("mm", hostile)) == twin_mappings(hostile)


@given(st.lists(st.tuples(st.integers(0, 2**52 - 1), st.integers(0, 2**64 - 1), st.integers(0, 7)), max_size=5))
def test_every_entry_of_a_pagemap_is_read(entries: list[tuple[int, int, int]]) -> None:
    image = pagemap([(first * PAGE, pages, flags) for first, pages, flags in entries], pages_id=3)
    assert parse_pagemap_entries("pagemap", image) == twin_pagemap(image)
    assert parse_pagemap_entries("pagemap", image)[1] == [(f * PAGE, pages, flags) for f, pages, flags in entries]


def twin_pagemap(image: bytes) -> tuple[int, list[tuple[int, int, int]]]:
    head, *entries = [twin_numbers(record) for record in twin_records(image, PAGEMAP_MAGIC)] or [{}]
    return head.get(1, 0), [(e[1], e[5] if 5 in e else e[2], e.get(4, 1 if e.get(3) else 4)) for e in entries]


def twin_mappings(image: bytes) -> list[Mapping]:
    records = twin_records(image, MM_MAGIC)
    if not records:
        raise NotAnImageError
    vmas = [
        twin_numbers(value) for number, value in twin_fields(records[0]) if number == 14 and isinstance(value, bytes)
    ]
    return [
        Mapping(vma.get(1, 0), vma.get(2, 0), bool(vma.get(9, 0) & 1 << 18))
        for vma in vmas
        if vma.get(6, 0) & 0x42022 == 0x22  # private and anonymous, neither locked nor huge
    ]


@given(st.binary(max_size=100))
def test_a_damaged_order_is_as_good_as_none(data: bytes) -> None:
    good = working_set.encode([working_set.Touched(7, BASE, 3)])
    assert working_set.decode(good) == [working_set.Touched(7, BASE, 3)]
    assert working_set.decode(data) == []
    for at in range(len(good)):
        assert working_set.decode(good[:at]) == []
        assert working_set.decode(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]) == []


def test_an_order_is_replayed_in_blocks_by_address_of_what_the_image_has() -> None:
    image = ProcessMemory(7, [Run(BASE, 300, 0), Run(BASE + 400 * PAGE, 50, 300 * PAGE)], [])
    touched = [
        working_set.Touched(7, BASE + 290 * PAGE, 120),
        working_set.Touched(8, BASE, 4),
        working_set.Touched(7, BASE - PAGE, 2),
        working_set.Touched(7, BASE, 260),
    ]
    assert [ranges for _, ranges in working_set.blocks(touched, {7: image})] == [
        [(0, 1), (0, 235), (290, 10), (300, 10)],
        [(235, 25)],
    ]
