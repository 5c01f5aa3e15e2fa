"""A directory on disk as a snapshot has it: a walk through it, and the entry of each thing that the walk finds.

Imports (tree_builder.py) and the files of a live program (the live layer, which gets it from `ijfs_engine`) are read
this way: by descriptors, so that no symbolic link is followed and paths may be of any length (util/descent.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

from ijfs_engine.format.records import KINDS, Entry
from ijfs_engine.util.descent import Descent

# What the kernel takes in one piece (PATH_MAX), less one more name.
_LONGEST_PLACE: Final = 3_800


class FoundOnDisk(NamedTuple):
    """What a walk is at. It can be looked at until the walk is asked for the next."""

    above: tuple[bytes, ...]
    """The names from the top of the walk to the directory that it is in."""
    name: bytes
    """b"" for the top itself."""
    status: os.stat_result
    directory: int
    """An open descriptor: of itself where it is a directory, else of the directory that it is in."""
    at: bytes
    """Its name there: b"." for a directory."""
    place: bytes
    """A path of `directory`, for system calls that take none by descriptor."""

    @property
    def path(self) -> bytes:
        """The way from the top to it."""
        return b"/".join((*self.above, self.name))

    def entry(self) -> Entry:
        """What the system says of it; without content and link number, which are for the caller to give. OSError."""
        info = self.status
        mode = info.st_mode
        kind = KINDS[stat.S_IFMT(mode)]
        try:
            target = os.readlink(self.at, dir_fd=self.directory) if kind == "l" else b""
            xattrs = _xattrs(self.directory if kind == "d" else self.place + b"/" + self.at)
        except OSError as error:
            raise _named(error, self.path) from error
        size = info.st_size if kind == "f" else len(target)
        rdev = info.st_rdev if kind in "cb" else 0
        return Entry(
            self.name,
            kind,
            stat.S_IMODE(mode),
            info.st_uid,
            info.st_gid,
            info.st_mtime_ns,
            size,
            None,
            target,
            rdev,
            xattrs,
        )


def walk_directory(
    top: int,
    *,
    leave_out: frozenset[bytes] = frozenset(),
    one_filesystem: bool = False,
    changing: bool = False,
    path: bytes | None = None,
) -> Iterator[FoundOnDisk]:
    """The directory open at `top` and everything in it: a directory before what is in it, names in their order, files
    before the directories beside them. OSError with the path from `top` as its file name.

    `leave_out`: paths from `top`, left out with all below them. `one_filesystem`: of what is mounted below, the
    directory alone. `changing`: somebody works in it; what he removes or moves away meanwhile is left out, and is no
    error. `path`: one of `top`, where nobody can change what it leads through meanwhile. Asking for a file's extended
    attributes by it takes 1.3 µs in place of the 3.0 by way of /proc/self/fd.
    """
    with Descent(top) as descent:
        yield from _Walk(descent, leave_out, one_filesystem, changing, path).run()


class _Walk:
    def __init__(
        self,
        descent: Descent,
        leave_out: frozenset[bytes],
        one_filesystem: bool,
        changing: bool,
        path: bytes | None,
    ) -> None:
        self._descent = descent
        self._path = path
        self._leave_out = leave_out
        self._device = os.fstat(descent.here).st_dev if one_filesystem else None
        self._gone: tuple[type[OSError], ...] = (FileNotFoundError, NotADirectoryError) if changing else ()
        self._changing = changing

    def run(self) -> Iterator[FoundOnDisk]:
        yield self._here()
        todo = [iter((yield from self._list()))]
        while todo:
            name = next(todo[-1], None)
            if name is None:
                todo.pop()
                if todo:
                    self._leave()
                    del todo[len(self._descent.names) + 1 :]
            elif self._enter(name):
                here = self._here()
                yield here
                todo.append(iter((yield from self._list()) if self._is_wanted(here.status) else ()))

    def _here(self) -> FoundOnDisk:
        """The directory that the walk is in."""
        *above, name = self._descent.names or [b""]
        here = self._descent.here
        return FoundOnDisk(tuple(above), name, os.fstat(here), here, b".", self._place())

    def _place(self) -> bytes:
        if self._path is not None:
            place = b"/".join((self._path, *self._descent.names))
            if len(place) <= _LONGEST_PLACE:
                return place
        return b"/proc/self/fd/%d" % self._descent.here

    def _list(self) -> Generator[FoundOnDisk, None, list[bytes]]:
        """What is in the directory and is none; returns the names of those that are."""
        here, above = self._descent.here, tuple(self._descent.names)
        try:
            with os.scandir(here) as listing:
                listed = sorted((os.fsencode(item.name), item) for item in listing)
        except self._gone:
            return []
        except OSError as error:
            raise _named(error, self._descent.path()) from error
        directories = []
        place = self._place()
        for name, item in listed:
            status = self._status(name, item)
            if status is None or (self._leave_out and self._descent.path(name) in self._leave_out):
                continue
            if stat.S_ISDIR(status.st_mode):
                directories.append(name)
            elif self._is_wanted(status):
                yield FoundOnDisk(above, name, status, here, name, place)
        return directories

    def _is_wanted(self, status: os.stat_result) -> bool:
        """Whether it is on the filesystem that is walked. A directory that something is mounted on is found all the
        same, without what is in it: so that there is something to mount on again."""
        return self._device in (None, status.st_dev)

    def _status(self, name: bytes, item: os.DirEntry[str]) -> os.stat_result | None:
        try:
            return item.stat(follow_symlinks=False)
        except self._gone:
            return None
        except OSError as error:
            raise _named(error, self._descent.path(name)) from error

    def _enter(self, name: bytes) -> bool:
        try:
            self._descent.enter(name)
        except self._gone:
            return False
        except OSError as error:
            raise _named(error, self._descent.path(name)) from error
        return True

    def _leave(self) -> None:
        """Go up; where the directory was moved or removed meanwhile, by the same names from the top, as far as they
        lead."""
        names = self._descent.names[:-1]
        try:
            self._descent.leave()
        except OSError as error:
            if not self._changing:
                raise _named(error, self._descent.path()) from error
            self._descent.close()
            for name in names:
                if not self._enter(name):
                    break


def _named(error: OSError, path: bytes) -> OSError:
    """The same error of this path."""
    return OSError(error.errno, error.strerror, path)


def _xattrs(path: bytes | int) -> tuple[tuple[bytes, bytes], ...]:
    follow = isinstance(path, int)  # else the system calls refuse a descriptor
    try:
        names = os.listxattr(path, follow_symlinks=follow)
        return (
            tuple(sorted((os.fsencode(n), os.getxattr(path, n, follow_symlinks=follow)) for n in names))
            if names
            else ()
        )
    except OSError as error:
        # No attributes here at all (a filesystem without them), or one that was just taken away.
        if error.errno in (errno.ENOTSUP, errno.ENODATA, errno.EPERM):
            return ()
        raise
