"""Small sound repositories that a fuzzing campaign damages copies of, and what each of them holds.

Between the steps of its making a seed keeps copies of the files that change in place: what a person may put back.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3
from criu_images import image_set

from ijfs_engine import Entry, IjfsError, Reader, Repository, export_tree

OLD = "old"
"""Directory beside a seed with its earlier files: OLD/<number>/index, OLD/<number>/journal."""
_READ = 1 << 20

Names = tuple[object, ...]
Contents = dict[str, dict[str, str]]
"""By snapshot and path: what is there, in one line; a file's line has the hash of its bytes."""
_Read = dict[tuple[bytes | None, int], str | None]
"""What has been read, by content and size: the same in several snapshots is read once in a pass."""


class Seed(NamedTuple):
    """A repository, what it lists, what can be read in it, and the snapshots that something leads to."""

    path: Path
    names: Names
    contents: Contents
    kept: frozenset[str]
    exports: Contents
    """What an export of each snapshot leaves on a disk, as `exported` has it."""


def make_seeds(folder: Path) -> list[Seed]:
    """Both seeds: one of many small frames of all kinds, one of few large ones."""
    return [_finished(_small(folder / "small")), _finished(_large(folder / "large"))]


def names_of(repository: Repository) -> Names:
    """All that names say."""
    return (
        sorted((one.id.hex(), one.message) for one in repository.snapshots()),
        sorted((name, ident.hex()) for name, ident in repository.refs.branches().items()),
        sorted((name, ident.hex()) for name, ident in repository.refs.tags().items()),
    )


def contents_of(repository: Repository, snapshots: list[str]) -> Contents:
    """What can be read of some snapshots, as a mount and an export would: around damage, file by file."""
    found: Contents = {}
    reader = repository.reader(cache_bytes=4 << 20)
    read: _Read = {}
    for ident in snapshots:
        found[ident] = {}
        try:
            root = repository.snapshot(bytes.fromhex(ident)).root
        except IjfsError:
            continue
        for path, line in _lines(reader, root, read):
            found[ident][path] = line
    reader.close()
    return found


def exported(repository: Repository, ident: str, target: Path) -> dict[str, Any]:
    """What an export of a snapshot leaves on a disk: every path with its metadata and bytes, and why it ended early."""
    shutil.rmtree(target, ignore_errors=True)
    found: dict[str, Any] = {}
    reader = repository.reader(cache_bytes=4 << 20)
    try:
        export_tree(reader, repository.snapshot(bytes.fromhex(ident)).root, target)
    except IjfsError as error:
        found["error"] = f"{type(error).__name__}: {error}"[:200]
    finally:
        reader.close()
    paths = sorted(target.rglob("*")) if target.is_dir() else []
    found["paths"] = {f"/{path.relative_to(target)}": _on_disk(path) for path in paths}
    shutil.rmtree(target, ignore_errors=True)
    return found


def _on_disk(path: Path) -> str:
    info = path.lstat()
    line = f"{info.st_mode:o} {info.st_uid} {info.st_gid} {info.st_mtime_ns} {info.st_nlink}"
    if stat.S_ISLNK(info.st_mode):
        return f"{line} {path.readlink()}"
    if stat.S_ISREG(info.st_mode):
        return f"{line} {info.st_size} {blake3(path.read_bytes()).hexdigest(16)}"
    return line


def _lines(reader: Reader, root: bytes, read: _Read) -> Iterator[tuple[str, str]]:
    todo = [("", root)]
    while todo:
        above, tree = todo.pop()
        try:
            entries = reader.tree(tree).entries
        except IjfsError:
            continue
        yield f"{above}/", str(len(entries))
        for entry in entries:
            path = f"{above}/{os.fsdecode(entry.name)}"
            line = (
                f"{entry.kind} {entry.mode:o} {entry.uid} {entry.gid} {entry.mtime_ns} {entry.target!r} {entry.xattrs}"
            )
            if entry.kind == "d" and entry.content is not None:
                todo.append((path, entry.content))
            elif entry.kind == "f":
                key = entry.content, entry.size
                if key not in read:
                    read[key] = _bytes_of(reader, entry)
                found = read[key]
                if found is None:
                    continue
                line += found
            yield path, line


def _bytes_of(reader: Reader, entry: Entry) -> str | None:
    try:
        stored = reader.open(entry)
        digest = blake3()
        for at in range(0, stored.size, _READ):
            digest.update(stored.read(at, _READ))
    except IjfsError:
        return None
    return f" {stored.size} {digest.hexdigest(16)} {stored.layout and stored.layout.pages}"


def _finished(path: Path) -> Seed:
    with Repository.open(path) as repository:
        assert repository.fsck().clean
        listed = [one.id.hex() for one in repository.snapshots()]
        contents = contents_of(repository, listed)
        kept = set(repository.refs.branches().values()) | set(repository.refs.tags().values())
        for ident in list(kept):
            kept.update(repository.parents(ident))
        names = names_of(repository)
        exports = {ident: exported(repository, ident, path.with_suffix(".export"))["paths"] for ident in listed}
    shutil.rmtree(path / "locks")
    return Seed(path, names, contents, frozenset(ident.hex() for ident in kept), exports)


class _Keeper:
    """Copies of the files that change in place, after each step."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0

    def keep(self) -> None:
        self._count += 1
        target = self._path.parent / OLD / self._path.name / str(self._count)
        target.mkdir(parents=True)
        shutil.copy(self._path / "index" / "data.mdb", target / "index")
        shutil.copy(self._path / "journal", target / "journal")


def _small(path: Path) -> Path:
    rng = random.Random(1)
    source = path.parent / "source"
    _make_tree(source, rng)
    memory = rng.randbytes(40 * 4096)
    keeper = _Keeper(path)
    with Repository.init(path) as repository:
        parent: list[bytes] = []
        for number in range(5):
            memory = memory[: 4096 * number] + b"changed" + memory[4096 * number + 7 :]
            (source / "grows").write_bytes(rng.randbytes(3000 * number))
            with repository.begin(parent) as writer:
                writer.add_directory("files", source)
                writer.add_images("images", dict(image_set({7: {0x7F00_0000_0000: memory}})))
                snapshot = writer.commit(message=f"step {number}", branch="main")
            parent = [snapshot.id]
            if number == 1:
                repository.refs.set_tag("v1", snapshot.id)
            if number == 2:
                repository.refs.set_branch("side", snapshot.id)
                doomed = snapshot.id
            keeper.keep()
        repository.refs.delete_branch("side")
        repository.remove(doomed)
        keeper.keep()
        repository.gc()
        repository.put_working_set(snapshot.id, b"pages" * 40)
        repository.refs.set_branch("last", snapshot.id)
        keeper.keep()
    return path


def _make_tree(source: Path, rng: random.Random) -> None:
    (source / "deep" / "er").mkdir(parents=True)
    for number in range(8):
        (source / "deep" / f"file{number}").write_bytes(rng.randbytes((0, 10, 900, 5000, 20_000)[number % 5]))
    (source / "deep" / "er" / "text").write_text("the same words again and again\n" * 800)
    (source / "script").write_bytes(b"#!/bin/sh\n")
    (source / "script").chmod(0o755)
    (source / "link").symlink_to("deep/er/text")
    os.link(source / "script", source / "hard")
    os.mkfifo(source / "fifo")
    with (source / "sparse").open("wb") as sparse:
        sparse.seek(600_000)
        sparse.write(rng.randbytes(100))


def _large(path: Path) -> Path:
    rng = random.Random(2)
    keeper = _Keeper(path)
    big = rng.randbytes(500_000)
    with Repository.init(path) as repository:
        parent: list[bytes] = []
        for number in range(3):
            with repository.begin(parent) as writer:
                writer.add_file("files/big", big)
                writer.add_file(f"files/new{number}", rng.randbytes(150_000))
                writer.add_file("files/note", b"note %d" % number)
                snapshot = writer.commit(message=f"large {number}", branch="main")
            parent = [snapshot.id]
            big = big[:200_000] + rng.randbytes(5000) + big[205_000:]
            keeper.keep()
        repository.refs.set_tag("v1", snapshot.id)
        keeper.keep()
    return path
