"""A stored directory back onto a disk, byte for byte with all its metadata: `ijfs export`, and a restored workspace.

Everything is made through the descriptor of the directory it is in and never through a symbolic link, so that a stored
tree, whoever made it, cannot write outside the place it is exported to. A file has a temporary name until it is whole:
what an export that ended early leaves under a file's own name is that file. A damaged file is left out, and named
at the end: the others are what somebody with a damaged repository is after.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ijfs_engine.errors import CorruptError, IjfsError, StorageError
from ijfs_engine.format.chunk_codec import Plain
from ijfs_engine.format.records import LEAF_SPAN, TYPE_BITS, Entry, ObjectId
from ijfs_engine.read.export_metadata import Rights, set_metadata, set_node_metadata, set_symlink_metadata
from ijfs_engine.read.inode_numbers import InodeNumbers
from ijfs_engine.read.reader import Reader
from ijfs_engine.read.small_files import SmallFiles, is_one
from ijfs_engine.read.stored_file import StoredFile
from ijfs_engine.read.writing import writing
from ijfs_engine.util.descent import Descent, descend
from ijfs_engine.util.pipeline import Pipeline

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ijfs_engine.util.progress import Progress

# Files whose writes are under way at the same time; each holds two descriptors.
_MOST_OPEN: Final = 64
# Files of one chunk that are no longer than this are fetched together, so many of a directory at a time.
_SMALL: Final = 64 << 10
_TOGETHER: Final = 256
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class Exported(NamedTuple):
    """What an export wrote: names of files, what they add up to, and the device nodes that it left out."""

    files: int
    bytes: int
    left_out: int


def export_tree(
    reader: Reader,
    tree: ObjectId | None,
    target: Path,
    *,
    top: Entry | None = None,
    privileged: bool | None = None,
    progress: Progress | None = None,
    numbers: InodeNumbers | None = None,
    leave_out: frozenset[bytes] = frozenset(),
    unseen: bool = False,
) -> Exported:
    """Write a stored directory's contents to `target`, which is an empty directory or is made here.

    `target` itself gets the metadata of `top`, the directory's own entry, if that is given.
    `privileged` sets owners, setuid and setgid bits and privileged attributes and makes device nodes, as only root can;
    without it the caller owns everything and devices are left out. By default root does and others do not, and a device
    is then a StorageError. `numbers`: the inode numbers of what is made.
    `leave_out`: paths below `target` of what is not made, a directory with all that is in it. `unseen`: nobody looks at
    `target` before this returns, and it is thrown away where it does not: small files have their own names at once, and
    the first damage ends it.
    StorageError (disk full, no permission), CorruptError (what is stored is damaged: all else is there then);
    KeyboardInterrupt passes through. All of them say what is in `target` then: whole files, but not all of them.
    """
    fd = _open_target(target)
    work = _Export(reader, fd, target, Rights.of(privileged), progress, numbers, leave_out, unseen)
    try:
        return work.run(_Directory(top, tree))
    except IjfsError as error:
        raise type(error)(f"{error}; {work.unfinished()}", hint=error.hint) from error
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted; {work.unfinished()}") from error
    finally:
        try:
            work.close()
        finally:
            os.close(fd)


def _open_target(target: Path) -> int:
    try:
        target.mkdir(exist_ok=True)
        top = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"cannot write to {target}: {error.strerror}") from error
    if os.listdir(top):
        os.close(top)
        raise IjfsError(f"{target} is not empty", hint="name a directory that is empty or does not exist")
    return top


def _remove_empty(top: int) -> None:
    """Of an export that ended before its first file: the directories with nothing in them, which it made."""
    for _, below, _, here in os.fwalk(".", topdown=False, dir_fd=top):
        for name in below:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=here)


class _Buffers(threading.local):
    """One per thread for good: to map, zero and fault in four megabytes for each leaf takes as long as to fill them."""

    def __init__(self) -> None:
        self.leaf = memoryview(bytearray(LEAF_SPAN))


_buffers = _Buffers()


class _Directory:
    """A directory that was made, and those in it. Its metadata waits until nothing is made in it any more.

    The top has an entry where the target is to get its metadata.
    """

    __slots__ = ("below", "content", "entry")

    def __init__(self, entry: Entry | None, content: ObjectId | None) -> None:
        self.entry = entry
        self.content = content
        self.below: list[_Directory] = []

    @property
    def name(self) -> bytes:
        """What it is called; nothing at the top."""
        return self.entry.name if self.entry is not None else b""


class _NewFile:
    """A file in the making, under a temporary name. It holds its directory, which the walk has left by the end."""

    def __init__(self, entry: Entry, shown: str, directory: int, temporary: bytes) -> None:
        self.entry = entry
        self.shown = shown
        self.parts: list[Future[CorruptError | None]] = []
        self._temporary = temporary
        self._directory = os.dup(directory)
        try:
            self.fd = os.open(temporary, _NEW, 0o600, dir_fd=self._directory)
        except BaseException:
            os.close(self._directory)
            raise

    def finish(self, rights: Rights) -> None:
        """Give it its metadata and its name."""
        set_metadata(self.fd, self.entry, rights)
        _check_free(self.entry.name, self._directory)
        os.rename(self._temporary, self.entry.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._temporary = b""

    def close(self) -> None:
        """Let go; what is not finished is removed."""
        if self._temporary:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._directory)
        try:
            os.close(self.fd)
        finally:
            os.close(self._directory)


class _FirstName(NamedTuple):
    """Where the first of several names of one file is."""

    entry: Entry
    directories: tuple[bytes, ...]


class _Export:
    def __init__(
        self,
        reader: Reader,
        top: int,
        target: Path,
        rights: Rights,
        progress: Progress | None,
        numbers: InodeNumbers | None,
        leave_out: frozenset[bytes],
        unseen: bool,
    ) -> None:
        self._numbers = numbers
        self._leave_out = leave_out
        self._reader = reader
        self._top = top
        self._target = target
        self._rights = rights
        self._progress = progress
        self._pipeline = Pipeline()
        self._small = SmallFiles(self._pipeline, numbers, owners=rights.owners) if unseen else None
        self._open: deque[_NewFile] = deque()
        self._links: dict[int, _FirstName] = {}
        self._temporary = b".ijfs-export-" + os.urandom(8).hex().encode()
        self._number = 0
        self._files = 0
        self._done = False
        self._damaged: list[CorruptError] = []
        self._lost: set[int] = set()
        """Entries that are the first of several names, and damaged."""
        self._left_out = 0
        self._bytes = 0

    def run(self, top: _Directory) -> Exported:
        with Descent(self._top) as walk:
            self._visit(top, walk, self._make_all, lambda directory, fd: None)
        while self._open:
            self._end_oldest()
        if self._small is not None:
            self._small.finish()
        # Once more, the deepest last: making what is inside a directory changes its time, and its mode may forbid it.
        with Descent(self._top) as walk:
            self._visit(top, walk, lambda directory, walk: None, self._set_directory)
        if top.entry is not None:
            with writing(lambda: str(self._target)):
                self._set_directory(top, self._top)
        if self._damaged:
            raise self._said()
        self._done = True
        return Exported(self._files, self._bytes, self._left_out)

    def _around_damage(self, shown: str, error: CorruptError, entry: Entry | None = None) -> None:
        """Go on without a file or directory that is damaged, or end where nobody looks at the rest. CorruptError."""
        if self._small is not None:
            raise error
        self._damaged.append(CorruptError(f"{shown}: {error}", hint=error.hint))
        if entry is not None:
            self._lost.add(id(entry))

    def _said(self) -> CorruptError:
        first, more = self._damaged[0], len(self._damaged) - 1
        return CorruptError(f"{first} (and {more:,} more are damaged)" if more else str(first), hint=first.hint)

    def unfinished(self) -> str:
        """What an export that ended early leaves."""
        there = f"{self._files:,} of its files, each of them whole, are" if self._files else "no file of it is"
        return f"the export is not complete: {there} in {self._target}"

    def close(self) -> None:
        self._pipeline.close()
        while self._open:
            self._open.popleft().close()
        if self._small is not None:
            self._small.close()
        if not self._files and not self._done:
            _remove_empty(self._top)

    def _visit(
        self,
        top: _Directory,
        walk: Descent,
        first: Callable[[_Directory, Descent], None],
        last: Callable[[_Directory, int], None],
    ) -> None:
        """Call `first` in each directory before those in it are visited, `last` when they were (not for the top)."""
        first(top, walk)
        todo = [(top, iter(top.below))]
        while todo:
            here, rest = todo[-1]
            below = next(rest, None)
            if below is not None:
                with self._writing(walk, below.name):
                    walk.enter(below.name)
                first(below, walk)
                todo.append((below, iter(below.below)))
                continue
            todo.pop()
            if todo:
                with self._writing(walk):
                    walk.leave(lambda fd, here=here: last(here, fd))  # type: ignore[misc]

    def _set_directory(self, directory: _Directory, fd: int) -> None:
        assert directory.entry is not None
        set_metadata(fd, directory.entry, self._rights)

    def _make_all(self, directory: _Directory, walk: Descent) -> None:
        """Make what is in a directory; those among it are empty yet."""
        try:
            entries = self._reader.tree(directory.content).entries if directory.content is not None else ()
        except CorruptError as error:
            self._around_damage(self._shown(walk, b""), error)
            return
        if self._leave_out:
            entries = tuple(entry for entry in entries if walk.path(entry.name) not in self._leave_out)
        for at in range(0, len(entries), _TOGETHER):
            some = entries[at : at + _TOGETHER]
            plains = self._small_files(some)
            for entry in self._made_together(some, plains, walk):
                with self._writing(walk, entry.name):
                    self._make(entry, walk, plains)
                if entry.kind == "d":
                    directory.below.append(_Directory(entry, entry.content))
            self._tell()

    def _made_together(self, entries: Sequence[Entry], plains: Mapping[bytes, Plain], walk: Descent) -> Sequence[Entry]:
        """Begin those that can be made in one call; the others, in order."""
        if self._small is None or not plains:
            return entries
        files, rest = [], []
        for entry in entries:
            plain = plains.get(entry.content or b"") if is_one(entry) else None
            if plain is not None and len(plain) == entry.size:
                files.append((entry, plain, self._inode_for(entry, walk)))
            else:
                rest.append(entry)
        self._small.add(walk.here, self._shown(walk, b""), files)
        for entry, _, _ in files:
            self._count(entry)
        return rest

    def _inode_for(self, entry: Entry, walk: Descent) -> int:
        return self._numbers.of(walk.path(entry.name)) if self._numbers is not None else 0

    def _small_files(self, entries: Sequence[Entry]) -> dict[bytes, Plain]:
        """Content → bytes of the small files among these, in few reads: one by one, a file took 0.2 ms."""
        ids = [entry.content for entry in entries if entry.kind == "f" and entry.content and entry.size <= _SMALL]
        known = zip(ids, self._reader.store.chunk_info(ids), strict=True) if len(ids) > 1 else ()
        whole = [ident for ident, info in known if info is not None and info.plain <= _SMALL]
        try:
            return dict(zip(whole, self._reader.chunks(whole), strict=True)) if whole else {}
        except CorruptError:
            return {}  # one by one: damage costs what lies in it

    @contextlib.contextmanager
    def _numbered(self, entry: Entry, walk: Descent) -> Iterator[None]:
        """What is made in it is this, with its inode number. Nothing is waited for in it: others wait for a turn."""
        if self._numbers is None:
            yield
            return
        with self._numbers.turn:
            self._numbers.wish(walk.path(entry.name))
            yield

    def _make(self, entry: Entry, walk: Descent, plains: Mapping[bytes, Plain]) -> None:
        if entry.kind == "d":
            with self._numbered(entry, walk):
                os.mkdir(entry.name, 0o700, dir_fd=walk.here)
            return
        if entry.link:
            first = self._links.setdefault(entry.link, _FirstName(entry, tuple(walk.names)))
            # What shares a number and is something else was no link of it when it was stored: it is made by itself.
            if first.entry is not entry and first.entry.inode_part == entry.inode_part:
                self._link(first, entry.name, walk)
                return
        if entry.kind == "f":
            plain = plains.get(entry.content or b"")
            if plain is not None and len(plain) == entry.size:
                self._write_small(entry, walk, plain)
            else:
                self._begin_file(entry, walk)
        elif entry.kind == "l":
            with self._numbered(entry, walk):
                os.symlink(entry.target, entry.name, dir_fd=walk.here)
            set_symlink_metadata(walk.here, entry, self._rights)
        elif entry.kind in "cb" and not self._rights.devices:
            self._left_out += 1
        else:
            with self._numbered(entry, walk):
                os.mknod(entry.name, TYPE_BITS[entry.kind] | 0o600, entry.rdev, dir_fd=walk.here)
            set_node_metadata(walk.here, entry, self._rights)

    def _link(self, first: _FirstName, name: bytes, walk: Descent) -> None:
        """One more name of a file; its first one is there when it is whole."""
        while any(file.entry is first.entry for file in self._open):
            self._end_oldest()
        if id(first.entry) in self._lost:
            self._around_damage(self._shown(walk, name), CorruptError("its bytes are damaged under another name"))
            return
        directory = descend(self._top, first.directories)
        try:
            os.link(first.entry.name, name, src_dir_fd=directory, dst_dir_fd=walk.here, follow_symlinks=False)
        finally:
            os.close(directory)
        if first.entry.kind == "f":
            self._count(first.entry)

    def _new_file(self, entry: Entry, walk: Descent) -> _NewFile:
        self._number += 1
        temporary = b"%b-%d.part" % (self._temporary, self._number)
        with self._numbered(entry, walk):
            return _NewFile(entry, self._shown(walk, entry.name), walk.here, temporary)

    def _write_small(self, entry: Entry, walk: Descent, plain: Plain) -> None:
        if self._small is not None and is_one(entry):
            self._small.write(walk.here, self._shown(walk, b""), [(entry, plain, self._inode_for(entry, walk))])
            self._count(entry)
            return
        file = self._new_file(entry, walk)
        try:
            _pwrite(file.fd, memoryview(plain), 0)
            file.finish(self._rights)
        finally:
            file.close()
        self._count(entry)

    def _begin_file(self, entry: Entry, walk: Descent) -> None:
        try:
            stored = self._reader.open(entry)
        except CorruptError as error:
            self._around_damage(self._shown(walk, entry.name), error, entry)
            return
        file = self._new_file(entry, walk)
        self._open.append(file)
        os.truncate(file.fd, stored.size)
        for offset in range(0, stored.size, LEAF_SPAN):
            file.parts.append(self._pipeline.submit(self._copy, stored, file.fd, offset))
        while len(self._open) > _MOST_OPEN:
            self._end_oldest()

    def _copy(self, stored: StoredFile, fd: int, offset: int) -> CorruptError | None:
        """One leaf's span, or what is wrong with it; what is known to be zeros stays a hole."""
        buffer = _buffers.leaf
        try:
            kept = [
                (extent.offset, buffer[extent.offset - offset :][: extent.length])
                for extent in stored.extents(offset, LEAF_SPAN)
                if not extent.zero
            ]
            stored.read_many(kept)
        except CorruptError as error:
            if self._small is not None:
                raise  # and nothing more is begun
            return error
        for at, data in kept:
            _pwrite(fd, data, at)
        return None

    def _end_oldest(self) -> None:
        file = self._open[0]
        with writing(lambda: file.shown):
            damage = next(filter(None, [part.result() for part in file.parts]), None)
            if damage is None:
                file.finish(self._rights)
        self._open.popleft().close()
        if damage is None:
            self._count(file.entry)
        else:
            self._around_damage(file.shown, damage, file.entry)
        self._tell()

    def _count(self, entry: Entry) -> None:
        self._files += 1
        self._bytes += entry.size

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress("export", self._bytes, 0)

    def _writing(self, walk: Descent, name: bytes = b"") -> contextlib.AbstractContextManager[None]:
        return writing(lambda: self._shown(walk, name))

    def _shown(self, walk: Descent, name: bytes) -> str:
        return f"{self._target}/{os.fsdecode(walk.path(name))}"


def _check_free(name: bytes, directory: int) -> None:
    """FileExistsError: where case does not count, two stored names may be one, and a rename would replace the first."""
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=directory, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
