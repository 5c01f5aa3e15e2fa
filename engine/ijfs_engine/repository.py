"""The repository: the door to everything the engine keeps. Every layer above begins here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from .records import DiskUsage, FsckReport, GcReport, ObjectId, Snapshot, Stats
from .session import Session
from .store import Store

if TYPE_CHECKING:
    from .ingest import SnapshotWriter
    from .reader import Reader

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as progress(phase, done, total) from any thread; total is 0 where it is not known. Bytes for data."""


class Repository:
    """A repository, open. One per process and path is enough; safe to use from several threads."""

    path: Path
    store: Store

    @classmethod
    def init(cls, path: str | Path) -> Repository:
        """Make one in an empty or absent directory, and open it. StorageError, IjfsError."""
        raise NotImplementedError

    @classmethod
    def open(cls, path: str | Path) -> Repository:
        """Open one. NoRepositoryError, UnknownFormatError."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of every file; safe to call twice."""
        raise NotImplementedError

    def begin(self, parents: Sequence[ObjectId] = (), *, progress: Progress | None = None) -> SnapshotWriter:
        """Start a snapshot whose bytes resemble those of `parents`."""
        from .ingest import SnapshotWriter

        snapshots = tuple(self.snapshot(parent) for parent in parents)
        return SnapshotWriter(self.store, self.session(), snapshots, progress=progress)

    def session(self) -> Session:
        """The storage half of `begin`."""
        raise NotImplementedError

    def reader(self, *, cache_bytes: int = 64 << 20, delay_s: float = 0.0) -> Reader:
        """A reader with a cache of its own."""
        from .reader import Reader

        return Reader(self.store, cache_bytes=cache_bytes, delay_s=delay_s)

    def resolve(self, spec: str) -> ObjectId:
        """A snapshot's id from a prefix of at least 4 digits, a branch, a tag, `name~2` or `latest`.

        UnknownNameError, AmbiguousNameError (which lists the candidates).
        """
        raise NotImplementedError

    def snapshot(self, ident: ObjectId) -> Snapshot:
        """The record of a snapshot that is listed. UnknownNameError."""
        raise NotImplementedError

    def snapshots(self) -> list[Snapshot]:
        """All, newest first."""
        raise NotImplementedError

    def remove(self, ident: ObjectId) -> None:
        """Take a snapshot out of the tree; gc frees its bytes, those that no other snapshot has.

        Branches at it move to its nearest parent that is left, or vanish. A tag or a live instance's pin holds
        it: IjfsError, LockedError. Its children stay whole.
        """
        raise NotImplementedError

    def pin(self, ident: ObjectId, owner: str) -> Any:
        """Keep a snapshot from gc and rm as long as the answer is open and this process lives."""
        raise NotImplementedError

    def du(self, ids: Sequence[ObjectId] | None = None) -> DiskUsage:
        """Who takes how much, and what they share."""
        raise NotImplementedError

    def gc(self, *, dry_run: bool = False, progress: Progress | None = None) -> GcReport:
        """Free what no branch, tag or pin reaches. Saves may run meanwhile. LockedError beside another gc."""
        raise NotImplementedError

    def fsck(self, *, repair: bool = False, data: bool = True, progress: Progress | None = None) -> FsckReport:
        """Check every reference, and with `data` every stored byte; with `repair`, mend what can be mended."""
        raise NotImplementedError

    def stats(self) -> Stats:
        """Counts and sizes."""
        raise NotImplementedError

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
