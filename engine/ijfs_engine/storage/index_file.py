"""The index's file as the kernel maps it: `Index` keeps it whole enough to be looked at, and lets its pages go.

LMDB maps the index. A page that was once looked at stays with the process until the kernel is short of memory: gc of 10
million chunks would show 840 MB more, and a container's limit takes it at its word. And a look behind the end of a file
that was cut short is no error that could be caught: it ends the process.

Risk: py-lmdb does not say how long a file should be before it maps it, so the meta pages are read here by their offsets
in LMDB 0.9 (`MDB_meta` in its mdb.c). Another version of the format is left alone; a test compares what is read here
with what py-lmdb says of the same file, so that a new LMDB shows.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from ijfs_engine.storage.disk import note

_DONTNEED: Final = 4
_META: Final = struct.Struct("<16xII8x8xI")
"""LMDB's file begins with two meta pages: magic, version, (address, size of the map,) size of a page…"""
_META_LAST: Final = struct.Struct("<136xQQ")
"""…and the last page in use, and the transaction that said so."""
_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
"""Of the data format of LMDB 0.9. With another one the file is left as it is, and a cut one may end the process."""


READER_SIZE: Final = 64
"""Bytes of a reader's slot in LMDB's lock file."""
_LOCK_HEAD: Final = 4096
"""More than what stands before the slots. LMDB takes a longer file as it is, and makes more slots."""


class Meta(NamedTuple):
    """What the newer of the two meta pages says."""

    page_size: int
    last_page: int
    transaction: int


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
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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


def shortfall(file: Path) -> int:
    """Bytes that an index counts beyond its end: more than none if it was cut short. OSError."""
    with file.open("rb", buffering=0) as data:
        return max(0, _counted(os.pread(data.fileno(), 2 << 16, 0)) - os.fstat(data.fileno()).st_size)


def fill_up(file: Path) -> None:
    """Lengthen an index that was cut short to the pages it counts: LMDB then says that they are damaged. OSError."""
    missing = shortfall(file)
    if missing:
        with file.open("r+b", buffering=0) as data:
            # Takes nothing away if another process is just writing there.
            os.posix_fallocate(data.fileno(), os.fstat(data.fileno()).st_size, missing)


def newest_meta(head: bytes) -> Meta | None:
    """The newer meta page of a file that begins with these bytes; None where that cannot be told."""
    if len(head) < 4096:
        return None
    magic, version, page = _META.unpack_from(head)
    if (magic, version) != (_MAGIC, _VERSION) or not 4096 <= page <= 1 << 16 or len(head) < page + 4096:
        return None
    last_page, transaction = max((_META_LAST.unpack_from(head, at) for at in (0, page)), key=lambda meta: meta[1])
    return Meta(page, last_page, transaction)


def _counted(head: bytes) -> int:
    """Bytes that the newer meta page counts; 0 where that is not to be read."""
    meta = newest_meta(head)
    return (meta.last_page + 1) * meta.page_size if meta is not None else 0
