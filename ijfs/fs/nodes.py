"""What a filesystem here is made of: directories, files and links that answer for themselves.

`ijfs.fs.vfs` builds the snapshot tree from these, `ijfs.fs.image_mount` the one directory that an eager restore reads,
and `ijfs.fs.operations` serves any tree of them through FUSE. All of it is read-only: the kernel refuses changes before
they come here. Nothing here knows FUSE or the engine.

A method that refuses raises `OSError` with the errno the caller of the system call shall see. Methods may block (the
engine reads a disk), and are called from several threads.
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
    """A file's bytes, for all who read it."""

    @abstractmethod
    def read(self, offset: int, length: int, room: bytearray) -> bytes | bytearray | memoryview:
        """Up to `length` bytes from `offset`; fewer only at the end of the file. They may be put together in `room`,
        which has at least `length` bytes and is the caller's again with its next read. EIO where stored bytes are bad.
        """

    @abstractmethod
    def find(self, offset: int, *, hole: bool) -> int | None:
        """Where the next hole or the next bytes begin from `offset` on; the end of a file is a hole. None for none."""


class Node(ABC):
    """Anything that has an inode number."""

    ino: int

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
    def may_be_in_bulk(self) -> bool:
        """Whether some read all of it once in large reads, so that a page cache only costs: to find out who reads takes
        45 µs."""
        return False

    @abstractmethod
    def open(self) -> OpenFile:
        """Its bytes."""


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
