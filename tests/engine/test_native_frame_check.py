"""The compiled check of frames against format/frames.py, on sound stretches and on damaged ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ijfs_engine._native.frame_check import FrameCheck, stretch
from ijfs_engine.errors import CorruptError
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.frames import (
    EncodedChunk,
    FrameKind,
    chunk_id,
    decode_frame,
    decode_header,
    encode_header,
    pack_bases,
    padding,
)
from ijfs_engine.storage.frame_scan import Scanned, scan_frames, scan_stretches
from ijfs_engine.storage.object_store import verify_object
from ijfs_engine.storage.pack_contents import place_of
from ijfs_engine.storage.session import compress

RNG = random.Random(11)
PLAINS = [
    b"",
    b"x",
    RNG.randbytes(300),
    RNG.randbytes(256 << 10),
    b"again and again " * 5000,
    b"".join(RNG.randrange(1000).to_bytes(8, "little") for _ in range(512)),
]


def frame(kind: int, chunk: EncodedChunk) -> bytes:
    data = encode_header(kind, chunk) + bytes(chunk.payload)
    return data + bytes(padding(len(data)))


def frames() -> list[bytes]:
    made = [frame(FrameKind.CHUNK, chunk_codec.encode(memoryview(plain), chunk_id(plain))) for plain in PLAINS if plain]
    made.append(frame(FrameKind.LEAF, compress(bytes(32), b"an object" * 100)))
    base = pack_bases([(chunk_id(PLAINS[2]), 0, 300)])
    made.append(frame(FrameKind.CHUNK, EncodedChunk(bytes(32), chunk_codec.Codec.XOR_ZSTD, 300, b"unknown", base, 1)))
    return made


FRAMES = frames()
WHOLE = b"".join(FRAMES)


def expected(data: bytes) -> list[tuple[int, int, int, bytes, bool, bytes]]:
    """What format/frames.py and chunk_codec.py say of as many frames as stand there."""
    found, at = [], 0
    while at < len(data):
        try:
            header = decode_header(memoryview(data)[at:])
        except CorruptError:
            break
        if at + header.span > len(data) or at + 64 + 40 * header.n_bases > len(data):
            break
        row = place_of(1, at, header).encode()[8:]
        found.append((at, header.span, header.kind, header.id, right(data[at : at + header.span]), row))
        at += header.span + padding(header.span)
    return found


def right(data: bytes) -> bool:
    try:
        header, chunk = decode_frame(data)
        if header.kind != FrameKind.CHUNK:
            verify_object(header.kind, chunk)
            return False  # right, but not for the compiled check to say
        chunk_codec.decode(chunk, lambda ids: [b""])
    except CorruptError:
        return False
    return not header.n_bases and not header.depth


def test_sound_frames_are_walked_and_checked() -> None:
    assert stretch(WHOLE, 100) == len(WHOLE)
    assert stretch(WHOLE, 2) == len(FRAMES[0]) + len(FRAMES[1])
    assert stretch(WHOLE[: len(FRAMES[0]) + 70], 100) == len(FRAMES[0])
    assert stretch(b"", 100) == stretch(WHOLE[8:], 100) == 0
    checked = FrameCheck().check(WHOLE)
    assert checked == expected(WHOLE)
    assert [one[4] for one in checked] == [True] * 5 + [False] * 2


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_never_called_right(data: st.DataObject) -> None:
    """A byte anywhere, then cut anywhere."""
    start = data.draw(st.sampled_from([0, 1, 2, 4, 5, 6]))
    torn = bytearray(b"".join(FRAMES[start : start + 2]))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, min(len(torn) - 1, data.draw(st.sampled_from([64, 200, 1 << 20])))))
        torn[at] ^= data.draw(st.integers(1, 255))
    part = bytes(torn[: data.draw(st.integers(0, len(torn)))])
    assert FrameCheck().check(part) == expected(part)
    assert stretch(part, 9) == sum(span + padding(span) for _, span, *_ in expected(part))


@pytest.mark.parametrize("window", [100, 500, 8 << 20])
def test_stretches_are_the_frames_that_a_scan_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """Through windows that cut frames, past damage, to the end that is asked for."""
    monkeypatch.setattr("ijfs_engine.storage.frame_scan._WINDOW", window)
    damaged = bytearray(bytes(64) + WHOLE * 3)
    damaged[64 + 10] ^= 1
    damaged[64 + len(WHOLE) + len(FRAMES[0]) + 3] ^= 1
    path = tmp_path / "pack"
    path.write_bytes(damaged)
    for end in (None, len(damaged) - 1000, len(damaged) - len(FRAMES[-1]), 64 + len(FRAMES[0])):
        offsets, walked = [], []
        for found in scan_stretches(path, 3, end):
            if isinstance(found, Scanned):
                walked.append((found.offset, found.header.id if found.header else None))
            else:
                offsets.append(found.offset)
                walked += [(found.offset + at, ident) for at, _, _, ident, *_ in FrameCheck().check(found.data)]
        scanned = scan_frames(path, end=end)
        assert walked == [(one.offset, one.header.id if one.header else None) for one in scanned]
        assert offsets or window < 500 or end == 64 + len(FRAMES[0])
