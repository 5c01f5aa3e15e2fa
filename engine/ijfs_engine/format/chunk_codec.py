"""How a chunk's bytes are stored: raw, zstd, float planes, XOR against base bytes; whichever is smallest.

`encode` is called by write/, in many threads; `decode` by the reader and fsck. docs/format.md ("Codecs") has the bytes
of each form and the reason for it. A decoded chunk is checked against its id, so that no damage, and no mistake here,
can show as wrong bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from ijfs_engine._native import byte_planes, compress, numeric_codec, unpack
from ijfs_engine.errors import CorruptError
from ijfs_engine.format.crypt import PLAIN, Crypt
from ijfs_engine.format.frames import ID_SIZE, MAX_CHUNK, Codec, EncodedChunk, base_ids, unpack_bases
from ijfs_engine.util.per_thread import PerThread

MAX_DEPTH: Final = 4
"""Longest chain of XOR chunks: a read decodes at most this many chunks besides the one it wants."""

_XOR: Final = frozenset({Codec.XOR_ZSTD, Codec.XOR_PLANES})
_KNOWN: Final = frozenset({Codec.RAW, Codec.ZSTD, Codec.PLANES, Codec.NUMBERS, *_XOR})
# As in numeric_codec.pyx, which says why.
_SAMPLES: Final = 512
# What is packed before it is put into a pack: it bounds what each thread holds.
_AT_ONCE: Final = 2 << 20
# As in compress.pyx: a difference has to save a tenth.
_CHAIN_GAIN: Final = 0.9

Plain: TypeAlias = bytes | bytearray | memoryview
FetchBases: TypeAlias = Callable[[Sequence[bytes]], Sequence[Plain]]
"""Plain bytes of chunks by id, in the order asked; raises CorruptError."""


class Base(NamedTuple):
    """What a chunk may be stored as a difference to: bytes as long as the chunk, and where they are."""

    plain: Plain
    bases: bytes
    """Packed base extents (`frames.pack_bases`) whose bytes, in order, are `plain`."""
    depth: int
    """Of the deepest chunk that they name."""
    sure: bool = False
    """Whether it is known to pay, so that nothing else needs to be tried."""


_packer = PerThread(numeric_codec.Packer)
_unpacker = PerThread(unpack.Unpacker)


def encode(plain: memoryview, ident: bytes, base: Base | None = None) -> EncodedChunk:
    """The smallest stored form of a chunk; with `base`, differences to it are tried as well."""
    (chunk,) = _encode_batch(plain, [Fresh(ident, 0, len(plain), base)])
    return chunk._replace(payload=bytes(chunk.payload))


class Fresh(NamedTuple):
    """Bytes [start, end) of something, to be encoded."""

    id: bytes
    start: int
    end: int
    base: Base | None


def encode_many(data: memoryview, wanted: Iterable[Fresh]) -> Iterator[list[EncodedChunk]]:
    """`encode` for chunks of `data`, a few megabytes at a time. Payloads are valid until the next lot is asked for."""
    batch: list[Fresh] = []
    size = 0
    for fresh in wanted:
        if size + fresh.end - fresh.start > _AT_ONCE:
            yield _encode_batch(data, batch)
            batch, size = [], 0
        batch.append(fresh)
        size += fresh.end - fresh.start
    if batch:
        yield _encode_batch(data, batch)


def _encode_batch(data: memoryview, batch: Sequence[Fresh]) -> list[EncodedChunk]:
    """The payloads stay until this thread encodes again."""
    bounds = array("Q", [bound for fresh in batch for bound in (fresh.start, fresh.end)])
    bases = [fresh.base if fresh.base and fresh.base.depth < MAX_DEPTH else None for fresh in batch]
    sure = bytes(base is not None and base.sure for base in bases)
    forms = compress.pack(_packer.value, data, bounds, [base and base.plain for base in bases], sure)
    done = []
    for (ident, start, end, _), base, (codec, payload) in zip(batch, bases, forms, strict=True):
        stored = data[start:end] if payload is None else payload
        under = (base.bases, base.depth + 1) if base and codec in _XOR else (b"", 0)
        done.append(EncodedChunk(ident, codec, end - start, stored, *under))
    return done


def is_quieter(plain: Plain, base: Plain) -> bool:
    """Whether the difference to `base` looks like at least a tenth less to store than `plain`, byte by byte.

    As of weights that a step of training moved a little: no line of a page is as it was, but signs and exponents are.
    """
    before = sum(byte_planes.byte_entropies(plain, _SAMPLES))
    return sum(byte_planes.byte_entropies(plain, _SAMPLES, base)) < before * _CHAIN_GAIN


def decode(chunk: EncodedChunk, fetch: FetchBases, crypt: Crypt = PLAIN) -> Plain:
    """The plain bytes of an opened chunk, checked against its id. CorruptError for anything that does not fit."""
    plain = _decode(chunk, fetch)
    if len(plain) != chunk.plain_size or crypt.chunk_id(memoryview(plain)) != chunk.id:
        raise CorruptError(f"chunk {chunk.id.hex()[:12]} does not have the bytes its id stands for")
    return plain


def _decode(chunk: EncodedChunk, fetch: FetchBases) -> Plain:
    if chunk.plain_size > MAX_CHUNK or chunk.depth > MAX_DEPTH:
        raise CorruptError(f"chunk {chunk.id.hex()[:12]} claims {chunk.plain_size} bytes, {chunk.depth} chunks deep")
    codec = chunk.codec
    if codec not in _KNOWN:
        raise CorruptError(f"chunk {chunk.id.hex()[:12]} has the unknown codec {codec}")
    if codec == Codec.RAW:
        return chunk.payload
    plain = unpack.unpack_payload(_unpacker.value, codec, chunk.payload, chunk.plain_size)
    if plain is None:
        raise CorruptError(f"chunk {chunk.id.hex()[:12]} cannot be unpacked to the {chunk.plain_size} bytes it claims")
    if codec not in _XOR:
        return plain
    base = _base_bytes(chunk, fetch)
    if len(base) != len(plain):
        raise CorruptError(f"chunk {chunk.id.hex()[:12]} and its base differ in length")
    byte_planes.xor_into(base, plain)
    return base


def _base_bytes(chunk: EncodedChunk, fetch: FetchBases) -> bytearray:
    """The concatenation of the base extents."""
    ids = list(base_ids(chunk.bases))
    plains = {bytes(ID_SIZE): _ZEROS}
    plains.update((ident, memoryview(plain)) for ident, plain in zip(ids, fetch(ids), strict=True))
    base = bytearray()
    for ident, offset, length in unpack_bases(chunk.bases):
        if offset + length > len(plains[ident]) or len(base) + length > MAX_CHUNK:
            raise CorruptError(f"chunk {chunk.id.hex()[:12]} refers to bytes that its base does not have")
        base += plains[ident][offset : offset + length]
    return base


_ZEROS: Final = memoryview(bytes(MAX_CHUNK))
