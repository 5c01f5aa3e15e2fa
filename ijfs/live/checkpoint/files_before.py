"""Files that are as in the snapshot before: the writer gets what that one has of them. Called by snapshot_io.py.

Where that one is damaged they are read after all, out of the sandbox, if they are still what the freeze saw.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ijfs.live.checkpoint.ahead import key_of
from ijfs.live.checkpoint.workspace import Capture, Item
from ijfs_engine import Descent, Entry, ObjectId, Reader, Repository, Segments, SnapshotWriter
from ijfs_engine.errors import CorruptError, UnknownNameError


class SnapshotFiles:
    """The files of a snapshot, one directory at a time: 50,000 files of a few directories, looked up one by one, were
    26 s of decoding the same trees."""

    def __init__(self, reader: Reader, root: ObjectId) -> None:
        self._reader = reader
        self._root = root
        self._directory: str | None = None
        self._entries: dict[bytes, Entry] = {}

    def at(self, path: str) -> Entry:
        """UnknownNameError, CorruptError."""
        directory, _, name = path.rpartition("/")
        if directory != self._directory:
            content = self._reader.lookup(self._root, directory).content
            tree = self._reader.tree(content).entries if content is not None else ()
            self._directory, self._entries = directory, {entry.name: entry for entry in tree}
        found = self._entries.get(os.fsencode(name))
        return found if found is not None else self._reader.lookup(self._root, path)


class FilesBefore:
    """What a save hands to its writer for each captured file."""

    def __init__(
        self,
        repository: Repository,
        reader: Reader,
        parents: Sequence[ObjectId],
        capture: Capture,
        writer: SnapshotWriter,
    ) -> None:
        """CorruptError, unless the snapshot is made anew."""
        self._capture = capture
        self._writer = writer
        self._files: SnapshotFiles | None = None
        with contextlib.suppress(*((CorruptError,) if writer.anew else ())):
            self._files = SnapshotFiles(reader, repository.snapshot(parents[0]).root) if parents else None

    def entry(self, item: Item) -> tuple[str, Entry, bytes | Segments | Path | None]:
        """With the bytes that were read, or with those the parent has. CorruptError."""
        if not item.unchanged:
            return item.at, item.entry, item.source
        there = self._in_parent(item)
        if there is None:
            return item.at, item.entry, _read_again(self._capture, item)
        return item.at, msgspec.structs.replace(item.entry, content=there.content, size=there.size), None

    def _in_parent(self, item: Item) -> Entry | None:
        """Its entry there; of a snapshot that is made anew, None where that cannot be read whole."""
        if not self._writer.anew:
            assert self._files is not None
            return self._files.at(item.at)
        with contextlib.suppress(CorruptError, UnknownNameError):
            there = self._files.at(item.at) if self._files is not None else None
            return there if there is not None and self._writer.is_whole(there) else None
        return None


def _read_again(capture: Capture, item: Item) -> Path:
    """A copy of an unchanged file as it is in the sandbox. CorruptError where it is not what it was at the freeze."""
    inside = (layer for layer in capture.layers if item.at.startswith(f"{layer.at}/"))
    layer = max(inside, key=lambda one: len(one.at))
    *above, name = os.fsencode(item.at)[len(os.fsencode(layer.at)) + 1 :].split(b"/")
    try:
        top = os.open(layer.outside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with Descent(top) as walk:
                for part in above:
                    walk.enter(part)
                return _copied(
                    capture, item, os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=walk.here)
                )
        finally:
            os.close(top)
    except OSError as error:
        raise _changed(item) from error


def _copied(capture: Capture, item: Item, fd: int) -> Path:
    try:
        if key_of(os.fstat(fd)) != item.key:
            raise _changed(item)
        assert capture.staging is not None
        copy = capture.staging.copy(fd, item.entry.size)
        if key_of(os.fstat(fd)) != item.key:
            raise _changed(item)
        return copy
    finally:
        os.close(fd)


def _changed(item: Item) -> CorruptError:
    return CorruptError(
        f"the snapshot before is damaged, and the program has changed {item.at} meanwhile",
        hint="save again: that reads all files anew",
    )
