"""The frame: the one unit in which anything is stored in a pack or the journal; its numbers and its bytes.

docs/format.md draws it. Packs (`storage/pack.py`), the journal (`storage/journal.py`), the session that writes chunks
(`storage/session.py`) and the codecs all speak of frames; nothing here touches a file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from blake3 import blake3

from ijfs_engine.errors import CorruptError

ID_SIZE: Final = 32
MAX_CHUNK: Final = 256 * 1024
"""Most plain bytes of one chunk. Bounds what a reader allocates for a frame that lies about its size."""
MAX_OBJECT: Final = 1 << 30
"""Most plain bytes of one metadata object; a file object of 1 GiB would describe 120 TB."""

FRAME_MAGIC: Final = b"\xabIJf"
ALIGN: Final = 8
HEADER: Final = struct.Struct("<4sBBBBIII32s12s")
HEADER_SIZE: Final = HEADER.size
BASE: Final = struct.Struct("<32sII")
BASE_SIZE: Final = BASE.size
MAX_BASES: Final = 255
_CRC_OFFSET: Final = 16
_SUM_SIZE: Final = 12

# --- Golden numbers: they are on disk. A number that is retired stays here as a comment and is never given again.


class FrameKind:
    """What a frame holds (plain ints: an IntEnum costs a microsecond per chunk)."""

    CHUNK: Final = 1
    LEAF: Final = 2
    FILE: Final = 3
    LAYOUT: Final = 4
    TREE: Final = 5
    SNAPSHOT: Final = 6
    SIDECAR: Final = 7
    JOURNAL: Final = 8
    PACK_INDEX: Final = 9
    """What a pack of an object store holds."""
    OPERATION: Final = 10
    """One change of an object store's refs."""
    MANIFEST: Final = 11
    """All refs and snapshots of an object store up to an operation."""

    NAMES: Final = {
        1: "chunk", 2: "leaf", 3: "file", 4: "layout", 5: "tree", 6: "snapshot", 7: "sidecar", 8: "journal",
        9: "pack index", 10: "operation", 11: "manifest",
    }  # fmt: skip
    LOCAL: Final = frozenset((2, 3, 4, 5, 6))
    """Kinds of objects that a repository's packs hold."""


class Codec:
    """How a frame's payload encodes its plain bytes. 0 and 1 are the store's; the rest belong to `chunk_codec.py`."""

    RAW: Final = 0
    ZSTD: Final = 1
    PLANES: Final = 2
    """Words of 2, 4 or 8 bytes: the planes of their top bytes in one zstd frame, the rest of each word raw."""
    XOR_ZSTD: Final = 3
    """XOR against the base bytes, then as ZSTD."""
    XOR_PLANES: Final = 4
    """XOR against the base bytes, then as PLANES."""
    NUMBERS: Final = 5
    """Words of 4 or 8 bytes as whole numbers, differences, or decimal numbers, in byte planes."""


class BaseExtent(NamedTuple):
    """`length` bytes at `offset` of the plain bytes of chunk `id`; an id of 32 zero bytes stands for zeros."""

    id: bytes
    offset: int
    length: int


class EncodedChunk(NamedTuple):
    """A chunk as `codec.encode` hands it to `Session.put_chunks` and as `Store.get_chunks` gives it back.

    `payload` is the stored form. The base bytes of an XOR codec are the concatenation of `bases` (packed
    `BASE` records: see `pack_bases`), as long as the plain bytes. `depth` is 0 without bases, otherwise one
    more than the deepest base's.
    """

    id: bytes
    codec: int
    plain_size: int
    payload: bytes | memoryview
    bases: bytes = b""
    depth: int = 0


class FrameHeader(NamedTuple):
    """The fixed part of a frame, parsed and checked against its CRC."""

    kind: int
    codec: int
    depth: int
    n_bases: int
    stored: int
    plain: int
    id: bytes
    payload_sum: bytes

    @property
    def span(self) -> int:
        """Bytes of header, bases and payload, without the padding behind them."""
        return HEADER_SIZE + self.n_bases * BASE_SIZE + self.stored


def pack_bases(extents: Iterable[BaseExtent | tuple[bytes, int, int]]) -> bytes:
    """The on-disk form of a list of base extents (40 bytes each)."""
    return b"".join(BASE.pack(*extent) for extent in extents)


def unpack_bases(packed: bytes) -> list[BaseExtent]:
    """The inverse of `pack_bases`."""
    return [BaseExtent(*fields) for fields in BASE.iter_unpack(packed)]


def base_ids(packed: bytes) -> Iterator[bytes]:
    """The distinct chunk ids that packed bases name, zeros left out."""
    seen = {packed[at : at + ID_SIZE] for at in range(0, len(packed), BASE_SIZE)}
    seen.discard(bytes(ID_SIZE))
    return iter(seen)


def chunk_id(plain: bytes | memoryview) -> bytes:
    """The id of a chunk: BLAKE3-256 of its plain bytes."""
    return blake3(plain).digest()


_CONTEXTS: Final = {
    kind: f"ijfs 2026-11 object {name}" for kind, name in FrameKind.NAMES.items() if kind != FrameKind.CHUNK
}


def object_id(kind: int, plain: bytes | memoryview) -> bytes:
    """The id of a metadata object: BLAKE3-256 in key-derivation mode, with a context of its kind.

    So no file content can have the id of a tree, and no leaf that of a snapshot: an id says what it names.
    """
    return blake3(plain, derive_key_context=_CONTEXTS[kind]).digest()


def payload_sum(payload: bytes | memoryview) -> bytes:
    """12 bytes of BLAKE3 over the stored payload: damage is found without decoding, or having the bases."""
    return blake3(payload).digest(length=_SUM_SIZE)


def padding(span: int) -> int:
    """Zero bytes behind a frame of `span` bytes, so that the next one starts on a multiple of 8."""
    return -span % ALIGN


def encode_header(kind: int, chunk: EncodedChunk) -> bytes:
    """Header and bases of a frame; the payload follows them."""
    n_bases, rest = divmod(len(chunk.bases), BASE_SIZE)
    if rest or n_bases > MAX_BASES:
        raise ValueError(f"{len(chunk.bases)} bytes are no list of at most {MAX_BASES} bases")
    fields = (kind, chunk.codec, chunk.depth, n_bases, len(chunk.payload), chunk.plain_size)
    # The payload of a raw chunk that is not sealed is its plain bytes: the sum begins as the id does.
    raw = kind == FrameKind.CHUNK and chunk.codec == Codec.RAW and len(chunk.payload) == chunk.plain_size
    tail = (chunk.id, chunk.id[:_SUM_SIZE] if raw else payload_sum(chunk.payload))
    crc = zlib.crc32(chunk.bases, zlib.crc32(HEADER.pack(FRAME_MAGIC, *fields, 0, *tail)))
    return HEADER.pack(FRAME_MAGIC, *fields, crc, *tail) + chunk.bases


def decode_header(data: bytes | memoryview, where: str = "frame") -> FrameHeader:
    """Parse the fixed part; the CRC is checked too if `data` reaches as far as the bases do.

    Raises CorruptError for a wrong magic, an impossible size or a wrong CRC.
    """
    if len(data) < HEADER_SIZE:
        raise CorruptError(f"{where}: cut short after {len(data)} bytes")
    magic, kind, codec, depth, n_bases, stored, plain, crc, ident, check = HEADER.unpack_from(data)
    if magic != FRAME_MAGIC:
        raise CorruptError(f"{where}: no frame begins here")
    bases_end = HEADER_SIZE + n_bases * BASE_SIZE
    if len(data) >= bases_end:
        blank = b"\0\0\0\0"
        computed = zlib.crc32(data[:_CRC_OFFSET])
        computed = zlib.crc32(blank, computed)
        computed = zlib.crc32(data[_CRC_OFFSET + 4 : bases_end], computed)
        if computed != crc:
            raise CorruptError(f"{where}: its header fails its checksum")
    if plain > (MAX_CHUNK if kind == FrameKind.CHUNK else MAX_OBJECT) or stored > MAX_OBJECT:
        raise CorruptError(f"{where}: claims {stored} stored and {plain} plain bytes")
    return FrameHeader(kind, codec, depth, n_bases, stored, plain, ident, check)


def decode_frame(data: bytes | memoryview, where: str = "frame") -> tuple[FrameHeader, EncodedChunk]:
    """Parse a whole frame and check both its checksums; the payload is a view into `data`.

    Raises CorruptError, naming `where`.
    """
    view = memoryview(data)
    header = decode_header(view, where)
    if len(view) < header.span:
        raise CorruptError(f"{where}: cut short, {len(view)} of {header.span} bytes")
    start = header.span - header.stored
    payload = view[start : header.span]
    if payload_sum(payload) != header.payload_sum:
        raise CorruptError(f"{where}: its payload fails its checksum")
    bases = bytes(view[HEADER_SIZE:start])
    return header, EncodedChunk(header.id, header.codec, header.plain, payload, bases, header.depth)
