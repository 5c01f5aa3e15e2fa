"""Page layouts, CRIU's pagemaps and kept fingerprints: what they say, and what they say to bytes that lie."""

from __future__ import annotations

import itertools
import random

import pytest
from criu_images import PAGE, PE_LAZY, PE_PARENT, PE_PRESENT, message, pagemap
from hypothesis import given, settings
from hypothesis import strategies as st

import ijfs_engine
from ijfs_engine import CorruptError, PageLayout, PageRun, is_pages, pages_name
from ijfs_engine._native import page_scan
from ijfs_engine._native.page_scan import KEY_BYTES
from ijfs_engine.format.page_layout import LEAF_PAGES
from ijfs_engine.write import fingerprints
from ijfs_engine.write.criu_pagemap import PagemapError, layout_for, parse_pagemap

MAGIC = pagemap(1, [])[:8]
KEY = random.Random(1).randbytes(KEY_BYTES)
LEAF = random.Random(2).randbytes(32)

# Runs with gaps of at least a page, in any file order.
layouts = (
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=12)
    .map(lambda gaps: [PageRun(sum(a + b for a, b in gaps[:i]) + gap, count) for i, (gap, count) in enumerate(gaps)])
    .flatmap(lambda runs: st.permutations(runs))
    .map(PageLayout)
)


def addresses(layout: PageLayout) -> list[int]:
    return [page for run in layout.runs for page in range(run.first, run.first + run.pages)]


@given(layouts)
def test_a_layout_comes_back_from_its_bytes(layout: PageLayout) -> None:
    assert PageLayout.decode(layout.encode()).runs == layout.runs


@settings(deadline=None)
@given(layouts, st.data())
def test_pages_are_found_by_place_and_by_address(layout: PageLayout, data: st.DataObject) -> None:
    every = addresses(layout)
    assert layout.pages == len(every)
    first = data.draw(st.integers(0, len(every) - 1))
    count = data.draw(st.integers(0, len(every) - first))
    assert layout.address_of(first) == every[first] * PAGE
    pieces = [page for start, n in layout.pieces(first, count) for page in range(start, start + n)]
    assert pieces == every[first : first + count]
    low, span = data.draw(st.integers(0, 40_000)), data.draw(st.integers(0, 4000))
    found = [(number + i, page + i) for number, page, n in layout.locate(low, span) for i in range(n)]
    assert found == sorted((number, page) for page, number in enumerate(every) if low <= number < low + span)


@given(layouts)
def test_leaves_cover_a_file_and_stay_within_their_span(layout: PageLayout) -> None:
    counts = list(layout.leaf_counts())
    assert sum(counts) == layout.pages
    assert all(0 < count <= LEAF_PAGES for count in counts)
    assert len(counts) <= layout.pages // 256 + len(layout.runs) + 1


def test_leaves_fall_into_step_behind_what_only_one_image_has() -> None:
    big = PageRun(LEAF_PAGES * 100 + 5, LEAF_PAGES * 6)
    others = [[], [PageRun(1, 3)], [PageRun(1, 300), PageRun(2000, 1)], [PageRun(LEAF_PAGES - 1, LEAF_PAGES + 2)]]
    borders = []
    for before in others:
        layout = PageLayout([*before, big])
        ends, page = set(), 0
        for count in layout.leaf_counts():
            page += count
            ends.add(layout.address_of(page - 1) // PAGE + 1)
        borders.append({end for end in ends if end > big.first})
    assert all(border == borders[0] for border in borders)
    assert {end % LEAF_PAGES for end in borders[0]} == {0, 5}


@given(layouts, layouts)
def test_overlap_counts_the_addresses_that_both_have(one: PageLayout, two: PageLayout) -> None:
    assert one.overlap(two) == two.overlap(one) == len(set(addresses(one)) & set(addresses(two)))


@pytest.mark.parametrize(
    "runs",
    [
        [PageRun(0, 0)],
        [PageRun(5, 3), PageRun(7, 1)],
        [PageRun(7, 1), PageRun(5, 3)],
        [PageRun((1 << 52) - 1, 2)],
        [PageRun(1 << 63, 1)],
    ],
)
def test_layouts_that_make_no_sense_are_refused(runs: list[PageRun]) -> None:
    with pytest.raises(ValueError, match="overlap"):
        PageLayout(runs)


@settings(max_examples=300)
@given(layouts, st.data())
def test_damaged_layouts_give_an_error_or_a_sound_layout(layout: PageLayout, data: st.DataObject) -> None:
    raw = bytearray(layout.encode())
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=3)):
        raw[at] = byte
    cut = data.draw(st.integers(0, len(raw)) | st.just(len(raw)))
    try:
        found = PageLayout.decode(bytes(raw[:cut]))
    except CorruptError:
        return
    assert sum(run.pages for run in found.runs) == found.pages


def test_pages_files_are_known_by_their_names() -> None:
    assert ijfs_engine.PAGE == page_scan.PAGE
    assert pages_name(3) == "pages-3.img"
    for name, holds in {
        "pages-3.img": True,
        "pagemap-3.img": False,
        "pages-3.txt": False,
        "my-pages-3.img": False,
    }.items():
        assert is_pages(name) is is_pages(name.encode()) is holds


def test_a_pagemap_gives_the_pages_that_its_file_holds() -> None:
    data = pagemap(
        3, [(0x1000, 2, PE_PRESENT), (0x8000, 4, PE_PARENT), (0x20000, 1, PE_PRESENT | PE_LAZY), (0x40000, 0, 4)]
    )
    parsed = parse_pagemap(data)
    assert parsed.pages_name == "pages-3.img"
    assert parsed.runs == [PageRun(1, 2), PageRun(0x20, 1)]
    assert layout_for(parsed, 3 * PAGE).pages == 3
    with pytest.raises(PagemapError, match="describes"):
        layout_for(parsed, 4 * PAGE)


def test_old_and_new_forms_of_an_entry_are_read() -> None:
    head = MAGIC + message([(1, 1)])
    without_flags = head + message([(1, 0x1000), (2, 3)]) + message([(1, 0x9000), (2, 3), (3, 1)])
    assert parse_pagemap(without_flags).runs == [PageRun(1, 3)]
    wide_count = head + message([(1, 0x1000), (2, 0xFFFFFFFF), (4, 4), (5, 1 << 33)])
    assert parse_pagemap(wide_count).runs == [PageRun(1, 1 << 33)]
    with_strangers = head + message([(9, 77), (1, 0x1000), (2, 3), (4, 4)])
    assert parse_pagemap(with_strangers).runs == [PageRun(1, 3)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAGIC[:7],
        MAGIC,
        MAGIC + message([]),
        MAGIC + message([(1, 1)]) + b"\1",
        MAGIC + message([(1, 1)]) + b"\xff\xff\xff\xff",
        MAGIC + message([(1, 1)]) + message([(1, 0x1000)]),
        MAGIC + message([(1, 1)]) + message([(1, 0x1001), (2, 1)]),
        MAGIC + b"\2\0\0\0\x08\x80",
        MAGIC + b"\2\0\0\0\x0b\x00",
        MAGIC + b"\2\0\0\0\x12\x7f",
        MAGIC + b"\x0c\0\0\0\x08" + b"\xff" * 11,
        b"\0" * 100,
    ],
)
def test_pagemaps_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(PagemapError):
        parse_pagemap(data)


@settings(max_examples=500)
@given(st.data())
def test_damaged_pagemaps_give_an_error_or_sound_runs(data: st.DataObject) -> None:
    raw = bytearray(pagemap(1, [(0x1000 * i, 2, 4) for i in range(1, 40, 3)]))
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=4)):
        raw[at] = byte
    try:
        parsed = parse_pagemap(bytes(raw[: data.draw(st.integers(8, len(raw)))]))
        layout = layout_for(parsed, sum(run.pages for run in parsed.runs) * PAGE)
    except PagemapError:
        return
    assert len(layout.runs) <= 13


pieces_of_leaves = st.lists(
    st.tuples(st.integers(0, 100) | st.integers(0, 1 << 51), st.integers(1, 50)), max_size=6, unique_by=lambda p: p[0]
)


@given(pieces_of_leaves)
def test_groups_cover_a_leaf_block_by_block(pieces: list[tuple[int, int]]) -> None:
    groups = fingerprints.shape_of(pieces).groups
    every = [page for first, count in pieces for page in range(first, first + count)]
    block = fingerprints.first_block(pieces)
    said = [(block + group.block) * 16 + place for group in groups for place in range(16) if group.mask >> place & 1]
    if every == sorted(set(every)):
        assert said == every
    assert sum(group.pages for group in groups) == len(every)
    assert [group.first for group in groups] == [sum(g.pages for g in groups[:i]) for i in range(len(groups))]
    assert all(one.block != two.block for one, two in itertools.pairwise(groups))
    assert len(fingerprints.fold(bytes(16 * len(every)), pieces, KEY).groups) == 16 * len(groups)


@given(pieces_of_leaves, st.integers(0, 3))
def test_kept_fingerprints_come_back_for_a_leaf_that_stands_the_same(pieces: list[tuple[int, int]], by: int) -> None:
    pages = sum(count for _, count in pieces)
    made = fingerprints.fold(random.Random(1).randbytes(16 * pages), pieces, KEY)
    shape = fingerprints.shape_of(pieces)
    data = fingerprints.encode(made, shape, LEAF, KEY)
    assert fingerprints.parse(data, pages, shape, LEAF, KEY) == made
    assert fingerprints.parse(data, pages, shape, bytes(32), KEY) is None, "those of another leaf"
    assert fingerprints.parse(data, pages, shape, LEAF, KEY[::-1]) is None, "those of another repository"
    assert len(data) == 24 + 2 * pages + 16 * len(shape.groups)
    if pieces and by:
        assert (
            fingerprints.parse(
                data, pages, fingerprints.shape_of([(first + by, count) for first, count in pieces]), LEAF, KEY
            )
            is None
        )
        assert (
            fingerprints.parse(
                data, pages, fingerprints.shape_of([(first + 16, count) for first, count in pieces]), LEAF, KEY
            )
            == made
        )


@settings(max_examples=300)
@given(st.data())
def test_a_changed_byte_or_length_is_none(data: st.DataObject) -> None:
    pieces = [(5, 40), (100, 3)]
    shape = fingerprints.shape_of(pieces)
    good = fingerprints.encode(fingerprints.fold(bytes(16 * 43), pieces, KEY), shape, LEAF, KEY)
    raw = bytearray(good)
    at, byte = data.draw(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)))
    raw[at] = byte
    cut = data.draw(st.integers(0, len(raw)) | st.just(len(raw)))
    if bytes(raw[:cut]) != good:
        assert fingerprints.parse(bytes(raw[:cut]), 43, shape, LEAF, KEY) is None
