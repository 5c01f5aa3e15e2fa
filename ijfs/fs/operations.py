"""The kernel's requests answered over a tree of nodes. Thin on purpose: it maps numbers to nodes, and errors to errno.

`ijfs.fs.serve` has a `Session` call it, from several threads, for the snapshot tree and for a keeper's own mount
(`ijfs.fs.image_mount`).

A file is opened by the kernel alone where it can (what is below a number never changes, so its pages are kept): of the
three requests for a small file, open, read and release, one is left. Only a mount for CRIU wants to know of each open.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from ijfs.fs import wire
from ijfs.fs.nodes import Attributes, DirectoryNode, FileNode, Node, OpenFile, Symlink
from ijfs.fs.session import Reply
from ijfs_engine.errors import CorruptError, IjfsError, UnknownNameError

_log = logging.getLogger("ijfs.fs")

_OPEN_FILES: Final = 4096
"""Files whose leaves are known, at most; what is read again is opened again."""
_SEEK_DATA, _SEEK_HOLE = os.SEEK_DATA, os.SEEK_HOLE


def _errno_of(error: Exception) -> int:
    """What the system call returns for what a node raised."""
    if isinstance(error, UnknownNameError):
        return errno.ESTALE
    if isinstance(error, CorruptError):
        _log.warning("stored bytes are damaged: %s", error)
    elif isinstance(error, IjfsError):
        _log.warning("a read failed: %s", error)
    else:
        _log.error("a request met an unknown error", exc_info=error)
    return errno.EIO


class _Listing(NamedTuple):
    """A directory being listed, as its names were when it was opened."""

    directory: DirectoryNode
    names: Sequence[bytes]


class NodeOperations:
    """Serve `root`, whose number has to be wire.ROOT, and what is reached through it.

    `statfs` returns what df(1) shows of the filesystem underneath. With `opens`, files that are read in bulk are
    recognised when they are opened.
    """

    def __init__(self, root: DirectoryNode, *, statfs: Callable[[], os.statvfs_result], opens: bool = False) -> None:
        self._root = root
        self._statfs = statfs
        self._opens = opens
        self._lock = threading.Lock()
        self._nodes: dict[int, Node] = {}
        self._lookups: dict[int, int] = {}
        self._parents: dict[int, int] = {}
        self._files: OrderedDict[int, OpenFile] = OrderedDict()
        self._listings: dict[int, _Listing] = {}
        self._handles = itertools.count(1)
        self._handlers = {
            wire.INIT: self._init,
            wire.LOOKUP: self._lookup,
            wire.FORGET: self._forget,
            wire.BATCH_FORGET: self._forget_many,
            wire.GETATTR: self._getattr,
            wire.READLINK: self._readlink,
            wire.GETXATTR: self._getxattr,
            wire.LISTXATTR: self._listxattr,
            wire.STATFS: self._statvfs,
            wire.OPENDIR: self._opendir,
            wire.READDIRPLUS: self._readdirplus,
            wire.RELEASEDIR: self._releasedir,
            wire.OPEN: self._open,
            wire.READ: self._read,
            wire.RELEASE: self._done,
            wire.LSEEK: self._seek,
            wire.DESTROY: self._done,
            wire.INTERRUPT: self._ignored,
        }

    def handle(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply | None:
        """The reply to a request. OSError with the errno."""
        handler = self._handlers.get(request.operation)
        if handler is None:
            raise _refusal(errno.ENOSYS)
        try:
            return handler(request, body, room)
        except OSError:
            raise
        except Exception as error:
            raise _refusal(_errno_of(error)) from error

    # -- nodes and attributes

    def _init(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply:
        self._opens = self._opens or not wire.may_skip_open(body)
        return wire.agreed(body)

    def _lookup(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply:
        directory = self._directory(request.node)
        node, attributes = self._find(directory, bytes(body[:-1]))
        self._remember(directory, node)
        return wire.entry(attributes)

    def _forget(self, request: wire.Request, body: memoryview, room: bytearray) -> None:
        self._drop([(request.node, wire.NUMBER.unpack_from(body)[0])])

    def _forget_many(self, request: wire.Request, body: memoryview, room: bytearray) -> None:
        self._drop(wire.forgotten(body))

    def _drop(self, forgotten: Sequence[tuple[int, int]]) -> None:
        with self._lock:
            for number, times in forgotten:
                left = self._lookups.get(number, 0) - times
                if left > 0:
                    self._lookups[number] = left
                else:
                    self._lookups.pop(number, None)
                    self._nodes.pop(number, None)
                    self._parents.pop(number, None)
                    self._files.pop(number, None)

    def _getattr(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply:
        return wire.attr_out(self._node(request.node).attributes())

    def _readlink(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply:
        node = self._node(request.node)
        if not isinstance(node, Symlink):
            raise _refusal(errno.EINVAL)
        return node.target()

    def _getxattr(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply:
        name = bytes(body[wire.XATTR_IN.size : -1])
        value = self._node(request.node).xattrs().get(name)
        if value is None:
            raise _refusal(errno.ENODATA)
        return _sized(value, body)

    def _listxattr(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply:
        return _sized(b"".join(name + b"\0" for name in sorted(self._node(request.node).xattrs())), body)

    def _statvfs(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply:
        of = self._statfs()
        return wire.statfs(
            of.f_blocks, of.f_bfree, of.f_bavail, of.f_files, of.f_ffree, of.f_bsize, of.f_namemax, of.f_frsize
        )

    # -- directories

    def _opendir(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply:
        directory = self._directory(request.node)
        handle = next(self._handles)
        self._listings[handle] = _Listing(directory, directory.names())
        return wire.open_out(handle)

    def _readdirplus(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply:
        """Entries until the reply is full. An offset is a position in the listing this handle took when it was opened,
        so a directory that changes meanwhile neither repeats nor skips a name."""
        handle, offset, size = wire.READ_IN.unpack_from(body)
        directory, names = self._listings[handle]
        parts: list[bytes] = []
        for name, own, attributes, node in self._entries(directory, names, offset):
            offset += 1
            part = (wire.entry if own else wire.no_entry)(attributes) + wire.listed(name, attributes, offset)
            size -= len(part)
            if size < 0:
                break
            parts.append(part)
            if node is not None:
                self._remember(directory, node)
        return b"".join(parts)

    def _entries(
        self, directory: DirectoryNode, names: Sequence[bytes], start: int
    ) -> Iterator[tuple[bytes, bool, Attributes, Node | None]]:
        numbers = (directory.ino, self._parents.get(directory.ino, directory.ino))
        for position, name in enumerate((b".", b"..")):
            if position >= start:
                yield name, False, Attributes(ino=numbers[position], mode=stat.S_IFDIR), None
        for position in range(max(0, start - 2), len(names)):
            try:
                node, attributes = self._find(directory, names[position])
            except FileNotFoundError:
                # Removed since the listing was taken: as a name that leads nowhere, so that offsets count on.
                yield names[position], False, Attributes(ino=wire.ROOT, mode=stat.S_IFREG), None
                continue
            yield names[position], True, attributes, node

    def _releasedir(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply:
        self._listings.pop(wire.NUMBER.unpack_from(body)[0], None)
        return b""

    # -- files

    def _open(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply:
        if not self._opens:
            raise _refusal(errno.ENOSYS)  # the kernel asks once, and opens all others by itself
        node = self._file_node(request.node)
        direct = bool(wire.FLAGS.unpack_from(body)[0] & os.O_DIRECT)
        in_bulk = node.may_be_in_bulk and (direct or _is_criu(request.pid))
        return wire.open_out(0, wire.DIRECT_IO if in_bulk else wire.KEEP_CACHE)

    def _read(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply:
        _, offset, size = wire.READ_IN.unpack_from(body)
        file = self._files.get(request.node)
        if file is None:
            file = self._opened(request.node)
        return file.read(offset, min(size, len(room)), room)

    def _seek(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply:
        _, offset, whence = wire.SEEK_IN.unpack_from(body)
        file = self._files.get(request.node) or self._opened(request.node)
        if whence not in (_SEEK_DATA, _SEEK_HOLE):
            raise _refusal(errno.EINVAL)
        found = file.find(offset, hole=whence == _SEEK_HOLE)
        if found is None:
            raise _refusal(errno.ENXIO)
        return wire.NUMBER.pack(found)

    def _done(self, request: wire.Request, body: memoryview, room: bytearray) -> Reply:
        return b""

    def _ignored(self, request: wire.Request, body: memoryview, room: bytearray) -> None:
        """A request that is being answered is not broken off."""

    # -- helpers

    def _opened(self, number: int) -> OpenFile:
        file = self._file_node(number).open()
        with self._lock:
            self._files[number] = file
            while len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        return file

    def _find(self, directory: DirectoryNode, name: bytes) -> tuple[Node, Attributes]:
        """The node of a name: the one already known by its number, as that has its tree loaded."""
        found = directory.lookup(name)
        node = self._nodes.get(found.ino, found)
        return node, node.attributes()

    def _remember(self, parent: DirectoryNode, node: Node) -> None:
        with self._lock:
            self._nodes.setdefault(node.ino, node)
            self._parents[node.ino] = parent.ino
            self._lookups[node.ino] = self._lookups.get(node.ino, 0) + 1

    def _node(self, number: int) -> Node:
        if number == wire.ROOT:
            return self._root
        node = self._nodes.get(number)
        if node is None:
            raise _refusal(errno.ESTALE)
        return node

    def _directory(self, number: int) -> DirectoryNode:
        node = self._node(number)
        if not isinstance(node, DirectoryNode):
            raise _refusal(errno.ENOTDIR)
        return node

    def _file_node(self, number: int) -> FileNode:
        node = self._node(number)
        if not isinstance(node, FileNode):
            raise _refusal(errno.EISDIR)
        return node


def _refusal(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _sized(value: bytes, body: memoryview) -> bytes:
    """A value, or how long it is for who has no room yet."""
    room, _ = wire.XATTR_IN.unpack_from(body)
    if not room:
        return wire.XATTR_IN.pack(len(value), 0)
    if len(value) > room:
        raise _refusal(errno.ERANGE)
    return value


def _is_criu(pid: int) -> bool:
    """Whether a request comes from a CRIU, which reads a pages file once, in large pieces, and never by mmap.

    Through the page cache the same restore took 7.3 s instead of 1.0 (1 GiB). O_DIRECT says the same for any program.
    """
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            return comm.read(8).startswith(b"criu")
    except OSError:
        return False
