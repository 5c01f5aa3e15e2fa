"""gc: find what no branch, tag or pin reaches, and give its bytes back while saves go on.

`Repository.gc` calls `collect`. A chunk dies in two steps, because a running session may have found it just before:
first it is *condemned* (sessions that begin later treat it as not there), and it is *swept* only when every session
that runs began after that. docs/concurrency.md has the whole argument, and the reason for the order of the steps.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import compress
from typing import Final, NamedTuple

from ijfs_engine._native.idset import ChunkUse
from ijfs_engine.errors import CorruptError, StorageError
from ijfs_engine.format.frames import ID_SIZE
from ijfs_engine.format.records import GcReport, ObjectId
from ijfs_engine.maintenance import flatten, recompress
from ijfs_engine.maintenance.compact_journal import compact_journal, freed_of_journal
from ijfs_engine.maintenance.held_packs import holders
from ijfs_engine.maintenance.reachability import ReachableSet
from ijfs_engine.maintenance.repack import Repacker, disk_size, index_size, orphans, remove_orphans, whole_blocks
from ijfs_engine.storage import disk
from ijfs_engine.storage.index import (
    BASES,
    CHUNKS,
    CONDEMNED,
    OBJECTS,
    REFS,
    REMOVED,
    SIDECARS,
    SNAPSHOTS,
    U64,
    Index,
    Update,
    View,
)
from ijfs_engine.storage.journal import Record, SnapshotRemoved
from ijfs_engine.storage.known_damage import missing_packs
from ijfs_engine.storage.locks import clear_dead, exclusive, live_files
from ijfs_engine.storage.names import nearest_ancestors, removed_row
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.pins import live_pins
from ijfs_engine.storage.refs import log_records, write_logged
from ijfs_engine.storage.signatures import drop_lost
from ijfs_engine.storage.worn import write_down
from ijfs_engine.util.progress import Progress
from ijfs_engine.util.words import count

_FULL: Final = "nothing that is needed was lost; free some space elsewhere on this disk, then run gc again"
_STRIDE: Final = 16_384
"""Marks per transaction: a save that wants to commit waits for one of these (30 ms) at most."""

_ROOM_OF_A_MARK: Final = 500
"""Bytes of the index that marking and sweeping one row takes until its pages can be used again: 100 for the mark and
100 for the row, each written anew twice before LMDB lets go of the old pages."""
_MOST_PARTS: Final = 256
_WORN: Final = 46
"""64ths of a chunk: where all snapshots together name fewer, saves store anew what they have of it. Eight ways to
change memory, 14 saves of which one was kept, gc after each: 1.5 times the memory on disk at most (3.5 without this,
1.6 with 40), and 0.08 to 0.64 of it written by a save that wrote 0.04 to 0.50 before."""
_MOST_COUNTED: Final = 2_000_000
"""Chunks: 106 MB at most."""


class Roots(NamedTuple):
    """What is listed, and which of it stays."""

    keep: frozenset[ObjectId]
    drop: frozenset[ObjectId]
    heads: frozenset[ObjectId]
    """The snapshots that refs and pins point at themselves."""


class _Part(NamedTuple):
    """The ids from `start` on and before `stop`."""

    start: bytes = b""
    stop: bytes | None = None


_ALL: Final = _Part()


class _Swept(NamedTuple):
    """What a sweep took."""

    chunks: int
    objects: int
    waiting: int


def collect(repository: OpenRepository, *, dry_run: bool, progress: Progress | None, deep: bool = False) -> GcReport:
    """Free what nothing reaches; `deep`: and store anew what then takes fewer bytes. LockedError beside another gc;
    CorruptError when a snapshot's metadata is damaged, because then nobody knows what it needs. StorageError."""
    with (
        _told_if_full(),
        disk.storage_errors("gc"),
        exclusive(repository.directory.gc_lock, "gc", looking=dry_run),
    ):
        collector = _Collector(repository, progress, deep=deep)
        if dry_run:
            return collector.estimate()
        try:
            report = collector.run()
            drop_lost(repository.directory, lambda: _known(repository))
            return report
        finally:
            repository.directory.reserve.take(repository.index.size_on_disk())


def _known(repository: OpenRepository) -> set[ObjectId]:
    """What is listed, and what was removed and is remembered."""
    with repository.index.read() as view:
        return {ident for table in (SNAPSHOTS, REMOVED) for ident, _ in view.items(table)}


class _Collector:
    """One run of gc."""

    def __init__(self, repository: OpenRepository, progress: Progress | None, *, deep: bool = False) -> None:
        self._repository = repository
        self._deep = deep
        self._smaller = recompress.NOTHING
        self._index: Index = repository.index
        self._progress = progress
        self._parents: dict[ObjectId, tuple[ObjectId, ...]] = {}
        # What gc notes in the index lets that grow, and serves the next ones: it is counted as it was.
        self._index_size = index_size(repository.directory)
        self._before = disk_size(repository.directory) + self._index_size

    def run(self) -> GcReport:
        """Mark, condemn, sweep, repack."""
        self._index.write(self._repository.journal.settle)
        self._check_packs()
        remove_orphans(self._repository)
        for of_the_dead in (self._repository.directory.sessions, self._repository.directory.pins):
            clear_dead(of_the_dead)
        roots = self._settle_roots()
        swept = self._mark_and_sweep(roots)
        self._drop_sidecars(roots)
        self._index.write(self._tidy_removed)
        repacker = Repacker(self._repository, self._progress, self._smaller.packs)
        repacker.run()
        compact_journal(self._repository)
        # What this process has open of what is gone would take up room until its end.
        self._repository.store.forget_removed()
        return GcReport(
            dry_run=False,
            snapshots_removed=len(roots.drop),
            chunks_removed=swept.chunks,
            objects_removed=swept.objects,
            chunks_condemned=swept.waiting,
            packs_removed=repacker.removed,
            packs_rewritten=repacker.rewritten,
            bytes_before=self._before,
            bytes_after=disk_size(self._repository.directory) + self._index_size,
            packs_kept=tuple(repacker.kept),
            held=tuple(holders(self._repository.directory)),
            chunks_recompressed=self._smaller.chunks,
        )

    def _check_packs(self) -> None:
        """An index that knows packs which are not there may be an old one: the packs that it does not know, and gc
        would remove, may hold what was in them."""
        with self._index.read() as view:
            gone = missing_packs(view, self._repository.directory.packs)
        if gone:
            raise CorruptError(
                f"the index knows {count(len(gone), 'pack')} more than there are: gc cannot tell what is needed",
                hint="`ijfs fsck --repair`, then gc can go on",
            )

    def _mark_and_sweep(self, roots: Roots) -> _Swept:
        use = self._chunk_use()
        kept = self._walk(roots.keep, use)
        write_down(self._index, use.worn(_WORN) if use is not None else b"")
        flat = flatten.plan(self._repository, kept)
        if flatten.carry_out(self._repository, flat, self._progress):
            kept.look_for_bases_again()
        if self._deep:
            self._smaller = recompress.carry_out(self._repository, kept, _named(flat), self._progress)
        removed = self._removed_lately()
        stale = self._stale(removed, kept)
        swept = _Swept(0, 0, 0)
        parts = self._parts(kept)
        for number, part in enumerate(parts, 1):
            # Only the last part knows that all was looked at that the removed ones reach.
            self._condemn(kept, part, stale, removed if number == len(parts) else [])
            oldest = self._oldest_session()
            # Sessions that are not in that list have committed, or began after the condemnation: what they added is
            # here. So is what came and went meanwhile: a session may have taken something over from it.
            with _need_whole():
                kept.add(self._listed())
                kept.add(set(self._removed_lately()).difference(removed))
            swept = _Swept(*map(sum, zip(swept, self._sweep(kept, oldest, part), strict=True)))
        return swept

    def _parts(self, kept: ReachableSet) -> list[_Part]:
        """All ids as one part or, where the disk has no room for so many marks at once, as several: what the sweep of
        one part leaves free in the index has the marks of the next."""
        directory = self._repository.directory
        space = os.statvfs(directory.path)
        room = max(1, space.f_bavail * space.f_frsize + directory.reserve.size())
        with self._index.read() as view:
            most = view.count(CHUNKS) + view.count(OBJECTS)
        if most * _ROOM_OF_A_MARK <= room:
            return [_ALL]
        dead = sum(len(keys) for _, keys, _ in self._unreached(kept, _ALL))
        count = min(_MOST_PARTS, dead * _ROOM_OF_A_MARK // room + 1)
        edges = [bytes([256 * number // count]) for number in range(count)]
        return [_Part(*pair) for pair in zip([b"", *edges[1:]], [*edges[1:], None], strict=True)]

    def estimate(self) -> GcReport:
        """What `run` would do, were no session running; nothing is changed."""
        with self._index.read() as view:
            listed = [ident for ident, _ in view.items(SNAPSHOTS)]
            heads = self._heads(view)
        self._learn_parents(listed)
        roots = self._divide(frozenset(listed), heads)
        kept = self._walk(roots.keep)
        flat, new = flatten.measured(self._repository, flatten.plan(self._repository, kept))
        if self._deep:
            self._smaller = recompress.measured(self._repository, kept, _named(flat), self._progress)
        counts = {CHUNKS: 0, OBJECTS: 0}
        for table, keys, _ in self._unreached(kept, _ALL):
            counts[table] += len(keys)

        def dead() -> Iterator[bytes]:
            yield b"".join(row for _, row in [*flat.chunks, *flat.bases])
            yield self._smaller.dead
            for _, _, values in self._unreached(kept, _ALL):
                yield b"".join(values)
            for _, values in self._far_sidecars(roots):
                yield b"".join(values)

        new += self._smaller.sizes
        found = Repacker(self._repository, self._progress, self._smaller.packs).estimate(dead, new)
        freed = found.freed - sum(map(whole_blocks, new)) + sum(orphan.size for orphan in orphans(self._repository))
        freed += freed_of_journal(self._repository, roots.keep, roots.drop, self._parents)
        return GcReport(
            dry_run=True,
            snapshots_removed=len(roots.drop),
            chunks_removed=counts[CHUNKS] + len(flat.bases),
            objects_removed=counts[OBJECTS],
            chunks_condemned=0,
            packs_removed=found.removed,
            packs_rewritten=found.rewritten,
            bytes_before=self._before,
            bytes_after=self._before - freed,
            packs_kept=found.kept,
            held=tuple(holders(self._repository.directory)),
            chunks_recompressed=self._smaller.chunks,
        )

    # --- which snapshots stay

    def _settle_roots(self) -> Roots:
        """Take the unreachable snapshots off the list, in one transaction with the look at refs and pins."""
        while True:
            self._learn_parents(self._listed())
            roots = write_logged(self._index, self._repository.journal, self._unlist)
            if roots is not None:
                return roots

    def _unlist(self, update: Update) -> Roots | None:
        """Take them off the list; None when one was listed meanwhile whose parents are not read yet."""
        listed = frozenset(ident for ident, _ in update.items(SNAPSHOTS))
        if not listed <= self._parents.keys():
            return None
        roots = self._divide(listed, self._heads(update))
        records: list[Record] = []
        for ident in sorted(roots.drop):
            update.delete(SNAPSHOTS, ident)
            update.put(REMOVED, ident, removed_row(self._parents[ident]))
            records.append(SnapshotRemoved(ident, self._parents[ident]))
        if records:
            log_records(update, self._repository.journal, records)
        return roots

    def _heads(self, view: View) -> frozenset[ObjectId]:
        pinned = {pin.id for pin in live_pins(self._repository.directory.pins)}
        return frozenset(value for _, value in view.items(REFS)) | pinned

    def _divide(self, listed: frozenset[ObjectId], heads: frozenset[ObjectId]) -> Roots:
        """Heads and their ancestors stay; the way past a removed snapshot is its own parents."""
        keep: set[ObjectId] = set()
        edge = list(heads)
        while edge:
            ident = edge.pop()
            if ident in keep:
                continue
            keep.add(ident)
            edge += self._parents.get(ident, ())
        return Roots(listed & keep, listed - keep, heads & listed)

    def _listed(self) -> list[ObjectId]:
        with self._index.read() as view:
            return [ident for ident, _ in view.items(SNAPSHOTS)]

    def _learn_parents(self, ids: Iterable[ObjectId]) -> None:
        unknown = [ident for ident in ids if ident not in self._parents]
        with _need_whole():
            snapshots = self._repository.store.snapshots(unknown)
        self._parents.update((snapshot.id, snapshot.parents) for snapshot in snapshots)
        with self._index.read() as view:
            for ident, row in view.items(REMOVED):
                self._parents[ident] = tuple(row[at : at + ID_SIZE] for at in range(1, len(row), ID_SIZE))

    # --- what they reach

    def _chunk_use(self) -> ChunkUse | None:
        """A table of all chunks, to see how much of each is in use; None where there are too many."""
        with self._index.read() as view:
            count = view.count(CHUNKS)
        if count > _MOST_COUNTED:
            return None
        use = ChunkUse(count)
        for rows in self._index.scan(CHUNKS):
            use.add(b"".join(rows.keys), b"".join(rows.values))
        return use

    def _walk(self, snapshots: Iterable[ObjectId], use: ChunkUse | None = None) -> ReachableSet:
        self._tell("mark", 0, 0)
        reach = ReachableSet(self._repository.store, self._index, use=use)
        with _need_whole():
            reach.add(snapshots)
        return reach

    def _unreached(self, kept: ReachableSet, part: _Part) -> Iterator[tuple[bytes, list[bytes], list[bytes]]]:
        """(table, ids, rows) of a part's chunks and objects that were not marked, some thousand at a time."""
        for table in (CHUNKS, OBJECTS):
            for rows in self._index.scan(table, *part):
                dead = [not reached for reached in kept.has(rows.keys)]
                yield table, list(compress(rows.keys, dead)), list(compress(rows.values, dead))

    # --- condemn

    def _condemn(self, kept: ReachableSet, part: _Part, stale: ReachableSet | None, walked: Sequence[ObjectId]) -> None:
        """Mark what is unreachable with the epoch to come, then let that epoch begin.

        The epoch changes last: a session that begins in the new epoch sees every mark of it. `walked` are the removed
        snapshots of which no more needs to be marked.
        """
        with self._index.read() as view:
            epoch = view.number(b"epoch") + 1
        mark = U64.pack(epoch)
        for ids in _gathered(ids for _, ids, _ in self._unreached(kept, part)):
            self._index.write(partial(_mark, ids=ids, mark=mark, stale=stale))
        for rows in self._index.scan(CONDEMNED, *part):
            alive = list(compress(rows.keys, kept.has(rows.keys)))
            if alive:
                self._index.write(partial(_drop, table=CONDEMNED, keys=alive))
        self._index.write(partial(_begin_epoch, epoch=epoch, walked=walked))

    def _removed_lately(self) -> list[ObjectId]:
        """Snapshots that were removed since the last gc."""
        with self._index.read() as view:
            return [ident for ident, row in view.items(REMOVED) if row[:1] == b"\1"]

    def _stale(self, removed: list[ObjectId], kept: ReachableSet) -> ReachableSet | None:
        """What lately removed snapshots reach and `kept` does not; None when that cannot be told.

        A session may have reused such a chunk. A mark older than that session must not condemn it, so it gets a fresh
        one."""
        reach = ReachableSet(self._repository.store, self._index, exclude=kept)
        try:
            reach.add(removed)
        except CorruptError:
            return None
        return reach

    # --- sweep

    def _oldest_session(self) -> int:
        """The epoch in which the oldest running session began."""
        epochs = [
            U64.unpack(data)[0] if len(data) == U64.size else 0
            for _, data in live_files(self._repository.directory.sessions)
        ]
        with self._index.read() as view:
            return min([*epochs, view.number(b"epoch")])

    def _sweep(self, kept: ReachableSet, oldest: int, part: _Part) -> _Swept:
        chunks = objects = waiting = 0
        for rows in self._index.scan(CONDEMNED, *part):
            ripe = []
            for key, mark, needed in zip(*rows, kept.has(rows.keys), strict=True):
                if not needed and U64.unpack(mark)[0] <= oldest:
                    ripe.append((key, mark))
                elif not needed:
                    waiting += 1
            if ripe:
                taken = self._index.write(partial(_take, rows=ripe))
                chunks, objects = chunks + taken[0], objects + taken[1]
            self._tell("sweep", chunks + objects, 0)
        return _Swept(chunks, objects, waiting)

    def _drop_sidecars(self, roots: Roots) -> None:
        """Fingerprints serve the next save of a program, and that begins from a head: the others' are let go.
        They are more than all other metadata together. A working set stays as long as its snapshot is listed."""
        for keys, _ in self._far_sidecars(roots):
            self._index.write(partial(_drop, table=SIDECARS, keys=keys))

    def _far_sidecars(self, roots: Roots) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Ids and rows of the sidecars to be let go, some thousand at a time."""
        near = ReachableSet(self._repository.store, self._index, leaves=False)
        near.add(roots.heads)
        for rows in self._index.scan(SIDECARS):
            with self._index.read() as view:
                listed = view.get_many(SNAPSHOTS, rows.keys)
            gone = [
                key not in near.objects and (row is None or key in roots.drop)
                for key, row in zip(rows.keys, listed, strict=True)
            ]
            if any(gone):
                yield list(compress(rows.keys, gone)), list(compress(rows.values, gone))

    def _tidy_removed(self, update: Update) -> None:
        """Forget removed snapshots that no listed one names as its parent, and shorten the way past the others.

        Not while a session runs: it may be about to commit a child of one.
        """
        if any(True for _ in live_files(self._repository.directory.sessions)):
            return
        listed = {ident for ident, _ in update.items(SNAPSHOTS)}
        if not listed <= self._parents.keys():
            return
        named = {parent for ident in listed for parent in self._parents[ident]} - listed
        walked = [ident for ident, row in update.items(REMOVED) if row[:1] == b"\0"]
        ways = {ident: nearest_ancestors(update, ident) for ident in walked if ident in named}
        for ident in walked:
            if ways.get(ident):
                update.put(REMOVED, ident, removed_row(ways[ident], walked=True))
            else:
                update.delete(REMOVED, ident)

    def _tell(self, phase: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(f"gc: {phase}", done, total)


def _named(flat: flatten.Plan) -> frozenset[bytes]:
    """The chunks that a plan stores whole or lets go of."""
    return frozenset(ident for ident, _ in [*flat.chunks, *flat.bases])


@contextlib.contextmanager
def _told_if_full() -> Iterator[None]:
    """A full disk is reported without the usual advice to run gc: this is gc."""
    try:
        yield
    except StorageError as error:
        if not disk.is_full(error) or error.hint not in disk.FULL_HINTS:
            raise
        raise StorageError(str(error), hint=_FULL) from error


@contextlib.contextmanager
def _need_whole() -> Iterator[None]:
    """gc must know all that is needed, or it would take too much."""
    try:
        yield
    except CorruptError as error:
        hint = "`ijfs fsck` names the snapshot; remove it with `ijfs rm`, and gc can go on"
        if error.hint == disk.NO_LINKS:
            hint = disk.NO_LINKS
        raise CorruptError(f"gc cannot tell what is needed: {error}", hint=hint) from error


def _gathered(lots: Iterable[list[bytes]]) -> Iterator[list[bytes]]:
    """The same ids in larger lots: each is to be a transaction, and a commit waits for the disk."""
    group: list[bytes] = []
    for lot in lots:
        group += lot
        if len(group) >= _STRIDE:
            yield group
            group = []
    if group:
        yield group


def _drop(update: Update, table: bytes, keys: list[bytes]) -> None:
    update.delete_many(table, keys)


def _mark(update: Update, ids: list[bytes], mark: bytes, stale: ReachableSet | None) -> None:
    """Condemn ids. An older mark stays, so that they are swept no later, unless the mark may be stale."""
    if update.count(CONDEMNED):
        old = update.get_many(CONDEMNED, ids)
        doubtful = stale.has(ids) if stale is not None else [True] * len(ids)
        ids = [ident for ident, row, doubt in zip(ids, old, doubtful, strict=True) if row is None or doubt]
    update.put_many(CONDEMNED, ((ident, mark) for ident in ids))


def _begin_epoch(update: Update, epoch: int, walked: Sequence[ObjectId]) -> None:
    update.set_number(b"epoch", epoch)
    for ident in walked:
        row = update.get(REMOVED, ident)
        if row is not None:
            update.put(REMOVED, ident, b"\0" + row[1:])


def _take(update: Update, rows: list[tuple[bytes, bytes]]) -> tuple[int, int]:
    """Drop what still has the mark it was seen with: a session that stored it again has taken the mark off."""
    marks = update.get_many(CONDEMNED, (key for key, _ in rows))
    still = [key for (key, mark), now in zip(rows, marks, strict=True) if now == mark]
    objects = [key for key in still if not update.delete(CHUNKS, key)]
    update.delete_many(OBJECTS, objects)
    update.delete_many(BASES, still)
    update.delete_many(CONDEMNED, still)
    return len(still) - len(objects), len(objects)
