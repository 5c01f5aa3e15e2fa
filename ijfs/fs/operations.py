"""pyfuse3's request handlers over a tree of nodes: the only module, with `serve`, that speaks FUSE.

`ijfs.fs.serve` serves the snapshot tree with it, and the keeper's own mount (`ijfs.fs.image_mount`). Thin on purpose:
it maps inode numbers to nodes, errors to errno, and decides what runs on the event loop and what in a worker thread.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TypeVar, TypeVarTuple, Unpack, cast

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    StatvfsData,
    XAttrNameT,
)

from ijfs.fs.nodes import (
    Attributes,
    DirectoryNode,
    FileNode,
    Node,
    OpenFile,
    Symlink,
)
from ijfs_engine.errors import CorruptError, IjfsError, UnknownNameError

_log = logging.getLogger("ijfs.fs")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Enough to keep two cores busy with decompression while others wait for the disk; more only adds memory.
WORKER_THREADS = 8


@contextmanager
def _errno_for_errors() -> Iterator[None]:
    """Turn what a node raises into the errno the system call returns; anything else would end the main loop."""
    try:
        yield
    except FUSEError:
        raise
    except OSError as error:
        raise FUSEError(error.errno or errno.EIO) from error
    except UnknownNameError as error:
        raise FUSEError(errno.ESTALE) from error
    except CorruptError as error:
        _log.warning("stored bytes are damaged: %s", error)
        raise FUSEError(errno.EIO) from error
    except IjfsError as error:
        _log.warning("a read failed: %s", error)
        raise FUSEError(errno.EIO) from error
    except Exception as error:
        _log.exception("a request met an unknown error")
        raise FUSEError(errno.EIO) from error


class NodeOperations(pyfuse3.Operations):
    """Serve `root`, whose inode number has to be pyfuse3.ROOT_INODE, and what is reached through it.

    `statfs` returns what df(1) shows of the filesystem underneath.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, root: DirectoryNode, *, statfs: Callable[[], os.statvfs_result]) -> None:
        super().__init__()
        self._root = root
        self._statfs = statfs
        self._nodes: dict[int, Node] = {}
        self._lookups: dict[int, int] = {}
        self._parents: dict[int, int] = {}
        self._files: dict[int, OpenFile] = {}
        self._listings: dict[int, tuple[DirectoryNode, Sequence[bytes]]] = {}
        self._handles = count(1)
        self._threads = trio.CapacityLimiter(WORKER_THREADS)

    # -- nodes and attributes

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        with _errno_for_errors():
            directory = self._directory(parent_inode)
            node, attributes = await self._call(directory.ready, self._find, directory, name)
            self._remember(directory, node)
            return _entry(attributes)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, times in inode_list:
            left = self._lookups.get(inode, 0) - times
            if left > 0:
                self._lookups[inode] = left
            else:
                self._lookups.pop(inode, None)
                self._nodes.pop(inode, None)
                self._parents.pop(inode, None)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        with _errno_for_errors():
            node = self._node(inode)
            return _entry(await self._call(node.ready, node.attributes))

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        with _errno_for_errors():
            node = self._node(inode)
            if not isinstance(node, Symlink):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return FileNameT(await self._call(node.ready, node.target))

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        with _errno_for_errors():
            value = self._extended(inode).get(name)
            if value is None:
                raise FUSEError(pyfuse3.ENOATTR)
            return value

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        with _errno_for_errors():
            return [XAttrNameT(name) for name in sorted(self._extended(inode))]

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        with _errno_for_errors():
            return _statvfs(await trio.to_thread.run_sync(self._statfs, limiter=self._threads))

    # -- directories

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        with _errno_for_errors():
            directory = self._directory(inode)
            handle = next(self._handles)
            self._listings[handle] = (directory, await self._call(directory.ready, directory.names))
            return FileHandleT(handle)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """Entries from `start_id` on until the page is full. An offset is a position in the listing this handle took
        when it was opened, so a directory that changes meanwhile neither repeats nor skips a name."""
        with _errno_for_errors():
            directory, names = self._listings[fh]
            if start_id < 2:
                start_id = self._list_dots(directory, start_id, token)
            for position in range(start_id - 2, len(names)):
                try:
                    node, attributes = await self._call(directory.ready, self._find, directory, names[position])
                except FileNotFoundError:
                    continue  # removed since the listing was taken
                name = FileNameT(names[position])
                if not pyfuse3.readdir_reply(token, name, _entry(attributes), position + 3):
                    return
                self._remember(directory, node)

    async def releasedir(self, fh: FileHandleT) -> None:
        self._listings.pop(fh, None)

    def _list_dots(self, directory: DirectoryNode, start_id: int, token: ReaddirToken) -> int:
        """`.` and `..`, of which only the numbers are seen: the kernel does not count them as looked up."""
        numbers = (directory.ino, self._parents.get(directory.ino, directory.ino))
        for position, name in enumerate((b".", b"..")):
            entry = _entry(Attributes(ino=numbers[position], mode=stat.S_IFDIR))
            if position >= start_id:
                pyfuse3.readdir_reply(token, FileNameT(name), entry, position + 1)
        return 2

    # -- files

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        with _errno_for_errors():
            node = self._node(inode)
            if not isinstance(node, FileNode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            in_bulk = node.may_be_in_bulk and (bool(flags & os.O_DIRECT) or _is_criu(ctx.pid))
            return self._opened(await self._call(node.open_ready, _open, node, in_bulk))

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        with _errno_for_errors():
            file = self._files[fh]
            data = await self._call(file.ready(off, size), file.read, off, size)
            return cast(bytes, data)  # pyfuse3 replies from any contiguous buffer; its stub says bytes

    async def flush(self, fh: FileHandleT) -> None:
        """Nothing is held back, so there is nothing to flush: the kernel asks once and then no more."""
        raise FUSEError(errno.ENOSYS)

    async def release(self, fh: FileHandleT) -> None:
        with _errno_for_errors():
            file = self._files.pop(fh, None)
            if file is not None:
                file.close()

    # -- helpers

    async def _call(self, ready: bool, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Here if it answers at once, else in a worker thread."""
        if ready:
            return function(*args)
        return await trio.to_thread.run_sync(function, *args, limiter=self._threads)

    def _find(self, directory: DirectoryNode, name: bytes) -> tuple[Node, Attributes]:
        """The node of a name: the one already known by its number, as that has its tree loaded."""
        found = directory.lookup(name)
        node = self._nodes.get(found.ino, found)
        return node, node.attributes()

    def _remember(self, parent: DirectoryNode, node: Node) -> None:
        self._nodes.setdefault(node.ino, node)
        self._parents[node.ino] = parent.ino
        self._lookups[node.ino] = self._lookups.get(node.ino, 0) + 1

    def _node(self, inode: int) -> Node:
        if inode == pyfuse3.ROOT_INODE:
            return self._root
        node = self._nodes.get(inode)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def _directory(self, inode: int) -> DirectoryNode:
        node = self._node(inode)
        if not isinstance(node, DirectoryNode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    def _extended(self, inode: int) -> dict[bytes, bytes]:
        return dict(self._node(inode).xattrs())

    def _opened(self, file: OpenFile) -> FileInfo:
        handle = next(self._handles)
        self._files[handle] = file
        return FileInfo(fh=FileHandleT(handle), direct_io=file.direct_io, keep_cache=file.keep_cache)


def _open(file: FileNode, in_bulk: bool) -> OpenFile:
    return file.open(in_bulk=in_bulk)


def _is_criu(pid: int) -> bool:
    """Whether a request comes from a CRIU, which reads a pages file once, in large pieces, and never by mmap.

    Through the page cache the same restore took 7.3 s instead of 1.0 (1 GiB). O_DIRECT says the same for any program.
    """
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            return comm.read(8).startswith(b"criu")
    except OSError:
        return False


def _entry(attributes: Attributes) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = InodeT(attributes.ino)
    entry.st_mode = ModeT(attributes.mode)
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = attributes.rdev
    entry.st_size = attributes.size
    entry.st_blksize = 1 << 20
    entry.st_blocks = attributes.blocks
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attributes.mtime_ns
    entry.attr_timeout = attributes.attr_timeout_s
    entry.entry_timeout = attributes.entry_timeout_s
    return entry


def _statvfs(of: os.statvfs_result) -> StatvfsData:
    data = StatvfsData()
    for field in (
        "f_bsize",
        "f_frsize",
        "f_blocks",
        "f_bfree",
        "f_bavail",
        "f_files",
        "f_ffree",
        "f_favail",
        "f_namemax",
    ):
        setattr(data, field, getattr(of, field))
    return data
