"""What changed in this machine's root since it was imported as a base, and how a new sandbox gets it all the same.

A base is as old as its import; a program that is started wants the files as they are. Looking at every file would cost
a second, so this looks at every *directory* (whose ctime moves when a name in it comes, goes or is replaced, and, on an
overlay, when a file of a lower layer is first written to), and at the files themselves only below the directories that
people edit in: the working directory and /etc. What differs is copied into the program's own writable layer.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ijfs.live.bases.records import FileKey, WalkedDirectory, WalkedRoot, keys_of

# More than this is no difference but another root: it is imported again, once, instead of copied at every start.
MOST_FILES = 5000
MOST_BYTES = 64 << 20

# So many files below the working directory are looked at one by one: 0.1 s.
MOST_EDITED = 20_000


class TooDifferent(Exception):  # noqa: N818 - an answer, not a failure
    """The root has changed by more than is worth copying."""


@dataclass(slots=True)
class Delta:
    """Paths below the root: what is to be copied (directories with their metadata only), and what is gone."""

    copied: list[bytes] = field(default_factory=list)
    gone: list[bytes] = field(default_factory=list)
    files: int = 0
    size: int = 0

    def __bool__(self) -> bool:
        return bool(self.copied or self.gone)

    def copy(self, path: bytes, status: os.stat_result | None = None) -> None:
        """Take note of one; TooDifferent when it becomes too much."""
        self.copied.append(path)
        if status is not None and stat.S_ISREG(status.st_mode):
            self.files += 1
            self.size += status.st_size
        if self.files > MOST_FILES or self.size > MOST_BYTES:
            raise TooDifferent


def look(walked: WalkedRoot, edited: Sequence[Path]) -> Delta:
    """How the root differs from what was walked. `edited`: directories below which each file is looked at.

    TooDifferent when it should be imported again.
    """
    return _Look(walked, edited).run()


class _Look:
    """One look at a root."""

    def __init__(self, walked: WalkedRoot, edited: Sequence[Path]) -> None:
        self._root = os.fsencode(walked.root).rstrip(b"/")
        self._known = {directory.path: directory for directory in walked.directories}
        self._skipped = frozenset(walked.left_out)
        self._edited = tuple(_below(self._root, path) for path in edited)
        self._left = MOST_EDITED
        self._delta = Delta()

    def run(self) -> Delta:
        prefix = self._root + b"/"
        lstat = os.lstat
        changed = []
        gone = set()
        for path, directory in self._known.items():
            try:
                if lstat(prefix + path).st_ctime_ns != directory.ctime_ns:
                    changed.append(directory)
                elif self._edited and self._is_edited(path):
                    self._compare_files(directory)
            except (FileNotFoundError, NotADirectoryError):
                gone.add(path)
        for directory in changed:
            self._compare(directory)
        self._delta.gone += sorted(path for path in gone if os.path.dirname(path) not in gone)
        return self._delta

    def _is_edited(self, path: bytes) -> bool:
        return any(path == top or path.startswith(top + b"/") for top in self._edited if top)

    def _compare_files(self, directory: WalkedDirectory) -> None:
        """Names are as they were; are the files?"""
        for name, key in keys_of(directory).items():
            self._left -= 1
            if self._left < 0:
                return
            path = _join(directory.path, name)
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(self._root + b"/" + path)
                if _key(status) != key:
                    self._delta.copy(path, status)

    def _compare(self, directory: WalkedDirectory) -> None:
        """A directory in which names may have come and gone."""
        if directory.path:
            if not os.path.isdir(self._root + b"/" + directory.path):  # something else is there now: its parent says so
                return
            self._delta.copy(directory.path)
        keys = keys_of(directory)
        names = set()
        for name, status in self._list(directory.path):
            path = _join(directory.path, name)
            names.add(name)
            if path in self._skipped or stat.S_ISSOCK(status.st_mode):
                continue
            if stat.S_ISDIR(status.st_mode):
                if path not in self._known:
                    self._copy_tree(path, status)
            elif keys.get(name) != _key(status):
                self._delta.copy(path, status)
        self._delta.gone += [_join(directory.path, name) for name in keys if name not in names]

    def _copy_tree(self, path: bytes, status: os.stat_result) -> None:
        self._delta.copy(path, status)
        for name, inner in self._list(path):
            below = _join(path, name)
            if below in self._skipped or stat.S_ISSOCK(inner.st_mode):
                continue
            if stat.S_ISDIR(inner.st_mode):
                self._copy_tree(below, inner)
            else:
                self._delta.copy(below, inner)

    def _list(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(self._root + b"/" + path) as listing,
        ):
            for item in listing:
                with contextlib.suppress(FileNotFoundError):
                    yield item.name, item.stat(follow_symlinks=False)


def put_into(upper: Path, root: Path, delta: Delta) -> None:
    """Copy what differs into a new writable layer; what is gone becomes a whiteout. OSError."""
    for path in delta.gone:
        target = os.path.join(os.fsencode(upper), path)
        _parents(upper, root, path)
        with contextlib.suppress(FileExistsError):
            os.mknod(target, stat.S_IFCHR, os.makedev(0, 0))
    for path in delta.copied:
        with contextlib.suppress(FileNotFoundError):
            _parents(upper, root, path)
            _copy(os.path.join(os.fsencode(root), path), os.path.join(os.fsencode(upper), path))


def _parents(upper: Path, root: Path, path: bytes) -> None:
    """The directories above, with the owner and mode that they have."""
    parts = path.split(b"/")[:-1]
    for count in range(1, len(parts) + 1):
        above = b"/".join(parts[:count])
        target = os.path.join(os.fsencode(upper), above)
        if not os.path.isdir(target):
            _copy(os.path.join(os.fsencode(root), above), target)


def _copy(source: bytes, target: bytes) -> None:
    status = os.lstat(source)
    if stat.S_ISDIR(status.st_mode):
        os.makedirs(target, exist_ok=True)
    elif stat.S_ISLNK(status.st_mode):
        with contextlib.suppress(FileExistsError):
            os.symlink(os.readlink(source), target)
    elif stat.S_ISREG(status.st_mode):
        shutil.copyfile(source, target)
    else:
        with contextlib.suppress(FileExistsError):
            os.mknod(target, status.st_mode, status.st_rdev)
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    shutil.copystat(source, target, follow_symlinks=False)


def packed(delta: Delta) -> dict[str, list[str]]:
    """As it goes over a keeper's socket: names are bytes, and JSON has none."""
    return {"copied": [path.decode("latin-1") for path in delta.copied], "gone": _decoded(delta.gone)}


def unpacked(data: dict[str, list[str]] | None) -> Delta:
    """The inverse of `packed`; nothing for None."""
    if not data:
        return Delta()
    return Delta([path.encode("latin-1") for path in data["copied"]], [path.encode("latin-1") for path in data["gone"]])


def _decoded(paths: Iterable[bytes]) -> list[str]:
    return [path.decode("latin-1") for path in paths]


def _below(root: bytes, path: Path) -> bytes:
    """A path as the table has it; `b""` for what is not below the root, or is all of it."""
    name = os.fsencode(path)
    return name[len(root) + 1 :].rstrip(b"/") if name.startswith(root + b"/") else b""


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _key(status: os.stat_result) -> FileKey:
    return FileKey(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
