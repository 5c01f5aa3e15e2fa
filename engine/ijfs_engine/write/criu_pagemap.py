"""CRIU's images: which file of a set holds the pages of which address space, from the pagemaps. image_sets.py calls it.

A CRIU image is a u32 magic common to all, a u32 magic of its kind, then messages, each behind its u32 length, in
protobuf (images/pagemap.proto in CRIU's tree; numbers from criu/include/{magic,pagemap}.h). Only pagemaps are read,
and only as hints for storing: the files themselves are kept byte for byte, whatever is in them.
"""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple

from ijfs_engine._native.page_scan import PAGE
from ijfs_engine._native.pagemaps import pagemap_head, pagemap_runs
from ijfs_engine.errors import IjfsError
from ijfs_engine.format import page_images
from ijfs_engine.format.page_layout import PageLayout, PageRun

MAX_PAGEMAP: Final = 16 << 20
"""Largest pagemap that is read: a million entries. The pages of a larger one are stored as plain bytes."""

HEAD_BYTES: Final = 1024
"""More than the magic numbers and the first message take."""

COMMON_MAGIC: Final = 0x54564319
"""Of every image that describes a program."""
PAGEMAP_MAGIC: Final = 0x56084025
_NAME: Final = re.compile(r"pagemap-(?:shmem-)?\d+\.img")


class PagemapError(IjfsError):
    """A pagemap that is no CRIU pagemap, or does not fit its pages file."""


class Pagemap(NamedTuple):
    """What a pagemap says: the number N of its file `pages-N.img`, and the runs that file holds, in its order."""

    pages_id: int
    runs: list[PageRun]

    @property
    def pages_name(self) -> str:
        """Name of the file that holds the pages."""
        return page_images.pages_name(self.pages_id)


def is_pagemap(name: str) -> bool:
    """Whether a file of this name is a pagemap of a process or of shared memory."""
    return _NAME.fullmatch(name) is not None


def parse_pagemap(data: bytes | memoryview) -> Pagemap:
    """Read a whole pagemap image. PagemapError for anything that is none."""
    pages_id, at = _head(data)
    try:
        runs = pagemap_runs(data, at)
    except ValueError as error:
        raise PagemapError(str(error)) from error
    return Pagemap(pages_id, [PageRun(*run) for run in runs])


def pages_name_in(data: bytes | memoryview) -> str:
    """Name of the pages file that a pagemap image speaks of; the start of the image is enough. PagemapError."""
    return page_images.pages_name(_head(data)[0])


def _head(data: bytes | memoryview) -> tuple[int, int]:
    """(number of the pages file, where the entries begin)."""
    if len(data) < 8 or struct.unpack_from("<II", data) != (COMMON_MAGIC, PAGEMAP_MAGIC):
        raise PagemapError("no CRIU pagemap: wrong magic numbers")
    try:
        pages_id, at = pagemap_head(data, 8)
    except ValueError as error:
        raise PagemapError(str(error)) from error
    if pages_id is None:
        raise PagemapError("a CRIU pagemap that names no pages file")
    return pages_id, at


def layout_for(pagemap: Pagemap, size: int) -> PageLayout:
    """The layout of the pages file of this size. PagemapError if the two do not fit each other."""
    try:
        layout = PageLayout(pagemap.runs)
    except ValueError as error:
        raise PagemapError(str(error)) from error
    if layout.pages * PAGE != size:
        raise PagemapError(f"the pagemap describes {layout.pages * PAGE} bytes, {pagemap.pages_name} has {size}")
    return layout
