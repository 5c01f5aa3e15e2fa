"""Files of a running sandbox, reached from outside without a process in it. Called by ijfs.sdk.files.

The kernel resolves every path below the program's root (process/root_paths.py): a symbolic link to `/` or to `..` means
the sandbox's there, never this machine's, also when the program exchanges directories meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from ijfs.live.errors import InstanceExitedError
from ijfs.live.model.records import Process
from ijfs.live.process import procfs
from ijfs.live.process.root_paths import open_below

FileKind = Literal["file", "directory", "symlink", "other"]


@dataclass(frozen=True)
class FileInfo:
    """A file in a sandbox: its name and path, its kind, bytes, mode bits, owner, time of its last change, and where a
    symbolic link points."""

    name: str
    path: str
    kind: FileKind
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    target: str | None = None


class FileAccess:
    """The files of one running program's sandbox; a context manager. Paths are absolute ones of the sandbox; OSError
    as for any file."""

    def __init__(self, program: Process) -> None:
        """InstanceExitedError where the program has ended."""
        try:
            self._root = os.open(f"/proc/{program.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            raise InstanceExitedError("the program has ended") from None
        if not procfs.is_alive(program):
            os.close(self._root)
            raise InstanceExitedError("the program has ended")

    def __enter__(self) -> FileAccess:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        """A descriptor, as open(2) has it."""
        return open_below(self._root, path, flags, mode)

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[BinaryIO]:
        """An open regular file."""
        # Not blocking: a FIFO without a writer would hold the caller for ever. It makes no difference to a file.
        fd = self.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", path)
        with os.fdopen(fd, "rb") as file:
            yield file

    @contextlib.contextmanager
    def writing(self, path: str, *, mode: int | None = None) -> Iterator[BinaryIO]:
        """A file that has its name once it is whole, with owner and mode of the one it replaces; directories that are
        missing are made. A symbolic link stays, what it points at is written into."""
        directory, name = os.path.split(path)
        with self._descriptor(directory, os.O_PATH | os.O_DIRECTORY, make=True) as parent:
            before = _stat_at(parent, name)
            if before is not None and not stat.S_ISREG(before.st_mode):
                with os.fdopen(self.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT | os.O_NONBLOCK), "wb") as file:
                    yield file
                return
            temporary = f".{name[:200]}.{secrets.token_hex(4)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(temporary, flags, 0o666, dir_fd=parent)
            try:
                with os.fdopen(fd, "wb") as file:
                    yield file
                    _take_over(file.fileno(), before, mode)
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=parent)
                raise

    def listing(self, path: str) -> list[FileInfo]:
        """What a directory holds, by name."""
        with self._descriptor(path, os.O_RDONLY | os.O_DIRECTORY) as directory:
            names = sorted(os.listdir(directory))
            return [info for name in names if (info := _info_at(directory, name, os.path.join(path, name)))]

    def info(self, path: str) -> FileInfo:
        """One file; of a symbolic link itself, not of what it points at."""
        directory, name = os.path.split(path.rstrip("/") or "/")
        if not name:
            name, directory = ".", "/"
        with self._descriptor(directory, os.O_PATH | os.O_DIRECTORY) as parent:
            found = _info_at(parent, name, path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return found

    def make_directory(self, path: str) -> None:
        """A directory with all above it; nothing where it is there."""
        with self._descriptor(path, os.O_PATH | os.O_DIRECTORY, make=True):
            pass

    def remove(self, path: str) -> None:
        """A file, or a directory with all that is in it."""
        directory, name = os.path.split(path.rstrip("/"))
        with self._descriptor(directory, os.O_PATH | os.O_DIRECTORY) as parent:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                shutil.rmtree(name, dir_fd=parent)
            else:
                os.unlink(name, dir_fd=parent)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name; one that has that name goes."""
        (old_directory, old_name), (new_directory, new_name) = os.path.split(old), os.path.split(new)
        where = os.O_PATH | os.O_DIRECTORY
        with self._descriptor(old_directory, where) as source, self._descriptor(new_directory, where, make=True) as to:
            os.rename(old_name, new_name, src_dir_fd=source, dst_dir_fd=to)

    @contextlib.contextmanager
    def _descriptor(self, path: str, flags: int, *, make: bool = False) -> Iterator[int]:
        if make:
            self._make(path or "/")
        fd = self.open(path or "/", flags)
        try:
            yield fd
        finally:
            os.close(fd)

    def _make(self, path: str) -> None:
        try:
            os.close(self.open(path, os.O_PATH | os.O_DIRECTORY))
        except FileNotFoundError:
            above, name = os.path.split(path.rstrip("/"))
            self._make(above or "/")
            with self._descriptor(above, os.O_PATH | os.O_DIRECTORY) as parent, contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=parent)


def _stat_at(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _take_over(fd: int, before: os.stat_result | None, mode: int | None) -> None:
    if before is not None:
        os.fchown(fd, before.st_uid, before.st_gid)
        os.fchmod(fd, stat.S_IMODE(before.st_mode))
    elif mode is None:
        os.fchmod(fd, 0o644)
    if mode is not None:
        os.fchmod(fd, mode)


def _info_at(directory: int, name: str, path: str) -> FileInfo | None:
    """None where it is gone by now."""
    found = _stat_at(directory, name)
    if found is None:
        return None
    kind: FileKind = "other"
    target = None
    if stat.S_ISDIR(found.st_mode):
        kind = "directory"
    elif stat.S_ISREG(found.st_mode):
        kind = "file"
    elif stat.S_ISLNK(found.st_mode):
        kind, target = "symlink", os.readlink(name, dir_fd=directory)
    return FileInfo(
        name=os.path.basename(path.rstrip("/")) or "/",
        path=path,
        kind=kind,
        size=found.st_size,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=found.st_mtime_ns,
        target=target,
    )
