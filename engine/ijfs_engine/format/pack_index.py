"""The index of one pack of an object store: which frames it holds and where, in columns.

The same frame stands at the end of the pack and in an object of its own, so that a host asks for it in one request. It
is a copy: the frames are the truth. docs/format.md ("Metadata packs and self-describing packs") has the bytes.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import zstandard

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.crypt import PLAIN, Crypt
from ijfs_engine.format.frames import (
    ALIGN,
    ID_SIZE,
    Codec,
    EncodedChunk,
    FrameKind,
    decode_frame,
    encode_header,
    padding,
)

PACK_ID_SIZE: Final = 16
CHUNK_PACK: Final = 1
"""A pack of chunks."""
METADATA_PACK: Final = 4
"""A pack of objects: what a host needs to open a tree."""
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<BBHI16sQ")
_COLUMNS: Final = "IIIBBB"
_TRAILER: Final = struct.Struct("<4sIII")
TRAILER_SIZE: Final = _TRAILER.size
MOST_ROWS: Final = 1 << 24
"""What a lying index can make a reader allocate: 600 MB."""


class IndexRow(NamedTuple):
    """One frame: offset and span in bytes; `tag` is a chunk's codec or an object's kind; ids of bases end to end."""

    id: bytes
    offset: int
    span: int
    plain: int
    tag: int
    depth: int
    bases: bytes = b""


class PackIndex(NamedTuple):
    """What one pack holds; `size` is of its frames and header, without the index itself. Rows are sorted by id."""

    pack: bytes
    kind: int
    size: int
    rows: tuple[IndexRow, ...]


def encode_pack_index(pack: bytes, kind: int, size: int, rows: Iterable[IndexRow]) -> bytes:
    """The frame, padded."""
    ordered = sorted(rows)
    columns = zip(*((r.offset // ALIGN, r.span, r.plain, r.tag, r.depth, len(r.bases) // ID_SIZE) for r in ordered),
                  strict=True)  # fmt: skip
    parts = [_HEAD.pack(_VERSION, kind, 0, len(ordered), pack, size), b"".join(row.id for row in ordered)]
    parts += [_little(code, column) for code, column in zip(_COLUMNS, columns, strict=True)] if ordered else []
    return sealed(FrameKind.PACK_INDEX, b"".join(parts) + b"".join(row.bases for row in ordered))


def decode_pack_index(data: bytes) -> PackIndex:
    """From the whole frame, checked against its id. CorruptError."""
    plain = opened(FrameKind.PACK_INDEX, data)
    try:
        version, kind, _, count, pack, size = _HEAD.unpack_from(plain)
        if version != _VERSION or count > MOST_ROWS:
            raise CorruptError(f"a pack index of version {version} with {count} rows")
        return PackIndex(pack, kind, size, tuple(_rows(memoryview(plain)[_HEAD.size :], count)))
    except (struct.error, ValueError) as error:
        raise CorruptError(f"a pack index cannot be parsed: {error}") from error


def _rows(data: memoryview, count: int) -> Iterable[IndexRow]:
    ids, at = bytes(data[: count * ID_SIZE]), count * ID_SIZE
    columns: list[Sequence[int]] = []
    for code in _COLUMNS:
        size = struct.calcsize(code) * count
        columns.append(struct.unpack(f"<{count}{code}", data[at : at + size]))
        at += size
    bases = bytes(data[at:])
    if len(bases) != sum(columns[5]) * ID_SIZE:
        raise CorruptError("a pack index is not as long as it says")
    done = 0
    for number, (units, span, plain, tag, depth, n_bases) in enumerate(zip(*columns, strict=True)):
        own = bases[done : done + n_bases * ID_SIZE]
        done += len(own)
        ident = ids[number * ID_SIZE : (number + 1) * ID_SIZE]
        yield IndexRow(ident, units * ALIGN, span, plain, tag, depth, own)


def _little(code: str, column: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(column)}{code}", *column) if code == "B" else array(code, column).tobytes()


def trailer(offset: int, span: int) -> bytes:
    """The last bytes of a pack: where its index is."""
    import zlib

    blank = _TRAILER.pack(b"ijfx", offset // ALIGN, span, 0)[:-4]
    return blank + struct.pack("<I", zlib.crc32(blank))


def sealed(kind: int, plain: bytes, crypt: Crypt = PLAIN) -> bytes:
    """A frame of its own, zstd where that is smaller, padded."""
    packed = zstandard.ZstdCompressor(level=3).compress(plain)
    codec, payload = (Codec.ZSTD, packed) if len(packed) < len(plain) else (Codec.RAW, plain)
    frame = crypt.seal(kind, EncodedChunk(crypt.object_id(kind, plain), codec, len(plain), payload))
    data = encode_header(kind, frame) + frame.payload
    return data + bytes(padding(len(data)))


def opened(kind: int, data: bytes, crypt: Crypt = PLAIN) -> bytes:
    """The plain bytes of a frame that `sealed` made, checked against its id. CorruptError."""
    header, stored = decode_frame(data, FrameKind.NAMES[kind])
    frame = crypt.open(kind, stored)
    plain = bytes(frame.payload)
    if frame.codec == Codec.ZSTD:
        try:
            # zstd believes the size in its own frame and allocates it, so that has to agree with ours first.
            if zstandard.frame_content_size(plain) != header.plain:
                raise CorruptError(f"a {FrameKind.NAMES[kind]} claims two different sizes")
            plain = zstandard.ZstdDecompressor().decompress(plain, max_output_size=max(header.plain, 1))
        except zstandard.ZstdError as error:
            raise CorruptError(f"a {FrameKind.NAMES[kind]} cannot be decompressed: {error}") from error
    if header.kind != kind or len(plain) != header.plain or crypt.object_id(kind, plain) != header.id:
        raise CorruptError(f"bytes that should be a {FrameKind.NAMES[kind]} are not what their id says")
    return plain


def id_of(data: bytes) -> bytes:
    """The id that a frame says it has."""
    return decode_frame(data)[0].id
