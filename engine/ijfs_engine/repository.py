"""The repository: the door to everything the engine keeps. Every layer above begins here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeAlias

from ijfs_engine.errors import CorruptError, IjfsError, LockedError, StorageError, UnknownNameError
from ijfs_engine.format.records import DiskUsage, FsckReport, GcReport, ObjectId, Snapshot, Stats
from ijfs_engine.maintenance.prune import PrunePolicy, PruneReport, prune
from ijfs_engine.storage import directory, disk, revisions, working_sets
from ijfs_engine.storage.index import (
    CHUNKS,
    META,
    OBJECTS,
    PACK_ROW,
    PACKS,
    REFS,
    REMOVED,
    SIDECARS,
    SNAPSHOTS,
    U64,
    Index,
    Update,
)
from ijfs_engine.storage.journal import Journal, Record, SnapshotRemoved
from ijfs_engine.storage.locks import live_files
from ijfs_engine.storage.object_store import Store
from ijfs_engine.storage.pins import Pin, PinInfo, live_pins, make_pin
from ijfs_engine.storage.refs import Refs, log_records, move_ref
from ijfs_engine.storage.session import Session

if TYPE_CHECKING:
    from ijfs_engine.read.reader import Reader
    from ijfs_engine.write.snapshot_writer import SnapshotWriter

_WHOLE: Final = b"whole"
"""The META row that tells an index from the empty one LMDB makes where there is none."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as progress(phase, done, total) from any thread; total is 0 where it is not known. Bytes for data."""


class Repository:
    """A repository, open. One per process and path is enough; safe to use from several threads."""

    def __init__(self, where: directory.RepositoryDirectory, index: Index) -> None:
        """Use `init` or `open`."""
        self.path = where.path
        self.layout = where
        self.index = index
        self.journal = Journal(where.journal, where.id)
        self.store = Store(where, index)
        self.refs = Refs(index, self.journal)
        self._closed = False

    @classmethod
    def init(cls, path: str | Path) -> Repository:
        """Make one in an empty or absent directory, and open it. StorageError, IjfsError."""
        where = directory.make(Path(path))
        index = Index.open(where.index)
        try:
            with disk.storage_errors(f"making a repository at {path}"):
                Journal(where.journal, where.id).create()
            where.secret()
            index.write(mark_whole)
            directory.seal(where)
        except BaseException:
            index.close()
            raise
        return cls(where, index)

    @classmethod
    def open(cls, path: str | Path, *, damaged: bool = False) -> Repository:
        """Open one. NoRepositoryError, UnknownFormatError, StorageError; CorruptError when its index is lost.

        One that can only be read is opened to be read: whatever would change it is a StorageError then. With `damaged`
        it opens without an index too, so that fsck can look and mend.
        """
        where = directory.find(Path(path))
        directory.mend(where)
        if damaged and where.refusal is None:
            index = _open_damaged(where)
        else:
            index = Index.open(where.index, refusal=where.refusal)
        with index.read() as view:
            whole = view.get(META, _WHOLE) is not None
        if not whole and not damaged:
            index.close()
            raise CorruptError(f"the index of {path} is lost", hint="`ijfs fsck --repair` rebuilds it from the packs")
        return cls(where, index)

    def close(self) -> None:
        """Let go of every file; safe to call twice."""
        if not self._closed:
            self._closed = True
            self.store.close()
            self.index.close()

    def begin(self, parents: Sequence[ObjectId] = (), *, progress: Progress | None = None) -> SnapshotWriter:
        """Start a snapshot whose bytes resemble those of `parents`."""
        from ijfs_engine.write.snapshot_writer import SnapshotWriter

        # The session first: from then on gc takes nothing that the parents reach.
        session = self.session()
        try:
            snapshots = tuple(self.snapshot(parent) for parent in parents)
            return SnapshotWriter(self.store, session, snapshots, progress=progress)
        except BaseException:
            session.abort()
            raise

    def session(self) -> Session:
        """The storage half of `begin`."""
        self.layout.check_writable()
        return Session(self.layout, self.index, self.journal)

    def reader(self, *, cache_bytes: int = 64 << 20, delay_s: float | None = None) -> Reader:
        """A reader with a cache of its own. `delay_s` is waited before each fetch, as if the chunks were far away; by
        default $IJFS_FETCH_DELAY_MS, which reaches the readers of every process of a restore. IjfsError."""
        from ijfs_engine.read.reader import Reader

        delay_s = _delay_s() if delay_s is None else delay_s
        return Reader(self.store, cache_bytes=cache_bytes, delay_s=delay_s)

    def working_set(self, ident: ObjectId, *, inherited: bool = True) -> bytes | None:
        """What `put_working_set` kept for a snapshot or, with `inherited`, for its nearest ancestor that has one; it
        may vanish at any time. CorruptError."""
        return working_sets.find(self, ident, working_sets.MAX_GENERATIONS if inherited else 1)

    def put_working_set(self, ident: ObjectId, data: bytes) -> None:
        """Keep what a restore of a snapshot needed first (at most 1 MiB); the latest one wins. It is no part of the
        snapshot, and goes with it. UnknownNameError, StorageError, ValueError."""
        working_sets.put(self, ident, data)

    def resolve(self, spec: str) -> ObjectId:
        """A snapshot's id from a prefix of at least 4 digits, a branch, a tag, `name~2` or `latest`.

        UnknownNameError, AmbiguousNameError (which lists the candidates).
        """
        with self.index.read() as view:
            ident, generations = revisions.base_name(view, spec)
        for done in range(generations):
            parents = self.store.snapshot(ident).parents
            with self.index.read() as view:
                parent = revisions.nearest(view, parents)
            if parent is None:
                raise UnknownNameError(f"{spec!r} goes back {generations} generations, and there are {done}")
            ident = parent
        return ident

    def snapshot(self, ident: ObjectId) -> Snapshot:
        """The record of a snapshot that is listed. UnknownNameError."""
        with self.index.read() as view:
            listed = view.get(SNAPSHOTS, ident) is not None
        if not listed:
            raise UnknownNameError(f"there is no snapshot {ident.hex()[:12]}")
        return self.store.snapshot(ident)

    def snapshots(self, newest: int | None = None) -> list[Snapshot]:
        """All, or so many, newest first, without those whose record cannot be read; fsck names these."""
        with self.index.read() as view:
            listed = sorted(((U64.unpack(row)[0], ident) for ident, row in view.items(SNAPSHOTS)), reverse=True)
        return self.store.readable_snapshots([ident for _, ident in listed[:newest]])

    def parents(self, ident: ObjectId) -> list[ObjectId]:
        """The parents of a snapshot as they are listed now: for one that was removed, its own nearest ones."""
        recorded = self.snapshot(ident).parents
        with self.index.read() as view:
            found = [revisions.nearest(view, [parent]) for parent in recorded]
        return list(dict.fromkeys(parent for parent in found if parent is not None))

    def nearest(self, candidates: Sequence[ObjectId]) -> ObjectId | None:
        """The first of the candidates that is listed, or the nearest ancestor of one that was removed."""
        with self.index.read() as view:
            return revisions.nearest(view, candidates)

    def remove(self, ident: ObjectId) -> None:
        """Take a snapshot out of the tree; gc frees its bytes, those that no other snapshot has.

        Branches at it move to its nearest parent that is left, or vanish. A tag or a live instance's pin holds
        it: IjfsError, LockedError. Its children stay whole.
        """
        self.remove_many([ident])

    def remove_many(self, ids: Sequence[ObjectId]) -> None:
        """The same for several in one transaction: all of them or none."""
        parents = {ident: self._recorded_parents(ident) for ident in ids}

        def change(update: Update) -> None:
            records: list[Record] = []
            for ident, recorded in parents.items():
                self._check_removable(update, ident)
                update.delete(SNAPSHOTS, ident)
                update.put(REMOVED, ident, revisions.removed_row(recorded))
                records.append(SnapshotRemoved(ident, recorded))
            for key, head in list(update.prefixed(REFS, b"branch/")):
                if head in parents:
                    heir = revisions.nearest(update, parents[head])
                    records.append(move_ref(update, key, head, heir, "rm of the snapshot it was at"))
            log_records(update, self.journal, records)

        if parents:
            self.index.write(change)

    def prune(self, policy: PrunePolicy, *, dry_run: bool = False) -> PruneReport:
        """Remove what a policy does not keep of each branch; gc then frees the bytes. IjfsError."""
        return prune(self, policy, dry_run=dry_run)

    def pin(self, ident: ObjectId, owner: str) -> Pin:
        """Keep a snapshot from gc and rm as long as the answer is open and this process lives. UnknownNameError."""
        self.layout.check_writable()
        return make_pin(self.layout.pins, self.index, ident, owner)

    def pins(self) -> list[PinInfo]:
        """The pins whose owners live."""
        with disk.storage_errors("reading the pins"):
            return live_pins(self.layout.pins).pins

    def du(self, ids: Sequence[ObjectId] | None = None) -> DiskUsage:
        """Who takes how much, and what they share; of all snapshots, or of `ids` against one another."""
        from ijfs_engine.maintenance.disk_usage import disk_usage

        return disk_usage(self, [one.id for one in self.snapshots()] if ids is None else list(ids))

    def gc(self, *, dry_run: bool = False, progress: Progress | None = None) -> GcReport:
        """Free what no branch, tag or pin reaches. Saves may run meanwhile. LockedError beside another gc."""
        from ijfs_engine.maintenance.gc import collect

        self.layout.check_writable()
        return collect(self, dry_run=dry_run, progress=progress)

    def fsck(self, *, repair: bool = False, data: bool = True, progress: Progress | None = None) -> FsckReport:
        """Check every reference, and with `data` every stored byte; with `repair`, mend what can be mended."""
        from ijfs_engine.maintenance.fsck import check

        if repair:
            self.layout.check_writable()
        return check(self, repair=repair, data=data, progress=progress)

    def stats(self) -> Stats:
        """Counts and sizes, from the index."""
        with self.index.read() as view:
            counts = {table: view.count(table) for table in (CHUNKS, OBJECTS, SIDECARS, SNAPSHOTS, PACKS)}
            refs = [key for key, _ in view.items(REFS)]
            pack_bytes = sum(PACK_ROW.unpack(row)[1] for _, row in view.items(PACKS))
        with disk.storage_errors("reading the repository"):
            journal_bytes = self.layout.journal.stat().st_size
            index_bytes = self.index.size_on_disk()
        branches = sum(key.startswith(b"branch/") for key in refs)
        return Stats(
            snapshots=counts[SNAPSHOTS],
            branches=branches,
            tags=len(refs) - branches,
            chunks=counts[CHUNKS],
            objects=counts[OBJECTS],
            sidecars=counts[SIDECARS],
            packs=counts[PACKS],
            pack_bytes=pack_bytes,
            index_bytes=index_bytes,
            journal_bytes=journal_bytes,
            format_version=directory.FORMAT_VERSION,
        )

    def _recorded_parents(self, ident: ObjectId) -> tuple[ObjectId, ...]:
        try:
            return self.snapshot(ident).parents
        except CorruptError:
            # Its record is damaged, and rm is how one gets rid of it.
            return ()

    def _check_removable(self, update: Update, ident: ObjectId) -> None:
        short = ident.hex()[:12]
        if update.get(SNAPSHOTS, ident) is None:
            raise UnknownNameError(f"there is no snapshot {short}")
        tags = [key.decode()[4:] for key, at in update.prefixed(REFS, b"tag/") if at == ident]
        if tags:
            raise IjfsError(f"the snapshot {short} is tagged {', '.join(tags)}", hint=f"`ijfs tag -d {tags[0]}` first")
        owners = [pin.owner for pin in live_pins(self.layout.pins).pins if pin.id == ident]
        if owners:
            raise LockedError(f"the snapshot {short} is in use by {', '.join(owners)}", hint="stop it first")

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _delay_s() -> float:
    """What tests and benchmarks have each fetch wait."""
    text = os.environ.get("IJFS_FETCH_DELAY_MS") or "0"
    if not text.isdecimal():
        raise IjfsError(f"IJFS_FETCH_DELAY_MS is {text!r}, no number of milliseconds")
    return int(text) / 1000


def mark_whole(update: Update) -> None:
    """Say that the index holds all there is; a rebuild says so last."""
    update.put(META, _WHOLE, b"1")


def _open_damaged(where: directory.RepositoryDirectory) -> Index:
    """The index, or an empty one in its place if it cannot be read to its end: the old one is kept beside it.

    LockedError while a save runs: it would write into the old one.
    """
    index = None
    try:
        index = Index.open(where.index)
        index.check()
        return index
    except StorageError:
        if index is not None:
            index.close()
    with disk.storage_errors("setting the damaged index aside"):
        if any(True for _ in live_files(where.sessions)):
            raise LockedError("the index is damaged, and a save is running", hint="wait until it ends, or stop it")
        where.index.rename(where.path / f"index.damaged-{time.time_ns()}")
    return Index.open(where.index)
