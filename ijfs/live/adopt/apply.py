"""Taking a branch's files home: the steps of a plan, done one by one, each of them whole or not at all.

A file is written beside its place and renamed into it. Right before, what the machine has there is compared with what
the plan saw; where that changed, or the program is writing the file, the step is left out and said. No symbolic link is
followed on the way.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ijfs.live.adopt.branch import Branch, BranchFile, UnsteadyError
from ijfs.live.adopt.plan import Step
from ijfs.live.checkpoint.ahead import StatKey, key_of
from ijfs_engine import Descent, Entry
from ijfs_engine.errors import StorageError

# How often a file is read again that the program writes meanwhile.
_TRIES = 3

# A run of zeros of this length stays a hole.
_ZEROS = bytes(1 << 16)


class Done(NamedTuple):
    """What was done, with the key of what is there now (None: nothing); or why it was left."""

    step: Step
    key: StatKey | None = None
    left: str = ""


def apply(branch: Branch, steps: Iterable[Step]) -> Iterator[Done]:
    """Do the steps, in their order. StorageError for a full disk and the like: what was done before it stays."""
    top = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        work = _Work(branch, top)
        for step in steps:
            try:
                yield Done(step, work.do(step))
            except (_ChangedError, UnsteadyError) as error:
                yield Done(step, left=str(error))
    finally:
        os.close(top)


class _ChangedError(Exception):
    """The machine has something else there than a moment ago."""


class _Work:
    def __init__(self, branch: Branch, top: int) -> None:
        self._branch = branch
        self._top = top
        self._temporary = b".ijfs-adopt-" + os.urandom(8).hex().encode()

    def do(self, step: Step) -> StatKey | None:
        try:
            with self._above(step.path) as above:
                return self._step(step, os.path.basename(step.path), above)
        except NotADirectoryError:
            raise _ChangedError("a directory on the way is none any more") from None
        except OSError as error:
            raise StorageError(f"cannot write {os.fsdecode(step.path)}: {error.strerror}") from error

    def _step(self, step: Step, name: bytes, above: int) -> StatKey | None:
        if step.file is None:
            _require(step.host, name, above)
            _remove(name, above)
            return None
        if step.file.entry.kind == "d":
            _require(step.host, name, above)
            if step.host is not None:
                os.unlink(name, dir_fd=above)
            os.mkdir(name, 0o700, dir_fd=above)
            set_metadata(name, above, step.file.entry)
        else:
            self._replace(step, step.file, name, above)
        return key_of(os.stat(name, dir_fd=above, follow_symlinks=False))

    def _replace(self, step: Step, file: BranchFile, name: bytes, above: int) -> None:
        """Make it beside its place, and put it there."""
        temporary = self._temporary
        try:
            self._make(step, file, temporary, above)
            _require(step.host, name, above)
            if step.host is not None and stat.S_ISDIR(step.host.mode):
                _remove(name, above)
            os.rename(temporary, name, src_dir_fd=above, dst_dir_fd=above)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=above)

    def _make(self, step: Step, file: BranchFile, temporary: bytes, above: int) -> None:
        entry = file.entry
        if entry.kind == "l":
            os.symlink(entry.target, temporary, dir_fd=above)
        elif entry.kind == "p":
            os.mkfifo(temporary, 0o600, dir_fd=above)
        else:
            # What was there before has to be whole on disk as one or the other, whatever happens to the machine.
            self._write(step.path, file, temporary, above, sync=step.host is not None)
        set_metadata(temporary, above, entry)

    def _write(self, path: bytes, file: BranchFile, temporary: bytes, above: int, *, sync: bool) -> None:
        for left in reversed(range(_TRIES)):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o600, dir_fd=above), "wb", buffering=0) as out:
                try:
                    _copy(self._branch.files.pieces(path, file), out.fileno())
                except UnsteadyError:
                    if not left:
                        raise
                    found = self._branch.files.at(path)
                    if found is None or found.entry.kind != "f":
                        raise
                    file = found
                    continue
                if sync:
                    os.fsync(out.fileno())
            return

    @contextlib.contextmanager
    def _above(self, path: bytes) -> Iterator[int]:
        """The directory of a path, made as the branch has it where it is missing."""
        with Descent(self._top) as walk:
            for name in path.split(b"/")[1:-1]:
                try:
                    walk.enter(name)
                except FileNotFoundError:
                    self._make_directory(b"/" + walk.path(name), name, walk.here)
                    walk.enter(name)
            yield walk.here

    def _make_directory(self, path: bytes, name: bytes, above: int) -> None:
        file = self._branch.files.at(path)
        os.mkdir(name, 0o700, dir_fd=above)
        if file is not None and file.entry.kind == "d":
            set_metadata(name, above, file.entry)


def _require(expected: StatKey | None, name: bytes, above: int) -> None:
    """_ChangedError where the machine has something else there than the plan saw."""
    try:
        found = key_of(os.stat(name, dir_fd=above, follow_symlinks=False))
    except FileNotFoundError:
        found = None
    if found is not None and expected is not None and stat.S_ISDIR(found.mode) and stat.S_ISDIR(expected.mode):
        return  # what is in it was looked at: each name that goes is a step of its own, or older than the branch
    if found != expected:
        raise _ChangedError("it changed on the machine just now")


def _remove(name: bytes, above: int) -> None:
    """Remove a file, or a directory with all that is in it."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=above)
        return
    with Descent(above) as walk:
        walk.enter(name)
        while True:
            inner = next((entry for entry in _directories(walk.here)), None)
            if inner is not None:
                walk.enter(inner)
                continue
            for entry in os.listdir(walk.here):
                os.unlink(entry, dir_fd=walk.here)
            last = walk.names[-1]
            walk.leave()
            os.rmdir(last, dir_fd=walk.here)
            if not walk.names:
                return


def _directories(fd: int) -> Iterator[bytes]:
    with os.scandir(fd) as listing:
        yield from (os.fsencode(entry.name) for entry in listing if entry.is_dir(follow_symlinks=False))


def _copy(pieces: Iterable[bytes], out: int) -> None:
    size = 0
    for piece in pieces:
        view = memoryview(piece)
        for at in range(0, len(view), len(_ZEROS)):
            part = view[at : at + len(_ZEROS)]
            if part != _ZEROS[: len(part)]:
                _pwrite(out, part, size + at)
        size += len(view)
    os.ftruncate(out, size)


def _pwrite(out: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(out, data, offset)
        data, offset = data[written:], offset + written


def set_metadata(name: bytes, above: int, entry: Entry) -> None:
    """Owner, attributes, mode and times, in the order in which none undoes another. What is not the caller's to give
    (another's owner, as an ordinary user) stays as it is. OSError."""
    with contextlib.suppress(PermissionError):
        os.chown(name, entry.uid, entry.gid, dir_fd=above, follow_symlinks=False)
    for attribute, value in entry.xattrs:
        with contextlib.suppress(OSError):  # a filesystem may have none, or not these
            os.setxattr(b"/proc/self/fd/%d/%b" % (above, name), attribute, value, follow_symlinks=False)
    if entry.kind != "l":
        os.chmod(name, entry.mode, dir_fd=above)
    os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=above, follow_symlinks=False)
