"""CRIU's images out of the engine, for one restore: the small ones whole, of the memory only what CRIU reads itself.

With a pager, `criu restore` reads few pages itself: those that cannot be paged (eager_pages.py says which). So
`pages-N.img` is made as a sparse file with only those ranges in it, some MiB of what may be GiB, and no FUSE mount (and
no import of one) is on the way of a restore. An eager restore takes everything. Called by checkpoint/restore.py.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ijfs.live.criu.eager_pages import Range, eager_ranges
from ijfs.live.criu.mending import mended
from ijfs_engine import Entry, ObjectId, Reader, StoredFile, is_pages, pages_name
from ijfs_engine.errors import CorruptError

# One request. An ordinary program needs less than one, 2 MiB with numpy loaded, and then no thread is worth its start.
_PIECE = 4 << 20
# Requests under way at once: more than cores, because they may wait for a place that is far away.
_READERS = 8
# What may be read into the reader's cache at once: half of it.
_TOGETHER = 32 << 20


def stage(reader: Reader, images: ObjectId, target: Path, *, lazy: bool, pages: Path | None = None) -> dict[str, bytes]:
    """Write a snapshot's images into an empty directory (a tmpfs).

    Returns, for a lazy restore, the images that eager_pages.reasons reads; otherwise nothing.

    `pages` is a directory (of a mount) where an eager restore finds the memory; without it, it is written here whole.
    """
    entries = {os.fsdecode(entry.name): entry for entry in reader.tree(images).entries if entry.kind == "f"}
    memory = {name: entry for name, entry in entries.items() if is_pages(name)}
    small = {name: reader.open(entry) for name, entry in entries.items() if name not in memory}
    _read_together(reader, small.values())
    wanted: dict[str, list[Range]] = {}
    told: dict[str, bytes] = {}
    for name, data in mended({name: stored.read(0, stored.size) for name, stored in small.items()}).items():
        (target / name).write_bytes(data)
        if lazy and name.startswith(("pagemap-", "mm-", "memfd.")):
            told[name] = data
        if lazy and name.startswith("pagemap-"):
            number, ranges = eager_ranges(name, data)
            wanted.setdefault(pages_name(number), []).extend(ranges)
    if pages is not None and not lazy:
        for name in memory:
            # Relative: CRIU opens it when its root is the sandbox already, but from this directory's descriptor.
            (target / name).symlink_to(os.path.relpath(pages / name, target))
        return {}
    for name, entry in memory.items():
        _write_ranges(reader, entry, target / name, wanted.get(name, []) if lazy else [Range(0, entry.size)])
    return told


def _read_together(reader: Reader, files: Iterable[StoredFile]) -> None:
    """Have what these files are made of in the cache, in few requests: one each for sixty files would, from a store
    that answers after 5 ms, take longer than all the rest of a restore."""
    ids = {piece.id: piece.length for file in files for piece in file.slices(0, file.size) if piece.id is not None}
    if sum(ids.values()) <= _TOGETHER:
        reader.chunks(list(ids))


def _write_ranges(reader: Reader, entry: Entry, path: Path, ranges: list[Range]) -> None:
    """A sparse copy of a pages file, filled where it lies. Of much, several threads read: the program waits for it."""
    if any(end > entry.size for _, end in ranges):
        raise CorruptError(f"{path.name} has {entry.size} bytes, its pagemap needs more")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, entry.size)
        if not ranges:
            return
        stored = reader.open(entry)
        with mmap.mmap(fd, entry.size) as memory, memoryview(memory) as view:
            batches = list(_batches(ranges))
            if len(batches) == 1:
                _fill(stored, view, batches[0])
                return
            with ThreadPoolExecutor(_READERS) as pool:
                for _ in pool.map(lambda batch: _fill(stored, view, batch), batches):
                    pass
    finally:
        os.close(fd)


def _batches(ranges: Iterable[Range]) -> Iterator[list[Range]]:
    """Pieces that are read in one request: those of a program's mappings are often single pages."""
    batch: list[Range] = []
    size = 0
    for start, end in ranges:
        for at in range(start, end, _PIECE):
            piece = Range(at, min(end, at + _PIECE))
            if batch and size + piece.end - piece.start > _PIECE:
                yield batch
                batch, size = [], 0
            batch.append(piece)
            size += piece.end - piece.start
    if batch:
        yield batch


def _fill(stored: StoredFile, memory: memoryview, batch: list[Range]) -> None:
    targets = [(start, memory[start:end]) for start, end in batch]
    try:
        if stored.read_many(targets) != sum(end - start for start, end in batch):
            raise CorruptError("a pages file ends before its pagemap says")
    finally:
        for _, target in targets:
            target.release()
