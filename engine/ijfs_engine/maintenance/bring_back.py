"""A removed snapshot is listed again, as long as gc has taken nothing of it. `Repository.bring_back` calls it.

gc is kept out meanwhile. Marks that a gc set are left: the next one takes them off what is listed.
"""

from __future__ import annotations

from ijfs_engine.errors import CorruptError, UnknownNameError
from ijfs_engine.format.records import ObjectId, Snapshot
from ijfs_engine.maintenance.reachability import TreeWalker, split, walk
from ijfs_engine.storage.index import CHUNKS, REMOVED, SNAPSHOTS, U64, Update
from ijfs_engine.storage.journal import SnapshotAdded
from ijfs_engine.storage.locks import exclusive
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.refs import log_records, write_logged


def bring_back(repository: OpenRepository, ident: ObjectId) -> Snapshot:
    """List a snapshot that was removed. UnknownNameError where gc has taken of it, LockedError beside a gc."""
    with exclusive(repository.directory.gc_lock, "gc"):
        _check_whole(repository, ident)
        snapshot = repository.store.snapshot(ident)

        def change(update: Update) -> None:
            if update.get(REMOVED, ident) is None:
                raise UnknownNameError(f"{ident.hex()[:12]} is no snapshot that was removed")
            update.delete(REMOVED, ident)
            update.put(SNAPSHOTS, ident, U64.pack(snapshot.created_ns))
            log_records(update, repository.journal, [SnapshotAdded(ident, snapshot.created_ns)])

        write_logged(repository.index, repository.journal, change)
    return snapshot


def _check_whole(repository: OpenRepository, ident: ObjectId) -> None:
    """UnknownNameError where something that it reaches is gone."""
    walker = TreeWalker(repository.store, repository.index)
    try:
        for _, _, children in walk(walker, [ident], set()):
            chunks = list(split(walker.with_bases(children.chunks)))
            with repository.index.read() as view:
                if None in view.get_many(CHUNKS, chunks):
                    raise CorruptError("a chunk of it is gone")
    except CorruptError as error:
        message = f"the snapshot {ident.hex()[:12]} was removed, and gc has taken what it was made of"
        raise UnknownNameError(message) from error
