"""A program's files as they are now: of a live one as it sees them, of an ended one what it wrote. By descriptors only.

Called by the command line's `cp`, `ls` and `cat`. A live program is looked at through its own root directory, so that
whatever is mounted in its sandbox is there. Of an ended one only the writable layers are left: a file of the machine
that it did not write is not in them, and one that it deleted is a whiteout (a character device 0/0), which is no file.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ijfs.live.client.record import record_of
from ijfs.live.errors import NoInstanceError
from ijfs.live.model.paths import BadNameError, InstancePaths, SandboxPaths
from ijfs.live.model.records import InstanceRecord, Volume
from ijfs.live.process import procfs
from ijfs.live.process.root_paths import open_below
from ijfs.live.sandbox import disk
from ijfs_engine import KINDS, Entry
from ijfs_engine.errors import IjfsError, UnknownNameError

PIECE = 1 << 20
"""Bytes that are read at once."""

Below = Sequence[tuple[tuple[str, ...], int]]
"""Directories that take the place of others further down: their path from here, a descriptor."""


@dataclass(slots=True)
class DiskNode:
    """A file or directory on a disk, by a descriptor (O_PATH). `below`: volumes of an ended program that begin in it;
    one that has nothing but those has no descriptor of its own."""

    fd: int
    entry: Entry
    below: Below = ()
    without: frozenset[int] = frozenset()
    """Devices that are not descended into: /proc and /sys of a live program."""

    @classmethod
    def of(cls, fd: int, name: bytes, below: Below = (), without: frozenset[int] = frozenset()) -> DiskNode:
        """What a descriptor leads to. The node closes it."""
        return cls(fd, entry_of(fd, name), below, without)

    def close(self) -> None:
        """Let go of the descriptor."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def children(self) -> Iterator[DiskNode]:
        """What a directory holds, by name; each is the caller's to close. What vanishes meanwhile is left out."""
        instead = {parts[0]: fd for parts, fd in self.below if len(parts) == 1}
        names = {os.fsencode(parts[0]) for parts, _ in self.below} | set(self._names())
        for name in sorted(names):
            further = [(parts[1:], fd) for parts, fd in self.below if parts[0] == os.fsdecode(name) and len(parts) > 1]
            volume = instead.get(os.fsdecode(name))
            with contextlib.suppress(FileNotFoundError):
                node = self._child(name, volume, further)
                if node is not None:
                    yield node

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Where a file holds what; holes are left out."""
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            for at, end in _stretches(fd, self.entry.size):
                while at < end and (data := os.pread(fd, min(PIECE, end - at), at)):
                    yield at, data
                    at += len(data)
        finally:
            os.close(fd)

    def _names(self) -> list[bytes]:
        if self.fd < 0:
            return []
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)

    def _child(self, name: bytes, volume: int | None, further: Below) -> DiskNode | None:
        if volume is not None:
            return DiskNode.of(os.dup(volume), name, further, self.without)
        if further and self.fd < 0:
            return DiskNode(-1, _directory(name), further)
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return DiskNode(-1, _directory(name), further) if further else None
        node = DiskNode.of(fd, name, further, self.without)
        if is_whiteout(node.entry) or os.fstat(fd).st_dev in self.without:
            node.close()
            return None
        return node


def entry_of(fd: int, name: bytes) -> Entry:
    """The metadata of what a descriptor leads to, as snapshots have it."""
    found = os.fstat(fd)
    kind = KINDS[stat.S_IFMT(found.st_mode)]
    return Entry(
        name=name,
        kind=kind,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=found.st_mtime_ns,
        size=found.st_size if kind in "fl" else 0,
        target=os.readlink(b"", dir_fd=fd) if kind == "l" else b"",
        rdev=found.st_rdev if kind in "cb" else 0,
    )


def is_whiteout(entry: Entry) -> bool:
    """Whether this says that a file was deleted."""
    return entry.kind == "c" and entry.rdev == 0


def _directory(name: bytes) -> Entry:
    return Entry(name=name, kind="d", mode=0o755, uid=0, gid=0, mtime_ns=0, size=0)


def _stretches(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """What of a file is data; the whole where its filesystem cannot tell. (A device of endless zeros has no size.)"""
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            end = os.lseek(fd, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == 6:  # ENXIO: nothing but a hole follows
                return
            begin, end = at, size
        yield begin, end
        at = end


@dataclass(slots=True)
class ProgramFiles:
    """The files of one program, live or ended. A context manager."""

    name: str
    live: bool
    cwd: str
    roots: list[tuple[str, int]] = field(default_factory=list)
    """Where a tree begins inside, and a descriptor of it; the root last."""
    without: frozenset[int] = frozenset()

    def __enter__(self) -> ProgramFiles:
        return self

    def __exit__(self, *error: object) -> None:
        while self.roots:
            os.close(self.roots.pop()[1])

    def inside(self, path: str) -> str:
        """A path as the program would write it out: absolute, from its working directory."""
        return os.path.normpath(os.path.join("/", self.cwd, path)).replace("//", "/")

    def node(self, path: str) -> DiskNode:
        """What is at a path; links are followed inside the sandbox. UnknownNameError, with what to do."""
        where = self.inside(path)
        root, relative = self._tree_of(where)
        below = [] if self.live else self._volumes_below(where)
        name = os.fsencode(PurePosixPath(where).name)
        try:
            fd = open_below(root, relative, os.O_PATH)
        except OSError as error:
            if below:
                return DiskNode(-1, _directory(name), below)
            raise self._not_there(where, error) from None
        node = DiskNode.of(fd, name, below, self.without)
        if is_whiteout(node.entry):
            node.close()
            raise self._not_there(where, FileNotFoundError(2, "No such file or directory"))
        return node

    def directory(self, path: str) -> int:
        """A descriptor of a directory to write into, of a live program. IjfsError."""
        where = self.inside(path)
        root, relative = self._tree_of(where)
        try:
            return open_below(root, relative, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._not_there(where, error) from None

    def _tree_of(self, where: str) -> tuple[int, str]:
        for inside, fd in self.roots:
            if where == inside or where.startswith(inside.rstrip("/") + "/"):
                return fd, os.path.relpath(where, inside)
        raise AssertionError("the last root is `/`")

    def _volumes_below(self, where: str) -> Below:
        here = PurePosixPath(where)
        return [
            (PurePosixPath(inside).relative_to(here).parts, fd)
            for inside, fd in self.roots
            if inside != where and PurePosixPath(inside).is_relative_to(here)
        ]

    def _not_there(self, where: str, error: OSError) -> IjfsError:
        if self.live or os.path.lexists(where):
            hint = "" if self.live else f"`{self.name}` has ended and did not write it: it is this machine's own file"
        else:
            hint = f"`{self.name}` has ended: what it wrote is there, `ijfs ls --now {self.name} /` shows it"
        reason = (error.strerror or "no such file").lower()
        return UnknownNameError(
            f"{self.name}:{where}: {reason}", hint=hint or f"`ijfs ls --now {self.name}` shows what there is"
        )


def program_files(repo: str | os.PathLike[str], name: str) -> ProgramFiles:
    """The files of the live or ended instance of that name; a context manager. NoInstanceError."""
    paths = InstancePaths.of(repo, name)
    record = record_of(paths)
    if record.program is not None and procfs.is_alive(record.program):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
            return _live(name, record)
    return _ended(name, record, paths)


def has_files(repo: str | os.PathLike[str], name: str) -> bool:
    """Whether there is an instance of that name, live or ended."""
    try:
        record_of(InstancePaths.of(repo, name))
    except (NoInstanceError, BadNameError):
        return False
    return True


def _live(name: str, record: InstanceRecord) -> ProgramFiles:
    assert record.program is not None
    pid = record.program.pid
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if not procfs.is_alive(record.program):
        os.close(root)
        raise ProcessLookupError
    devices = set()
    for place in ("proc", "sys"):
        with contextlib.suppress(OSError):
            devices.add(os.stat(place, dir_fd=root).st_dev)
    return ProgramFiles(name, True, record.spec.cwd, [("/", root)], frozenset(devices))


def _outside(volume: Volume, sandbox: SandboxPaths, place: Path) -> Path:
    """Where an ended program's files of a volume are; those of a shared folder are the host's own."""
    if volume.kind == "shared":
        return Path(volume.path)
    return place / sandbox.volume(volume.key).upper.relative_to(sandbox.layers)


def _ended(name: str, record: InstanceRecord, paths: InstancePaths) -> ProgramFiles:
    sandbox = paths.sandbox(record.generation)
    found = ProgramFiles(name, False, record.spec.cwd)
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with disk.opened(sandbox) as place:
        layers = [(v.path, _outside(v, sandbox, place)) for v in record.volumes if v.is_layer or v.kind == "shared"]
        layers.sort(key=lambda layer: -len(layer[0]))
        for inside, outside in [*layers, ("/", place / sandbox.upper.relative_to(sandbox.layers))]:
            with contextlib.suppress(FileNotFoundError):
                found.roots.append((inside, os.open(outside, flags)))
    if not found.roots or found.roots[-1][0] != "/":
        found.__exit__()
        raise UnknownNameError(f"the files of `{name}` are gone", hint=f"`ijfs stop --rm {name}` forgets it")
    return found
