"""Every parser of stored bytes, given changed bytes: it answers with CorruptError, or with something sound."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ijfs_engine import CorruptError, IjfsError, Repository, Snapshot
from ijfs_engine.format.frames import Codec, EncodedChunk, FrameKind, chunk_id, decode_frame, encode_header, object_id
from ijfs_engine.format.records import (
    ZERO_RUN,
    Entry,
    FileContent,
    Leaf,
    Tree,
    decode_file,
    decode_leaf,
    decode_snapshot,
    decode_tree,
    encode_file,
    encode_leaf,
    encode_snapshot,
    encode_tree,
)
from ijfs_engine.storage.frame_scan import scan_frames
from ijfs_engine.storage.journal import RefMoved, SnapshotAdded, Transaction, decode_transaction, encode_transaction
from ijfs_engine.storage.object_store import expand
from ijfs_engine.storage.pack import decode_pack_header, encode_pack_header
from ijfs_engine.storage.session import compress

ID = bytes(range(32))
LEAF = Leaf(ID, array("I", [0, ZERO_RUN]), array("I", [5, 0]), array("I", [100, 4096]))
ENTRIES = (
    Entry(b"d", "d", 0o755, 1, 2, 3, content=ID),
    Entry(b"f", "f", 0o644, 1, 2, 3, 9, ID, xattrs=((b"a", b"b"),)),
)
SNAPSHOT = Snapshot(b"", ID, (ID,), 1, "message", {"key": [1, "two", None]})
OBJECT = b"some words, some words, some words, some words"
FRAME = encode_header(FrameKind.TREE, compress(object_id(FrameKind.TREE, OBJECT), OBJECT))
FRAME += bytes(compress(object_id(FrameKind.TREE, OBJECT), OBJECT).payload)
TRANSACTION = Transaction(1, 2, (SnapshotAdded(ID, 3), RefMoved("branch/b", None, ID, "why", "who")))
LINE = encode_transaction(TRANSACTION)

PARSERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "leaf": (encode_leaf(LEAF), decode_leaf),
    "tree": (encode_tree(Tree(ENTRIES)), decode_tree),
    "file": (encode_file(FileContent.of([(ID, 100), (ID, 5)], layout=ID)), decode_file),
    "snapshot": (encode_snapshot(SNAPSHOT), lambda data: decode_snapshot(ID, data)),
    "frame": (FRAME, decode_frame),
    "object": (FRAME, lambda data: expand(decode_frame(data)[1])),
    "journal": (LINE, lambda data: decode_transaction(decode_frame(data)[1])),
    "pack header": (encode_pack_header(1, 1, bytes(16)), lambda data: decode_pack_header(data, Path("p"))),
}

changes = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8)


def changed(data: bytes, edits: list[tuple[int, int]], cut: int) -> bytes:
    mutable = bytearray(data)
    for at, value in edits:
        mutable[at % len(data)] = value
    return bytes(mutable[: len(data) - cut])


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=changes, cut=st.integers(0, 20))
def test_changed_bytes_are_corrupt_or_sound(name: str, edits: list[tuple[int, int]], cut: int) -> None:
    data, parse = PARSERS[name]
    parse(data)
    with contextlib.suppress(IjfsError):
        parse(changed(data, edits, cut))


@pytest.mark.parametrize("name", ["leaf", "tree", "file", "snapshot"])
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
def test_rubbish_is_corrupt_or_sound(name: str, data: bytes) -> None:
    with contextlib.suppress(CorruptError):
        PARSERS[name][1](data)


@settings(max_examples=100, deadline=None)
@given(edits=changes, cut=st.integers(0, 100))
@example(edits=[(423, 136)], cut=0)  # a frame's number of bases: they would end behind the file
def test_a_scan_gets_past_any_damage(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], cut: int
) -> None:
    """Every frame that was not touched is found, whatever happened to the others."""
    plains = [bytes([number]) * (100 + 13 * number) for number in range(20)]
    frames = []
    for plain in plains:
        header = encode_header(FrameKind.CHUNK, EncodedChunk(chunk_id(plain), Codec.RAW, len(plain), plain))
        frames.append(header + plain + bytes(-(len(header) + len(plain)) % 8))
    data = encode_pack_header(1, 1, bytes(16)) + b"".join(frames)
    after = changed(data, edits, cut)
    path = tmp_path_factory.mktemp("scan") / "00000001.pack"
    path.write_bytes(after)
    found = {scanned.frame.id for scanned in scan_frames(path) if scanned.frame is not None}
    at = 64
    for plain, frame in zip(plains, frames, strict=True):
        if after[at : at + len(frame)] == frame:
            assert chunk_id(plain) in found
        at += len(frame)


def test_a_kind_that_is_none_is_corrupt(repository: Repository) -> None:
    with pytest.raises(CorruptError):
        repository.store.kind_of(ID)
