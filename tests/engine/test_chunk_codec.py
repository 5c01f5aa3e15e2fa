"""Stored forms of a chunk: each comes back, the smallest is chosen, and hostile ones are refused."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ijfs_engine import CorruptError
from ijfs_engine._native.numeric_codec import float_shape
from ijfs_engine.format.chunk_codec import MAX_DEPTH, Base, decode, encode
from ijfs_engine.format.frames import MAX_CHUNK, BaseExtent, Codec, EncodedChunk, chunk_id, pack_bases

KIB = 1024
RNG = np.random.default_rng(1)
NOISE = RNG.bytes(64 * KIB)
FLOATS = {
    2: (RNG.normal(0, 0.02, 32 * KIB).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes(),
    4: RNG.normal(0, 0.02, 16 * KIB).astype(np.float32).tobytes(),
    8: RNG.normal(0, 0.02, 8 * KIB).tobytes(),
}
PRICES = (RNG.normal(50, 20, 8 * KIB).round(2)).tobytes()
COUNTS = RNG.integers(0, 100, 8 * KIB).tobytes()


def no_bases(ids: Sequence[bytes]) -> list[bytes]:
    raise AssertionError("no base was to be asked for")


def stored(plain: bytes, base: Base | None = None) -> EncodedChunk:
    return encode(memoryview(plain), chunk_id(plain), base)


def base_of(plain: bytes, depth: int = 0) -> Base:
    return Base(plain, pack_bases([BaseExtent(chunk_id(plain), 0, len(plain))]), depth)


@pytest.mark.parametrize(
    ("plain", "codec", "most"),
    [
        (b"", Codec.RAW, 0),
        (b"short", Codec.RAW, 5),
        (NOISE, Codec.RAW, 64 * KIB),
        (b"text " * 10_000, Codec.ZSTD, 100),
        (FLOATS[4], Codec.PLANES, 56 * KIB),
        (FLOATS[2], Codec.PLANES, 46 * KIB),
        (FLOATS[8], Codec.PLANES, 61 * KIB),
        (FLOATS[4] + b"odd", Codec.PLANES, 57 * KIB),
        (PRICES, Codec.NUMBERS, 14 * KIB),
        (COUNTS + b"odd", Codec.NUMBERS, 8 * KIB),
    ],
)
def test_the_smallest_form_is_chosen_and_comes_back(plain: bytes, codec: int, most: int) -> None:
    chunk = stored(plain)
    assert (chunk.codec, chunk.bases, chunk.depth) == (codec, b"", 0)
    assert len(chunk.payload) <= most
    assert bytes(decode(chunk, no_bases)) == plain


def test_a_few_changed_bytes_are_stored_as_a_difference() -> None:
    plain = bytearray(NOISE)
    plain[100:110] = b"0123456789"
    chunk = stored(bytes(plain), base_of(NOISE, depth=2))
    assert (chunk.codec, chunk.depth) == (Codec.XOR_ZSTD, 3)
    assert len(chunk.payload) < 100
    assert bytes(decode(chunk, lambda ids: [NOISE])) == plain


def test_weights_after_a_small_step_are_stored_as_planes_of_the_difference() -> None:
    old = np.frombuffer(FLOATS[4], np.float32)
    new = (old + RNG.normal(0, 0.02, old.shape).astype(np.float32) * np.abs(old)).astype(np.float32).tobytes()
    chunk = stored(new, base_of(FLOATS[4]))
    assert chunk.codec == Codec.XOR_PLANES
    assert len(chunk.payload) < 0.96 * len(stored(new).payload)
    assert bytes(decode(chunk, lambda ids: [FLOATS[4]])) == new


def test_a_base_that_does_not_help_is_left_out() -> None:
    other = RNG.bytes(len(NOISE))
    assert stored(NOISE, base_of(other)).bases == b""
    text = b"text " * 10_000
    assert stored(text, base_of(RNG.bytes(len(text)))).codec == Codec.ZSTD


def test_a_chain_that_is_full_starts_anew() -> None:
    assert stored(NOISE, base_of(NOISE, depth=MAX_DEPTH - 1)).depth == MAX_DEPTH
    assert stored(NOISE, base_of(NOISE, depth=MAX_DEPTH)).depth == 0


def test_a_base_may_be_put_together_from_pieces_and_zeros() -> None:
    one, two = RNG.bytes(5000), RNG.bytes(3000)
    under = one[100:2100] + bytes(500) + two[1000:]
    extents = [
        BaseExtent(chunk_id(one), 100, 2000),
        BaseExtent(bytes(32), 0, 500),
        BaseExtent(chunk_id(two), 1000, 2000),
    ]
    plain = under[:50] + b"changed" + under[57:]
    chunk = stored(plain, Base(under, pack_bases(extents), 0))
    known = {chunk_id(one): one, chunk_id(two): two}
    assert bytes(decode(chunk, lambda ids: [known[i] for i in ids])) == plain


def test_floats_are_told_from_what_only_looks_alike() -> None:
    assert [float_shape(FLOATS[width]) for width in (2, 4, 8)] == [(2, 1), (4, 1), (8, 2)]
    for other in (NOISE, bytes(64 * KIB), b"text " * 10_000, b"", NOISE[1:] + b"x", FLOATS[4][1:] + b"x"):
        assert float_shape(other) is None


blocks = st.sampled_from([bytes(64), b"abcdefgh" * 8, NOISE[:64], NOISE[64:128], FLOATS[4][:64], FLOATS[2][:64]])
plains = st.builds(
    lambda parts, tail: b"".join(block * n for block, n in parts) + tail,
    st.lists(st.tuples(blocks, st.integers(1, 40)), max_size=8),
    st.binary(max_size=9),
)


@settings(deadline=None)
@given(plains, st.integers(0, 3), st.integers(0, 200))
def test_any_bytes_come_back_with_and_without_a_base(plain: bytes, seed: int, flips: int) -> None:
    assert bytes(decode(stored(plain), no_bases)) == plain
    under = bytearray(plain)
    for _ in range(flips if plain else 0):
        under[random.Random(seed).randrange(len(plain))] ^= 0x40
    chunk = stored(plain, base_of(bytes(under)))
    assert bytes(decode(chunk, lambda ids: [bytes(under)])) == plain


def hostile(good: EncodedChunk) -> dict[str, EncodedChunk]:
    """Frames that lie, each in its own way."""
    payload = bytes(good.payload)
    return {
        "another id": good._replace(id=bytes(31) + b"\1"),
        "unknown codec": good._replace(codec=99),
        "longer": good._replace(plain_size=good.plain_size + 8),
        "shorter": good._replace(plain_size=good.plain_size - 8),
        "empty": good._replace(plain_size=0),
        "huge": good._replace(plain_size=1 << 40),
        "too deep": good._replace(depth=MAX_DEPTH + 1),
        "cut": good._replace(payload=payload[:-1]),
        "no payload": good._replace(payload=b""),
        "more": good._replace(payload=payload + b"x"),
        **{f"codec {codec}": good._replace(codec=codec, bases=good.bases) for codec in range(8) if codec != good.codec},
    }


@pytest.mark.parametrize("plain", [NOISE, b"text " * 10_000, FLOATS[4], FLOATS[2], PRICES, COUNTS])
def test_frames_that_lie_are_refused(plain: bytes) -> None:
    for name, chunk in hostile(stored(plain)).items():
        with pytest.raises(CorruptError):
            print(name, len(decode(chunk, lambda ids: [b""] * len(ids))))


def test_bases_that_lie_are_refused() -> None:
    good = stored(NOISE, base_of(NOISE))
    ident = chunk_id(NOISE)
    for extents in (
        [],
        [BaseExtent(ident, 1, len(NOISE))],
        [BaseExtent(ident, 0, len(NOISE) - 1)],
        [BaseExtent(ident, 0xFFFFFFFF, 0xFFFFFFFF)],
        [BaseExtent(bytes(32), 0, MAX_CHUNK)] * 255,
        [BaseExtent(bytes(32), MAX_CHUNK, 1)],
    ):
        with pytest.raises(CorruptError):
            decode(good._replace(bases=pack_bases(extents)), lambda ids: [NOISE] * len(ids))
    with pytest.raises(CorruptError):
        decode(good, lambda ids: [bytes(len(NOISE))])


def test_a_small_frame_cannot_ask_for_much_memory() -> None:
    bomb = stored(bytes(MAX_CHUNK))
    assert len(bomb.payload) < 100
    planes = struct.pack("<BBHI", 2, 2, 0, len(bomb.payload)) + bytes(bomb.payload)
    numbers = struct.pack("<6BHqI", 8, 0, 0, 8, 0, 0, 0, 0, len(bomb.payload)) + bytes(bomb.payload)
    heads = {Codec.PLANES: planes, Codec.XOR_PLANES: planes, Codec.NUMBERS: numbers}
    for codec in (Codec.ZSTD, Codec.PLANES, Codec.XOR_ZSTD, Codec.XOR_PLANES, Codec.NUMBERS):
        for size in (64, 4096):
            payload = heads.get(codec, bomb.payload)
            with pytest.raises(CorruptError):
                decode(bomb._replace(codec=codec, plain_size=size, payload=payload), lambda ids: [b""])


@settings(deadline=None, max_examples=300)
@given(
    st.data(),
    st.sampled_from([NOISE[:4096], b"text " * 800, FLOATS[4][:8192], FLOATS[2][:8192], PRICES[:8192], COUNTS[:8192]]),
)
def test_damaged_payloads_give_an_error_or_the_right_bytes(data: st.DataObject, plain: bytes) -> None:
    good = stored(plain)
    payload = bytearray(good.payload)
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(payload) - 1), st.integers(0, 255)), max_size=4)):
        payload[at] = byte
    cut = data.draw(st.integers(0, len(payload)) | st.just(len(payload)))
    with contextlib.suppress(CorruptError):
        assert bytes(decode(good._replace(payload=bytes(payload[:cut])), no_bases)) == plain
