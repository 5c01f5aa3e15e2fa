"""CRIU's images: which file of a set holds the pages of which address space, from the pagemaps. Called by ingest.

A CRIU image is a u32 magic common to all, a u32 magic of its kind, then messages, each behind its u32 length, in
protobuf (images/pagemap.proto in CRIU's tree; numbers from criu/include/{magic,pagemap}.h). Only pagemaps are read,
and only as hints for storing: the files themselves are kept byte for byte, whatever is in them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from ..errors import IjfsError
from ..native import PAGE
from ..pages import PageLayout, PageRun

MAX_PAGEMAP: Final = 16 << 20
"""Largest pagemap that is read: a million entries. The pages of a larger one are stored as plain bytes."""

_COMMON_MAGIC: Final = 0x54564319
_PAGEMAP_MAGIC: Final = 0x56084025
_PE_PARENT, _PE_PRESENT = 1, 4
_NAME: Final = re.compile(r"pagemap-(?:shmem-)?\d+\.img")
_U32: Final = struct.Struct("<I")


class PagemapError(IjfsError):
    """A pagemap that is no CRIU pagemap, or does not fit its pages file."""


class Pagemap(NamedTuple):
    """What a pagemap says: the number N of its file `pages-N.img`, and the runs that file holds, in its order."""

    pages_id: int
    runs: list[PageRun]

    @property
    def pages_name(self) -> str:
        """Name of the file that holds the pages."""
        return f"pages-{self.pages_id}.img"


def is_pagemap(name: str) -> bool:
    """Whether a file of this name is a pagemap of a process or of shared memory."""
    return _NAME.fullmatch(name) is not None


def parse_pagemap(data: bytes | memoryview) -> Pagemap:
    """Read a whole pagemap image. PagemapError for anything that is none."""
    view = memoryview(data)
    if len(view) < 8 or struct.unpack_from("<II", view) != (_COMMON_MAGIC, _PAGEMAP_MAGIC):
        raise PagemapError("no CRIU pagemap: wrong magic numbers")
    messages = _messages(view, 8)
    head = next(messages, None)
    if head is None:
        raise PagemapError("a CRIU pagemap without its first message")
    pages_id = _numbers(head).get(1)
    if pages_id is None:
        raise PagemapError("a CRIU pagemap that names no pages file")
    return Pagemap(pages_id, [run for run in map(_run, messages) if run is not None])


def layout_for(pagemap: Pagemap, size: int) -> PageLayout:
    """The layout of the pages file of this size. PagemapError if the two do not fit each other."""
    try:
        layout = PageLayout(pagemap.runs)
    except ValueError as error:
        raise PagemapError(str(error)) from error
    if layout.pages * PAGE != size:
        raise PagemapError(f"the pagemap describes {layout.pages * PAGE} bytes, {pagemap.pages_name} has {size}")
    return layout


def _run(message: memoryview) -> PageRun | None:
    """The pages of one entry that are in the file; None where they are in a parent image or not stored."""
    fields = _numbers(message)
    address, count = fields.get(1), fields.get(5, fields.get(2))
    if address is None or count is None or address % PAGE:
        raise PagemapError("a pagemap entry without a page-aligned address and a count")
    # Images older than the flags (CRIU 2) have none and are present unless they are in the parent.
    flags = fields.get(4, _PE_PARENT if fields.get(3) else _PE_PRESENT)
    return PageRun(address // PAGE, count) if flags & _PE_PRESENT and count else None


def _messages(view: memoryview, at: int) -> Iterator[memoryview]:
    while at < len(view):
        if len(view) - at < 4 or (length := _U32.unpack_from(view, at)[0]) > len(view) - at - 4:
            raise PagemapError("a CRIU image that ends inside a message")
        yield view[at + 4 : at + 4 + length]
        at += 4 + length


def _numbers(message: memoryview) -> dict[int, int]:
    """The varint fields of a protobuf message by number; the last of a repeated one, others skipped."""
    fields: dict[int, int] = {}
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            fields[key >> 3], at = _varint(message, at)
        elif wire == 2:
            length, at = _varint(message, at)
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise PagemapError(f"a protobuf field of wire type {wire}")
    if at != len(message):
        raise PagemapError("a protobuf field that ends behind its message")
    return fields


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise PagemapError("a protobuf number without an end")
