"""CRIU's images out of the engine, for one restore: the small ones whole, of the memory only what CRIU reads itself.

With a pager, `criu restore` reads few pages itself: those that cannot be paged (eager_pages.py says which), and those
that forked processes share (forked_memory.py finds them, lending.py lays them out). So `pages-N.img` is made as a
sparse file with only those ranges in it, some MiB of what may be GiB, and no FUSE mount (and no import of one) is on
the way of a restore. An eager restore takes everything. Called by checkpoint/restore.py.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ijfs.live.criu import forked_memory, lending, wiped
from ijfs.live.criu.eager_pages import eager_ranges
from ijfs.live.criu.forked_memory import Process, Span
from ijfs.live.criu.image_format import pagemap_image, parse_parents
from ijfs.live.criu.lending import Copy, Lending, Part
from ijfs.live.criu.mending import NOTHING, Noted, mended
from ijfs_engine import Entry, ObjectId, Reader, StoredFile, is_pages, pages_name
from ijfs_engine.errors import CorruptError

# One request. An ordinary program needs less than one, 2 MiB with numpy loaded, and then no thread is worth its start.
_PIECE = 4 << 20
# Requests under way at once: more than cores, because they may wait for a place that is far away.
_READERS = 8
# What may be read into the reader's cache at once: half of it.
_TOGETHER = 32 << 20

PARENT = "parent"
"""Where CRIU looks for parent images."""


class Staged(NamedTuple):
    """What stands there: the images that eager_pages.reasons reads, and which of the memory that could come in lazily
    CRIU reads all the same, by process."""

    images: dict[str, bytes]
    present: dict[int, list[Span]]


class _File(NamedTuple):
    """A pages file to be made: of which stored one, of what parts of it, how large."""

    path: Path
    stored: Entry
    copies: list[Copy]
    size: int


def stage(
    reader: Reader,
    images: ObjectId,
    target: Path,
    *,
    lazy: bool,
    pages: Path | None = None,
    noted: Noted = NOTHING,
    wipe: bool = False,
    far: bool = False,
) -> Staged:
    """Write a snapshot's images into an empty directory (a tmpfs). `noted`: what its save has noted beside them.

    `pages` is a directory (of a mount) where an eager restore finds the memory; without it, it is written here whole.
    What forked processes share is always written: CRIU reads that page by page. With `wipe`, memory that is to be empty
    in whatever is forked off a program is empty. `far`: it comes over a network.
    """
    entries = {os.fsdecode(entry.name): entry for entry in reader.tree(images).entries if entry.kind == "f"}
    memory = {name: entry for name, entry in entries.items() if is_pages(name)}
    stored = small_files(reader, images)
    read_together(reader, stored.values())
    small = mended({name: one.read(0, one.size) for name, one in stored.items()}, noted)
    shared = forked_memory.find(small, lambda name: reader.open(_entry(memory, name)), lazy=lazy, far=far)
    found = lending.arrange(shared, parse_parents("pstree.img", small["pstree.img"])) if shared else Lending({}, {})
    for pid, spans in wiped.find(small).items() if wipe else ():
        found.parts[pid] = found.parts.get(pid, Part(pid, [], []))._replace(dropped=tuple(spans))
    processes = forked_memory.parse_processes(small) if found.parts else {}
    files = list(_lent_files(small, found, processes, memory, target, lazy=lazy))
    for name, data in small.items():
        (target / name).write_bytes(data)
    made = {file.path.name for file in files if file.path.parent == target}
    rest = {name: entry for name, entry in memory.items() if name not in made}
    if lazy:
        files += _lazy_files(small, rest, target)
    elif pages is None:
        files += [_File(target / name, entry, [Copy(0, entry.size, 0)], entry.size) for name, entry in rest.items()]
    else:
        for name in rest:
            # Relative: CRIU opens it when its root is the sandbox already, but from this directory's descriptor.
            (target / name).symlink_to(os.path.relpath(pages / name, target))
    for file in files:
        _write(reader, file)
    told = {name: data for name, data in small.items() if name.startswith(("pagemap-", "mm-", "memfd."))}
    return Staged(told if lazy else {}, {pid: part.present for pid, part in found.parts.items()} if lazy else {})


def _entry(memory: Mapping[str, Entry], name: str) -> Entry:
    if name not in memory:
        raise CorruptError(f"{name}, which a pagemap names, is not among the images")
    return memory[name]


def _lent_files(
    small: dict[str, bytes],
    found: Lending,
    processes: Mapping[int, Process],
    memory: Mapping[str, Entry],
    target: Path,
    *,
    lazy: bool,
) -> Iterator[_File]:
    """The pages files of processes that share memory, and the parent images; their pagemaps are changed in `small`."""
    above = target / PARENT
    if found.held:
        above.mkdir()
    lent = {}
    for lender, spans in found.held.items():
        process = processes[lender]
        changed, copies, size = lending.parent_image(process.entries, spans)
        lent[lender] = pagemap_image(_number(process), changed)
        yield _File(above / process.pages, _entry(memory, process.pages), copies, size)
    for pid, part in found.parts.items():
        if pid not in processes:
            continue
        process = processes[pid]
        changed, copies, size = lending.pagemap_of(process.entries, part, lazy=lazy)
        small[f"pagemap-{pid}.img"] = pagemap_image(_number(process), changed)
        if part.lent:
            (above / f"pagemap-{pid}.img").write_bytes(lent[part.lender])
        yield _File(target / process.pages, _entry(memory, process.pages), copies, size)


def _number(process: Process) -> int:
    return int(process.pages.removeprefix("pages-").removesuffix(".img"))


def _lazy_files(small: Mapping[str, bytes], rest: Mapping[str, Entry], target: Path) -> Iterator[_File]:
    """The other pages files, as far as CRIU reads them though there is a pager."""
    wanted: dict[str, list[Copy]] = {}
    for name, data in small.items():
        if name.startswith("pagemap-"):
            number, ranges = eager_ranges(name, data)
            copies = [Copy(start, end, start) for start, end in ranges]
            wanted.setdefault(pages_name(number), []).extend(copies)
    for name, entry in rest.items():
        yield _File(target / name, entry, wanted.get(name, []), entry.size)


def small_files(reader: Reader, images: ObjectId) -> dict[str, StoredFile]:
    """All images but the memory, by name."""
    entries = {os.fsdecode(entry.name): entry for entry in reader.tree(images).entries if entry.kind == "f"}
    return {name: reader.open(entry) for name, entry in entries.items() if not is_pages(name)}


def read_together(reader: Reader, files: Iterable[StoredFile]) -> None:
    """Have what these files are made of in the cache, in few requests: one each for sixty files would, from a store
    that answers after 5 ms, take longer than all the rest of a restore."""
    ids = {piece.id: piece.length for file in files for piece in file.slices(0, file.size) if piece.id is not None}
    if sum(ids.values()) <= _TOGETHER:
        reader.chunks(list(ids))


def _write(reader: Reader, file: _File) -> None:
    """A sparse copy of a pages file, filled where it lies. Of much, several threads read: the program waits for it."""
    if any(end > file.stored.size for _, end, _ in file.copies):
        raise CorruptError(f"{file.path.name} has {file.stored.size} bytes, its pagemap needs more")
    fd = os.open(file.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, file.size)
        if not file.copies:
            return
        stored = reader.open(file.stored)
        # Not closed: the traceback of an error may still hold parts of it. It goes with its last user.
        view = memoryview(mmap.mmap(fd, file.size))
        batches = list(_batches(file.copies))
        if len(batches) == 1:
            _fill(stored, view, batches[0])
            return
        with ThreadPoolExecutor(_READERS) as pool:
            for _ in pool.map(lambda batch: _fill(stored, view, batch), batches):
                pass
    finally:
        os.close(fd)


def _batches(copies: Iterable[Copy]) -> Iterator[list[Copy]]:
    """Pieces that are read in one request: those of a program's mappings are often single pages."""
    batch: list[Copy] = []
    size = 0
    for start, end, to in copies:
        for at in range(start, end, _PIECE):
            piece = Copy(at, min(end, at + _PIECE), to + at - start)
            if batch and size + piece.end - piece.start > _PIECE:
                yield batch
                batch, size = [], 0
            batch.append(piece)
            size += piece.end - piece.start
    if batch:
        yield batch


def _fill(stored: StoredFile, memory: memoryview, batch: list[Copy]) -> None:
    targets = [(start, memory[at : at + end - start]) for start, end, at in batch]
    try:
        if stored.read_many(targets) != sum(end - start for start, end, _ in batch):
            raise CorruptError("a pages file ends before its pagemap says")
    finally:
        for _, target in targets:
            target.release()
