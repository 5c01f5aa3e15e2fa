"""Bases as plain directories beside the packs: what a sandbox's overlay stands on. Made once, shared, and droppable.

    <repo>/bases/lock             shared by whoever chooses or uses a base, exclusive to who sweeps
    <repo>/bases/import.lock      held by the one who imports this machine's own root
    <repo>/bases/<id>/table       what was walked when it was imported (records.WalkedRoot); without it nothing is lost
                                  but time
    <repo>/bases/<id>/root/       its files; made as root.new-PID, synced, and renamed
    <repo>/bases/<id>/copy        which copy that is: another one has other inode numbers
    <repo>/bases/<id>/users       shared by the keepers of programs that stand on it
    <repo>/bases/<id>/lock        held by the one who makes it

A program that runs needs its directory to the last; snapshots need only the base in the packs, from which the directory
is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ijfs.live.bases.records import WALKED_VERSION, WalkedRoot
from ijfs.live.bases.root_walk import FILES
from ijfs.live.errors import SandboxError
from ijfs.live.model.records import Base
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox.volumes import is_layered, kind_at
from ijfs_engine import Progress, Repository, Snapshot, export_tree
from ijfs_engine.errors import IjfsError, StorageError

# Directories and short files take more of a disk than their bytes: a root of 234 MB took 7 % more.
_OVERHEAD = 1.15

# A snapshot's id, and what a sweep that was killed left of one.
_NAME = re.compile(r"[0-9a-f]{64}(\.gone)?")


@dataclass(frozen=True, slots=True)
class BaseDirectory:
    """The files of one base's cache; they may be gone at any time that nobody holds `in_use`."""

    path: Path

    @property
    def root(self) -> Path:
        """The base's files, whole where it exists."""
        return self.path / "root"

    @property
    def table(self) -> Path:
        """What was walked at its import."""
        return self.path / "table"

    @property
    def copy(self) -> Path:
        """Which copy `root` is."""
        return self.path / "copy"

    @property
    def users(self) -> Path:
        """Held (flock, shared) by the keepers whose programs stand on it."""
        return self.path / "users"

    @property
    def lock(self) -> Path:
        """Held (flock) while `root` is being made."""
        return self.path / "lock"


def bases_directory(repo: Path) -> Path:
    """Where a repository keeps its bases as directories."""
    return repo.resolve() / "bases"


def directory_of(repo: Path, snapshot: str) -> BaseDirectory:
    """The cache of one base; `snapshot` in hex."""
    return BaseDirectory(bases_directory(repo) / snapshot)


@contextlib.contextmanager
def in_use(repo: Path) -> Iterator[None]:
    """While this is held no base is swept: from choosing one until an instance's record names it."""
    with _locked(bases_directory(repo) / "lock", fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def alone(repo: Path) -> Iterator[bool]:
    """Whether nobody is choosing a base, and nobody can while this is held: what no record names yet may be about to be
    named. Does not wait."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(bases_directory(repo) / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def importing(repo: Path) -> Iterator[None]:
    """One at a time reads this machine's root: who waited finds what the other one made."""
    with _locked(bases_directory(repo) / "import.lock", fcntl.LOCK_EX):
        yield


def materialised(
    repository: Repository, snapshot: Snapshot, name: str, progress: Progress | None = None
) -> tuple[Base, Path]:
    """The base as instances record it, and its directory, made where it is not there yet. To be called with `in_use`
    held. StorageError (disk full), CorruptError, SandboxError where no overlay could stand on it."""
    ident = snapshot.id.hex()
    place = directory_of(repository.path, ident)
    found = _whole(place)
    if found is None:
        place.path.mkdir(mode=0o700, exist_ok=True)
        with _locked(place.lock, fcntl.LOCK_EX):
            found = _whole(place) or _make(repository, snapshot, place, progress)
    return Base(ident, name, found), place.root


def _whole(place: BaseDirectory) -> str | None:
    """Which copy is there; None where there is none."""
    try:
        return place.copy.read_text() if place.root.is_dir() else None
    except OSError:
        return None


def _make(repository: Repository, snapshot: Snapshot, place: BaseDirectory, progress: Progress | None) -> str:
    _require_place(place.path)
    _sweep_unfinished(place)
    _require_room(place.path, snapshot)
    entry = repository.reader().lookup(snapshot.root, FILES)
    partial = place.path / f"root.new-{os.getpid()}"
    total = snapshot.size or 0

    def tell(phase: str, done: int, _: int) -> None:
        if progress is not None:
            progress("base", done, total)

    try:
        reader = repository.reader()
        with contextlib.closing(reader):
            if entry.content is not None:
                export_tree(reader, entry.content, partial, progress=tell)
            else:
                partial.mkdir()
        os.chown(partial, entry.uid, entry.gid)
        partial.chmod(entry.mode)
        copy = secrets.token_hex(8)
        with _storage_errors(f"writing {place.copy}"):
            _write_file(place.copy, copy.encode())
            _sync(place.path)
            partial.rename(place.root)
            _sync(place.path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, IjfsError):
            raise _explained(error, place) from error
        raise
    return copy


def _explained(error: IjfsError, place: BaseDirectory) -> IjfsError:
    return type(error)(f"the base could not be laid out in {place.path}: {error}", hint=error.hint)


def _sync(path: Path) -> None:
    """Everything of the filesystem: a name must never stand for files that a power cut could empty."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ns.syncfs(fd)
    finally:
        os.close(fd)


def _require_place(path: Path) -> None:
    kind = kind_at(path)
    if is_layered(kind):
        raise SandboxError(
            f"the repository lies on {kind}, on which a base cannot be laid out",
            hint="keep the repository on a volume (ext4, xfs, btrfs, tmpfs); docs/places.md",
        )


def _require_room(path: Path, snapshot: Snapshot) -> None:
    wanted = int((snapshot.size or 0) * _OVERHEAD)
    free = shutil.disk_usage(path).free
    if free < wanted:
        raise StorageError(
            f"the base needs {wanted >> 20} MiB as a directory, and {free >> 20} MiB are free at {path}",
            hint="free some space, or keep the repository on a larger volume",
        )


def _sweep_unfinished(place: BaseDirectory) -> None:
    """What a killed maker left; called by who holds its lock."""
    for path in place.path.glob("root.new-*"):
        shutil.rmtree(path, ignore_errors=True)


def write_table(repo: Path, snapshot: str, table: WalkedRoot) -> None:
    """Keep what was walked, for the next import and the next start."""
    place = directory_of(repo, snapshot)
    with _storage_errors(f"writing {place.table}"):
        place.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_file(place.table, msgspec.msgpack.encode(table))


_tables = msgspec.msgpack.Decoder(WalkedRoot)


def read_table(repo: Path, snapshot: str) -> WalkedRoot | None:
    """What was walked; None where that is not known (any more)."""
    try:
        table = _tables.decode(directory_of(repo, snapshot).table.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return table if table.version == WALKED_VERSION else None


def _write_file(path: Path, data: bytes) -> None:
    """Whole, durable, or not at all."""
    temporary = path.with_name(f"{path.name}.new-{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


@contextlib.contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError.of(what, error) from error


def sweep(repo: Path, keep: Callable[[], set[str]]) -> list[str]:
    """Remove the directories of all bases but those in `keep`, which is asked when nobody can choose one any more; what
    a killed maker left, too. Nothing is done while a base is being chosen. The ids of what went."""
    directory = bases_directory(repo)
    if not directory.is_dir():
        return []
    with alone(repo) as nobody_chooses:
        return _sweep(directory, keep()) if nobody_chooses else []


def _sweep(directory: Path, kept: set[str]) -> list[str]:
    gone = []
    for path in filter(_is_ours, directory.iterdir()):
        if path.name in kept:
            _sweep_unfinished(BaseDirectory(path))
        elif _is_free(BaseDirectory(path)):
            _remove(path)
            gone.append(path.name)
    return gone


def _is_ours(path: Path) -> bool:
    """Whether it is a base's directory: what somebody else put beside them, or a link, is none of ours to remove."""
    return _NAME.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()


def _is_free(place: BaseDirectory) -> bool:
    """Whether no keeper holds it. (Nobody can begin to: who sweeps keeps all others from choosing.)"""
    try:
        with _locked(place.users, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return True
    except BlockingIOError:
        return False


def _remove(path: Path) -> None:
    """The name first: a half removed base must not be taken for a whole one."""
    doomed = path.with_name(f"{path.name}.gone")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with _storage_errors(f"opening {path}"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)
