"""Which processes a snapshot's images hold, and which file has whose memory. Called by comparison.py and `ijfs
show`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ijfs_engine import Entry, Reader

_PAGEMAP = re.compile(rb"pagemap-(shmem-)?(\d+)\.img")


@dataclass(frozen=True)
class ProcessImage:
    """One address space: what it is called, and the file with its pages."""

    title: str
    pages: Entry


def images(reader: Reader, root: bytes) -> dict[tuple[bool, int], ProcessImage]:
    """All address spaces of a snapshot by (is shared memory, number); {} where it has no images.

    A pagemap that cannot be understood is left out: its pages were stored as plain bytes.
    """
    directory = reader.tree(root).find(b"images")
    if directory is None or directory.content is None:
        return {}
    entries = {entry.name: entry for entry in reader.tree(directory.content).entries}
    found = {}
    for name, entry in entries.items():
        match = _PAGEMAP.fullmatch(name)
        pages = entries.get(_pages_name(reader, entry)) if match else None
        if match and pages is not None and reader.open(pages).layout is not None:
            number = int(match[2])
            title = f"shared memory {number}" if match[1] else f"process {number}"
            found[match[1] is not None, number] = ProcessImage(title, pages)
    return found


def _pages_name(reader: Reader, pagemap: Entry) -> bytes:
    from ijfs_engine import MAX_PAGEMAP, PagemapError, parse_pagemap

    stored = reader.open(pagemap)
    if stored.size > MAX_PAGEMAP:
        return b""
    try:
        return parse_pagemap(stored.read(0, stored.size)).pages_name.encode()
    except PagemapError:
        return b""
