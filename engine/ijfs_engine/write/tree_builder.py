"""Directories on their way into a snapshot: entries as they become known, made into Tree objects at the commit.

Also the other way in: what a directory on disk holds (on_disk.py). snapshot_writer.py calls it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ijfs_engine.errors import IjfsError, StorageError
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.records import Entry, EntryKind, ObjectId, Tree, encode_tree
from ijfs_engine.storage.session import Session
from ijfs_engine.util import inode_flags
from ijfs_engine.write.on_disk import FoundOnDisk, walk_directory


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
    """Without content."""
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
    try:
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _list(top, fd)
        finally:
            os.close(fd)
    except OSError as error:
        below = error.filename if isinstance(error.filename, bytes) else b""
        path = top / os.fsdecode(below)
        if isinstance(error, FileNotFoundError):
            raise StorageError(
                f"{path} vanished while it was read", hint="store a directory that is not being changed"
            ) from error
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _list(top: Path, fd: int) -> Listing:
    listing = Listing(TreeDirectory(), [], [], [])
    directories: dict[tuple[bytes, ...], TreeDirectory] = {}
    for found in walk_directory(fd):
        entry = found.entry()
        if entry.kind == "d":
            _take_directory(found, entry, listing, directories)
            continue
        into = directories[found.above]
        inode = (found.status.st_dev, found.status.st_ino) if found.status.st_nlink > 1 else None
        on_disk = OnDisk(into, found.above, entry, top / os.fsdecode(found.path), entry.size, inode)
        if entry.kind == "f":
            listing.files.append(on_disk)
            continue
        into.children[found.name] = entry
        if inode:
            listing.linked.append(on_disk)
    return listing


def _take_directory(
    found: FoundOnDisk, entry: Entry, listing: Listing, directories: dict[tuple[bytes, ...], TreeDirectory]
) -> None:
    attrs = Attrs(entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs)
    if found.name:
        made = directories[found.above].children[found.name] = TreeDirectory(attrs)
        directories[*found.above, found.name] = made
    else:
        listing.top.attrs = attrs
        directories[()] = listing.top
    if flags := inode_flags.of(found.directory):
        listing.flags.append(flags)


def blank_file(name: bytes, attrs: Attrs) -> Entry:
    """A file's entry before its bytes are stored."""
    return _entry(name, "f", attrs, content=None)
