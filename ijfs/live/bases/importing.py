"""`ijfs base import`, and what a first start in a container does: a root file system becomes a base.

Incremental: what is as it was at the last import of that base is not read again, and what is read is stored only where
the repository has not got it. Nothing is visible until the commit.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from ijfs.live.bases import cache, needs
from ijfs.live.bases.records import BaseMeta, check_name, head_tag, version_tag
from ijfs.live.bases.root_walk import Before, Walk, left_out
from ijfs_engine import ANY, ObjectId, Progress, Repository, Snapshot
from ijfs_engine.errors import CorruptError, IjfsError, StorageError

# How often a root is walked that changes under the eyes of who reads it.
ATTEMPTS = 4

# Items that are stored together; the engine waits for each lot.
_LOT = 4096


class Imported(NamedTuple):
    """What an import made: the snapshot (an older one where nothing had changed), and how much work it was."""

    snapshot: Snapshot
    name: str
    files: int
    bytes_read: int
    stored_bytes: int
    seconds: float
    changed: bool


def import_base(
    repository: Repository,
    root: Path,
    name: str,
    *,
    exclude: Iterable[str] = (),
    progress: Progress | None = None,
) -> Imported:
    """Store a root file system as the newest version of the base `name`; older versions that nothing needs go.

    StorageError (disk full, a file that cannot be read, a root that changes too fast), BadBaseNameError.
    """
    check_name(name)
    began = time.monotonic()
    root = root.resolve()
    with cache.in_use(repository.path):
        skipped = left_out(root, repository.path, exclude)
        newest = repository.refs.tags().get(head_tag(name))
        unreadable: set[str] = set()
        anew = False
        for attempt in range(ATTEMPTS):
            try:
                found = _attempt(repository, root, name, skipped, newest, frozenset(unreadable), progress, began, anew)
                break
            except CorruptError:  # the version before is damaged: nothing is taken from it
                if newest is None or anew:
                    raise
                anew = True
            except StorageError as error:
                path = _changing(error)
                if path is None or attempt == ATTEMPTS - 1:
                    raise
                unreadable |= path
        _name(repository, name, found.snapshot)
    drop_unneeded(repository, name)
    return found


def _attempt(
    repository: Repository,
    root: Path,
    name: str,
    skipped: list[bytes],
    newest: ObjectId | None,
    unreadable: frozenset[str],
    progress: Progress | None,
    began: float,
    anew: bool,
) -> Imported:
    with contextlib.ExitStack() as stack:
        before = None if anew else _before(repository, newest, stack)
        walk = Walk(root, frozenset(skipped), before, unreadable)
        items = list(walk.items(time.time_ns()))
        told = _with_total(progress, walk.bytes_to_read)
        writer = stack.enter_context(repository.begin([newest] if newest else (), anew=anew, progress=told))
        for at in range(0, len(items), _LOT):
            writer.add_entries(items[at : at + _LOT])
        meta = {"base": msgspec.to_builtins(_describe(root, name, walk.files))}
        snapshot = writer.commit(message=f"base {name}", meta=meta)
        stored = writer.stored_bytes
    snapshot = _old_if_same(repository, newest, snapshot)
    cache.write_table(repository.path, snapshot.id.hex(), walk.table())
    seconds = time.monotonic() - began
    return Imported(snapshot, name, walk.files, walk.bytes_to_read, stored, seconds, snapshot.id != newest)


def _before(repository: Repository, newest: ObjectId | None, stack: contextlib.ExitStack) -> Before | None:
    """What the walk is compared with; None at a first import, or where the table of the last one is lost."""
    if newest is None:
        return None
    table = cache.read_table(repository.path, newest.hex())
    if table is None:
        return None
    reader = stack.enter_context(contextlib.closing(repository.reader()))
    return Before(table, reader, repository.snapshot(newest).root)


def _with_total(progress: Progress | None, total: int) -> Progress | None:
    """The engine stores in lots and knows of one only; the walk knows the sum."""
    if progress is None:
        return None
    shown = progress
    return lambda phase, done, _: shown("import", done, total)


def _old_if_same(repository: Repository, newest: ObjectId | None, snapshot: Snapshot) -> Snapshot:
    """Nothing had changed: the version that there is stays the newest, with its directory."""
    if newest is None:
        return snapshot
    try:
        old = repository.snapshot(newest)
    except CorruptError:
        return snapshot
    if old.root != snapshot.root:
        return snapshot
    repository.remove(snapshot.id)
    return old


def _describe(root: Path, name: str, files: int) -> BaseMeta:
    return BaseMeta(
        name=name,
        origin=str(root),
        system=_system(root),
        hostname=os.uname().nodename,
        machine=platform.machine(),
        files=files,
    )


def _system(root: Path) -> str:
    """What the root says it is; "" where it does not."""
    for name in ("etc/os-release", "usr/lib/os-release"):
        with contextlib.suppress(OSError, ValueError):
            for line in (root / name).read_text(errors="replace").splitlines():
                if line.startswith("PRETTY_NAME="):
                    return "".join(shlex.split(line.partition("=")[2]))
    return ""


def _changing(error: StorageError) -> set[str] | None:
    """The file that went or shrank while it was read, to be left out of the next attempt; None for another failure."""
    cause = error.__cause__
    if isinstance(cause, FileNotFoundError):
        return {os.fsdecode(cause.filename)} if cause.filename else set()
    changed = ("became shorter", "no regular file any more")
    return {str(error).split(" became shorter")[0]} if any(text in str(error) for text in changed) else None


def _name(repository: Repository, name: str, snapshot: Snapshot) -> None:
    """The version's own tag first: from then on nothing can take it away."""
    refs = repository.refs
    refs.set_tag(version_tag(name, snapshot.id.hex()), snapshot.id, expect=ANY, why="base import")
    refs.set_tag(head_tag(name), snapshot.id, expect=ANY, why="base import")


def drop_unneeded(repository: Repository, name: str) -> list[ObjectId]:
    """Let go of the versions of a base that are neither its newest nor needed; gc then frees them. The ids. Nothing is
    done while a base is being chosen, or a program's record is damaged: another time, or `ijfs gc`, finds them."""
    with cache.alone(repository.path) as nobody_chooses, contextlib.suppress(CorruptError):
        return _dropped(repository, name) if nobody_chooses else []
    return []


def _dropped(repository: Repository, name: str) -> list[ObjectId]:
    tags = repository.refs.tags()
    newest = tags.get(head_tag(name))
    needed = needs.who_needs(repository)
    dropped = []
    for tag, ident in tags.items():
        if tag.startswith(version_tag(name, "")) and ident != newest and ident.hex() not in needed:
            repository.refs.delete_tag(tag, expect=ident, why="a newer version, and nothing needs this one")
            with contextlib.suppress(IjfsError):  # somebody's own tag keeps it
                repository.remove(ident)
            dropped.append(ident)
    return dropped
