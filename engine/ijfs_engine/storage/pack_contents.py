"""What one pack holds, as rows for the index: every frame that is sound by itself.

A rebuild asks it of all packs (`maintenance/rebuild_index.py`), the journal of those that a crash kept from the index
(`journal_tail.py`). Objects and chunks are held against their ids, so that nothing that only looks like a frame gets a
row; of a chunk that is stored against others only the checksum is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from ijfs_engine.errors import CorruptError, UnknownFormatError
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.crypt import Crypt
from ijfs_engine.format.frames import EncodedChunk, FrameHeader, FrameKind, base_ids, decode_frame, decode_header
from ijfs_engine.format.place import Place
from ijfs_engine.format.records import ObjectId, decode_snapshot
from ijfs_engine.storage import disk
from ijfs_engine.storage.frame_scan import Scanned, scan_stretches
from ijfs_engine.storage.object_store import verify_object
from ijfs_engine.storage.pack import DATA_PACK, PACK_HEADER_SIZE, SIDECAR_PACK, decode_pack_header

_OBJECTS: Final = frozenset((FrameKind.LEAF, FrameKind.FILE, FrameKind.LAYOUT, FrameKind.TREE, FrameKind.SNAPSHOT))
_GROUP: Final = 512


class Based(NamedTuple):
    """A chunk stored against others: it goes in once they are in."""

    depth: int
    id: bytes
    place: Place
    bases: bytes


class Recorded(NamedTuple):
    """What a snapshot's record says of its place in history."""

    created_ns: int
    parents: tuple[ObjectId, ...]


class PackContents(NamedTuple):
    """The rows that a pack's frames make; `size` is the file's."""

    kind: int
    size: int
    chunks: dict[bytes, bytes]
    objects: dict[bytes, bytes]
    sidecars: dict[bytes, bytes]
    based: list[Based]
    snapshots: dict[ObjectId, Recorded]


def read_pack(number: int, path: Path, crypt: Crypt) -> PackContents:
    """Read a pack from front to back, past any damage. OSError."""
    found = PackContents(pack_kind(path), path.stat().st_size, {}, {}, {}, [], {})
    for offset, header, frame, right in _frames(path, crypt):
        # Behind damage a scan may find bytes of a program that look like a frame. What is checked against its id can do
        # no harm wherever it stands; fingerprints are not, and count only in their own packs.
        if (header.kind == FrameKind.SIDECAR) == (found.kind == SIDECAR_PACK):
            _add(found, place_of(number, offset, header), header.kind, frame, right, crypt)
    return found


def pack_kind(path: Path) -> int:
    """The kind of a pack; one with a damaged header is taken for a data pack. OSError."""
    try:
        with disk.read_plain(path) as file:
            _, kind, _ = decode_pack_header(file.read(PACK_HEADER_SIZE), path)
    except (CorruptError, UnknownFormatError):
        return DATA_PACK
    return SIDECAR_PACK if kind == SIDECAR_PACK else DATA_PACK


def place_of(number: int, offset: int, header: FrameHeader) -> Place:
    """The index row of a frame that stands there."""
    tag = header.codec if header.kind == FrameKind.CHUNK else header.kind
    return Place(number, offset, header.span, header.plain, tag, header.depth)


def _frames(path: Path, crypt: Crypt) -> Iterator[tuple[int, FrameHeader, EncodedChunk, bool]]:
    """(offset, header, opened frame, whether its plain bytes are known to be right) of what passes its checksums."""
    from ijfs_engine._native.frame_check import FrameCheck  # not with the journal, which every command loads

    check = FrameCheck(crypt.seals)
    for found in scan_stretches(path, _GROUP):
        if isinstance(found, Scanned):
            if found.header is not None and found.frame is not None:
                with suppress(CorruptError):
                    yield found.offset, found.header, crypt.open(found.header.kind, found.frame), False
            continue
        for at, span, _, _, right, _ in check.check(found.data):
            try:
                data = found.data[at : at + span]
                header, frame = _known(data) if right else _opened(data, path.name, crypt)
            except CorruptError:
                continue
            yield found.offset + at, header, frame, right


def _opened(data: memoryview, name: str, crypt: Crypt) -> tuple[FrameHeader, EncodedChunk]:
    header, frame = decode_frame(data, name)
    return header, crypt.open(header.kind, frame)


def _known(data: memoryview) -> tuple[FrameHeader, EncodedChunk]:
    """Of a chunk that was checked already."""
    header = decode_header(data)
    return header, EncodedChunk(header.id, header.codec, header.plain, data[header.span - header.stored :])


def _add(found: PackContents, place: Place, kind: int, frame: EncodedChunk, right: bool, crypt: Crypt) -> None:
    if kind == FrameKind.CHUNK and frame.bases:
        found.based.append(Based(frame.depth, frame.id, place, b"".join(sorted(base_ids(frame.bases)))))
    elif kind == FrameKind.CHUNK:
        if frame.depth == 0 and (right or _is_sound(frame, crypt)):
            found.chunks[frame.id] = place.encode()
    elif kind == FrameKind.SIDECAR:
        found.sidecars[frame.id] = place.encode()
    elif kind in _OBJECTS:
        _add_object(found, place, kind, frame, crypt)


def _is_sound(frame: EncodedChunk, crypt: Crypt) -> bool:
    try:
        chunk_codec.decode(frame, _no_bases, crypt)
    except CorruptError:
        return False
    return True


def _no_bases(ids: object) -> list[bytes]:
    raise CorruptError("stored against another chunk")


def _add_object(found: PackContents, place: Place, kind: int, frame: EncodedChunk, crypt: Crypt) -> None:
    try:
        plain = verify_object(kind, frame, crypt)
        if kind == FrameKind.SNAPSHOT:
            snapshot = decode_snapshot(frame.id, plain)
            found.snapshots[frame.id] = Recorded(snapshot.created_ns, snapshot.parents)
    except CorruptError:
        return
    found.objects[frame.id] = place.encode()
