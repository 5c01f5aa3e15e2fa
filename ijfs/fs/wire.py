"""What the kernel and a filesystem in user space say to one another through /dev/fuse: numbers, layouts, replies.

After linux/fuse.h, whose layouts are the kernel's promise for ever; of protocol 7.31 (Linux 5.4) what a filesystem
that is only read needs. `ijfs.fs.operations` reads requests and makes replies with it, `ijfs.fs.session` moves them.
"""

from __future__ import annotations

import stat
import struct
from typing import Final, NamedTuple

from ijfs.fs.nodes import Attributes

VERSION: Final = (7, 31)
ROOT: Final = 1
"""The number of a mount's root."""
MAX_READ: Final = 1 << 20
"""Bytes of a read or a reply: 256 pages are what the kernel sends at most."""
REQUEST_ROOM: Final = 128 << 10
"""Bytes for a request. No request of a filesystem that is only read is longer than a name and a few numbers."""
_PAGE: Final = 4096
_MAX_WRITE: Final = 64 << 10

# Operations.
LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 5, 14, 15, 17, 18
GETXATTR, LISTXATTR, INIT, OPENDIR, RELEASEDIR = 22, 23, 26, 27, 29
INTERRUPT, DESTROY, BATCH_FORGET, READDIRPLUS, LSEEK = 36, 38, 42, 44, 46

# What is agreed on at the start.
_ASYNC_READ, _DO_READDIRPLUS, _ASYNC_DIO, _NO_OPEN, _PARALLEL_DIROPS, _MAX_PAGES = (
    1 << bit for bit in (0, 13, 15, 17, 18, 22)
)
_WANTED: Final = _ASYNC_READ | _DO_READDIRPLUS | _ASYNC_DIO | _NO_OPEN | _PARALLEL_DIROPS | _MAX_PAGES
_BACKGROUND: Final = 16
"""Reads ahead that the kernel has under way at a time."""

DIRECT_IO: Final = 1
KEEP_CACHE: Final = 2
"""Flags of an open file."""

_HEADER: Final = struct.Struct("<IIQQIIIHH")
HEADER_SIZE: Final = _HEADER.size
REPLY: Final = struct.Struct("<IiQ")
"""Head of a reply: its length, minus an errno, the request's number."""
_INIT_IN: Final = struct.Struct("<IIII")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHI28x")
_ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY: Final = struct.Struct("<QQQQII")
_ATTR_OUT: Final = struct.Struct("<QII")
_OPEN_OUT: Final = struct.Struct("<QII")
_STATFS: Final = struct.Struct("<QQQQQIII28x")
_DIRENT: Final = struct.Struct("<QQII")
_FORGETS: Final = struct.Struct("<II")
FORGET_ONE: Final = struct.Struct("<QQ")
NUMBER: Final = struct.Struct("<Q")
READ_IN: Final = struct.Struct("<QQI")
"""File, offset, size: of a read, of files and directories alike."""
SEEK_IN: Final = struct.Struct("<QQI")
"""File, offset, whence."""
XATTR_IN: Final = struct.Struct("<II")
"""Bytes that the asker has room for; 0: how many are there?"""
FLAGS: Final = struct.Struct("<I")
"""Flags of an open."""

_BILLION: Final = 1_000_000_000


class Request(NamedTuple):
    """The head of a request."""

    operation: int
    unique: int
    """Its number, for the reply."""
    node: int
    pid: int

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Request:
        _, operation, unique, node, _, _, pid, _, _ = _HEADER.unpack_from(data)
        return cls(operation, unique, node, pid)


def agreed(body: bytes | memoryview) -> bytes:
    """The answer to the kernel's first request."""
    major, _, ahead, offered = _INIT_IN.unpack_from(body)
    if major > VERSION[0]:
        return _INIT_OUT.pack(*VERSION, *[0] * 9)  # the kernel asks again
    pages = MAX_READ // _PAGE
    return _INIT_OUT.pack(
        *VERSION, ahead, offered & _WANTED, _BACKGROUND, _BACKGROUND * 3 // 4, _MAX_WRITE, 1, pages, 0, 0
    )


def may_skip_open(body: bytes | memoryview) -> bool:
    """Whether the kernel offers to open files by itself."""
    return bool(_INIT_IN.unpack_from(body)[3] & _NO_OPEN)


def attributes(of: Attributes) -> bytes:
    """struct fuse_attr."""
    seconds, ns = divmod(of.mtime_ns, _BILLION)
    seconds &= (1 << 64) - 1  # before 1970
    major, minor = of.rdev >> 8 & 0xFFF, (of.rdev & 0xFF) | (of.rdev >> 12 & 0xFFF00)
    rdev = (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
    return _ATTR.pack(
        of.ino, of.size, of.blocks, seconds, seconds, seconds, ns, ns, ns,
        of.mode, of.nlink, of.uid, of.gid, rdev, MAX_READ, 0,
    )  # fmt: skip


def _valid(seconds: float) -> tuple[int, int]:
    return int(seconds), int(seconds % 1 * _BILLION)


def entry(of: Attributes) -> bytes:
    """struct fuse_entry_out: what a name leads to."""
    (name_s, name_ns), (attr_s, attr_ns) = _valid(of.entry_timeout_s), _valid(of.attr_timeout_s)
    return _ENTRY.pack(of.ino, 0, name_s, attr_s, name_ns, attr_ns) + attributes(of)


def no_entry(of: Attributes) -> bytes:
    """The same for `.` and `..`, which the kernel does not count as looked up."""
    return _ENTRY.pack(0, 0, 0, 0, 0, 0) + attributes(of)


def attr_out(of: Attributes) -> bytes:
    """struct fuse_attr_out."""
    return _ATTR_OUT.pack(*_valid(of.attr_timeout_s), 0) + attributes(of)


def open_out(handle: int, flags: int = 0) -> bytes:
    """struct fuse_open_out."""
    return _OPEN_OUT.pack(handle, flags, 0)


def listed(name: bytes, of: Attributes, offset: int) -> bytes:
    """struct fuse_dirent: a name in a directory; `offset` is where the next one begins."""
    head = _DIRENT.pack(of.ino, offset, len(name), stat.S_IFMT(of.mode) >> 12)
    return head + name + bytes(-len(name) % 8)


def statfs(
    blocks: int, free: int, available: int, files: int, files_free: int, size: int, name: int, unit: int
) -> bytes:
    """struct fuse_statfs_out."""
    return _STATFS.pack(blocks, free, available, files, files_free, size, name, unit)


def forgotten(body: memoryview) -> list[tuple[int, int]]:
    """(node, times) of a batch."""
    count, _ = _FORGETS.unpack_from(body)
    return [FORGET_ONE.unpack_from(body, _FORGETS.size + FORGET_ONE.size * at) for at in range(count)]
