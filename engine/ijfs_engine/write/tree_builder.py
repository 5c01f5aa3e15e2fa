"""Directories on their way into a snapshot: entries as they become known, made into Tree objects at the commit.

Also the other way in: what `lstat` and the extended attributes of a directory on disk say. snapshot_writer.py calls
it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ijfs_engine.errors import IjfsError, StorageError
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.records import KINDS, Entry, EntryKind, ObjectId, Tree, encode_tree
from ijfs_engine.storage.session import Session
from ijfs_engine.util import inode_flags
from ijfs_engine.util.descent import Descent, by_descriptor


class Attrs(NamedTuple):
    """The metadata of a file or directory; the defaults are for what was never on a disk."""

    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


DIRECTORY: Final = Attrs(mode=0o755)


class TreeDirectory:
    """A directory that is being put together."""

    def __init__(self, attrs: Attrs = DIRECTORY) -> None:
        self.attrs = attrs
        self.children: dict[bytes, TreeDirectory | Entry] = {}

    def descend(self, parts: Sequence[bytes]) -> TreeDirectory:
        """The directory below, made where there is none. IjfsError if something else stands in the way."""
        here = self
        for part in parts:
            below = here.children.setdefault(part, TreeDirectory())
            if not isinstance(below, TreeDirectory):
                raise IjfsError(f"'{os.fsdecode(part)}' was added as something that is no directory")
            here = below
        return here

    def size(self, tree: Callable[[ObjectId], Tree]) -> int:
        """What the files here and below add up to; `tree` reads directories that were taken over unread."""
        total = 0
        todo: list[Iterable[TreeDirectory | Entry]] = [self.children.values()]
        while todo:
            for child in todo.pop():
                if isinstance(child, TreeDirectory):
                    todo.append(child.children.values())
                elif child.kind == "d" and child.content is not None:
                    todo.append(tree(child.content).entries)
                elif child.kind == "f":
                    total += child.size
        return total

    def settle_links(self) -> None:
        """Have entries share a link number only where they are names of one file: whoever looked at files in use may
        have met one file in two states. What was taken over unread is left as it is."""
        numbers: dict[Entry, int] = {}
        given: set[int] = set()
        todo, new = [self], 0
        while todo:
            here = todo.pop()
            for name, child in here.children.items():
                if isinstance(child, TreeDirectory):
                    todo.append(child)
                elif child.link:
                    number = child.link
                    while number in given and number != numbers.get(child.inode_part):
                        number = numbers.get(child.inode_part, new := new + 1)
                    given.add(number)
                    numbers[child.inode_part] = number
                    here.children[name] = msgspec.structs.replace(child, link=number)

    def store(self, session: Session) -> ObjectId:
        """Put this directory and all below, the lowest first; the id of its Tree."""
        todo: list[tuple[TreeDirectory, Iterator[tuple[bytes, TreeDirectory]]]] = [(self, _below(self))]
        while True:
            here, rest = todo[-1]
            step = next(rest, None)
            if step is not None:
                todo.append((step[1], _below(step[1])))
                continue
            entries = tuple(child for _, child in sorted(here.children.items()) if isinstance(child, Entry))
            ident = session.put_object(FrameKind.TREE, encode_tree(Tree(entries)))
            todo.pop()
            if not todo:
                return ident
            above = todo[-1][0]
            name = next(name for name, child in above.children.items() if child is here)
            above.children[name] = _entry(name, "d", here.attrs, content=ident)


def _below(directory: TreeDirectory) -> Iterator[tuple[bytes, TreeDirectory]]:
    # A list of its own: a stored child is replaced by its entry while this goes on.
    return iter([(name, child) for name, child in directory.children.items() if isinstance(child, TreeDirectory)])


def _entry(name: bytes, kind: EntryKind, attrs: Attrs, *, content: ObjectId | None) -> Entry:
    return Entry(name, kind, attrs.mode, attrs.uid, attrs.gid, attrs.mtime_ns, content=content, xattrs=attrs.xattrs)


def split_path(path: str | bytes) -> list[bytes]:
    """The names along a path inside a snapshot. IjfsError for `..` and the like."""
    name = os.fsencode(path)
    parts = [part for part in name.split(b"/") if part]
    if any(part in (b".", b"..") or b"\0" in part for part in parts):
        raise IjfsError(f"'{os.fsdecode(name)}' is no path inside a snapshot")
    return parts


def split_name(path: str | bytes) -> tuple[list[bytes], bytes]:
    """(the directories along a path, the last name). IjfsError for the top itself."""
    parts = split_path(path)
    if not parts:
        raise IjfsError("an empty path names nothing inside a snapshot")
    return parts[:-1], parts[-1]


class OnDisk(NamedTuple):
    """A file that a walk found: where its entry goes, where its bytes are, which inode it is."""

    into: TreeDirectory
    below: tuple[bytes, ...]
    """The names from the top of the walk to `into`."""
    entry: Entry
    """Without size and content."""
    path: Path
    size: int
    inode: tuple[int, int] | None
    """(device, inode) if it has several links."""


class Listing(NamedTuple):
    """What a walk found below a directory."""

    top: TreeDirectory
    files: list[OnDisk]
    """The regular files, whose bytes are still to be stored, directory by directory in the order of their names."""
    linked: list[OnDisk]
    """What is no regular file and has several names; it is in `top` already."""
    flags: list[str]
    """The chattr flags of each directory that has some."""


def read_directory(top: Path) -> Listing:
    """Everything below a directory but the bytes of its files.

    StorageError if something cannot be read. Nothing is followed: not symbolic links, and other filesystems that are
    mounted below are read as what they show. Paths may be of any length.
    """
    with _reading(top):
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with Descent(fd) as walk:
            return _Walk(top, walk).run()
    finally:
        os.close(fd)


class _Walk:
    def __init__(self, top: Path, walk: Descent) -> None:
        self._top = top
        self._walk = walk
        self._files: list[OnDisk] = []
        self._linked: list[OnDisk] = []
        self._flags: list[str] = []

    def run(self) -> Listing:
        with _reading(self._top):
            found = TreeDirectory(_attrs(self._walk.here, b".", os.fstat(self._walk.here)))
        todo = [iter(self._list(found))]
        while todo:
            below = next(todo[-1], None)
            if below is not None:
                with _reading(self._path(below[0])):
                    self._walk.enter(below[0])
                todo.append(iter(self._list(below[1])))
                continue
            todo.pop()
            if todo:
                with _reading(self._path()):
                    self._walk.leave()
        return Listing(found, self._files, self._linked, self._flags)

    def _list(self, into: TreeDirectory) -> list[tuple[bytes, TreeDirectory]]:
        """Take down what is in the directory that the walk is in; the directories in it."""
        here = self._walk.here
        below: list[tuple[bytes, TreeDirectory]] = []
        with _reading(self._path()), os.scandir(here) as listing:
            listed = sorted((os.fsencode(item.name), item) for item in listing)
        if flags := inode_flags.of(here):
            self._flags.append(flags)
        for name, item in listed:
            with _reading(self._path(name)):
                info = item.stat(follow_symlinks=False)
                attrs = _attrs(here, name, info)
                if stat.S_ISDIR(info.st_mode):
                    child = into.children[name] = TreeDirectory(attrs)
                    below.append((name, child))
                elif stat.S_ISREG(info.st_mode):
                    self._files.append(self._found(into, blank_file(name, attrs), info))
                else:
                    entry = into.children[name] = _special(here, name, attrs, info)
                    if info.st_nlink > 1:
                        self._linked.append(self._found(into, entry, info))
        return below

    def _found(self, into: TreeDirectory, entry: Entry, info: os.stat_result) -> OnDisk:
        inode = (info.st_dev, info.st_ino) if info.st_nlink > 1 else None
        return OnDisk(into, tuple(self._walk.names), entry, self._path(entry.name), info.st_size, inode)

    def _path(self, name: bytes = b"") -> Path:
        return self._top / os.fsdecode(self._walk.path(name))


class _reading:  # noqa: N801 - reads as a statement
    """StorageError with the path for whatever the system says."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise StorageError(
                f"{self._path} vanished while it was read", hint="store a directory that is not being changed"
            ) from error
        if isinstance(error, OSError):
            raise StorageError(f"cannot read {self._path}: {error.strerror}") from error


def _attrs(directory: int, name: bytes, info: os.stat_result) -> Attrs:
    xattrs = _xattrs(by_descriptor(directory, name))
    return Attrs(stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns, xattrs)


def _xattrs(path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
        return tuple(sorted((os.fsencode(n), os.getxattr(path, n, follow_symlinks=False)) for n in names))
    except OSError as error:
        # No attributes here at all (a filesystem without them), or one that was just taken away.
        if error.errno in (errno.ENOTSUP, errno.ENODATA, errno.EPERM):
            return ()
        raise


def blank_file(name: bytes, attrs: Attrs) -> Entry:
    """A file's entry before its bytes are stored."""
    return _entry(name, "f", attrs, content=None)


def _special(directory: int, name: bytes, attrs: Attrs, info: os.stat_result) -> Entry:
    kind = KINDS[stat.S_IFMT(info.st_mode)]
    entry = _entry(name, kind, attrs, content=None)
    if kind == "l":
        target = os.readlink(name, dir_fd=directory)
        return msgspec.structs.replace(entry, target=target, size=len(target))
    return msgspec.structs.replace(entry, rdev=info.st_rdev if kind in "cb" else 0)
