"""What is kept of the fingerprints of a leaf's pages: a hint per page, a fingerprint per group of pages.

A whole fingerprint per page is 0.4% of an image, and 1% of what is stored of it. So only groups of 16 pages have one:
where a group is the same, its pages are; where it is not, two bytes per page hint at which of them still are, and their
bytes are compared. That is 0.07%. page_writer.py makes them, parent_pages.py reads those of the parent. Droppable: what
is missing is made anew from the leaf's bytes. docs/format.md ("Fingerprints of a leaf") has the bytes.

They carry a seal under the repository's secret, because pages are taken for unchanged by their word alone: whoever can
write packs, but does not have the secret, cannot give a leaf the fingerprints of another.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from blake3 import blake3

from ijfs_engine._native import page_scan
from ijfs_engine._native.page_scan import GROUP
from ijfs_engine.format.records import ObjectId

_KEY_CONTEXT: Final = b"ijfs 2026-11 page fingerprint key"
_SEAL_CONTEXT: Final = "ijfs 2026-11 page fingerprint seal"
_HEAD: Final = struct.Struct("<BBHI16s")
_VERSION: Final = 2
"""1 had no seal: such an attachment is made anew when it is needed."""


def expand_key(secret: bytes) -> bytes:
    """The 8240 key bytes (k1, k2, a, b, c of docs/format.md) of a 32-byte secret, by keyed BLAKE3's extended output."""
    return blake3(_KEY_CONTEXT, key=secret).digest(length=page_scan.KEY_BYTES)


class Fingerprints(NamedTuple):
    """Of a leaf's pages, in order."""

    hints: bytes
    """Two bytes per page; zeros for a page of zeros, and for no other."""
    groups: bytes
    """16 bytes per group: pages that follow one another and whose numbers are in the same aligned block of GROUP."""


def fold(prints: bytearray | memoryview, pieces: Iterable[tuple[int, int]], key: bytes) -> Fingerprints:
    """Out of the fingerprints of all pages; `pieces` are their (first page number, pages)."""
    return Fingerprints(
        *page_scan.fold_prints(prints, array("Q", [number for piece in pieces for number in piece]), key)
    )


class Group(NamedTuple):
    """Which pages a group has: bit i of `mask` stands for page number `block` * GROUP + i."""

    block: int
    """Counted from the leaf's first."""
    mask: int
    first: int
    """Its first page, counted in the leaf."""
    pages: int


class LeafShape(NamedTuple):
    """How the pages of a leaf lie in blocks; most leaves of an image have one and the same."""

    groups: tuple[Group, ...]
    digest: bytes
    """16 bytes that name the places of all pages in their blocks."""


def shape_of(pieces: Sequence[tuple[int, int]]) -> LeafShape:
    """Of a leaf whose pages are these (first page number, pages), in order."""
    start = first_block(pieces) * GROUP
    return _shape(tuple((number - start, count) for number, count in pieces))


def first_block(pieces: Sequence[tuple[int, int]]) -> int:
    """The block that the blocks of a leaf's groups are counted from."""
    return pieces[0][0] // GROUP if pieces else 0


@lru_cache(maxsize=512)
def _shape(pieces: tuple[tuple[int, int], ...]) -> LeafShape:
    found: list[Group] = []
    at = 0
    for number, count in pieces:
        while count:
            block, place = divmod(number, GROUP)
            step = min(count, GROUP - place)
            mask = ((1 << step) - 1) << place
            if found and found[-1].block == block:
                last = found[-1]
                found[-1] = Group(block, last.mask | mask, last.first, last.pages + step)
            else:
                found.append(Group(block, mask, at, step))
            number, count, at = number + step, count - step, at + step
    masks = b"".join(group.mask.to_bytes(2, "little") for group in found)
    return LeafShape(tuple(found), blake3(masks).digest(length=16))


def encode(prints: Fingerprints, shape: LeafShape, leaf: ObjectId, key: bytes) -> bytes:
    """The attachment of a leaf of this shape, sealed for this leaf alone."""
    body = prints.hints + prints.groups
    return _HEAD.pack(_VERSION, 0, 0, len(prints.hints) // 2, _seal(leaf, shape, body, key)) + body


def parse(data: bytes, pages: int, shape: LeafShape, leaf: ObjectId, key: bytes) -> Fingerprints | None:
    """What `encode` made for this leaf, of this shape, with so many pages, under this key; None for anything else.

    A leaf may stand at other addresses than when its attachment was made. Its groups then have other places in their
    blocks, and their fingerprints would say nothing, or worse: that pages are the same as their neighbours.
    """
    if len(data) != _HEAD.size + 2 * pages + 16 * len(shape.groups):
        return None
    body = data[_HEAD.size :]
    if _HEAD.unpack_from(data) != (_VERSION, 0, 0, pages, _seal(leaf, shape, body, key)):
        return None
    return Fingerprints(body[: 2 * pages], body[2 * pages :])


def _seal(leaf: ObjectId, shape: LeafShape, body: bytes, key: bytes) -> bytes:
    """16 bytes that only who has the key can make. How long hints and groups are follows from leaf and shape."""
    return blake3(leaf + shape.digest + body, key=_seal_key(key)).digest(length=16)


@lru_cache(maxsize=4)
def _seal_key(key: bytes) -> bytes:
    return blake3(key, derive_key_context=_SEAL_CONTEXT).digest()
