"""One writable layer as it was while the program ran, to tell afterwards, while it stands still, what is different.

Made and asked by workspace.py. Whether each file is as it was is looked up by compiled code (stat_changes.pyx); only in
directories that changed are the names read again. A file is as it was if its inode, size, mode, mtime and ctime are and
its ctime was old when it was looked at: what changes in the same tick of the clock does not show. It counts as changed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ijfs.live.checkpoint.stat_changes import Expected
from ijfs_engine import FoundOnDisk, walk_directory

# What the kernel takes in one piece (PATH_MAX), less one more name.
_LONGEST_PATH = 3_800

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Changed = tuple[str, FoundOnDisk | None]
"""A path in the snapshot's tree, and what is there; None: nothing any more."""


class StatKey(NamedTuple):
    """What tells a changed file from an unchanged one."""

    inode: int
    size: int
    mode: int
    mtime_ns: int
    ctime_ns: int


def key_of(status: os.stat_result) -> StatKey:
    """The key of a file as it is."""
    return StatKey(status.st_ino, status.st_size, status.st_mode, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(slots=True)
class _Folder:
    """A directory as it was: its path in the snapshot's tree and outside, its inode, what was in it."""

    at: str
    name: bytes
    path: bytes
    inode: int
    files: dict[bytes, int] = field(default_factory=dict)
    """Name to line."""
    folders: dict[bytes, _Folder] = field(default_factory=dict)
    gone: bool = False


class LayerAhead:
    """What was seen of one layer. `old_ns`: a ctime before this (wall clock) can be believed. `without`: paths in it
    that do not count. `changing`: others than the program work in it."""

    def __init__(
        self, outside: Path, old_ns: int, *, without: frozenset[str] = frozenset(), changing: bool = False
    ) -> None:
        self._outside = os.fsencode(outside)
        self._without = frozenset(os.path.join(self._outside, os.fsencode(path)) for path in without)
        self._changing = changing
        self._old_ns = old_ns
        self._expected = Expected()
        self._lines: list[tuple[_Folder, bytes | None]] = []
        self._device = 0
        self._folders: dict[tuple[bytes, ...], _Folder] = {}
        self._distrusted: set[int] = set()
        self._looked: list[int] | None = None
        self.usable = False
        """Whether it can be asked: not where paths are longer than the system takes in one piece."""

    def saw(self, at: str, found: FoundOnDisk, key: StatKey) -> None:
        """Take note of what a walk has found: directories right before what is in them."""
        trusted = key.ctime_ns < self._old_ns
        if not stat.S_ISDIR(key.mode):
            folder = self._folders[found.above]
            folder.files[found.name] = self._expected.name(found.name, key, trusted)
            self._lines.append((folder, found.name))
            return
        names = (*found.above, found.name) if found.name else ()
        folder = _Folder(at, found.name, b"/".join((self._outside, *names)), key.inode)
        if names:
            self._folders[found.above].folders[found.name] = folder
        else:
            self._device = found.status.st_dev
            self.usable = True
        self._folders[names] = folder
        self._expected.directory(folder.path, key, trusted)
        self._lines.append((folder, None))
        self.usable = self.usable and len(folder.path) <= _LONGEST_PATH

    def files(self) -> Iterator[tuple[int, str, bytes]]:
        """(line, path in the snapshot's tree, path outside) of all that is no directory."""
        for line, (folder, name) in enumerate(self._lines):
            if name is not None:
                yield line, _inner(folder, name), folder.path + b"/" + name

    def distrust(self, line: int) -> None:
        """That one counts as changed."""
        self._distrusted.add(line)

    def look(self) -> None:
        """Find out what is not as it was seen, for the `changed` of a moment later: nobody changes it any more."""
        self._looked = self._expected.changed()

    def forget_look(self) -> None:
        """Something has been changed since."""
        self._looked = None

    def changed(self, maybe: set[str]) -> Iterator[Changed]:
        """What is not as it was seen, while nobody changes it; `maybe`: paths that count as changed in any case. What
        is found can be looked at until the next is asked for. OSError."""
        looked = self._looked if self._looked is not None else self._expected.changed()
        lines = {*looked, *self._distrusted, *self._of(maybe)}
        for line in sorted(lines):
            folder, name = self._lines[line]
            if folder.gone:
                continue
            if name is None:
                yield from self._listed_again(folder, lines)
            elif name in folder.files:
                yield from self._looked_at_again(folder, name)

    def _of(self, paths: set[str]) -> Iterator[int]:
        top = os.fsencode(self._folders[()].at)
        for path in paths:
            *above, name = os.fsencode(path)[len(top) + 1 :].split(b"/")
            folder = self._folders.get(tuple(above))
            if folder is not None and name in folder.files:
                yield folder.files[name]

    def _looked_at_again(self, folder: _Folder, name: bytes) -> Iterator[Changed]:
        with _opened(folder.path) as fd:
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False) if fd >= 0 else None
            except FileNotFoundError:
                status = None
            if status is None or stat.S_ISDIR(status.st_mode):  # the directory, which changed too, says what is there
                yield _inner(folder, name), None
            else:
                yield _inner(folder, name), FoundOnDisk((), name, status, fd, name, folder.path)

    def _listed_again(self, folder: _Folder, lines: set[int]) -> Iterator[Changed]:
        """A directory that changed: itself, names that are new in it, names that are gone."""
        with _opened(folder.path) as fd:
            status = os.fstat(fd) if fd >= 0 else None
            if status is None or status.st_ino != folder.inode:
                yield from self._dropped(folder)
                return
            yield folder.at, FoundOnDisk((), folder.name, status, fd, b".", folder.path)
            there = dict(_listed(fd))
            for name in sorted(folder.files.keys() - there.keys()):
                yield _inner(folder, name), None
            for name, below in sorted(folder.folders.items()):
                if name not in there or there[name].st_ino != below.inode:
                    yield from self._dropped(below)
            for name, found in sorted(there.items()):
                if found.st_dev == self._device and folder.path + b"/" + name not in self._without:
                    yield from self._new_name(folder, name, found, fd, lines)

    def _new_name(
        self, folder: _Folder, name: bytes, status: os.stat_result, fd: int, lines: set[int]
    ) -> Iterator[Changed]:
        known = folder.folders.get(name)
        if stat.S_ISDIR(status.st_mode):
            if known is None or known.inode != status.st_ino:
                yield from self._walked(_inner(folder, name), folder.path + b"/" + name)
        elif name not in folder.files:  # those that were there have lines of their own
            yield _inner(folder, name), FoundOnDisk((), name, status, fd, name, folder.path)

    def _walked(self, at: str, path: bytes) -> Iterator[Changed]:
        """A directory that is new, and everything in it."""
        with _opened(path) as top:
            if top < 0:  # somebody else has removed it again
                return
            inner = frozenset(os.path.relpath(one, path) for one in self._without if one.startswith(path + b"/"))
            for found in walk_directory(top, leave_out=inner, one_filesystem=True, changing=self._changing, path=path):
                if found.name:
                    yield f"{at}/{os.fsdecode(found.path)}", found
                else:
                    yield at, found._replace(name=os.path.basename(path))

    def _dropped(self, folder: _Folder) -> Iterator[Changed]:
        """A directory that is gone, with all that was in it."""
        todo = [folder]
        while todo:
            here = todo.pop()
            here.gone = True
            yield here.at, None
            yield from ((_inner(here, name), None) for name in here.files)
            todo += here.folders.values()


def _listed(directory: int) -> Iterator[tuple[bytes, os.stat_result]]:
    with os.scandir(directory) as listing:
        for entry in listing:
            with contextlib.suppress(FileNotFoundError):
                yield os.fsencode(entry.name), entry.stat(follow_symlinks=False)


def _inner(folder: _Folder, name: bytes) -> str:
    return f"{folder.at}/{os.fsdecode(name)}"


@contextlib.contextmanager
def _opened(path: bytes) -> Iterator[int]:
    """A directory's descriptor; -1 where there is none any more."""
    try:
        fd = os.open(path, _DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)
