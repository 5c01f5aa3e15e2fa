"""How a chunk's bytes are stored: raw, zstd, float planes, XOR against base bytes; whichever is smallest.

`encode` is called by ingest, in many threads; `decode` by the reader and fsck. docs/format.md ("Codecs") has the bytes
of each form and the reason for it. A decoded chunk is checked against its id, so that no damage, and no mistake here,
can show as wrong bytes.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

import zstandard

from . import bulk, native
from .errors import CorruptError
from .frames import ID_SIZE, MAX_CHUNK, Codec, EncodedChunk, base_ids, chunk_id, unpack_bases

MAX_DEPTH: Final = 4
"""Longest chain of XOR chunks: a read decodes at most this many chunks besides the one it wants."""

# zstd-3 saves under 1.5% of a kernel image over zstd-1.
_LEVEL: Final = 1
_TOO_SMALL: Final = 64
_XOR: Final = frozenset({Codec.XOR_ZSTD, Codec.XOR_PLANES})
_KNOWN: Final = frozenset({Codec.RAW, Codec.ZSTD, Codec.PLANES, *_XOR})
_PLANE_HEAD: Final = struct.Struct("<BBHI")
# 512 words put the entropy of a noisy byte 0.4 bits too low; 1024 took 4% of the time of a save of fresh weights.
_SAMPLES: Final = 512
# A byte position is noise above this entropy in the sample (noise itself shows 7.6), and not worth packing.
_NOISE_BITS: Final = 6.9
# A chunk that a base explains this well needs no other try.
_PLAIN_WIN: Final = 8
# A chain costs reads later: it has to save a tenth.
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


class _Tools(threading.local):
    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
        self.unpacker = bulk.Unpacker()


_tools = _Tools()


def encode(plain: memoryview, ident: bytes, base: Base | None = None) -> EncodedChunk:
    """The smallest stored form of a chunk; with `base`, differences to it are tried as well."""
    if base is not None and base.depth < MAX_DEPTH:
        codec, payload = _smallest_difference(plain, base)
        if base.sure or len(payload) * _PLAIN_WIN <= len(plain):
            return EncodedChunk(ident, codec, len(plain), payload, base.bases, base.depth + 1)
        other, competitor = _smallest_plain(plain)
        if len(payload) < len(competitor) * _CHAIN_GAIN:
            return EncodedChunk(ident, codec, len(plain), payload, base.bases, base.depth + 1)
        return EncodedChunk(ident, other, len(plain), competitor)
    codec, payload = _smallest_plain(plain)
    return EncodedChunk(ident, codec, len(plain), payload)


def is_quieter(plain: Plain, base: Plain) -> bool:
    """Whether the difference to `base` looks like at least a tenth less to store than `plain`, byte by byte.

    As of weights that a step of training moved a little: no line of a page is as it was, but signs and exponents are.
    """
    before = sum(native.byte_entropies(plain, _SAMPLES))
    return sum(native.byte_entropies(plain, _SAMPLES, base)) < before * _CHAIN_GAIN


def _smallest_plain(plain: memoryview) -> tuple[int, bytes | memoryview]:
    if len(plain) < _TOO_SMALL:
        return Codec.RAW, plain
    shape = float_shape(plain)
    if shape is not None:
        return Codec.PLANES, _pack_planes(plain, shape)
    packed = _tools.compressor.compress(plain)
    if len(packed) < len(plain):
        return Codec.ZSTD, packed
    return Codec.RAW, plain


def _smallest_difference(plain: memoryview, base: Base) -> tuple[int, bytes | memoryview]:
    difference = bytearray(base.plain)
    native.xor_into(difference, plain)
    shape = float_shape(difference)
    if shape is not None:
        return Codec.XOR_PLANES, _pack_planes(difference, shape)
    return Codec.XOR_ZSTD, _tools.compressor.compress(difference)


class Shape(NamedTuple):
    """Words of `width` bytes whose `tops` most significant ones are worth packing, the others noise."""

    width: int
    tops: int


def float_shape(data: Plain) -> Shape | None:
    """What an array of floating-point numbers `data` looks like, None if like none.

    Looks at the entropy of the byte positions modulo 8: sign and exponent stand out against a noisy mantissa, and in
    the difference of two such arrays the top of the mantissa does, too. Where the quiet bytes are not on top, or no
    byte is noise, zstd alone does better.
    """
    quiet = [bits <= _NOISE_BITS for bits in native.byte_entropies(data, _SAMPLES)]
    if all(quiet) or not any(quiet):
        return None
    for width in (2, 4, 8):
        word = quiet[:width]
        tops = word[::-1].index(False) if False in word else 0
        if tops and not any(word[: width - tops]) and quiet == word * (8 // width):
            return Shape(width, tops)
    return None


def _pack_planes(data: Plain, shape: Shape) -> bytes:
    """u8 width, u8 tops, u16 zero, u32 length of the zstd frame of the planes, that frame, the rest as it is."""
    size = len(data) // shape.width * shape.tops
    planes, rest = bytearray(size), bytearray(len(data) - size)
    native.split_planes(data, *shape, planes, rest)
    packed = _tools.compressor.compress(planes)
    return b"".join((_PLANE_HEAD.pack(*shape, 0, len(packed)), packed, rest))


def decode(chunk: EncodedChunk, fetch: FetchBases) -> Plain:
    """The plain bytes of a chunk, checked against its id. CorruptError for anything that does not fit."""
    plain = _decode(chunk, fetch)
    if len(plain) != chunk.plain_size or chunk_id(memoryview(plain)) != chunk.id:
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
    plain = bulk.unpack_payload(_tools.unpacker, codec, chunk.payload, chunk.plain_size)
    if plain is None:
        raise CorruptError(f"chunk {chunk.id.hex()[:12]} cannot be unpacked to the {chunk.plain_size} bytes it claims")
    if codec not in _XOR:
        return plain
    base = _base_bytes(chunk, fetch)
    if len(base) != len(plain):
        raise CorruptError(f"chunk {chunk.id.hex()[:12]} and its base differ in length")
    native.xor_into(base, plain)
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
