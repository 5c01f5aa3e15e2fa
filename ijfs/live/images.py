"""CRIU's images out of the engine, for one restore: the small ones whole, of the memory only what CRIU reads itself.

With a pager, `criu restore` reads few pages itself: those that cannot be paged (shared memory, changed pages of mapped
files). They stand in pagemap entries without PE_LAZY. So `pages-N.img` is made as a sparse file with only those ranges
in it, some MiB of what may be GiB, and no FUSE mount (and no import of one) is on the way of a restore. An eager
restore takes everything. Called by restore.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ijfs.live import timers
from ijfs.live.pager.source import parse_pagemap
from ijfs_engine.errors import CorruptError
from ijfs_engine.reader import Reader
from ijfs_engine.records import Entry, ObjectId

PAGE = 4096
_PE_LAZY, _PE_PRESENT = 2, 4  # criu/include/pagemap.h

# One read and one write; the reader decodes chunks of at most 256 KiB.
_PIECE = 1 << 20


class Range(NamedTuple):
    """Bytes [start, end) of a pages file."""

    start: int
    end: int


def stage(reader: Reader, images: ObjectId, target: Path, *, lazy: bool, pages: Path | None = None) -> int:
    """Write a snapshot's images into an empty directory (a tmpfs); the bytes of memory that were written.

    `pages` is a directory (of a mount) where an eager restore finds the memory; without it, it is written here whole.
    """
    tree = reader.tree(images)
    wanted: dict[str, list[Range]] = {}
    for entry in tree.entries:
        name = os.fsdecode(entry.name)
        if entry.kind != "f" or is_pages(name):
            continue
        data = reader.open(entry).read(0, entry.size)
        (target / name).write_bytes(timers.rewind(data) if name == "files.img" else data)
        if name.startswith("pagemap-"):
            number, ranges = eager_ranges(name, data)
            wanted.setdefault(f"pages-{number}.img", []).extend(ranges)
    written = 0
    for entry in tree.entries:
        name = os.fsdecode(entry.name)
        if is_pages(name) and pages is not None and not lazy:
            # Relative: CRIU opens it when its root is the sandbox already, but from this directory's descriptor.
            (target / name).symlink_to(os.path.relpath(pages / name, target))
        elif is_pages(name):
            ranges = wanted.get(name, []) if lazy else [Range(0, entry.size)]
            written += _write_ranges(reader, entry, target / name, ranges)
    return written


def is_pages(name: str) -> bool:
    """Whether an image holds memory itself (and not where it goes)."""
    return name.startswith("pages-") and name.endswith(".img")


def eager_ranges(name: str, data: bytes) -> tuple[int, list[Range]]:
    """(number of the pages file, the ranges of it that CRIU reads although a pager is there) of a pagemap image."""
    number, entries = parse_pagemap(name, data)
    return number, list(_merged(entries))


def _merged(entries: list[tuple[int, int, int]]) -> Iterator[Range]:
    """Present, not lazy pages in file order; neighbours as one range."""
    at = start = end = 0
    for _, pages, flags in entries:
        if flags and not flags & _PE_PRESENT:
            continue
        length = pages * PAGE
        if not flags & _PE_LAZY:
            if at != end:
                if end > start:
                    yield Range(start, end)
                start = at
            end = at + length
        at += length
    if end > start:
        yield Range(start, end)


def _write_ranges(reader: Reader, entry: Entry, path: Path, ranges: list[Range]) -> int:
    stored = reader.open(entry)
    written = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, entry.size)
        for start, end in ranges:
            if end > entry.size:
                raise CorruptError(f"{path.name} has {entry.size} bytes, its pagemap needs {end}")
            for at in range(start, end, _PIECE):
                os.pwrite(fd, stored.read(at, min(_PIECE, end - at)), at)
            written += end - start
    finally:
        os.close(fd)
    return written
