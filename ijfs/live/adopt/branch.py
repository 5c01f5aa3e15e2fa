"""The files of a branch, as its writable layers have them: of a live or ended instance on disk, of a snapshot in the
repository. Read by plan.py and apply.py, which need not know which.

A path is the program's, as bytes, with `/` before each name; the top is empty. A volume's files stand at its path.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ijfs.live.model.records import FilesOrigin, Volume
from ijfs.live.sandbox.volumes import OWN, is_below
from ijfs_engine import KINDS, Entry, ObjectId, Reader
from ijfs_engine.errors import StorageError, UnknownNameError

# So much of a file is read at once.
_PIECE = 4 << 20

_OVERLAY = b"trusted.overlay."


@dataclass(frozen=True, slots=True)
class BranchFile:
    """One name of a branch. `entry` is without the overlay's own attributes, and of a file on disk without content."""

    entry: Entry
    whiteout: bool = False
    """What the machine has there was deleted."""
    opaque: bool = False
    """A directory that hides all that the machine has in it."""
    copied_up: bool = False
    """It began as a file of the machine, there or elsewhere."""

    @classmethod
    def of(cls, entry: Entry) -> BranchFile:
        """What an entry of a writable layer means."""
        overlay = dict(pair for pair in entry.xattrs if pair[0].startswith(_OVERLAY))
        kept = tuple(pair for pair in entry.xattrs if not pair[0].startswith(_OVERLAY))
        return cls(
            msgspec.structs.replace(entry, xattrs=kept),
            whiteout=entry.kind == "c" and entry.rdev == 0,
            opaque=overlay.get(b"trusted.overlay.opaque") == b"y",
            copied_up=b"trusted.overlay.origin" in overlay,
        )


class BranchFiles(ABC):
    """What a program has written."""

    @abstractmethod
    def children(self, directory: bytes) -> dict[bytes, BranchFile]:
        """What is in a directory; nothing where there is none. StorageError, CorruptError."""

    @abstractmethod
    def pieces(self, path: bytes, file: BranchFile) -> Iterator[bytes]:
        """A regular file's bytes in order. StorageError, CorruptError; UnsteadyError when it is being written."""

    def at(self, path: bytes) -> BranchFile | None:
        """What is at a path."""
        above, _, name = path.rpartition(b"/")
        return self.children(above).get(name)


class UnsteadyError(StorageError):
    """A file that the program writes while it is read."""


class LayerFiles(BranchFiles):
    """The writable layers of an instance, on disk: (path inside, directory), the root's among them. The directories
    are held open: the disk that they are on need not be mounted any more."""

    def __init__(self, layers: Sequence[tuple[str, Path]]) -> None:
        pairs = [(os.fsencode(inside).rstrip(b"/"), self._held(outside)) for inside, outside in layers]
        self._layers = sorted(pairs, key=lambda pair: len(pair[0]), reverse=True)

    def _held(self, directory: Path) -> bytes:
        try:
            fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return os.fsencode(directory)
        weakref.finalize(self, os.close, fd)
        return b"/proc/self/fd/%d" % fd

    def children(self, directory: bytes) -> dict[bytes, BranchFile]:
        found = {name: BranchFile.of(entry) for name, entry in self._listed(directory)}
        for inside, _ in self._layers:
            if inside.startswith(directory + b"/"):  # on the way to a volume, whose files are in a layer of their own
                name = inside[len(directory) + 1 :].partition(b"/")[0]
                found[name] = BranchFile(Entry(name, "d", 0o755, 0, 0, 0), copied_up=True)
        return found

    def pieces(self, path: bytes, file: BranchFile) -> Iterator[bytes]:
        try:
            fd = os.open(self._outside(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise UnsteadyError(f"{os.fsdecode(path)} cannot be read: {error.strerror}") from error
        with open(fd, "rb", buffering=0) as opened:
            before = os.fstat(fd)
            left = file.entry.size
            while left > 0 and (piece := opened.read(min(left, _PIECE))):  # no more: a log may grow for ever
                left -= len(piece)
                yield piece
            after = os.fstat(fd)
        if (before.st_mtime_ns, before.st_ctime_ns, after.st_size) != (
            after.st_mtime_ns,
            after.st_ctime_ns,
            file.entry.size,
        ):
            raise UnsteadyError(f"{os.fsdecode(path)} is being written by the program")

    def _outside(self, path: bytes) -> bytes:
        inside, outside = next(pair for pair in self._layers if (path + b"/").startswith(pair[0] + b"/"))
        return outside + path[len(inside) :]

    def _listed(self, directory: bytes) -> Iterator[tuple[bytes, Entry]]:
        outside = self._outside(directory)
        try:
            with os.scandir(outside) as listing:
                names = sorted(item.name for item in listing)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise StorageError(f"{os.fsdecode(directory)} cannot be read: {error.strerror}") from error
        for name in names:
            try:
                yield name, entry_on_disk(outside + b"/" + name)
            except FileNotFoundError:  # the program has just removed it
                continue


class SnapshotFiles(BranchFiles):
    """The files in a snapshot."""

    def __init__(self, reader: Reader, root: ObjectId) -> None:
        self._reader = reader
        self._root = root

    def children(self, directory: bytes) -> dict[bytes, BranchFile]:
        try:
            content = self._reader.lookup(self._root, b"files" + directory).content
        except UnknownNameError:
            return {}
        entries = self._reader.tree(content).entries if content is not None else ()
        return {entry.name: BranchFile.of(entry) for entry in entries}

    def pieces(self, path: bytes, file: BranchFile) -> Iterator[bytes]:
        stored = self._reader.open(file.entry)
        for at in range(0, stored.size, _PIECE):
            yield stored.read(at, _PIECE)


def entry_on_disk(path: bytes) -> Entry:
    """What `lstat` and the extended attributes of a path say; of a file without its content. OSError."""
    status = os.lstat(path)
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    return Entry(
        name=os.path.basename(path),
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if kind in "fl" else 0,
        target=os.readlink(path) if kind == "l" else b"",
        rdev=status.st_rdev if kind in "cb" else 0,
        xattrs=tuple(sorted(_attributes(path))),
    )


def _attributes(path: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The extended attributes of what is at a path. One that goes between two looks (the overlay's own, while the
    program deletes a file) is none."""
    for name in os.listxattr(path, follow_symlinks=False):
        try:
            yield os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch that is compared with its machine. `ancestors`: the root trees of the snapshots it comes from; `common`
    that of the one whose program shared the folders that this one has copies of."""

    name: str
    cwd: str
    files: BranchFiles
    origin: FilesOrigin | None
    volumes: tuple[Volume, ...] = ()
    on_base: bool = False
    ancestors: tuple[ObjectId, ...] = ()
    common: ObjectId | None = None

    def is_copy(self, path: bytes) -> bool:
        """Whether the branch has a folder of the machine there as a whole, and not what it wrote over it."""
        copies = [volume.path for volume in self.volumes if volume.kind == "private"]
        return bool(copies) and is_below(Path(os.fsdecode(path) or "/"), copies)

    def since_ns(self, path: bytes) -> int:
        """Since when what the branch has at a path differs from the machine's (wall clock); 0 where it did not begin as
        the machine's file, or where that was another machine."""
        if self.origin is None or self.origin.machine != FilesOrigin.here().machine:
            return 0
        inside = Path(os.fsdecode(path))
        if is_below(inside, [volume.path for volume in self.volumes if volume.kind == "overlay"]):
            return self.origin.since_ns
        return 0 if self.on_base or is_below(inside, OWN) else self.origin.since_ns
