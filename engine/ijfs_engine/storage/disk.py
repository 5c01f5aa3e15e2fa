"""The store's one seam to the filesystem: every write, fsync, truncate, rename and unlink it does goes through here.

Called by pack, journal, index, locks, gc and repository. A test sets `observer` to kill the process at any step or to
remember what was not yet synced; the code above stays the same. Reads do not pass here: they change nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import lmdb

from ijfs_engine.errors import HINTS, NO_THREAD, REFUSALS, THREADS_HINT, CorruptError, StorageError


class Step(NamedTuple):
    """A change that is about to be made.

    `op` is create, write, fsync, fsync_dir, truncate, allocate, rename, exchange, unlink or commit."""

    op: str
    path: str
    fd: int = -1
    offset: int = 0
    data: memoryview | None = None


observer: Callable[[Step], None] | None = None
"""Called before each step. Only tests set it."""

NO_LINKS: Final = (
    "move it out of the repository, and put back what was there, or let `ijfs fsck --repair` make it anew; a bind "
    "mount may stand there, a link may not"
)
"""What to do about what is no regular file, or no directory, in a repository: nothing is lost by it yet."""
_KINDS: Final = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

FULL_HINTS: Final = (HINTS[errno.ENOSPC], HINTS[errno.EDQUOT])
"""What is advised on a full disk."""


def note(op: str, path: str | Path, fd: int = -1, offset: int = 0, data: memoryview | None = None) -> None:
    """Tell the observer, if there is one."""
    if observer is not None:
        observer(Step(op, os.fspath(path), fd, offset, data))


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn the system's and LMDB's errors into StorageError("<what>: <reason>") with a hint, and those of Python where
    memory or threads are short."""
    try:
        yield
    except MemoryError as error:
        raise StorageError.short_of(what, os.strerror(errno.ENOMEM), HINTS[errno.ENOMEM]) from error
    except RuntimeError as error:
        if NO_THREAD not in str(error):
            raise
        raise StorageError.short_of(what, str(error), THREADS_HINT) from error
    except OSError as error:
        raise StorageError.of(what, error) from error
    except lmdb.Error as error:
        for code in REFUSALS:
            if os.strerror(code) in str(error):
                raise StorageError.short_of(what, str(error), HINTS.get(code)) from error
        hint = "the index may be damaged: `ijfs fsck --repair`"
        raise StorageError(f"{what}: {error}", hint=hint) from error


def is_full(error: BaseException | None) -> bool:
    """Whether a disk without room (or an exhausted quota) is what an error, or one that it was raised from, tells."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


@contextlib.contextmanager
def if_writable() -> Iterator[None]:
    """Do without what the block wanted to write where the repository can only be read. Other errors pass through."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise


def create(path: Path, flags: int = 0, mode: int = 0o600) -> int:
    """Create a file that must not exist; its descriptor (read and write). FileExistsError passes through."""
    note("create", path)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | flags, mode)


def open_plain(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """The descriptor of a regular file: never through a symbolic link, and never one that waits, as a pipe's would.

    CorruptError for anything else of that name; OSError."""
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _no_plain_file(path) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _no_plain_file(path)
    return fd


def _no_plain_file(path: str | Path) -> CorruptError:
    return CorruptError(f"{path} is {_what(os.lstat(path).st_mode)}, no regular file", hint=NO_LINKS)


def read_plain(path: Path) -> BinaryIO:
    """A regular file, open for reading, as `open_plain` opens it."""
    return open(path, "rb", opener=open_plain)


def check_plain(*files: Path) -> None:
    """That each is a regular file or not there. StorageError."""
    _check_modes(files, stat.S_ISREG, "regular file")


def check_directories(*directories: Path) -> None:
    """That each is a directory, and no link to one, or not there. StorageError."""
    _check_modes(directories, stat.S_ISDIR, "directory")


def _check_modes(paths: Iterable[Path], fits: Callable[[int], bool], wanted: str) -> None:
    for path in paths:
        # What cannot even be looked at cannot be opened either, and whoever tries says so.
        with contextlib.suppress(OSError):
            mode = os.lstat(path).st_mode
            if not fits(mode):
                raise StorageError(f"{path} is {_what(mode)}, no {wanted}", hint=NO_LINKS)


def _what(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "a device")


def write(fd: int, path: Path, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    note("write", path, fd, offset, view)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def fsync(fd: int, path: Path) -> None:
    """Wait until the file's bytes and size are durable."""
    note("fsync", path, fd)
    os.fdatasync(fd)


def truncate(fd: int, path: Path, size: int) -> None:
    """Cut a file to `size` bytes."""
    note("truncate", path, fd, size)
    os.ftruncate(fd, size)


def allocate(fd: int, path: Path, size: int) -> None:
    """Have the disk promise room for a file's first `size` bytes, and lengthen it to them. What is in it stays.

    Where the filesystem cannot, the C library writes zeros beyond the end: nobody else may write there meanwhile."""
    note("allocate", path, fd, size)
    os.posix_fallocate(fd, 0, size)


def fsync_dir(path: Path) -> None:
    """Wait until the names in a directory are durable."""
    note("fsync_dir", path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def unlink(path: Path) -> None:
    """Remove a name; that it is gone already is fine."""
    note("unlink", path)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def exchange(one: Path, other: Path) -> None:
    """Swap two names of one filesystem in one step; in two, past a moment without `other`, where the kernel or the
    filesystem has no such step. OSError."""
    import ctypes

    note("exchange", other)
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return
    aside = one.with_name(f"{one.name}.old")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put a small file in place, whole or not at all, durably."""
    put_in_place(write_beside(path, data, mode), path)


def write_beside(path: Path, data: bytes, mode: int = 0o600) -> Path:
    """The first half of `write_file`: all but the name; where the bytes are."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    unlink(temporary)
    fd = create(temporary, mode=mode)
    try:
        write(fd, temporary, data, 0)
        fsync(fd, temporary)
    except BaseException:
        with contextlib.suppress(OSError):
            unlink(temporary)
        raise
    finally:
        os.close(fd)
    return temporary


def put_in_place(temporary: Path, path: Path) -> None:
    """The second half of `write_file`."""
    note("rename", path)
    temporary.rename(path)
    fsync_dir(path.parent)


def punch(fd: int, path: Path, offset: int, length: int) -> None:
    """Give a stretch of a file back to the disk: it reads as zeros then. Where the filesystem cannot, zeros are
    written. OSError."""
    import ctypes

    note("punch", path, fd, offset)
    keep_size, hole = 1, 2
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if fallocate(fd, keep_size | hole, offset, length):
        os.pwrite(fd, bytes(length), offset)
