"""What `ijfs cp`, `ls` and `cat` read: a node is a file or directory with its metadata, wherever it lies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ijfs.cli import views
from ijfs.cli.app import App
from ijfs_engine.errors import AmbiguousNameError, CorruptError, UnknownNameError

if TYPE_CHECKING:
    from ijfs.live.client.files import ProgramFiles
    from ijfs_engine import Entry, Reader, Snapshot

PIECE = 1 << 20


class Node(Protocol):
    """A file, a directory, or what else has a name."""

    @property
    def entry(self) -> Entry:
        """Its metadata."""

    def children(self) -> Iterator[Node]:
        """What a directory holds, by name; each is the caller's to close."""

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Where a file holds what; holes are left out."""

    def close(self) -> None:
        """Let go of it."""


def is_whiteout(entry: Entry) -> bool:
    """Whether this is no file, and says that a program deleted one of this name."""
    return entry.kind == "c" and entry.rdev == 0


@dataclass(frozen=True)
class StoredNode:
    """An entry of a snapshot's tree."""

    reader: Reader
    entry: Entry

    def children(self) -> Iterator[Node]:
        """The entries of its tree. CorruptError where it names none."""
        if self.entry.content is None:
            raise CorruptError(f"the directory {os.fsdecode(self.entry.name)!r} has no tree")
        for entry in self.reader.tree(self.entry.content).entries:
            yield StoredNode(self.reader, entry)

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Checked against its ids. CorruptError."""
        stored = self.reader.open(self.entry)
        for extent in stored.extents():
            end = extent.offset + extent.length
            for at in range(extent.offset, end if not extent.zero else extent.offset, PIECE):
                yield at, stored.read(at, min(PIECE, end - at))

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class Found:
    """What a NAME:PATH leads to: `name` is what the copy is called, `of` the program or the snapshot's id."""

    node: Node
    name: bytes
    path: str
    program: str | None = None
    snapshot: str | None = None

    @property
    def json(self) -> dict[str, str | None]:
        """Where it is, in the output of `ls` and `cat`."""
        where = {"snapshot": self.snapshot, "path": self.path}
        return where if self.program is None else {**where, "program": self.program}


@contextlib.contextmanager
def opened(app: App, name: str, path: str) -> Iterator[Found]:
    """What is at a path of the program of that name as it is now; where there is none, of the snapshot."""
    if "/" not in name and _has_files(app, name):
        with program(app, name) as files:
            yield from _of_program(files, path)
        return
    yield of_snapshot(app, name, path)


def program(app: App, name: str) -> ProgramFiles:
    """A program's files; a context manager. IjfsError."""
    from ijfs.live.client.files import program_files

    app.repository()
    return program_files(app.repository_path, name)


@contextlib.contextmanager
def looked_up(app: App, name: str, path: str, *, now: bool) -> Iterator[Found]:
    """What is at a path of the snapshot of that name; where there is none, or `now`, of the program as it is now."""
    if now or ("/" not in name and not _is_snapshot(app, name) and _has_files(app, name)):
        with program(app, name) as files:
            yield from _of_program(files, path or ".")
        return
    try:
        found = of_snapshot(app, name, path)
    except UnknownNameError as error:
        if path and "/" not in name and _has_files(app, name):
            hint = f"`--now` looks at the files of the program `{name}` as they are, saved or not"
            raise UnknownNameError(str(error), hint=hint) from None
        raise
    yield found


def split(spec: str, path: str | None) -> tuple[str, str]:
    """A name and a path from `NAME PATH` or `NAME:PATH`."""
    if path is None and ":" in spec:
        spec, path = spec.split(":", 1)
    return spec, path or ""


def _of_program(files: ProgramFiles, path: str) -> Iterator[Found]:
    node = files.node(path)
    try:
        where = files.inside(path)
        yield Found(node, os.fsencode(os.path.basename(where)), where, program=files.name)
    finally:
        node.close()


def of_snapshot(app: App, spec: str, path: str) -> Found:
    """What is at a path of a snapshot: in its tree, or as its program would name it. UnknownNameError."""
    repository = app.repository()
    record = repository.snapshot(repository.resolve(spec))
    reader = repository.reader()
    entry = find(reader, record, path, spec) if path.strip("/") else _top(record)
    return Found(StoredNode(reader, entry), entry.name, path.strip("/"), snapshot=record.id.hex())


def _top(record: Snapshot) -> Entry:
    """A snapshot's top as a directory, which has no name."""
    from ijfs_engine import Entry

    return Entry(name=b"", kind="d", mode=0o755, uid=0, gid=0, mtime_ns=record.created_ns, content=record.root)


def find(reader: Reader, record: Snapshot, path: str, spec: str) -> Entry:
    """The entry at a path. What a person knows is what the program calls a file: `out.csv`, `/root/out.csv`; in the
    tree that is `files/root/out.csv`. UnknownNameError with what to do."""
    spelt = path.strip("/")
    try:
        return views.lookup(reader, record.root, spelt)
    except UnknownNameError as error:
        for meant in as_the_program_has_it(record, path):
            with contextlib.suppress(UnknownNameError):
                return views.lookup(reader, record.root, meant)
        hint = f"`ijfs ls {spec}` shows its top, `ijfs ls -R {spec} files` what the program wrote"
        raise UnknownNameError(str(error), hint=hint) from None


def as_the_program_has_it(record: Snapshot, path: str) -> list[str]:
    """Where in a snapshot's tree a path of its program is: below `files`, or `shm`."""
    spec = record.meta.get("spec")
    cwd = str(spec.get("cwd", "/")) if isinstance(spec, dict) else "/"
    absolute = os.path.normpath(os.path.join("/", cwd, path))
    places = [f"files{absolute}", f"files/{os.path.normpath(path).lstrip('/')}"]
    if absolute.startswith("/dev/shm/"):
        places.insert(0, f"shm/{absolute.removeprefix('/dev/shm/')}")
    return places


def of_this_machine(path: Path) -> Node:
    """A file or directory here; a link that is named is followed, none below it is. OSError."""
    from ijfs.live.client.files import DiskNode

    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    return DiskNode.of(fd, os.fsencode(os.path.basename(os.path.abspath(path))))


def _has_files(app: App, name: str) -> bool:
    from ijfs.live.client.files import has_files

    app.repository()
    return has_files(app.repository_path, name)


def _is_snapshot(app: App, name: str) -> bool:
    try:
        app.repository().resolve(name)
    except AmbiguousNameError:
        return True
    except UnknownNameError:
        return False
    return True
