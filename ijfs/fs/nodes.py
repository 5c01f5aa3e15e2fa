"""What a filesystem here is made of: directories, files and links that answer for themselves.

`ijfs.fs.vfs` builds the snapshot tree from these, `ijfs.fs.image_mount` the one directory that an eager restore reads,
and `ijfs.fs.operations` serves any tree of them through FUSE. All of it is read-only: the kernel refuses changes before
they come here. Nothing here knows FUSE or the engine.

A method that refuses raises `OSError` with the errno the caller of the system call shall see. Methods may block (the
engine reads a disk); where a node can tell that it will not, it says so (`ready`), and is asked on the event loop
instead of in a worker thread, which costs about 60 µs each way.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# How long the kernel may believe an answer. A stored tree never changes, so its entries could be believed for ever;
# they are reached through a directory that changes, and that one is asked again after a second.
FOREVER_S = 86_400.0
CHANGING_S = 1.0


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) shows of a node; `mode` with the type bits, times in nanoseconds since 1970, size in bytes."""

    ino: int
    mode: int
    size: int = 0
    holes: int = 0
    """Bytes of a file that are known to be zeros without a look at them."""
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    mtime_ns: int = 0
    attr_timeout_s: float = FOREVER_S
    entry_timeout_s: float = FOREVER_S

    @property
    def blocks(self) -> int:
        """Blocks of 512 bytes, as st_blocks counts them: what a copy would need, not what the pack holds."""
        return (self.size - self.holes + 511) // 512 if stat.S_ISREG(self.mode) else 0


class OpenFile(ABC):
    """An open file: what reads on one file descriptor go to."""

    direct_io = False
    """The kernel passes requests through as they come (up to 1 MiB) and keeps no pages; MAP_SHARED gives ENODEV."""
    keep_cache = False
    """Pages the kernel has cached at an earlier open stay valid: right for what never changes."""

    def ready(self, offset: int, length: int) -> bool:
        """Whether a read of this range will not wait for a disk or a decompressor."""
        return True

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Up to `length` bytes from `offset`; fewer only at the end of the file. EIO where stored bytes are bad."""

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """The last descriptor is gone."""


class Node(ABC):
    """Anything that has an inode number."""

    ino: int

    @property
    def ready(self) -> bool:
        """Whether `attributes`, `lookup`, `names` and `target` will not wait for a disk."""
        return True

    @abstractmethod
    def attributes(self) -> Attributes:
        """What stat(2) shows."""

    def xattrs(self) -> Mapping[bytes, bytes]:
        """Extended attributes by name."""
        return {}


class DirectoryNode(Node):
    """A node with names in it."""

    @abstractmethod
    def lookup(self, name: bytes) -> Node:
        """The node of that name; ENOENT."""

    @abstractmethod
    def names(self) -> Sequence[bytes]:
        """All names, in an order that stays the same while nothing is added or removed."""


class FileNode(Node):
    """A node with bytes in it."""

    @property
    def open_ready(self) -> bool:
        """Whether `open` will not wait for a disk."""
        return True

    @property
    def may_be_in_bulk(self) -> bool:
        """Whether `in_bulk` makes a difference: to find out who reads takes 45 µs."""
        return False

    @abstractmethod
    def open(self, *, in_bulk: bool = False) -> OpenFile:
        """Open it. `in_bulk`: the reader takes all of it once in large reads, so that a page cache only costs."""


class Symlink(Node):
    """A node that names another path."""

    @abstractmethod
    def target(self) -> bytes:
        """The path it names."""


class Special(Node):
    """A fifo, socket or device node: only its attributes are served, the kernel does the rest."""


def no_entry(name: bytes) -> OSError:
    """The answer to a name that is not there."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(name))
