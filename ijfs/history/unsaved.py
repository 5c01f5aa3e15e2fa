"""What a program has written since its last snapshot: its files on disk beside those that are stored.

Called by `ijfs diff` and the panel in JupyterLab. Everything of the same size is read and compared: neither times nor
sizes say that a file is as it was. A path is that of a snapshot's tree (`files/root/out.csv`, `shm/x`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence, Set
from pathlib import PurePosixPath

from ijfs.history.comparison import FileChange, change_of, is_deletion, same_metadata
from ijfs.live.checkpoint.ended_files import OF_THE_SANDBOX
from ijfs.live.checkpoint.files_before import SnapshotFiles
from ijfs.live.checkpoint.layers import WritableLayer, has_bytes, walk
from ijfs.live.client.written import Written
from ijfs.live.process.root_paths import open_below
from ijfs_engine import Entry, FoundOnDisk, ObjectId, Reader
from ijfs_engine.errors import UnknownNameError

TOO_LARGE = b"\0"
"""Stands for the bytes of a file that is not compared line by line."""


def files(reader: Reader, root: ObjectId | None, now: Written) -> Iterator[FileChange]:
    """All paths that differ between a snapshot's tree and a program's files, layer by layer. Without a snapshot all
    that it wrote, but for directories, as some are the sandbox's. What it removes meanwhile is left out.
    OSError, CorruptError."""
    before = SnapshotFiles(reader, root) if root is not None else None
    seen = {str(path) for layer in now.layers for path in (layer.at, *PurePosixPath(layer.at).parents)}
    for layer in now.layers:
        for at, found in walk(layer, running=now.live):
            if _counts(layer, at):
                seen.add(at)
                if before is not None or not stat.S_ISDIR(found.status.st_mode):
                    yield from _compared(reader, before, at, found)
    if root is not None:
        yield from _removed(reader, root, now.layers, seen)


def any_file(reader: Reader, root: ObjectId | None, now: Written, most: int) -> bool:
    """Whether something would be gone with its writable layers that the snapshot does not have, by what it is, its size
    and its time: no file is read. Of more than `most` things: yes. OSError, CorruptError."""
    before = SnapshotFiles(reader, root) if root is not None else None
    of_disk = [layer for layer in now.layers if layer.at.startswith("files") and not layer.shared]
    seen = ((at, found) for layer in of_disk for at, found in walk(layer, running=now.live) if _counts(layer, at))
    for number, (at, found) in enumerate(seen):
        if number == most or (not stat.S_ISDIR(found.status.st_mode) and not _looks_saved(before, at, found)):
            return True
    return False


def _counts(layer: WritableLayer, at: str) -> bool:
    return at != layer.at and not layer.place_inside(at).startswith(OF_THE_SANDBOX)


def _looks_saved(before: SnapshotFiles | None, at: str, found: FoundOnDisk) -> bool:
    try:
        old = before.at(at) if before is not None else None
        new = found.entry()
    except (UnknownNameError, FileNotFoundError):
        return False
    return old is not None and same_metadata(old, new) and (old.size, old.mtime_ns) == (new.size, new.mtime_ns)


def _compared(reader: Reader, before: SnapshotFiles | None, at: str, found: FoundOnDisk) -> Iterator[FileChange]:
    try:
        old = before.at(at) if before is not None else None
    except UnknownNameError:
        old = None
    try:
        new = found.entry()
        if old is not None and same_metadata(old, new) and (new.kind != "f" or _same_bytes(reader, old, found)):
            return
    except FileNotFoundError:  # the program has just removed it
        return
    yield change_of(at, old, new)


def _same_bytes(reader: Reader, old: Entry, found: FoundOnDisk) -> bool:
    return old.size == found.status.st_size and has_bytes(found, reader.open(old).read)


def _removed(reader: Reader, root: ObjectId, layers: Sequence[WritableLayer], seen: Set[str]) -> Iterator[FileChange]:
    """What the snapshot has where these layers are now, and they have not."""
    tops = {layer.at.partition("/")[0] for layer in layers}
    for at, entry in _stored(reader, root, tops):
        inside = at[len("files") :] if at.startswith("files/") else f"/dev/{at}"
        if at not in seen and not is_deletion(entry) and not inside.startswith(OF_THE_SANDBOX):
            yield FileChange(at, "removed", entry.size, None)


def _stored(reader: Reader, root: ObjectId, tops: Set[str]) -> Iterator[tuple[str, Entry]]:
    """All that is below these directories of a snapshot's tree."""
    todo = [
        (f"{entry.name.decode()}/", entry.content) for entry in reader.tree(root).entries if entry.name.decode() in tops
    ]
    while todo:
        prefix, tree = todo.pop()
        for entry in reader.tree(tree).entries if tree is not None else ():
            at = prefix + os.fsdecode(entry.name)
            yield at, entry
            if entry.kind == "d":
                todo.append((f"{at}/", entry.content))


def content(now: Written, at: str, most: int) -> bytes | None:
    """A regular file's bytes as they are now; None where there is none, TOO_LARGE where it is larger than `most`."""
    layer = max((layer for layer in now.layers if at.startswith(f"{layer.at}/")), key=lambda one: len(one.at))
    top = os.open(layer.outside, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_below(top, at[len(layer.at) + 1 :], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # a link, a socket, or just removed
        return None
    finally:
        os.close(top)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        return os.pread(fd, most, 0) if status.st_size <= most else TOO_LARGE
    finally:
        os.close(fd)
