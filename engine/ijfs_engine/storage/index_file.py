"""The index's file: what its meta pages say, and letting go of pages that the kernel mapped.

LMDB maps the index. A page that was once looked at stays with the process until the kernel is short of memory: gc of 10
million chunks would show 840 MB more, and a container's limit takes it at its word. And a look behind the end of a file
that was cut short is no error that could be caught: it ends the process.

Risk: py-lmdb does not say how long a file should be before it maps it, so the meta pages are read here by their offsets
in LMDB 0.9 (`MDB_meta` in its mdb.c). A test compares them with what py-lmdb says of the same file, so that
a new LMDB shows.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from ijfs_engine.storage.disk import note, open_plain

_DONTNEED: Final = 4
_PAGE_HEAD: Final = struct.Struct("<Q2xH4x")
"""A page's number and flags."""
_META: Final = struct.Struct("<16xII8xQ")
"""LMDB's file begins with two meta pages: magic, version, (address,) size of the map…"""
_TREE: Final = struct.Struct("<IHHQQQQQ")
"""…then two trees: (of the first) size of a page, flags, depth, pages of branches, leaves, long values, rows, root…"""
_TREES_AT: Final = 40
_LAST: Final = struct.Struct("<136xQQ")
"""…and the last page in use, and the transaction that said so."""
_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
"""Of the data format of LMDB 0.9."""
_META_PAGE: Final = 8
_MOST: Final = 1 << 46
"""Bytes that a process has addresses for. LMDB would be told that memory is short, which is no damage otherwise."""
_NO_PAGE: Final = (1 << 64) - 1
_NUMBER_KEYS: Final = 8
"""Flag of a tree whose keys are numbers: the list of free pages."""


class Tree(NamedTuple):
    """A B+tree of LMDB; `root` is None where it has no rows."""

    depth: int
    branch_pages: int
    leaf_pages: int
    long_pages: int
    entries: int
    root: int | None
    flags: int

    @classmethod
    def parse(cls, data: bytes) -> Tree | None:
        """From its 48 bytes, None for anything else."""
        if len(data) != _TREE.size:
            return None
        _, flags, depth, branches, leaves, long, entries, root = _TREE.unpack(data)
        return cls(depth, branches, leaves, long, entries, root if root != _NO_PAGE else None, flags)


READER_SIZE: Final = 64
"""Bytes of a reader's slot in LMDB's lock file."""
_LOCK_HEAD: Final = 4096
"""More than what stands before the slots. LMDB takes a longer file as it is, and makes more slots."""


class Meta(NamedTuple):
    """What a meta page says."""

    page_size: int
    last_page: int
    transaction: int
    free: Tree
    main: Tree


def release_pages(file: Path) -> None:
    """Drop the mappings' pages of a file that this process maps for reading only; they stay in the page cache.

    Whoever reads them again, in any thread and at any time, faults them in again. OSError when the file is gone.
    """
    inode = str(file.stat().st_ino)
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if fields[4] == inode and fields[1] == "r--s" and os.path.basename(fields[-1]) == file.name:
            start, end = (int(part, 16) for part in fields[0].split("-"))
            _madvise()(start, end - start, _DONTNEED)


def allocate_mapped(file: Path, readers: int) -> None:
    """Make LMDB's lock file, or what there is of it, take up all its room: `readers` is in bytes. OSError.

    By fallocate(2) alone: the C library's would write zeros where the filesystem has none, beside who uses the map.
    """
    fd = open_plain(file, os.O_RDWR | os.O_CREAT)
    try:
        status = os.fstat(fd)
        if status.st_size and status.st_blocks * 512 >= status.st_size:
            return
        note("allocate", file, fd)
        _fallocate(fd, status.st_size or _LOCK_HEAD + readers)
    finally:
        os.close(fd)


def _fallocate(fd: int, size: int) -> None:
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if function(fd, 0, 0, size) and (code := ctypes.get_errno()) not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(code, os.strerror(code))


@cache
def _madvise() -> Callable[[int, int, int], int]:
    """The C library's; loaded late, because a short command does not look at much of an index."""
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def newest_meta(head: bytes) -> Meta | None:
    """The newer meta page of a file that begins with these bytes; None where that cannot be told."""
    return max(_metas(head), key=lambda meta: meta.transaction, default=None)


def meta_of(head: bytes, transaction: int) -> Meta | None:
    """The meta page that a transaction wrote. A reader's is not the newest while a commit waits for the disk with that:
    LMDB tells readers of it when the disk has it."""
    return next((meta for meta in _metas(head) if meta.transaction == transaction), None)


def _metas(head: bytes) -> tuple[Meta, ...]:
    """Both meta pages, or none."""
    first = _meta(head, 0)
    second = _meta(head, first.page_size) if first is not None else None
    if first is None or second is None or first.page_size != second.page_size:
        return ()
    return first, second


def doubt(head: bytes) -> str | None:
    """What cannot be about the two meta pages, in words; None if all is as LMDB leaves it.

    LMDB writes the pages in turn and takes the one of the later transaction: a flipped bit there has yesterday's state
    come back. It never writes them so that this says anything.
    """
    first = _meta(head, 0)
    second = _meta(head, first.page_size) if first is not None else None
    if first is None or second is None or first.page_size != second.page_size:
        return "its meta pages are damaged"
    older, newer = sorted((first, second), key=lambda meta: meta.transaction)
    if older.transaction or newer.transaction:
        in_turn = first.transaction % 2 == 0 and second.transaction % 2 == 1
        if not in_turn or newer.transaction != older.transaction + 1:
            return "its meta pages are not of two transactions that follow one another"
    if newer.last_page * newer.page_size > _MOST:
        return "it cannot be as long as it says"
    if newer.last_page < older.last_page:
        return "it has become shorter"
    for tree, flags in ((newer.free, _NUMBER_KEYS), (newer.main, 0)):
        if tree.flags != flags or (tree.root is not None and not 2 <= tree.root <= newer.last_page):
            return "its meta pages lead nowhere"
    return None


def _meta(head: bytes, at: int) -> Meta | None:
    page = head[at : at + 4096]
    if len(page) < 4096:
        return None
    number, flags = _PAGE_HEAD.unpack_from(page)
    magic, version, _ = _META.unpack_from(page)
    size = _TREE.unpack_from(page, _TREES_AT)[0]
    if (magic, version, flags) != (_MAGIC, _VERSION, _META_PAGE) or not 4096 <= size <= 1 << 16 or size & (size - 1):
        return None
    if number * size != at:
        return None
    free, main = (Tree.parse(page[start : start + _TREE.size]) for start in (_TREES_AT, _TREES_AT + _TREE.size))
    assert free is not None
    assert main is not None
    last_page, transaction = _LAST.unpack_from(page)
    return Meta(size, last_page, transaction, free, main)
