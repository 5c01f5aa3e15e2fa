"""CRIU's images out of the engine, for one restore: the small ones whole, of the memory only what CRIU reads itself.

With a pager, `criu restore` reads few pages itself: those that cannot be paged (readahead.py says which). So
`pages-N.img` is made as a sparse file with only those ranges in it, some MiB of what may be GiB, and no FUSE mount (and
no import of one) is on the way of a restore. An eager restore takes everything. Called by restore.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ijfs.live import timers
from ijfs.live.readahead import Range, eager_ranges, reasons
from ijfs_engine.errors import CorruptError
from ijfs_engine.reader import Reader, StoredFile
from ijfs_engine.records import Entry, ObjectId

# One request, and the memory one thread needs; the reader decodes chunks of at most 256 KiB.
_PIECE = 1 << 20
# Requests under way at once: more than cores, because they may wait for a place that is far away.
_READERS = 8
# What may be read into the reader's cache at once: half of it.
_TOGETHER = 32 << 20


def stage(reader: Reader, images: ObjectId, target: Path, *, lazy: bool, pages: Path | None = None) -> dict[str, int]:
    """Write a snapshot's images into an empty directory (a tmpfs); the bytes of memory that were written, by why.

    `pages` is a directory (of a mount) where an eager restore finds the memory; without it, it is written here whole.
    """
    entries = {os.fsdecode(entry.name): entry for entry in reader.tree(images).entries if entry.kind == "f"}
    memory = {name: entry for name, entry in entries.items() if is_pages(name)}
    small = {name: reader.open(entry) for name, entry in entries.items() if name not in memory}
    _read_together(reader, small.values())
    wanted: dict[str, list[Range]] = {}
    told: dict[str, bytes] = {}
    for name, stored in small.items():
        data = stored.read(0, stored.size)
        (target / name).write_bytes(timers.rewind(data) if name == "files.img" else data)
        if lazy and name.startswith(("pagemap-", "mm-", "memfd.")):
            told[name] = data
        if lazy and name.startswith("pagemap-"):
            number, ranges = eager_ranges(name, data)
            wanted.setdefault(f"pages-{number}.img", []).extend(ranges)
    if pages is not None and not lazy:
        for name in memory:
            # Relative: CRIU opens it when its root is the sandbox already, but from this directory's descriptor.
            (target / name).symlink_to(os.path.relpath(pages / name, target))
        return {}
    for name, entry in memory.items():
        _write_ranges(reader, entry, target / name, wanted.get(name, []) if lazy else [Range(0, entry.size)])
    return reasons(told)


def _read_together(reader: Reader, files: Iterable[StoredFile]) -> None:
    """Have what these files are made of in the cache, in few requests: one each for sixty files would, from a store
    that answers after 5 ms, take longer than all the rest of a restore."""
    ids = {piece.id: piece.length for file in files for piece in file.slices(0, file.size) if piece.id is not None}
    if sum(ids.values()) <= _TOGETHER:
        reader.chunks(list(ids))


def is_pages(name: str) -> bool:
    """Whether an image holds memory itself (and not where it goes)."""
    return name.startswith("pages-") and name.endswith(".img")


def _write_ranges(reader: Reader, entry: Entry, path: Path, ranges: list[Range]) -> None:
    """A sparse copy of a pages file. Several threads read: the program waits for all of it."""
    if any(end > entry.size for _, end in ranges):
        raise CorruptError(f"{path.name} has {entry.size} bytes, its pagemap needs more")
    stored = reader.open(entry)
    pieces = [(at, min(_PIECE, end - at)) for start, end in ranges for at in range(start, end, _PIECE)]
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, entry.size)
        with ThreadPoolExecutor(_READERS) as pool:
            for _ in pool.map(lambda batch: _write_pieces(stored, fd, batch), _batches(pieces)):
                pass
    finally:
        os.close(fd)


def _batches(pieces: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Pieces that are read in one request: those of a program's mappings are often single pages."""
    batch: list[tuple[int, int]] = []
    size = 0
    for at, length in pieces:
        if batch and size + length > _PIECE:
            yield batch
            batch, size = [], 0
        batch.append((at, length))
        size += length
    if batch:
        yield batch


def _write_pieces(stored: StoredFile, fd: int, batch: list[tuple[int, int]]) -> None:
    buffer = memoryview(bytearray(sum(length for _, length in batch)))
    views: list[tuple[int, memoryview]] = []
    taken = 0
    for at, length in batch:
        views.append((at, buffer[taken : taken + length]))
        taken += length
    if stored.read_many(views) != taken:
        raise CorruptError("a pages file ends before its pagemap says")
    for at, view in views:
        os.pwrite(fd, view, at)
