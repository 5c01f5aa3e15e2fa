"""The fingerprints of a leaf's pages as they are kept beside it: all of them, or those that differ from a base's.

Fingerprints are 16 bytes of noise per page; kept whole for every leaf that changed a little, they would outweigh what
is stored of a sibling with scattered changes. So a leaf that has a base with the same pages keeps only the new ones.
Called by ingest; droppable: what cannot be put together again is None, and ingest then reads the base's bytes.
docs/format.md ("Fingerprints of a leaf") has the bytes.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from . import native
from .frames import ID_SIZE
from .native import FRESH, SAME, ZERO
from .pages import LEAF_PAGES

MAX_DEPTH: Final = 3
"""Longest chain of differences; a whole set of fingerprints is 0.4% of its leaf."""

_HEAD: Final = struct.Struct("<BBHI32s")
_VERSION: Final = 1
_NO_BASE: Final = bytes(ID_SIZE)
_IS_FRESH: Final = bytes(ord("1") if kind == FRESH else ord("0") for kind in range(256))
_IS_ZERO: Final = bytes(ord("1") if kind == ZERO else ord("0") for kind in range(256))


class Stored(NamedTuple):
    """A parsed attachment: which pages are `ZERO`, stored here (`FRESH`), or as in leaf `base` (`SAME`)."""

    depth: int
    base: bytes | None
    kinds: bytes
    prints: memoryview


def encode(
    prints: bytes | bytearray, kinds: bytes | bytearray, base: bytes | None = None, base_depth: int = 0
) -> bytes:
    """Attachment of a leaf with these fingerprints (16 bytes a page) and kinds; `SAME` means: as in leaf `base`."""
    if base is None:
        kinds = bytes(ZERO if kind == ZERO else FRESH for kind in kinds)
    head = _HEAD.pack(_VERSION, base_depth + 1 if base else 0, 0, len(kinds), base or _NO_BASE)
    fresh = [prints[16 * first : 16 * (first + count)] for first, count, kind in native.runs(kinds) if kind == FRESH]
    return b"".join((head, _bitmap(kinds, _IS_FRESH), _bitmap(kinds, _IS_ZERO), *fresh))


def parse(data: bytes) -> Stored | None:
    """What `encode` made; None for anything else (a form of another version, damage)."""
    if len(data) < _HEAD.size:
        return None
    version, depth, reserved, pages, base = _HEAD.unpack_from(data)
    width = (pages + 7) // 8
    if (version, reserved) != (_VERSION, 0) or pages > LEAF_PAGES or len(data) < _HEAD.size + 2 * width:
        return None
    at = _HEAD.size
    fresh, zero = (int.from_bytes(data[at + i * width : at + (i + 1) * width], "little") for i in (0, 1))
    has_base = base != _NO_BASE
    everything = (1 << pages) - 1
    if fresh & zero or (fresh | zero) & ~everything or has_base != bool(depth) or depth > MAX_DEPTH:
        return None
    if (not has_base and fresh | zero != everything) or len(data) != at + 2 * width + 16 * fresh.bit_count():
        return None
    return Stored(depth, base if has_base else None, _kinds(fresh, zero, pages), memoryview(data)[at + 2 * width :])


def resolve(stored: Stored, base: bytes) -> bytes | None:
    """All fingerprints of the leaf, given those of its base (ignored if it has none); None if those do not fit."""
    pages = len(stored.kinds)
    if stored.base is not None and len(base) != 16 * pages:
        return None
    if len(stored.prints) == 16 * pages:
        return bytes(stored.prints)
    out = bytearray(base if stored.base is not None else 16 * pages)
    taken = 0
    for first, count, kind in native.runs(stored.kinds):
        if kind == ZERO:
            out[16 * first : 16 * (first + count)] = bytes(16 * count)
        elif kind == FRESH:
            out[16 * first : 16 * (first + count)] = stored.prints[taken : taken + 16 * count]
            taken += 16 * count
    return bytes(out)


def _bitmap(kinds: bytes | bytearray, digits: bytes) -> bytes:
    """Bit i of the answer (little-endian) is whether digits[kinds[i]] is '1'."""
    return int(b"0" + kinds.translate(digits)[::-1], 2).to_bytes((len(kinds) + 7) // 8, "little")


def _kinds(fresh: int, zero: int, pages: int) -> bytes:
    """The inverse of two `_bitmap`s: their digits as bytes, added up in one number (no byte of it overflows)."""
    digits = [int.from_bytes(f"{bits:0{pages}b}".encode()[::-1], "little") for bits in (fresh, zero)]
    return (digits[0] + 2 * digits[1]).to_bytes(max(pages, 1), "little")[:pages].translate(_FROM_SUM)


def _from_sum() -> bytes:
    """What the sum of a '0' or '1' and twice a '0' or '1' says of a page."""
    table = bytearray(256)
    zero = 3 * ord("0")
    table[zero], table[zero + 1], table[zero + 2] = SAME, FRESH, ZERO
    return bytes(table)


_FROM_SUM: Final = _from_sum()
