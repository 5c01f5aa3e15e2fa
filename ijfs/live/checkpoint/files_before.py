"""Files that are as in the snapshot before: the writer gets what that one has of them. Called by snapshot_io.py.

A directory that is as it was with all that is in it is taken over as a whole: storing costs what changed. Where that
snapshot is damaged files are read after all, out of the sandbox, if they are still what the freeze saw.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
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
            content = self._reader.lookup(self._root, directory).content if directory else self._root
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
        self._whole = whole_directories(capture.items) if self._files is not None and not writer.anew else frozenset()

    def directories(self) -> Iterator[tuple[str, Entry]]:
        """Those that are as they were with all that is in them: what the parent has of each. CorruptError."""
        if self._files is not None:
            yield from ((at, self._files.at(at)) for at in self._whole if _above(at) not in self._whole)

    def rest(self) -> Iterator[tuple[str, Entry, bytes | Segments | Path | None]]:
        """Everything that is in none of those. CorruptError."""
        whole = self._whole
        for at, item in self._capture.items.items():
            if at not in whole and _above(at) not in whole:
                yield self.entry(item)

    def entry(self, item: Item) -> tuple[str, Entry, bytes | Segments | Path | None]:
        """With the bytes that were read, or with those the parent has. CorruptError."""
        if not item.unchanged or item.entry.kind != "f":
            return item.at, item.entry, item.source
        there = self._in_parent(item)
        if there is None:
            return item.at, item.entry, _read_again(self._capture, item)
        return item.at, msgspec.structs.replace(item.entry, content=there.content, size=there.size), None

    def _in_parent(self, item: Item) -> Entry | None:
        """Its entry there; None where that snapshot is not here, or, of one that is made anew, where the file cannot be
        read whole."""
        if self._files is None:
            return None
        if not self._writer.anew:
            return self._files.at(item.at)
        with contextlib.suppress(CorruptError, UnknownNameError):
            there = self._files.at(item.at)
            return there if self._writer.is_whole(there) else None
        return None


def whole_directories(items: Mapping[str, Item]) -> frozenset[str]:
    """Directories that are as they were with all that is in them. Not those with a name of a file that has several: the
    others may be elsewhere, and which names are one file is numbered anew by each save. Nor those above a volume whose
    mount point no layer has: what is in the volume is put below them."""
    directories = {at: item for at, item in items.items() if item.entry.kind == "d"}
    apart = {at for at in directories if _above(at) not in directories}  # the top of a layer
    changed: set[str] = set()
    for item in items.values():  # tens of thousands, of which nearly all are as they were
        if item.unchanged and not item.entry.link and item.at not in apart:
            continue
        here = item.at if item.entry.kind == "d" and not (item.unchanged and item.at in apart) else _above(item.at)
        while here and here not in changed:
            changed.add(here)
            here = _above(here)
    return frozenset(directories.keys() - changed)


def _above(at: str) -> str:
    return at.rpartition("/")[0]


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
