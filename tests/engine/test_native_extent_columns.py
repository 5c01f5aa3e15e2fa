"""Putting leaves and base records together in compiled code, against slow twins."""

from __future__ import annotations

from array import array

import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Piece

from ijfs_engine._native.extent_columns import Assembly, Columns, compare_pages, fresh_pages, long_runs, mark_same
from ijfs_engine._native.page_scan import FRESH, PAGE, SAME, ZERO
from ijfs_engine.format.extents import LeafMap, leaf_from
from ijfs_engine.format.frames import unpack_bases
from ijfs_engine.format.records import ZERO_RUN

IDS = [bytes([number]) * 32 for number in range(1, 4)]
piece = st.tuples(st.sampled_from([None, *IDS]), st.integers(0, 3), st.integers(0, 3)).map(
    lambda p: (p[0], p[1] if p[0] else 0, p[2])
)
piece_lists = st.lists(piece, max_size=8)


def columns_of(pieces: list[Piece], scale: int = 1) -> Columns:
    number = {None: ZERO_RUN, **{ident: at for at, ident in enumerate(IDS)}}
    index = array("I", [number[ident] for ident, _, _ in pieces])
    offsets, lengths = (array("I", [piece[at] * scale for piece in pieces]) for at in (1, 2))
    return Columns(b"".join(IDS), index, offsets, lengths)


def pieces_of(assembly: Assembly) -> list[Piece]:
    leaf = leaf_from(assembly)
    size = sum(leaf.length)
    return [tuple(found) for found in LeafMap(leaf).slices(0, size)]


@given(piece_lists)
def test_pieces_that_continue_each_other_become_one(pieces: list[Piece]) -> None:
    assembly = Assembly()
    for ident, offset, length in pieces:
        if ident is None:
            assembly.zeros(length)
        else:
            assembly.piece(ident, offset, length)
    expected = reference.assembled(pieces)
    assert pieces_of(assembly) == expected
    assert len(assembly) == len(expected)
    assert [tuple(base) for base in unpack_bases(assembly.bases())] == [(i or bytes(32), o, n) for i, o, n in expected]
    used = [ident for ident, _, length in pieces if ident]
    assert assembly.ids() == list(dict.fromkeys(used))


@given(piece_lists, st.data())
def test_a_span_of_a_leaf_is_taken_over(pieces: list[Piece], data: st.DataObject) -> None:
    total = sum(length for _, _, length in pieces)
    inside = data.draw(st.integers(0, total))
    size = data.draw(st.integers(0, total - inside))
    columns, assembly = columns_of(pieces), Assembly()
    assembly.span(columns, inside, size)
    assert columns.size == total
    assert pieces_of(assembly) == reference.assembled(reference.span(pieces, inside, size))
    for bad in ((total + 1, 0), (inside, total - inside + 1), (0, (1 << 64) - 1)):
        with pytest.raises(ValueError, match="leaf"):
            assembly.span(columns, *bad)


@settings(deadline=None)
@given(piece_lists, st.lists(st.sampled_from([ZERO, SAME, FRESH]), max_size=8), st.integers(0, 9))
def test_pages_come_from_where_their_kind_says(pieces: list[Piece], kinds: list[int], first: int) -> None:
    same, fresh = [(IDS[0], 0, 99)], [*pieces, (IDS[2], 0, 99)]
    sources = [
        [(0, first + 2, columns, 0), (first + 2, 90, columns, first + 2)]
        for columns in (columns_of(same, PAGE), columns_of(fresh, PAGE))
    ]
    assembly = Assembly()
    assembly.pages(bytes(kinds), first, *sources)
    wanted: list[Piece] = []
    for at, kind in enumerate(kinds):
        source = {SAME: same, FRESH: fresh}.get(kind)
        taken = reference.span(source, first + at, 1) if source else [(None, 0, 1)]
        wanted += [(ident, offset * PAGE, length * PAGE) for ident, offset, length in taken]
    assert pieces_of(assembly) == reference.assembled(wanted)
    with pytest.raises(ValueError, match="nothing has page"):
        assembly.pages(bytes([SAME]), first + 92, *sources)
    with pytest.raises(ValueError, match="nothing has page"):
        assembly.pages(bytes([FRESH]), 0, [], [])


@settings(deadline=None)
@given(piece_lists, st.lists(st.integers(-1, 5), min_size=1, max_size=6), st.data())
def test_what_lies_under_bytes_is_found(pieces: list[Piece], theirs: list[int], data: st.DataObject) -> None:
    pieces = [*pieces, (IDS[1], 0, 6)]
    sources = [(0, 4, columns_of(pieces, PAGE), 0), (4, 2, columns_of(pieces, PAGE), 4)]
    start = data.draw(st.integers(0, len(theirs) * PAGE))
    end = data.draw(st.integers(start, len(theirs) * PAGE))
    assembly = Assembly()
    assembly.under(array("q", theirs), start, end, sources)
    scaled = [(ident, offset * PAGE, length * PAGE) for ident, offset, length in pieces]
    wanted: list[Piece] = []
    for at, page in enumerate(theirs):
        low, high = max(start - at * PAGE, 0), min(end - at * PAGE, PAGE)
        if low < high:
            zeros: list[Piece] = [(None, 0, high - low)]
            wanted += reference.span(scaled, page * PAGE + low, high - low) if page >= 0 else zeros
    assert pieces_of(assembly) == reference.assembled(wanted)
    with pytest.raises(ValueError, match="nothing has page"):
        assembly.under(array("q", [6]), 0, 1, sources)
    with pytest.raises(ValueError, match="no bytes"):
        assembly.under(array("q", theirs), start, len(theirs) * PAGE + 1, sources)


hints = st.integers(0, 2)


@given(st.lists(st.tuples(st.sampled_from([ZERO, SAME, FRESH]), hints, hints), max_size=12), st.data())
def test_pages_of_the_parent_are_found_under_fresh_ones(pages: list[tuple[int, int, int]], data: st.DataObject) -> None:
    matches, at = [], 0
    while at < len(pages):
        at += data.draw(st.integers(0, 3))
        count = data.draw(st.integers(1, 4))
        matches.append((at, data.draw(st.integers(0, 99)), count))
        at += count
    kinds, own, theirs = bytes(p[0] for p in pages), [p[1] for p in pages], [p[2] for p in pages]
    numbers, under, likely = fresh_pages(kinds, array("H", own), array("H", theirs), matches)
    found = zip(memoryview(numbers).cast("I"), memoryview(under).cast("q"), map(bool, likely), strict=True)
    assert list(found) == reference.fresh_pages(kinds, own, theirs, matches)


@given(st.lists(st.tuples(st.integers(-1, 9), st.booleans()), max_size=9), st.integers(1, 3), st.integers(0, 9))
def test_long_runs_are_found(pages: list[tuple[int, bool]], minimum: int, more: int) -> None:
    theirs = [page for page, _ in pages] + [20 + i for i in range(more)]
    likely = bytes([likely for _, likely in pages] + [False] * more)
    assert long_runs(array("q", theirs), likely, minimum) == reference.long_runs(theirs, likely, minimum)


def test_pages_are_compared_where_there_is_something_to_compare_with() -> None:
    data, base, changed = bytearray(3 * PAGE), bytearray(3 * PAGE), bytearray(b"\xff\xff\xff")
    data[PAGE] = data[PAGE + 64] = 1
    compare_pages(data, base, array("q", [4, 5, -1]), changed)
    assert changed == bytes([0, 2, 255])
    kinds = bytearray([FRESH] * 9)
    mark_same(kinds, array("I", [7, 1, 2]), changed)
    assert [at for at, kind in enumerate(kinds) if kind == SAME] == [7]


def test_lengths_that_do_not_fit_are_refused() -> None:
    one, two = array("I", [0]), array("I", [0, 0])
    for ids, columns in (
        (bytes(32), (one, one, two)),
        (bytes(32), (one, two, one)),
        (b"", (one, one, one)),
        (bytes(32), (two, two, array("I", [1 << 31, 1 << 31]))),
    ):
        with pytest.raises(ValueError, match="leaf"):
            Columns(ids, *columns)
    with pytest.raises(ValueError, match="id"):
        Assembly().piece(b"short", 0, 1)
    with pytest.raises(ValueError, match="hints"):
        fresh_pages(bytes(2), array("H", [1]), array("H", [1, 1]), [])
    with pytest.raises(ValueError, match="marks"):
        long_runs(array("q", [1]), b"", 1)
    with pytest.raises(ValueError, match="compare_pages"):
        compare_pages(bytes(PAGE), bytes(PAGE - 1), array("q", [1]), bytearray(1))
    with pytest.raises(ValueError, match="counts"):
        mark_same(bytearray(1), array("I", [0]), b"")
    with pytest.raises(ValueError, match="no page"):
        mark_same(bytearray(1), array("I", [1]), b"a")
