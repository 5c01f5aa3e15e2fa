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

from . import native
from .errors import CorruptError
from .frames import ID_SIZE, MAX_CHUNK, Codec, EncodedChunk, base_ids, chunk_id, unpack_bases

MAX_DEPTH: Final = 4
"""Longest chain of XOR chunks: a read decodes at most this many chunks besides the one it wants."""

# zstd-3 saves under 1.5% of a kernel image over zstd-1 at half the speed.
_LEVEL: Final = 1
_TOO_SMALL: Final = 64
_PLANES: Final = {Codec.PLANES2: 2, Codec.PLANES4: 4, Codec.PLANES8: 8, Codec.XOR_PLANES2: 2, Codec.XOR_PLANES4: 4}
_XOR: Final = frozenset({Codec.XOR_ZSTD, Codec.XOR_RAW, Codec.XOR_PLANES2, Codec.XOR_PLANES4})
_PLANE_HEAD: Final = struct.Struct("<I")
# 1024 words put a byte's entropy 0.2 bits too low at most, and cost 3% of a zstd-1 of 64 KiB.
_SAMPLES: Final = 1024
# A float's mantissa bytes are noise (above 7 bits in the sample), its top byte is not.
_NOISE_BITS: Final = 7.0
_TOP_BITS: Final = 6.6
# A chunk that a base explains this well needs no other try.
_PLAIN_WIN: Final = 8

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


class _Tools(threading.local):
    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor()


_tools = _Tools()


def encode(plain: memoryview, ident: bytes, base: Base | None = None) -> EncodedChunk:
    """The smallest stored form of a chunk; with `base`, differences to it are tried as well."""
    if base is not None and base.depth < MAX_DEPTH:
        codec, payload = _smallest_difference(plain, base)
        if len(payload) * _PLAIN_WIN > len(plain):
            other, competitor = _smallest_plain(plain)
            # A chain costs reads later: it has to save a tenth.
            if len(competitor) <= len(payload) * 1.1:
                return EncodedChunk(ident, other, len(plain), competitor)
        return EncodedChunk(ident, codec, len(plain), payload, base.bases, base.depth + 1)
    codec, payload = _smallest_plain(plain)
    return EncodedChunk(ident, codec, len(plain), payload)


def _smallest_plain(plain: memoryview) -> tuple[int, bytes | memoryview]:
    if len(plain) < _TOO_SMALL:
        return Codec.RAW, plain
    width = float_width(plain)
    if width:
        return _PLANE_CODECS[width], _pack_planes(plain, width)
    packed = _tools.compressor.compress(plain)
    if len(packed) < len(plain):
        return Codec.ZSTD, packed
    return Codec.RAW, plain


def _smallest_difference(plain: memoryview, base: Base) -> tuple[int, bytes | memoryview]:
    difference = bytearray(base.plain)
    native.xor_into(difference, plain)
    width = float_width(difference)
    if width in _XOR_PLANE_CODECS:
        return _XOR_PLANE_CODECS[width], _pack_planes(difference, width)
    return Codec.XOR_ZSTD, _tools.compressor.compress(difference)


_PLANE_CODECS: Final = {2: Codec.PLANES2, 4: Codec.PLANES4, 8: Codec.PLANES8}
_XOR_PLANE_CODECS: Final = {2: Codec.XOR_PLANES2, 4: Codec.XOR_PLANES4}


def float_width(data: Plain) -> int:
    """Bytes of the floating-point words that `data` looks like an array of (2, 4 or 8), 0 if like none.

    Looks at the entropy of the byte positions modulo 8: the sign and exponent stand out against a noisy mantissa.
    """
    bits = native.byte_entropies(data, _SAMPLES)
    for width in (2, 4, 8):
        tops = bits[width - 1 :: width]
        rest = [b for i, b in enumerate(bits) if i % width != width - 1]
        # The second byte of a wide float holds the exponent's low bits: it may be a little below noise.
        if max(tops) <= _TOP_BITS and min(rest) >= _NOISE_BITS - (width == 8):
            return width
    return 0


def _pack_planes(data: Plain, width: int) -> bytes:
    """u32 length of the zstd frame of the top plane, that frame, the rest as it is."""
    top, rest = bytearray(len(data) // width), bytearray(len(data) - len(data) // width)
    native.split_planes(data, width, top, rest)
    packed = _tools.compressor.compress(top)
    return b"".join((_PLANE_HEAD.pack(len(packed)), packed, rest))


def decode(chunk: EncodedChunk, fetch: FetchBases) -> Plain:
    """The plain bytes of a chunk, checked against its id. CorruptError for anything that does not fit."""
    plain = _decode(chunk, fetch)
    if len(plain) != chunk.plain_size or chunk_id(memoryview(plain)) != chunk.id:
        raise CorruptError(f"chunk {chunk.id.hex()[:12]} does not have the bytes its id stands for")
    return plain


def _decode(chunk: EncodedChunk, fetch: FetchBases) -> Plain:
    if chunk.plain_size > MAX_CHUNK or chunk.depth > MAX_DEPTH:
        raise CorruptError(f"chunk {chunk.id.hex()[:12]} claims {chunk.plain_size} bytes, {chunk.depth} chunks deep")
    codec, payload = chunk.codec, chunk.payload
    if codec in (Codec.RAW, Codec.XOR_RAW):
        plain: Plain = payload
    elif codec in (Codec.ZSTD, Codec.XOR_ZSTD):
        plain = _unpack_zstd(payload, chunk.plain_size)
    elif codec in _PLANES:
        plain = _unpack_planes(memoryview(payload), chunk.plain_size, _PLANES[codec])
    else:
        raise CorruptError(f"chunk {chunk.id.hex()[:12]} has the unknown codec {codec}")
    if codec not in _XOR:
        return plain
    base = _base_bytes(chunk, fetch)
    if len(base) != len(plain):
        raise CorruptError(f"chunk {chunk.id.hex()[:12]} and its base differ in length")
    native.xor_into(base, plain)
    return base


def _unpack_zstd(payload: bytes | memoryview, size: int) -> bytes:
    """One zstd frame that says it holds exactly `size` bytes: nothing larger is ever allocated."""
    try:
        if size == 0 or zstandard.frame_content_size(payload) != size:
            raise CorruptError(f"a compressed chunk does not hold the {size} bytes it claims")
        return _tools.decompressor.decompress(payload, max_output_size=size)
    except zstandard.ZstdError as error:
        raise CorruptError(f"a compressed chunk cannot be unpacked: {error}") from error


def _unpack_planes(payload: memoryview, size: int, width: int) -> bytearray:
    if len(payload) < _PLANE_HEAD.size:
        raise CorruptError("a chunk of float planes is cut short")
    (packed,) = _PLANE_HEAD.unpack_from(payload)
    rest = payload[_PLANE_HEAD.size + packed :]
    words = size // width
    if packed > len(payload) - _PLANE_HEAD.size or len(rest) != size - words:
        raise CorruptError("the planes of a chunk do not add up to its size")
    top = _unpack_zstd(payload[_PLANE_HEAD.size : _PLANE_HEAD.size + packed], words)
    plain = bytearray(size)
    native.join_planes(top, rest, width, plain)
    return plain


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
