"""What taking a branch's files home would do: a three-way comparison of the branch, the machine, and what both were.

What both were is not kept anywhere: a sandbox's files are an overlay over the machine's. It is known all the same. A
file of the machine whose ctime (which no program can set) is older than the branch is what the branch began from. One
that is newer counts as that, too, where it holds what the branch had in a snapshot on the way, or what an earlier adopt
of the same branch has put there. Everything else was changed on the machine meanwhile: a conflict.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ijfs.live.adopt.branch import Branch, BranchFile, SnapshotFiles, UnsteadyError, entry_on_disk
from ijfs.live.checkpoint.ahead import StatKey, key_of
from ijfs_engine import Reader
from ijfs_engine.errors import IjfsError, StorageError

Change = Literal["added", "changed", "removed"]

# The kernel's clock for files ticks every 1 to 10 ms: a change right after the branch began may look older than it.
TICK_NS = 20_000_000

# Sockets and devices are not taken home: a socket without its server is nothing, a device is the machine's own matter.
_LEFT = "scb"


@dataclass(frozen=True, slots=True)
class Step:
    """One path that adopting would change. `file` is the branch's (None: removed), `host` what the machine has there.
    `conflict`: why it would lose something of the machine's; "" where it would not."""

    path: bytes
    change: Change
    file: BranchFile | None
    host: StatKey | None
    old_size: int | None
    conflict: str = ""

    @property
    def new_size(self) -> int | None:
        """Bytes that will be there; None where nothing will be."""
        return self.file.entry.size if self.file is not None else None


def plan(
    branch: Branch,
    scope: Sequence[bytes],
    noted: Mapping[bytes, StatKey],
    reader: Reader,
    *,
    without: frozenset[bytes] = frozenset(),
) -> Iterator[Step]:
    """The steps for all that lies in `scope` (paths as branch.py has them, links resolved), parents first; directories
    in `without` are not looked into on the way. Reads, and changes nothing. StorageError, CorruptError."""
    comparison = _Comparison(branch, noted, reader, without)
    for path in scope:
        yield from comparison.below(path)


class _Directory(NamedTuple):
    path: bytes
    on_host: bool
    """Whether the machine has a directory there."""
    lost: bool
    """Whether it had one when the branch began, and has none now."""
    hides: bool
    """Whether the branch shows nothing of what the machine has in it."""


class _Comparison:
    def __init__(
        self, branch: Branch, noted: Mapping[bytes, StatKey], reader: Reader, without: frozenset[bytes]
    ) -> None:
        self._branch = branch
        self._noted = noted
        self._without = without
        self._before = [SnapshotFiles(reader, root) for root in branch.ancestors]
        self._common = SnapshotFiles(reader, branch.common) if branch.common is not None else None

    def below(self, path: bytes) -> Iterator[Step]:
        """The steps of one path and all below it."""
        if not path:
            yield from self._descend(_Directory(b"", on_host=True, lost=False, hides=False))
            return
        file = self._branch.files.at(path)
        if file is None:
            return
        above = os.path.dirname(path)
        todo: list[_Directory] = []
        yield from self._compare(path, file, _Directory(above, os.path.isdir(above or b"/"), False, False), todo)
        for directory in todo:
            yield from self._descend(directory)

    def _descend(self, top: _Directory) -> Iterator[Step]:
        todo = [top]
        while todo:
            here = todo.pop()
            children = self._branch.files.children(here.path)
            for name, file in sorted(children.items()):
                if here.path + b"/" + name not in self._without:
                    yield from self._compare(here.path + b"/" + name, file, here, todo)
            if here.hides and here.on_host:
                yield from self._hidden(here.path, children)
            elif here.on_host and self._common is not None and self._branch.is_copy(here.path):
                yield from self._gone(here.path, children, self._common)

    def _hidden(self, directory: bytes, kept: Mapping[bytes, BranchFile]) -> Iterator[Step]:
        for name in sorted(set(_names(directory)) - kept.keys()):
            yield from self._removed(directory + b"/" + name)

    def _is_as_copied(self, path: bytes, file: BranchFile) -> bool:
        """Whether the branch left alone what it has in a copy of a folder: what the machine has there is right then."""
        if self._common is None or not self._branch.is_copy(path):
            return False
        before = self._common.at(path)
        fields = ("kind", "mode", "uid", "gid", "size", "mtime_ns", "target")
        return before is not None and all(getattr(before.entry, f) == getattr(file.entry, f) for f in fields)

    def _gone(self, directory: bytes, kept: Mapping[bytes, BranchFile], common: SnapshotFiles) -> Iterator[Step]:
        """What the branch removed from a copy of a folder: it was there when the copy was made."""
        for name in sorted(common.children(directory).keys() - kept.keys()):
            path = directory + b"/" + name
            if path not in self._without and _status(path) is not None:
                yield from self._removed(path)

    def _compare(self, path: bytes, file: BranchFile, above: _Directory, todo: list[_Directory]) -> Iterator[Step]:
        status = _status(path) if above.on_host else None
        if file.entry.kind != "d" and self._is_as_copied(path, file):
            return
        if file.whiteout:
            yield from self._removed(path) if status is not None else ()
        elif file.entry.kind == "d":
            yield from self._directory(path, file, status, above, todo)
        elif file.entry.kind not in _LEFT:
            yield from self._file(path, file, status, above)

    def _directory(
        self, path: bytes, file: BranchFile, status: os.stat_result | None, above: _Directory, todo: list[_Directory]
    ) -> Iterator[Step]:
        if status is not None and stat.S_ISDIR(status.st_mode):
            # What did not begin as this machine's directory hides nothing of it.
            opaque = file.opaque and self._branch.since_ns(path) > 0
            todo.append(_Directory(path, on_host=True, lost=False, hides=opaque or above.hides))
            return
        lost = above.lost or (file.copied_up and status is None and self._changed_above(path, above))
        todo.append(_Directory(path, on_host=False, lost=lost, hides=False))
        if status is not None:
            yield Step(path, "changed", file, key_of(status), status.st_size, self._conflict(path, status))
        elif not lost:
            yield Step(path, "added", file, None, None)

    def _file(self, path: bytes, file: BranchFile, status: os.stat_result | None, above: _Directory) -> Iterator[Step]:
        if status is None:
            gone = above.lost or (file.copied_up and self._changed_above(path, above))
            yield Step(path, "added", file, None, None, "deleted on the machine meanwhile" if gone else "")
        elif not self._same(path, file, status):
            yield Step(path, "changed", file, key_of(status), _size(status), self._conflict(path, status))

    def _removed(self, path: bytes) -> Iterator[Step]:
        status = os.lstat(path)
        yield Step(path, "removed", None, key_of(status), _size(status), self._conflict(path, status))

    def _same(self, path: bytes, file: BranchFile, status: os.stat_result) -> bool:
        """Whether the machine has it already, but for times."""
        wanted = file.entry
        found = entry_on_disk(path)
        fields = ("kind", "mode", "uid", "gid", "target", "size")
        if any(getattr(wanted, name) != getattr(found, name) for name in fields):
            return False
        try:
            return wanted.kind != "f" or holds(path, self._branch.files.pieces(path, file))
        except UnsteadyError:  # the program writes it at this moment: apply.py waits for it
            return False

    def _conflict(self, path: bytes, status: os.stat_result) -> str:
        if self._branch.since_ns(path) == 0 and not self._known(path, status):
            return "the machine has another one"
        if not stat.S_ISDIR(status.st_mode):
            return "changed on the machine meanwhile" if self._changed(path, status) else ""
        changed = (below for below in _everything(path) if self._changed(below, os.lstat(below)))
        first = next(changed, None)
        return f"{os.fsdecode(first)} was changed on the machine meanwhile" if first is not None else ""

    def _changed(self, path: bytes, status: os.stat_result) -> bool:
        since = self._branch.since_ns(path)
        old = since > 0 and status.st_ctime_ns < since - TICK_NS
        return not old and not self._known(path, status)

    def _known(self, path: bytes, status: os.stat_result) -> bool:
        """Whether the machine has there what the branch once had, or gave."""
        if self._noted.get(path) == key_of(status):
            return True
        return any(self._as_saved(files, path, status) for files in self._before)

    def _as_saved(self, files: SnapshotFiles, path: bytes, status: os.stat_result) -> bool:
        file = files.at(path) if stat.S_ISREG(status.st_mode) else None
        if file is None or file.entry.kind != "f" or file.entry.size != status.st_size:
            return False
        return holds(path, files.pieces(path, file))

    def _changed_above(self, path: bytes, above: _Directory) -> bool:
        """Whether something may have been deleted from the directory since the branch began. What the branch renamed
        was copied up too, and was never at its new place."""
        since = self._branch.since_ns(path)
        return above.on_host and (not since or os.lstat(above.path or b"/").st_ctime_ns >= since - TICK_NS)


def holds(path: bytes, pieces: Iterator[bytes]) -> bool:
    """Whether a file of the machine has exactly these bytes. StorageError."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return all(file.read(len(piece)) == piece for piece in pieces) and not file.read(1)
    except OSError as error:
        raise StorageError(f"{os.fsdecode(path)} cannot be read: {error.strerror}") from error


def scope_of(branch: Branch, wanted: Sequence[str]) -> list[bytes]:
    """The paths that were asked for, as the program's own directory has them; that directory by default. Links on the
    way are followed, as the program would. IjfsError for what the branch has nothing of."""
    found = []
    for given in wanted or [branch.cwd]:
        path = os.path.join(branch.cwd, given)
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) if given else path
        inside = os.fsencode(os.path.normpath(real)).rstrip(b"/")
        if wanted and inside and branch.files.at(inside) is None:
            raise IjfsError(f"`{branch.name}` has written nothing at {path}", hint="`--dry-run` shows what it has")
        found.append(inside)
    return found


def _status(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _names(directory: bytes) -> list[bytes]:
    try:
        return os.listdir(directory or b"/")
    except OSError as error:
        raise StorageError(f"{os.fsdecode(directory)} cannot be read: {error.strerror}") from error


def _everything(top: bytes) -> Iterator[bytes]:
    """All that is below a directory."""
    for directory, names, files in os.walk(top):
        yield from (directory + b"/" + name for name in (*names, *files))


def _size(status: os.stat_result) -> int:
    return status.st_size if not stat.S_ISDIR(status.st_mode) else 0
