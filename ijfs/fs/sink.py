"""The mount a keeper has for itself: directories CRIU dumps into, and one snapshot's images to restore from.

`ijfs.live` runs it inside its trio loop:

    async with image_mount(directory) as mount:
        images = mount.serve_images(reader, snapshot.root)     # criu restore -D images
        sink = mount.new_sink(arena)                           # criu dump -D sink.path
        …
        writer.add_images("images", sink.files)

While a program is frozen nothing is allocated, hashed or compressed: a write is one copy into memory of the arena that
was faulted in before. pyfuse3 knows one mount per process, so both uses share this one.

The process that serves the mount waits for itself if it touches it while the loop stands: no blocking `open`, `stat`
or `listdir` in the loop's thread, and in no thread a `subprocess` with its `cwd` in the mount (until its child has
changed there, vfork keeps the interpreter from everyone).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Protocol

import pyfuse3

from ijfs.fs.mount import mounted
from ijfs.fs.nodes import (
    CHANGING_S,
    Attributes,
    DirectoryNode,
    FileNode,
    Node,
    OpenFile,
    WritableDirectory,
    no_entry,
)
from ijfs.fs.operations import NodeOperations
from ijfs_engine.write.arena import ArenaFullError, Segments

# Numbers of nodes that live only in memory start here; those of stored trees are below (ijfs.fs.vfs).
FIRST_MEMORY_INODE = 1 << 62


class ArenaFile(Protocol):
    """A file that grows in an arena (`ijfs_engine.write.arena`)."""

    @property
    def size(self) -> int: ...
    def write(self, offset: int, data: bytes | memoryview) -> int: ...
    def truncate(self, size: int) -> None: ...
    def tail(self, want: int) -> memoryview: ...
    def advance(self, length: int) -> None: ...
    def segments(self) -> Segments: ...


class Arena(Protocol):
    """Memory faulted in beforehand, handed out to files as they grow."""

    def new_file(self) -> ArenaFile: ...


class Sink:
    """One dump: a directory in the mount, and what was written into it.

    `files` is to be read when CRIU has ended well; names in sub-directories have slashes in them. The memory belongs to
    the arena. `close` takes the directory out of the mount.
    """

    def __init__(self, path: Path, directory: SinkDirectory, parent: MemoryDirectory) -> None:
        self.path = path
        self._directory = directory
        self._parent = parent

    @property
    def files(self) -> Mapping[str, Segments]:
        """What was written, by name."""
        return {name: file.segments() for name, file in self._directory.walk()}

    @property
    def written(self) -> int:
        """Bytes in it now: for progress."""
        return sum(file.size for _, file in self._directory.walk())

    def close(self) -> None:
        """Take the directory out of the mount; `files` taken before stay valid."""
        self._parent.children.pop(os.fsencode(self.path.name), None)


class ImageMount:
    """What `image_mount` yields: the keeper's mount."""

    def __init__(self, path: Path, root: MemoryDirectory, numbers: Iterator[int]) -> None:
        self.path = path
        self._root = root
        self._numbers = numbers
        self._sinks = count(1)

    def new_sink(self, arena: Arena) -> Sink:
        """A new empty directory to dump into; its files grow in `arena`."""
        name = f"dump-{next(self._sinks)}"
        directory = SinkDirectory(self._numbers, arena)
        self._root.children[name.encode()] = directory
        return Sink(self.path / name, directory, self._root)

    def serve_images(self, directory: DirectoryNode, name: str = "images") -> Path:
        """Show `directory` (see `ijfs.fs.vfs.image_directory`) under `name`, in the place of what stood there."""
        self._root.children[os.fsencode(name)] = directory
        return self.path / name

    def withdraw_images(self, name: str = "images") -> None:
        """Show nothing under `name` any more; what is open stays open."""
        self._root.children.pop(os.fsencode(name), None)


@asynccontextmanager
async def image_mount(mountpoint: Path) -> AsyncIterator[ImageMount]:
    """The keeper's mount, served by the calling trio loop until the block ends.

    `mountpoint` is an existing empty directory. StorageError where the kernel refuses. A keeper that is killed takes
    the mount along, because it has a mount namespace of its own; elsewhere a dead mount would be left.
    """
    numbers = count(FIRST_MEMORY_INODE)
    root = MemoryDirectory(pyfuse3.ROOT_INODE)
    parent = mountpoint.parent
    operations = NodeOperations(root, statfs=lambda: os.statvfs(parent), xattrs=False)
    async with mounted(operations, mountpoint, source="ijfs-keeper", writable=True, auto_unmount=False):
        yield ImageMount(mountpoint, root, numbers)


class MemoryDirectory(DirectoryNode):
    """A directory whose entries are put there by the program."""

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.children: dict[bytes, Node] = {}
        self._made_ns = time.time_ns()

    def attributes(self) -> Attributes:
        return Attributes(
            ino=self.ino,
            mode=stat.S_IFDIR | 0o700,
            uid=os.getuid(),
            gid=os.getgid(),
            mtime_ns=self._made_ns,
            attr_timeout_s=0,
            # Not believed at all: a directory of the same name may stand for another snapshot a moment later.
            entry_timeout_s=0,
        )

    def lookup(self, name: bytes) -> Node:
        try:
            return self.children[name]
        except KeyError:
            raise no_entry(name) from None

    def names(self) -> Sequence[bytes]:
        return sorted(self.children)


class SinkDirectory(MemoryDirectory, WritableDirectory):
    """A directory CRIU writes images into."""

    def __init__(self, numbers: Iterator[int], arena: Arena) -> None:
        super().__init__(next(numbers))
        self._numbers = numbers
        self._arena = arena

    def create(self, name: bytes, mode: int) -> FileNode:
        self._refuse_existing(name)
        file = SinkFile(next(self._numbers), mode, self._arena.new_file())
        self.children[name] = file
        return file

    def mkdir(self, name: bytes, mode: int) -> DirectoryNode:
        self._refuse_existing(name)
        directory = SinkDirectory(self._numbers, self._arena)
        self.children[name] = directory
        return directory

    def unlink(self, name: bytes) -> None:
        if isinstance(self.lookup(name), DirectoryNode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        del self.children[name]

    def rmdir(self, name: bytes) -> None:
        directory = self.lookup(name)
        if not isinstance(directory, DirectoryNode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if directory.names():
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        del self.children[name]

    def rename(self, name: bytes, into: WritableDirectory, new_name: bytes) -> None:
        if not isinstance(into, SinkDirectory) or into._arena is not self._arena:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        node = self.lookup(name)
        into.children[new_name] = node
        if (into, new_name) != (self, name):
            del self.children[name]

    def walk(self, prefix: str = "") -> Iterator[tuple[str, ArenaFile]]:
        """Every file below, with its path from here."""
        for name, node in sorted(self.children.items()):
            path = prefix + os.fsdecode(name)
            if isinstance(node, SinkFile):
                yield path, node.data
            elif isinstance(node, SinkDirectory):
                yield from node.walk(path + "/")

    def _refuse_existing(self, name: bytes) -> None:
        if name in self.children:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


class SinkFile(FileNode):
    """A file being dumped."""

    def __init__(self, ino: int, mode: int, data: ArenaFile) -> None:
        self.ino = ino
        self.data = data
        self._mode = stat.S_IFREG | stat.S_IMODE(mode)
        self._made_ns = time.time_ns()

    def attributes(self) -> Attributes:
        return Attributes(
            ino=self.ino,
            mode=self._mode,
            size=self.data.size,
            uid=os.getuid(),
            gid=os.getgid(),
            mtime_ns=self._made_ns,
            attr_timeout_s=0,
            entry_timeout_s=CHANGING_S,
        )

    def open(self, *, in_bulk: bool = False) -> OpenFile:
        return OpenSinkFile(self.data)

    def truncate(self, size: int) -> None:
        self.data.truncate(size)


class OpenSinkFile(OpenFile):
    """Direct I/O: CRIU's 1 MiB splices arrive whole, where the page cache would first copy them page by page."""

    direct_io = True

    def __init__(self, data: ArenaFile) -> None:
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        """CRIU reads back little of what it writes; tests and people do."""
        parts = []
        for segment in self._data.segments():
            if offset < len(segment) and length > 0:
                part = bytes(segment[offset : offset + length])
                parts.append(part)
                length -= len(part)
            offset = max(0, offset - len(segment))
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> int:
        try:
            return self._data.write(offset, data)
        except ArenaFullError as error:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
