"""Unpacking many chunks at once against its slow twin: the right bytes where they belong, or a chunk left out."""

from __future__ import annotations

import itertools
import os
import random
import struct
from array import array
from collections.abc import Mapping
from typing import NamedTuple

import pytest
import reference
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from ijfs_engine._native.bulk import BulkRead
from ijfs_engine._native.extent_columns import Columns
from ijfs_engine._native.unpack import Unpacker, chunk_ids, hash_widths, unpack_payload
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.chunk_codec import Base
from ijfs_engine.format.frames import Codec, FrameKind, chunk_id, encode_header, pack_bases, padding
from ijfs_engine.format.place import Place
from ijfs_engine.format.records import ZERO_RUN

TOOLS = Unpacker()
GAP, LONGEST = 64, 100_000


def plain_of(kind: str, seed: int, size: int) -> bytes:
    rng = random.Random(seed)
    if kind == "noise":
        return rng.randbytes(size)
    if kind == "floats":
        return b"".join(struct.pack("<f", rng.gauss(0, 0.02)) for _ in range(size // 4)) + bytes(size % 4)
    if kind == "prices":
        return b"".join(struct.pack("<d", round(rng.gauss(20, 9), 2)) for _ in range(size // 8)) + bytes(size % 8)
    if kind == "degrees":
        return b"".join(struct.pack("<f", round(rng.gauss(50, 1), 2)) for _ in range(size // 4)) + b"end"[: size % 4]
    if kind in ("counts", "times"):
        numbers = sorted(rng.choices(range(1 << 40, (1 << 40) + 10**7), k=size // 8))
        words = [number if kind == "times" else number % 97 for number in numbers]
        return struct.pack(f"<{len(words)}Q", *words) + b"tail..."[: size % 8]
    return b"".join(rng.choices([b"import", b"numpy", b" ", b"return"], k=size))[:size]


KINDS = ["noise", "floats", "text", "prices", "degrees", "counts", "times"]


class Stored(NamedTuple):
    """A pack's bytes, and where in it which chunks are."""

    pack: bytes
    plains: dict[bytes, bytes]
    rows: dict[bytes, bytes]


def stored(chunks: list[tuple[str, int, int]]) -> Stored:
    """Chunks one behind the other in pack 3, some as a difference to the one before."""
    pack, plains, rows = bytearray(64), dict[bytes, bytes](), dict[bytes, bytes]()
    before: tuple[bytes, bytes, int] | None = None
    for kind, seed, size in chunks:
        plain, base = plain_of(kind, seed, size), None
        if before and seed % 3 == 0 and before[2] < chunk_codec.MAX_DEPTH and len(before[1]) >= 256:
            changed = bytearray(before[1])
            changed[seed % len(changed)] ^= 1
            plain = bytes(changed)
            base = Base(before[1], pack_bases([(before[0], 0, len(plain))]), before[2], sure=True)
        ident = chunk_id(plain)
        if ident in plains:
            continue
        chunk = chunk_codec.encode(memoryview(plain), ident, base)
        frame = encode_header(FrameKind.CHUNK, chunk) + bytes(chunk.payload)
        rows[ident] = Place(3, len(pack), len(frame), len(plain), chunk.codec, chunk.depth).encode()
        pack += frame + bytes(padding(len(frame)))
        plains[ident], before = plain, (ident, plain, chunk.depth)
    return Stored(bytes(pack), plains, rows)


def placed(what: BulkRead, rows: Mapping[bytes, bytes], below: int = 256) -> list[list[int]]:
    """Tell of each chunk where it is; which packs that takes."""
    for number, ident in what.wanted():
        what.place(number, rows.get(ident))
    return what.schedule(GAP, LONGEST, below)


def read(what: BulkRead, packs: list[list[int]], pack: bytes) -> None:
    """Read what was planned, with these bytes as pack 3."""
    fd = os.memfd_create("pack")
    try:
        os.write(fd, pack)
        assert [number for number, _, _ in packs] in ([], [3])
        what.read([fd for _ in packs])
    finally:
        os.close(fd)


def filled(what: BulkRead, pack: bytes, rows: Mapping[bytes, bytes], plains: Mapping[bytes, bytes]) -> list[bytes]:
    """Do what bulkread does; the ids of the chunks that are left."""
    read(what, placed(what, rows), pack)
    for number, _ in what.based():
        if all(ident in plains for ident in what.lacking(number)):
            what.add_bases(number, plains)
    return [ident for _, ident in what.wanted()]


chunk_lists = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 99), st.integers(1, 3000)),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(chunk_lists, st.data())
def test_a_leaf_is_filled_as_defined(chunks: list[tuple[str, int, int]], data: st.DataObject) -> None:
    store = stored(chunks)
    ids = list(store.plains)
    index, offsets, lengths = array("I"), array("I"), array("I")
    extents: list[tuple[bytes | None, int, int]] = []
    for number in data.draw(st.lists(st.integers(-1, len(ids) - 1), min_size=1, max_size=12)):
        plain = store.plains[ids[number]] if number >= 0 else None
        most = len(plain) if plain else 500
        offset = data.draw(st.just(0) | st.integers(0, most - 1)) if plain else 0
        length = data.draw(st.just(most - offset) | st.integers(1, most - offset))
        index.append(number if plain else ZERO_RUN)
        offsets.append(offset)
        lengths.append(length)
        extents.append((plain, offset, length))
    total = sum(lengths)
    inside = data.draw(st.integers(0, total))
    out = bytearray(b"\xaa" * data.draw(st.integers(0, total - inside)))
    what = BulkRead(TOOLS)
    what.add_leaf(Columns(b"".join(ids), index, offsets, lengths), inside, out)
    assert filled(what, store.pack, store.rows, store.plains) == []
    assert out == reference.leaf_bytes(extents, inside, len(out))
    assert all(store.plains[ident] == own for ident, own in what.kept())


@settings(deadline=None, max_examples=30)
@given(chunk_lists, st.lists(st.integers(-1, 5), max_size=8))
def test_pages_are_filled_by_number(chunks: list[tuple[str, int, int]], theirs: list[int]) -> None:
    store = stored([*chunks, ("noise", 1, 6 * 4096)])
    whole = b"".join(store.plains.values())
    lengths = array("I", [len(plain) for plain in store.plains.values()])
    index, offsets = array("I", range(len(lengths))), array("I", bytes(4 * len(lengths)))
    columns = Columns(b"".join(store.plains), index, offsets, lengths)
    out = bytearray(b"\xaa" * len(theirs) * 4096)
    what = BulkRead(TOOLS)
    what.add_pages(array("q", theirs), [(0, 3, columns, 0), (3, 3, columns, 3)], out)
    assert filled(what, store.pack, store.rows, store.plains) == []
    for at, page in enumerate(theirs):
        expected = whole[page * 4096 : (page + 1) * 4096] if page >= 0 else b"\xaa" * 4096
        assert out[at * 4096 : (at + 1) * 4096] == expected


@settings(deadline=None, max_examples=80)
@given(chunk_lists, st.data())
def test_damage_leaves_a_chunk_out_or_does_not_matter(chunks: list[tuple[str, int, int]], data: st.DataObject) -> None:
    store = stored(chunks)
    pack, rows = bytearray(store.pack), dict(store.rows)
    for _ in range(data.draw(st.integers(1, 5))):
        pack[data.draw(st.integers(64, len(pack) - 1))] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del pack[data.draw(st.integers(0, len(pack))) :]
    if data.draw(st.booleans()):
        row = bytearray(rows[data.draw(st.sampled_from(sorted(rows)))])
        row[data.draw(st.integers(4, 17))] ^= data.draw(st.integers(1, 255))
        rows[data.draw(st.sampled_from(sorted(rows)))] = bytes(row)
    what = BulkRead(TOOLS)
    buffers = {ident: bytearray(len(plain)) for ident, plain in store.plains.items()}
    for ident, buffer in buffers.items():
        what.add_chunk(ident, 0, buffer)
    left = filled(what, bytes(pack), rows, store.plains)
    for ident, buffer in buffers.items():
        assert ident in left or buffer == store.plains[ident]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(KINDS), st.integers(0, 9), st.integers(1, 3000), st.data())
def test_payloads_unpack_as_defined(kind: str, seed: int, size: int, data: st.DataObject) -> None:
    plain = plain_of(kind, seed, size)
    chunk = chunk_codec.encode(memoryview(plain), chunk_id(plain))
    payload, claimed = bytearray(chunk.payload), size
    assert unpack_payload(TOOLS, chunk.codec, payload, size) == plain
    if data.draw(st.booleans()):
        for _ in range(data.draw(st.integers(1, 2))):
            payload[data.draw(st.integers(0, min(len(payload), 30) - 1))] ^= data.draw(st.integers(1, 255))
    claimed += data.draw(st.integers(-min(size, 2), 2))
    number = data.draw(st.just(chunk.codec) | st.integers(0, 9))
    assert unpack_payload(TOOLS, number, payload, claimed) == reference.unpack_payload(number, bytes(payload), claimed)


def test_a_payload_may_not_be_two_frames() -> None:
    one = chunk_codec.encode(memoryview(b"abcd" * 100), bytes(32))
    assert one.codec == Codec.ZSTD
    assert unpack_payload(TOOLS, one.codec, bytes(one.payload) * 2, one.plain_size) is None


def test_known_chunks_are_not_read() -> None:
    what, out = BulkRead(TOOLS), bytearray(5)
    what.add_chunk(b"a" * 32, 2, out)
    what.know(0, b"..these")
    assert out == b"these"
    assert what.wanted() == [] == what.schedule(GAP, LONGEST)


@settings(deadline=None, max_examples=30)
@given(chunk_lists, st.integers(0, 5))
def test_whole_chunks_are_kept_if_they_are_not_too_deep(chunks: list[tuple[str, int, int]], below: int) -> None:
    store = stored(chunks)
    what = BulkRead(TOOLS)
    for ident in store.plains:
        what.add_whole(ident)
    read(what, placed(what, store.rows, below), store.pack)
    for number, _ in what.based():
        what.add_bases(number, store.plains)
    shallow = {ident for ident, row in store.rows.items() if Place.decode(row).depth < below}
    assert dict(what.kept()) == {ident: store.plains[ident] for ident in shallow}


def test_what_does_not_fit_is_refused() -> None:
    one, few, far, none = (array("I", [number]) for number in (0, 10, 1 << 31, ZERO_RUN))
    what = BulkRead(TOOLS)
    leaf = Columns(b"x" * 32, one, one, few)
    for columns, inside, size in ((leaf, 0, 11), (leaf, 11, 1), (Columns(b"x" * 32, one, far, few), 0, 5)):
        with pytest.raises(ValueError, match="leaf"):
            what.add_leaf(columns, inside, bytearray(size))
    pages = Columns(b"", none, one, array("I", [8192]))
    for theirs, sources, size in (
        ([2], [(0, 2, pages, 0)], 4096),
        ([0], [], 4096),
        ([0], [(0, 2, pages, 0)], 4095),
        ([1], [(0, 2, pages, 1)], 4096),
    ):
        with pytest.raises(ValueError, match=r"page|leaf"):
            what.add_pages(array("q", theirs), sources, bytearray(size))
    with pytest.raises(ValueError, match="id"):
        what.add_chunk(b"short", 0, bytearray(5))
    with pytest.raises(ValueError, match="no chunk has"):
        what.add_chunk(b"x" * 32, 1 << 40, bytearray(5))
    what.add_chunk(b"y" * 32, 5, bytearray(5))
    with pytest.raises(ValueError, match="does not have"):
        what.know(what.wanted()[-1][0], b"short")
    with pytest.raises(ValueError, match="there is no chunk"):
        what.know(99, b"")
    with pytest.raises(ValueError, match="there is no chunk"):
        what.place(99, None)
    for number in (0, 99):
        with pytest.raises(ValueError, match="no difference"):
            what.add_bases(number, {})
    what.place(0, Place(3, 64, 100, 10, Codec.RAW, 0).encode())
    assert what.schedule(GAP, LONGEST) == [[3, 64, 164]]
    with pytest.raises(ValueError, match="descriptors"):
        what.read([])
    with pytest.raises(OSError, match="reading a pack"):
        what.read([os.open("/", os.O_PATH)])


def differences_of(noise: bytes) -> Stored:
    """A chunk, one based on it, and one based on that."""
    first, second = bytearray(noise), bytearray(noise)
    first[5] ^= 1
    second[5] ^= 3
    pack, plains, rows = bytearray(64), dict[bytes, bytes](), dict[bytes, bytes]()
    base: Base | None = None
    for depth, plain in enumerate((noise, bytes(first), bytes(second))):
        ident = chunk_id(plain)
        chunk = chunk_codec.encode(memoryview(plain), ident, base)
        frame = encode_header(FrameKind.CHUNK, chunk) + bytes(chunk.payload)
        rows[ident] = Place(3, len(pack), len(frame), len(plain), chunk.codec, chunk.depth).encode()
        pack += frame + bytes(padding(len(frame)))
        plains[ident], base = plain, Base(plain, pack_bases([(ident, 0, len(plain))]), depth, sure=True)
    return Stored(bytes(pack), plains, rows)


@pytest.mark.parametrize("whole", [True, False])
def test_bases_that_are_wanted_themselves_are_not_asked_for(whole: bool) -> None:
    store = differences_of(random.Random(3).randbytes(5000))
    what = BulkRead(TOOLS)
    buffers = {ident: bytearray(5000 if whole else 100) for ident in store.plains}
    for ident, buffer in buffers.items():
        what.add_chunk(ident, 0 if whole else 7, buffer)
    read(what, placed(what, store.rows), store.pack)
    assert what.wanted() == []
    for ident, buffer in buffers.items():
        assert buffer == (store.plains[ident] if whole else store.plains[ident][7:107])


def test_what_was_unpacked_wrong_is_no_base() -> None:
    store = differences_of(random.Random(4).randbytes(5000))
    first, *others = store.plains
    pack = bytearray(store.pack)
    pack[64 + 64 + 10] ^= 1  # in the payload of the first
    what, out = BulkRead(TOOLS), bytearray(5000)
    what.add_chunk(first, 0, out)
    for ident in others:
        what.add_chunk(ident, 0, bytearray(5000))
    read(what, placed(what, store.rows), bytes(pack))
    (number, _), _ = what.based()
    assert what.lacking(number) == [first]
    what.know(0, store.plains[first])
    assert what.lacking(number) == [first]
    what.add_bases(number, {first: store.plains[first]})
    assert out == store.plains[first]
    assert [ident for _, ident in what.wanted()] == others[1:]


def test_bases_that_are_not_wanted_are_asked_for_once() -> None:
    store = differences_of(random.Random(5).randbytes(5000))
    _, second, third = store.plains
    what, out = BulkRead(TOOLS), bytearray(5000)
    what.add_chunk(third, 0, out)
    read(what, placed(what, store.rows), store.pack)
    assert what.based() == [(0, 2)]
    assert what.lacking(0) == [second]
    what.add_bases(0, {second: store.plains[second]})
    assert what.wanted() == [] == what.based()
    assert out == store.plains[third]


@pytest.mark.parametrize("damage", ["none", "flipped", "cut"])
def test_what_is_stored_as_it_is_goes_where_it_belongs(damage: str) -> None:
    """Payloads of 16 KiB and more are read past the buffer of packed bytes, with others before, between and behind."""
    rng = random.Random(6)
    plains = [rng.randbytes(40_000), b"text" * 500, rng.randbytes(20_000), rng.randbytes(16 << 10), b"more" * 999]
    pack, rows = bytearray(64), dict[bytes, bytes]()
    for plain in plains:
        chunk = chunk_codec.encode(memoryview(plain), chunk_id(plain))
        frame = encode_header(FrameKind.CHUNK, chunk) + bytes(chunk.payload)
        rows[chunk.id] = Place(3, len(pack), len(frame), len(plain), chunk.codec, 0).encode()
        pack += frame + bytes(padding(len(frame)))
    if damage == "flipped":
        pack[64 + 64 + 40_000 + 5] ^= 1  # the second header
        pack[-5000] ^= 1  # the fourth payload
    if damage == "cut":
        del pack[-9000:]  # within the fourth
    what, buffers = BulkRead(TOOLS), [bytearray(len(plain)) for plain in plains]
    for ident, buffer in zip(rows, buffers, strict=True):
        what.add_chunk(ident, 0, buffer)
    read(what, placed(what, rows), bytes(pack))
    left = [number for number, _ in what.wanted()]
    assert left == {"none": [], "flipped": [1, 3], "cut": [3, 4]}[damage]
    assert all(
        buffer == plain for at, (buffer, plain) in enumerate(zip(buffers, plains, strict=True)) if at not in left
    )


def test_a_place_that_was_wrong_can_be_told_anew() -> None:
    store = stored([("noise", 1, 3000), ("text", 2, 3000)])
    (one, row), (other, other_row) = store.rows.items()
    what, out = BulkRead(TOOLS), bytearray(3000)
    what.add_chunk(one, 0, out)
    read(what, placed(what, {one: other_row}), store.pack)
    assert [ident for _, ident in what.wanted()] == [one]
    assert what.schedule(GAP, LONGEST) == []
    read(what, placed(what, {one: row}), store.pack)
    assert what.wanted() == []
    assert out == store.plains[one] != store.plains[other]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.integers(0, 5000), st.integers(0, 256 * 1024)), max_size=4), st.data())
def test_ids_are_those_of_blake3(sizes: list[int], data: st.DataObject) -> None:
    plain = random.Random(1).randbytes(sum(sizes))
    ends = list(itertools.accumulate(sizes))
    bounds = array("Q", [bound for size, end in zip(sizes, ends, strict=True) for bound in (end - size, end)])
    expected = [blake3(plain[start:end]).digest() for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
    assert chunk_ids(plain, bounds, data.draw(st.sampled_from([0, *hash_widths()]))) == expected


@pytest.mark.parametrize("edge", [0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 2049, 3072, 5120, 17 * 1024, 256 * 1024])
def test_ids_are_those_of_blake3_at_the_edges_of_its_tree(edge: int) -> None:
    plain = random.Random(edge).randbytes(edge)
    for lanes in hash_widths():
        assert chunk_ids(plain, array("Q", (0, edge)), lanes) == [blake3(plain).digest()]


OFFICIAL_LENGTHS = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025, 2048, 2049, 3072, 3073, 4096, 4097,
    5120, 5121, 6144, 6145, 7168, 7169, 8192, 8193, 16384, 31744, 102400,
)  # fmt: skip
"""Of the inputs in test_vectors.json of the BLAKE3 project; byte i of each is i % 251."""


@pytest.mark.parametrize("length", OFFICIAL_LENGTHS)
def test_ids_are_those_of_blake3_for_the_official_test_vectors(length: int) -> None:
    plain = bytes(i % 251 for i in range(length))
    for lanes in hash_widths():
        assert chunk_ids(plain, array("Q", (0, length)), lanes) == [blake3(plain).digest()]


@pytest.mark.parametrize("bounds", [(0, 11), (5, 4), (0, 10, 0), (0, 1 << 63)])
def test_bounds_of_ids_that_do_not_fit_are_refused(bounds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="chunk"):
        chunk_ids(bytes(10), array("Q", bounds))
    with pytest.raises(ValueError, match="no chunk has"):
        chunk_ids(bytes(1 << 19), array("Q", (0, 1 << 19)))
    with pytest.raises(ValueError, match="at once"):
        chunk_ids(bytes(10), array("Q", (0, 10)), 3)
