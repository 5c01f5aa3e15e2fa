"""A stored directory back onto a disk, byte for byte with all its metadata: `ijfs export`, and a restored workspace.

Everything is made through the descriptor of the directory it is in and never through a symbolic link, so that a stored
tree cannot write outside the place it is exported to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ijfs_engine.errors import CorruptError, IjfsError, StorageError
from ijfs_engine.format.chunk_codec import Plain
from ijfs_engine.format.records import LEAF_SPAN, Entry, ObjectId
from ijfs_engine.read.reader import Reader
from ijfs_engine.read.stored_file import StoredFile
from ijfs_engine.util.pipeline import Pipeline

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ijfs_engine.util.progress import Progress

# Files whose writes are under way at the same time; each holds a descriptor.
_MOST_OPEN: Final = 64
# Files of one chunk that are no longer than this are fetched together, so many of a directory at a time.
_SMALL: Final = 64 << 10
_TOGETHER: Final = 256
_NODE_KINDS: Final = {"p": stat.S_IFIFO, "s": stat.S_IFSOCK, "c": stat.S_IFCHR, "b": stat.S_IFBLK}


def export_tree(reader: Reader, tree: ObjectId, target: Path, *, progress: Progress | None = None) -> None:
    """Write a stored directory's contents to `target`, which is an empty directory or is made here.

    Owners, devices and privileged attributes need root; without it, StorageError names the first that failed.
    StorageError (disk full, no permission), CorruptError (what is stored is damaged; `target` is then incomplete).
    """
    try:
        target.mkdir(exist_ok=True)
        if any(target.iterdir()):
            raise IjfsError(f"{target} is not empty", hint="name a directory that is empty or does not exist")
    except OSError as error:
        raise StorageError(f"cannot write to {target}: {error.strerror}") from error
    work = _Export(reader, progress)
    try:
        work.run(tree, target)
    finally:
        work.close()


class _Buffers(threading.local):
    """One per thread for good: to map, zero and fault in four megabytes for each leaf takes as long as to fill them."""

    def __init__(self) -> None:
        self.leaf = memoryview(bytearray(LEAF_SPAN))


_buffers = _Buffers()


class _Finished(NamedTuple):
    """A directory whose own metadata waits until nothing is made in it any more."""

    entry: Entry
    path: bytes


class _OpenFile:
    """A file whose bytes are being written by several threads."""

    def __init__(self, entry: Entry, path: bytes, fd: int) -> None:
        self.entry = entry
        self.path = path
        self.fd = fd
        self.parts: list[Future[None]] = []


class _Export:
    def __init__(self, reader: Reader, progress: Progress | None) -> None:
        self._reader = reader
        self._progress = progress
        self._pipeline = Pipeline()
        self._open: deque[_OpenFile] = deque()
        self._links: dict[int, bytes] = {}
        self._done = 0

    def run(self, tree: ObjectId, target: Path) -> None:
        finished: list[_Finished] = []
        todo: list[tuple[ObjectId | None, bytes]] = [(tree, os.fsencode(target))]
        while todo:
            here, path = todo.pop()
            for made in self._make_all(self._reader.tree(here).entries if here is not None else (), path):
                finished.append(made)
                todo.append((made.entry.content, made.path))
        while self._open:
            self._end_oldest()
        # The deepest first: making what is inside a directory changes its time, and its mode may forbid it.
        for entry, path in reversed(finished):
            with _writing(path):
                _set_metadata(path, entry)

    def close(self) -> None:
        self._pipeline.close()
        for file in self._open:
            os.close(file.fd)
        self._open.clear()

    def _make_all(self, entries: Sequence[Entry], path: bytes) -> Iterator[_Finished]:
        """Make what is in a directory; the directories among it, which are empty yet."""
        for at in range(0, len(entries), _TOGETHER):
            some = entries[at : at + _TOGETHER]
            plains = self._small_files(some)
            for entry in some:
                below = path + b"/" + entry.name
                with _writing(below):
                    self._make(entry, below, plains)
                if entry.kind == "d":
                    yield _Finished(entry, below)
            self._tell()

    def _small_files(self, entries: Sequence[Entry]) -> dict[bytes, Plain]:
        """Content → bytes of the small files among these, in few reads: one by one, a file took 0.2 ms."""
        ids = [entry.content for entry in entries if entry.kind == "f" and entry.content and entry.size <= _SMALL]
        known = zip(ids, self._reader.store.chunk_info(ids), strict=True) if len(ids) > 1 else ()
        whole = [ident for ident, info in known if info is not None and info.plain <= _SMALL]
        return dict(zip(whole, self._reader.chunks(whole), strict=True)) if whole else {}

    def _make(self, entry: Entry, path: bytes, plains: Mapping[bytes, Plain]) -> None:
        if entry.link and entry.link in self._links:
            os.link(self._links[entry.link], path, follow_symlinks=False)
            return
        if entry.link:
            self._links[entry.link] = path
        if entry.kind == "d":
            os.mkdir(path, 0o700)
        elif entry.kind == "f":
            plain = plains.get(entry.content or b"")
            if plain is not None and len(plain) == entry.size:
                self._write_small(entry, path, plain)
            else:
                self._begin_file(entry, path)
        elif entry.kind == "l":
            os.symlink(entry.target, path)
            _set_metadata(path, entry)
        else:
            os.mknod(path, _NODE_KINDS[entry.kind] | 0o600, entry.rdev)
            _set_metadata(path, entry)

    def _write_small(self, entry: Entry, path: bytes, plain: Plain) -> None:
        fd = _create(path)
        try:
            _pwrite(fd, memoryview(plain), 0)
            _set_metadata(fd, entry)
        finally:
            os.close(fd)
        self._done += entry.size

    def _begin_file(self, entry: Entry, path: bytes) -> None:
        stored = self._reader.open(entry)
        fd = _create(path)
        file = _OpenFile(entry, path, fd)
        self._open.append(file)
        os.truncate(fd, stored.size)
        for offset in range(0, stored.size, LEAF_SPAN):
            file.parts.append(self._pipeline.submit(self._copy, stored, fd, offset))
        while len(self._open) > _MOST_OPEN:
            self._end_oldest()

    def _copy(self, stored: StoredFile, fd: int, offset: int) -> None:
        """One leaf's span; what is known to be zeros stays a hole."""
        buffer = _buffers.leaf
        kept = [
            (extent.offset, buffer[extent.offset - offset :][: extent.length])
            for extent in stored.extents(offset, LEAF_SPAN)
            if not extent.zero
        ]
        stored.read_many(kept)
        for at, data in kept:
            _pwrite(fd, data, at)

    def _end_oldest(self) -> None:
        file = self._open[0]
        with _writing(file.path):
            for part in file.parts:
                part.result()
            _set_metadata(file.fd, file.entry)
            os.close(file.fd)
        self._open.popleft()
        self._done += file.entry.size
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress("export", self._done, 0)


def _create(path: bytes) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _set_metadata(where: bytes | int, entry: Entry) -> None:
    """Owner, attributes, mode, times, in the order in which none undoes another (a chown clears setuid bits).

    Without root, owners and privileged attributes are not set, and no setuid or setgid bit: the caller owns the files.
    """
    follow = isinstance(where, int)
    root = os.geteuid() == 0
    if root:
        os.chown(where, entry.uid, entry.gid, follow_symlinks=follow)
    for name, value in entry.xattrs:
        if root or name.startswith(b"user."):
            os.setxattr(where, name, value, follow_symlinks=follow)
    if entry.kind != "l":
        os.chmod(where, entry.mode if root else entry.mode & 0o1777)
    os.utime(where, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=follow)


@contextlib.contextmanager
def _writing(path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name = os.fsdecode(path)
        if error.errno == errno.EEXIST:
            raise CorruptError(f"the stored tree has '{name}' twice") from error
        raise StorageError(f"cannot write {name}: {error.strerror}") from error
