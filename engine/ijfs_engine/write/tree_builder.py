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
from ijfs_engine.format.records import Entry, EntryKind, ObjectId, Tree, encode_tree
from ijfs_engine.storage.session import Session


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
    """A regular file that a walk found: where its entry goes, where its bytes are, which inode it is."""

    into: TreeDirectory
    below: tuple[bytes, ...]
    """The names from the top of the walk to `into`."""
    entry: Entry
    """Without size and content."""
    path: Path
    size: int
    inode: tuple[int, int] | None
    """(device, inode) if it has several links."""


_KINDS: Final[dict[int, EntryKind]] = {
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
}


def read_directory(top: Path) -> tuple[TreeDirectory, list[OnDisk]]:
    """Everything below a directory but the bytes of its files, which are listed in the order of their names.

    StorageError if something cannot be read. Nothing is followed: not symbolic links, and other filesystems that are
    mounted below are read as what they show.
    """
    with _reading(top):
        found = TreeDirectory(_attrs(top, os.stat(top)))
    files: list[OnDisk] = []
    todo: list[tuple[TreeDirectory, Path, tuple[bytes, ...]]] = [(found, top, ())]
    while todo:
        here, path, names = todo.pop()
        with _reading(path), os.scandir(os.fsencode(path)) as listing:
            listed = sorted(listing, key=lambda item: item.name)
        for item in listed:
            child = Path(os.fsdecode(item.path))
            with _reading(child):
                info = item.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    below = TreeDirectory(_attrs(child, info))
                    here.children[item.name] = below
                    todo.append((below, child, (*names, item.name)))
                elif stat.S_ISREG(info.st_mode):
                    inode = (info.st_dev, info.st_ino) if info.st_nlink > 1 else None
                    entry = blank_file(item.name, _attrs(child, info))
                    files.append(OnDisk(here, names, entry, child, info.st_size, inode))
                else:
                    here.children[item.name] = _special(item.name, child, info)
    return found, files


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


def _attrs(path: Path, info: os.stat_result) -> Attrs:
    return Attrs(stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns, _xattrs(path))


def _xattrs(path: Path) -> tuple[tuple[bytes, bytes], ...]:
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


def _special(name: bytes, path: Path, info: os.stat_result) -> Entry:
    kind = _KINDS[stat.S_IFMT(info.st_mode)]
    entry = _entry(name, kind, _attrs(path, info), content=None)
    if kind == "l":
        target = os.fsencode(os.readlink(path))
        return msgspec.structs.replace(entry, target=target, size=len(target))
    return msgspec.structs.replace(entry, rdev=info.st_rdev if kind in "cb" else 0)
