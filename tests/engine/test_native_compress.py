"""Packing many chunks at once against its slow twin: the form the twin chooses, and never more bytes than the chunk."""

from __future__ import annotations

import random
import struct
from array import array

import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from ijfs_engine._native.compress import pack
from ijfs_engine._native.copies import join_into
from ijfs_engine._native.numeric_codec import Packer, float_shape
from ijfs_engine.format.frames import MAX_CHUNK, Codec

TOOLS = Packer()
RNG = random.Random(1)
SOURCES = {
    "noise": RNG.randbytes(20_000),
    "fp32": struct.pack("<5000f", *(RNG.gauss(0, 0.02) for _ in range(5000))),
    "fp64": struct.pack("<2500d", *(RNG.gauss(0, 0.02) for _ in range(2500))),
    "text": b"".join(RNG.choices([b"import", b"numpy", b" ", b"return"], k=20_000))[:20_000],
    "zeros": bytes(20_000),
    "prices": struct.pack("<2500d", *(round(RNG.gauss(20, 9), 2) for _ in range(2500))),
    "degrees": struct.pack("<5000f", *(round(RNG.gauss(52, 0.1), 3) for _ in range(5000))),
    "counts": struct.pack("<2500q", *(RNG.randrange(100) for _ in range(2500))),
    "times": struct.pack("<2500q", *sorted(RNG.randrange(1 << 50, (1 << 50) + (1 << 26)) for _ in range(2500))),
}
pieces = st.tuples(st.sampled_from(sorted(SOURCES)), st.integers(0, 3), st.integers(0, 20_000))


def bytes_of(piece: tuple[str, int, int]) -> bytes:
    kind, start, size = piece
    return SOURCES[kind][start : start + size]


@settings(deadline=None, max_examples=60)
@given(st.lists(pieces, max_size=6))
def test_chunks_are_packed_as_defined(chosen: list[tuple[str, int, int]]) -> None:
    chunks = [bytes_of(piece) for piece in chosen]
    data, bounds, at = b"".join(chunks), array("Q"), 0
    for chunk in chunks:
        bounds.extend((at, at + len(chunk)))
        at += len(chunk)
    for chunk, (codec, payload) in zip(chunks, pack(TOOLS, data, bounds), strict=True):
        if payload is None:
            assert codec == Codec.RAW
            continue
        assert len(payload) < len(chunk)
        assert reference.unpack_payload(codec, bytes(payload), len(chunk)) == chunk
        assert codec in (Codec.PLANES, Codec.NUMBERS) or not reference.float_shape(chunk)


@pytest.mark.parametrize(
    ("kind", "codec", "head", "most"),
    [
        ("fp32", Codec.PLANES, (4, 1), 17_200),
        ("fp64", Codec.PLANES, (8, 2), 18_400),
        ("text", Codec.ZSTD, (), 3_300),
        ("zeros", Codec.ZSTD, (), 40),
        ("prices", Codec.NUMBERS, (8, 2, 2), 4_000),
        ("degrees", Codec.NUMBERS, (4, 2, 3), 6_500),
        ("counts", Codec.NUMBERS, (8, 0), 2_300),
        ("times", Codec.NUMBERS, (8, 1), 6_000),
    ],
)
def test_arrays_of_numbers_are_told_from_what_they_look_like(
    kind: str, codec: int, head: tuple[int, ...], most: int
) -> None:
    data = SOURCES[kind]
    ((chosen, payload),) = pack(TOOLS, data, array("Q", (0, len(data))))
    assert payload is not None
    assert (chosen, tuple(payload[: len(head)])) == (codec, head)
    assert len(payload) <= most


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.integers(-(1 << 28), 1 << 28), min_size=200, max_size=600),
    st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 199), st.binary(min_size=8, max_size=8)), max_size=12),
    st.sampled_from("df"),
)
def test_decimal_numbers_come_back_with_what_is_none_between(
    numbers: list[int], digits: int, others: list[tuple[int, bytes]], kind: str
) -> None:
    data = bytearray(b"".join(struct.pack(f"<{kind}", number / 10**digits) for number in numbers) + b"tail")
    for at, junk in others:
        data[4 * at : 4 * at + 8] = junk
    ((codec, payload),) = pack(TOOLS, data, array("Q", (0, len(data))))
    assert payload is None or reference.unpack_payload(codec, bytes(payload), len(data)) == data


@pytest.mark.parametrize("kind", ["d", "f"])
def test_a_few_words_that_are_no_decimal_numbers_do_not_spoil_the_others(kind: str) -> None:
    width, draw = struct.calcsize(kind), random.Random(5)
    numbers = [round(draw.gauss(100, 30), 1) for _ in range(2000)]
    numbers[3], numbers[500], numbers[777], numbers[1999] = -0.0, float("nan"), 1e30, float("inf")
    data = b"\x12\x34\x56\x78" * (width // 4) + struct.pack(f"<2000{kind}", *numbers) + b"end"
    ((codec, payload),) = pack(TOOLS, data, array("Q", (0, len(data))))
    assert payload is not None
    assert codec == Codec.NUMBERS
    assert payload[6] == 5
    assert len(payload) < 3_200
    assert reference.unpack_payload(codec, bytes(payload), len(data)) == data


@settings(deadline=None, max_examples=40)
@given(pieces, pieces)
def test_differences_come_back(one: tuple[str, int, int], other: tuple[str, int, int]) -> None:
    plain, base = bytes_of(one), bytes_of(other)
    plain, base = plain[: len(base)], base[: len(plain)]
    bounds = array("Q", (0, len(plain), 0, len(plain), 0, len(plain)))
    for codec, payload in pack(TOOLS, plain, bounds, [base, None, base], bytes((0, 0, 1))):
        assert payload is None or len(payload) < len(plain)
        whole = reference.unpack_payload(codec, bytes(payload), len(plain)) if payload is not None else plain
        assert whole is not None
        if codec in (Codec.XOR_ZSTD, Codec.XOR_PLANES):
            whole = bytes(a ^ b for a, b in zip(whole, base, strict=True))
        assert whole == plain


def test_a_difference_is_taken_where_it_wins_or_is_asked_for() -> None:
    noise, text = SOURCES["noise"], SOURCES["text"]
    near = noise[:100] + bytes(8) + noise[108:]
    far = bytes(x ^ (i % 7 == 0) for i, x in enumerate(text))
    cases = [
        (near, noise, 0, Codec.XOR_ZSTD),
        (near, None, 0, Codec.RAW),
        (text, noise, 0, Codec.ZSTD),
        (text, far, 0, Codec.XOR_ZSTD),
        (near, text, 1, Codec.RAW),
    ]
    data = b"".join(plain for plain, *_ in cases)
    bounds = array("Q", [20_000 * (number + end) for number in range(len(cases)) for end in (0, 1)])
    forms = pack(TOOLS, data, bounds, [base for _, base, *_ in cases], bytes(sure for _, _, sure, _ in cases))
    assert [codec for codec, _ in forms] == [codec for *_, codec in cases]


@settings(deadline=None, max_examples=60)
@given(pieces)
def test_shapes_are_those_of_the_definition(piece: tuple[str, int, int]) -> None:
    data = bytes_of(piece)
    assert float_shape(data) == (reference.float_shape(data) if len(data) >= 8 else None)


@given(st.lists(st.binary(max_size=20), max_size=6), st.integers(0, 5), st.integers(0, 130))
def test_parts_are_joined_or_refused_as_a_whole(parts: list[bytes], at: int, room: int) -> None:
    target, joined = bytearray(room), b"".join(parts)
    if at + len(joined) > room:
        with pytest.raises(ValueError, match="do not fit"):
            join_into(parts, target, at)
        assert target == bytes(room)
    else:
        assert join_into(parts, target, at) == at + len(joined)
        assert target == bytes(at) + joined + bytes(room - at - len(joined))


@pytest.mark.parametrize(
    "bounds",
    [(0, 11), (5, 4), (0, 10, 0), (0, 1 << 63)],
)
def test_bounds_that_do_not_fit_are_refused(bounds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="chunk"):
        pack(TOOLS, bytes(10), array("Q", bounds))


def test_no_chunk_is_larger_than_a_chunk() -> None:
    with pytest.raises(ValueError, match="no chunk"):
        pack(TOOLS, bytes(MAX_CHUNK + 1), array("Q", (0, MAX_CHUNK + 1)))


def test_bases_and_marks_that_do_not_fit_are_refused() -> None:
    one = array("Q", (0, 100))
    for bases, sure in (([bytes(99)], b"\0"), ([bytes(100)] * 2, b"\0"), ([], None), ([None], b"\0\0")):
        with pytest.raises(ValueError, match=r"base|marks"):
            pack(TOOLS, bytes(100), one, bases, sure)
