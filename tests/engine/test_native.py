"""The compiled loops against their slow twins, and what they say to lengths that do not fit."""

from __future__ import annotations

import math
import os
import random
import tempfile
from array import array
from collections import Counter
from pathlib import Path

import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from ijfs_engine._native import byte_planes, chunk_cuts, copies, page_scan

PAGE = page_scan.PAGE
KEY = random.Random(1).randbytes(page_scan.KEY_BYTES)

# Real memory is mostly zeros, repeats and few distinct words; purely random bytes would leave those paths alone.
words = st.sampled_from(
    [bytes(8), b"\xff" * 8, (1).to_bytes(8, "little"), (1 << 63).to_bytes(8, "little")]
) | st.binary(min_size=8, max_size=8)
pages = st.builds(
    lambda base, at, word: base[: at * 8] + word + base[at * 8 + 8 :],
    st.sampled_from([bytes(PAGE), b"\xff" * PAGE, random.Random(2).randbytes(PAGE)]),
    st.integers(0, 511),
    words,
)


def scan(data: bytes, path: int = -1) -> tuple[bytes, bytes]:
    prints, kinds = bytearray(len(data) // PAGE * 16), bytearray(len(data) // PAGE)
    page_scan.scan_pages(data, KEY, prints, kinds, path=path)
    return bytes(prints), bytes(kinds)


@settings(deadline=None, max_examples=25)
@given(pages)
def test_every_fingerprint_path_agrees_with_the_definition(page: bytes) -> None:
    expected = reference.fingerprint(page, KEY)
    for path in page_scan.fingerprint_paths():
        assert scan(page, path=path)[0] == expected


def test_all_three_paths_run_on_a_processor_that_has_them() -> None:
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    has = 1 + ("pclmulqdq" in flags) + ("vpclmulqdq" in flags and "avx512bw" in flags)
    assert page_scan.fingerprint_paths() == list(range(has))


def test_a_flip_of_any_single_bit_changes_the_fingerprint() -> None:
    page = random.Random(3).randbytes(PAGE)
    flipped = [bytearray(page) for _ in range(PAGE * 8 // 61)]
    for i, other in enumerate(flipped):
        other[i * 61 // 8] ^= 1 << (i * 61 % 8)
    prints, _ = scan(page + b"".join(flipped))
    assert len({prints[i : i + 16] for i in range(0, len(prints), 16)}) == len(flipped) + 1


def test_swapping_two_words_changes_the_fingerprint() -> None:
    a, b = b"A" * 8, b"B" * 8
    one, two = scan((a + b) * 256)[0], scan((b + a) * 256)[0]
    assert one != two


def test_the_fingerprint_depends_on_the_key() -> None:
    page = b"x" * PAGE
    one, two = bytearray(16), bytearray(16)
    page_scan.scan_pages(page, KEY, one, bytearray(1))
    for at in (0, PAGE, 2 * PAGE, 2 * PAGE + 16):
        other = bytearray(KEY)
        other[at] ^= 1
        page_scan.scan_pages(page, other, two, bytearray(1))
        assert one != two


def test_a_non_zero_page_never_gets_the_fingerprint_of_zeros() -> None:
    # With a zero key, a page in which one word of each pair is zero hashes to zero: it is stored as one.
    page = b"x" * 8 + bytes(PAGE - 8)
    prints, kinds = bytearray(16), bytearray(1)
    for path in page_scan.fingerprint_paths():
        page_scan.scan_pages(page, bytes(page_scan.KEY_BYTES), prints, kinds, path=path)
        assert prints == (1).to_bytes(16, "little")
        assert kinds[0] == page_scan.FRESH


def test_pages_are_classed_as_zero_or_fresh() -> None:
    pages = [b"a" * PAGE, bytes(PAGE), *(bytes(at) + b"\1" + bytes(PAGE - 1 - at) for at in (0, 63, 64, 255, 4095))]
    prints, kinds = scan(b"".join(pages))
    assert kinds == bytes([page_scan.FRESH, page_scan.ZERO, *[page_scan.FRESH] * 5])
    assert prints[16:32] == bytes(16)


numbers = st.lists(st.integers(0, 200) | st.integers(0, 1 << 52), max_size=40, unique=True)


@settings(deadline=None, max_examples=50)
@given(numbers, st.data())
def test_group_fingerprints_agree_with_the_definition(pages: list[int], data: st.DataObject) -> None:
    prints = b"".join(
        data.draw(st.sampled_from([bytes(16), b"\0\0" + b"x" * 14]) | st.binary(min_size=16, max_size=16))
        for _ in pages
    )
    pieces: list[int] = []
    for page in pages:
        if pieces and pieces[-2] + pieces[-1] == page:
            pieces[-1] += 1
        else:
            pieces += [page, 1]
    for path in page_scan.fingerprint_paths():
        assert page_scan.fold_prints(prints, array("Q", pieces), KEY, path=path) == reference.fold_prints(
            prints, pages, KEY
        )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 65536]), st.sampled_from([0, 1, 65536]))))
def test_pages_are_the_same_by_their_fingerprints(pages: list[tuple[int, int, int]]) -> None:
    prints, theirs = (b"".join(page[i].to_bytes(16, "little") for page in pages) for i in (1, 2))
    kinds = bytearray(kind for kind, _, _ in pages)
    assert page_scan.mark_same_prints(prints, theirs, kinds) == sum(own != other for _, own, other in pages)
    fresh, same = page_scan.FRESH, page_scan.SAME
    assert list(kinds) == [same if kind == fresh and own == other else kind for kind, own, other in pages]
    assert page_scan.hints_of(prints) == page_scan.fold_prints(prints, array("Q", [0, len(pages)]), KEY)[0]


def test_a_group_fingerprint_tells_which_page_stands_where() -> None:
    one, two = bytes(range(16)), bytes(range(16, 32))
    folded = {
        page_scan.fold_prints(a, array("Q", [first, 2]), KEY)[1] for a in (one + two, two + one) for first in (0, 1, 16)
    }
    assert len(folded) == 4  # pages 0 and 16 have the same place in their blocks
    assert page_scan.fold_prints(bytes(64), array("Q", [0, 2, 30, 1, 40, 1]), KEY) == (bytes(8), bytes(48))


def test_a_file_is_scanned_like_memory() -> None:
    data = random.Random(4).randbytes(PAGE) * 100 + bytes(PAGE * 70) + random.Random(5).randbytes(PAGE * 30)
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 100 + data)
        file.flush()
        prints, kinds, pages = bytearray(3200), bytearray(200), bytearray(len(data))
        page_scan.scan_file(file.fileno(), 100, KEY, prints, kinds, pages)
        assert (bytes(prints), bytes(kinds)) == scan(data)
        assert pages == data
        with pytest.raises(EOFError):
            page_scan.scan_file(file.fileno(), 101, KEY, prints, kinds, pages)
        with pytest.raises(ValueError, match="200 pages"):
            page_scan.scan_file(file.fileno(), 100, KEY, prints, kinds, pages[1:])
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="read failed"):
        page_scan.scan_file(reader, 0, KEY, prints, kinds, pages)
    os.close(reader)
    os.close(writer)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(words, st.integers(1, 60)), max_size=12),
    st.binary(max_size=7),
    st.sampled_from([(64, 256), (8, 8), (256, 1024), (184, 512)]),
    st.integers(1, 64),
)
def test_gear_cuts_agree_with_the_definition(
    repeats: list[tuple[bytes, int]], tail: bytes, sizes: tuple[int, int], one_in: int
) -> None:
    data = b"".join(word * n for word, n in repeats) + tail
    threshold = (1 << 64) - (1 << 64) // one_in if one_in > 1 else 0
    assert chunk_cuts.gear_cuts(data, *sizes, threshold) == reference.gear_cuts(data, *sizes, threshold)


def test_cuts_come_back_after_an_insertion() -> None:
    data = random.Random(6).randbytes(1 << 20)
    threshold = (1 << 64) - (1 << 64) // 512
    before = chunk_cuts.gear_cuts(data, 1024, 16384, threshold)
    after = chunk_cuts.gear_cuts(data[:5000] + b"inserted" * 3 + data[5000:], 1024, 16384, threshold)
    assert len({c + 24 for c in before} & set(after)) > 0.95 * len(before)


@settings(deadline=None, max_examples=20)
@given(pages, pages)
def test_lines_that_differ_are_counted_and_xor_undoes_itself(a: bytes, b: bytes) -> None:
    changed, out = bytearray(2), bytearray(a + b)
    page_scan.changed_lines(a + b, b + b, changed)
    assert changed == reference.changed_lines(a + b, b + b)
    byte_planes.xor_into(out, b + b)
    assert out == bytes(x ^ y for x, y in zip(a + b, b + b, strict=True))


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([(w, t) for w in (2, 4, 8) for t in range(1, w + 1)]))
def test_planes_split_as_defined_and_join_again(data: bytes, shape: tuple[int, int]) -> None:
    width, tops = shape
    planes = bytearray(len(data) // width * tops)
    rest = bytearray(len(data) - len(planes))
    byte_planes.split_planes(data, width, tops, planes, rest)
    assert (bytes(planes), bytes(rest)) == reference.split_planes(data, width, tops)
    back = bytearray(len(data))
    byte_planes.join_planes(planes, rest, width, tops, back)
    assert back == data == reference.join_planes(bytes(planes), bytes(rest), width, tops)


def test_entropies_are_those_of_the_byte_positions() -> None:
    data = bytes(b for i in range(256) for b in (i, i & 15, 7, 0, i & 1, i & 3, 0, i >> 7))
    assert byte_planes.byte_entropies(data, 1 << 20) == pytest.approx((8, 4, 0, 0, 1, 2, 0, 1))
    assert byte_planes.byte_entropies(b"short", 10) == (0.0,) * 8
    sampled = random.Random(7).randbytes(1 << 16)
    counts = Counter(sampled[0 :: 8 * 65])
    exact = sum(-c / 127 * math.log2(c / 127) for c in counts.values())
    assert byte_planes.byte_entropies(sampled, 127)[0] == pytest.approx(exact)


@given(st.binary(max_size=60))
def test_runs_are_maximal(kinds: bytes) -> None:
    assert page_scan.runs(kinds) == reference.runs(kinds)


@given(st.integers(0, 3 * PAGE), st.none() | st.integers(0, 3 * PAGE))
def test_zero_pages_are_found_in_data_of_any_length(size: int, at: int | None) -> None:
    data = bytearray(size)
    if at is not None and at < size:
        data[at] = 1
    kinds = bytearray(-(-size // PAGE))
    page_scan.zero_kinds(data, kinds)
    assert [k == page_scan.ZERO for k in kinds] == [not any(data[i : i + PAGE]) for i in range(0, size, PAGE)]
    assert page_scan.is_zero(data) == (not any(data))


@given(st.lists(st.tuples(*[st.integers(0, 80)] * 3), max_size=5))
def test_pieces_are_copied_or_refused_as_a_whole(pieces: list[tuple[int, int, int]]) -> None:
    source, target, expected = random.Random(8).randbytes(64), bytearray(64), bytearray(64)
    triples = array("Q", [x for piece in pieces for x in piece])
    if all(a + n <= 64 and b + n <= 64 for a, b, n in pieces):
        for a, b, n in pieces:
            expected[b : b + n] = source[a : a + n]
        copies.copy_runs(source, target, triples)
    else:
        with pytest.raises(ValueError, match="outside"):
            copies.copy_runs(source, target, triples)
    assert target == expected


def test_lengths_that_do_not_fit_are_refused() -> None:
    prints, kinds = bytearray(16), bytearray(1)
    bad_calls = [
        lambda: page_scan.scan_pages(bytes(100), KEY, prints, kinds),
        lambda: page_scan.scan_pages(bytes(PAGE), KEY[:-1], prints, kinds),
        lambda: page_scan.scan_pages(bytes(2 * PAGE), KEY, prints, kinds),
        lambda: page_scan.scan_pages(bytes(PAGE), KEY, prints, kinds, path=3),
        lambda: page_scan.fold_prints(bytes(32), array("Q", [0, 1]), KEY),
        lambda: page_scan.fold_prints(bytes(32), array("Q", [0, 3]), KEY),
        lambda: page_scan.fold_prints(bytes(32), array("Q", [0, 2**64 - 1, 0, 3]), KEY),
        lambda: page_scan.fold_prints(bytes(32), array("Q", [0, 2, 5]), KEY),
        lambda: page_scan.fold_prints(bytes(33), array("Q", [0, 2]), KEY),
        lambda: page_scan.fold_prints(bytes(32), array("Q", [0, 2]), KEY[1:]),
        lambda: page_scan.hints_of(bytes(17)),
        lambda: page_scan.mark_same_prints(bytes(16), bytes(32), bytearray(1)),
        lambda: page_scan.mark_same_prints(bytes(16), bytes(16), bytearray(2)),
        lambda: page_scan.zero_kinds(bytes(PAGE), bytearray(2)),
        lambda: chunk_cuts.gear_cuts(bytes(8), 7, 64, 0),
        lambda: chunk_cuts.gear_cuts(bytes(8), 64, 8, 0),
        lambda: page_scan.changed_lines(bytes(PAGE), bytes(PAGE), bytearray(2)),
        lambda: byte_planes.xor_into(bytearray(3), bytes(4)),
        lambda: byte_planes.split_planes(bytes(8), 3, 1, bytearray(2), bytearray(6)),
        lambda: byte_planes.split_planes(bytes(8), 4, 0, bytearray(0), bytearray(8)),
        lambda: byte_planes.split_planes(bytes(8), 4, 5, bytearray(10), bytearray(0)),
        lambda: byte_planes.split_planes(bytes(8), 4, 1, bytearray(3), bytearray(5)),
        lambda: byte_planes.join_planes(bytes(2), bytes(5), 4, 1, bytearray(8)),
        lambda: copies.copy_runs(bytes(8), bytearray(8), array("Q", [0, 0])),
        lambda: copies.copy_runs(bytes(8), bytearray(8), array("Q", [2**64 - 4, 0, 8])),
    ]
    for call in bad_calls:
        with pytest.raises(ValueError):  # noqa: PT011 - each message differs; that none reads out of bounds is the point
            call()
