"""A removed snapshot is listed again, as long as gc has taken nothing of it. `Repository.bring_back` calls it.

gc is kept out meanwhile. What a gc that died had condemned is alive again in the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterator

from ijfs_engine.errors import CorruptError, UnknownNameError
from ijfs_engine.format.records import ObjectId, Snapshot
from ijfs_engine.maintenance.reachability import TreeWalker, split, walk
from ijfs_engine.storage.index import CHUNKS, CONDEMNED, REMOVED, SNAPSHOTS, U64, Update
from ijfs_engine.storage.journal import SnapshotAdded
from ijfs_engine.storage.locks import exclusive
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.refs import log_records, write_logged


def bring_back(repository: OpenRepository, ident: ObjectId) -> Snapshot:
    """List a snapshot that was removed. UnknownNameError where gc has taken of it, LockedError beside a gc."""
    with exclusive(repository.directory.gc_lock, "gc"):
        needed = list(_needed(repository, ident))
        snapshot = repository.store.snapshot(ident)

        def change(update: Update) -> None:
            if update.get(REMOVED, ident) is None:
                raise _gone(ident)
            if update.count(CONDEMNED):
                update.delete_many(CONDEMNED, needed)
            update.delete(REMOVED, ident)
            update.put(SNAPSHOTS, ident, U64.pack(snapshot.created_ns))
            log_records(update, repository.journal, [SnapshotAdded(ident, snapshot.created_ns)])

        write_logged(repository.index, repository.journal, change)
    return snapshot


def _needed(repository: OpenRepository, ident: ObjectId) -> Iterator[bytes]:
    """The ids of all that it reaches. UnknownNameError where some of it is gone."""
    walker = TreeWalker(repository.store, repository.index)
    try:
        for _, found, children in walk(walker, [ident], set()):
            chunks = list(split(walker.with_bases(children.chunks)))
            with repository.index.read() as view:
                if None in view.get_many(CHUNKS, chunks):
                    raise _gone(ident)
            yield found
            yield from chunks
    except CorruptError as error:
        raise _gone(ident) from error


def _gone(ident: ObjectId) -> UnknownNameError:
    return UnknownNameError(f"the snapshot {ident.hex()[:12]} was removed, and gc has taken what it was made of")
