"""What the journal says and the index does not know, put into the index.

A process that died between the journal's sync and the index's commit leaves a transaction behind; an index that was put
back from a copy, or whose newer meta page was damaged, lacks many. `Journal` calls `take_in` inside the transaction of
the next writer. The packs that the index does not know are read: what the transactions list has to be in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ijfs_engine.format.crypt import Crypt
from ijfs_engine.storage.chunk_rows import put_based, put_chunks
from ijfs_engine.storage.index import (
    CONDEMNED,
    OBJECTS,
    PACK_KEY,
    PACKS,
    REFLOG,
    REFS,
    REMOVED,
    SIDECARS,
    SNAPSHOTS,
    U64,
    Update,
    View,
)
from ijfs_engine.storage.journal import (
    RefMoved,
    SnapshotAdded,
    SnapshotRemoved,
    StaleIndexError,
    Transaction,
    replay,
)
from ijfs_engine.storage.known_damage import missing_packs
from ijfs_engine.storage.locks import is_free
from ijfs_engine.storage.names import removed_row
from ijfs_engine.storage.new_pack import put_pack
from ijfs_engine.storage.pack import pack_files
from ijfs_engine.storage.pack_contents import Based, PackContents, read_pack
from ijfs_engine.storage.refs import log_transaction, ref_name
from ijfs_engine.util.words import count


def take_in(update: Update, packs: Path, transactions: Sequence[Transaction], crypt: Crypt) -> None:
    """Put transactions into the index as they stand in the journal, and the packs they need.

    StaleIndexError where a pack that the index knows is gone, or a snapshot is in none: the index is then too old to be
    led on, and has to be built anew. OSError.
    """
    missing = missing_packs(update, packs)
    if missing:
        raise _too_old(f"it knows {count(len(missing), 'pack')} more than there are")
    listed = replay(transactions).listed
    known = {PACK_KEY.unpack(key)[0] for key, _ in update.items(PACKS)}
    files = dict(pack_files(packs))
    # Others that are not known a session is writing, and gc must not know them before it is done.
    new = [number for number, path in files.items() if number not in known and is_free(path)]
    _add_packs(update, {number: read_pack(number, files[number], crypt) for number in new})
    lost = {ident for ident in listed if update.get(OBJECTS, ident) is None}
    # A commit goes into the index in slices, the packs with the first: the record may be in one that is known. And a
    # session that failed to commit a moment ago still holds its pack.
    for number in sorted(files.keys() - new, reverse=True) if lost else ():
        contents = read_pack(number, files[number], crypt)
        if lost & contents.objects.keys():
            _add_packs(update, {number: contents})
            lost -= contents.objects.keys()
        if not lost:
            break
    if lost:
        raise _too_old(f"the snapshot {next(iter(lost)).hex()[:12]} is in no pack")
    for transaction in transactions:
        _apply(update, transaction)
        log_transaction(update, transaction)


def _too_old(why: str) -> StaleIndexError:
    return StaleIndexError(f"the index is older than the journal: {why}")


def _add_packs(update: Update, found: Mapping[int, PackContents]) -> None:
    """The rows of some packs. One without a sound frame is left alone: a crash tore it."""
    based: list[Based] = []
    for number, contents in found.items():
        if contents.chunks or contents.objects or contents.sidecars or contents.based:
            put_pack(update, number, contents.kind, contents.size)
            _add_rows(update, contents)
            based += contents.based
    put_based(update, based)


def _add_rows(update: Update, contents: PackContents) -> None:
    put_chunks(update, contents.chunks, {})
    fresh = [ident for ident in contents.objects if update.get(OBJECTS, ident) is None]
    update.put_many(OBJECTS, sorted((ident, contents.objects[ident]) for ident in fresh))
    update.put_many(SIDECARS, sorted(contents.sidecars.items()))
    if update.count(CONDEMNED):
        update.delete_many(CONDEMNED, contents.chunks)
        update.delete_many(CONDEMNED, contents.objects)
        update.delete_many(CONDEMNED, (based.id for based in contents.based))


def _apply(update: Update, transaction: Transaction) -> None:
    for record in transaction.records:
        match record:
            case SnapshotAdded(id=ident, created_ns=created):
                update.put(SNAPSHOTS, ident, U64.pack(created))
                update.delete(REMOVED, ident)
            case SnapshotRemoved(id=ident, parents=parents):
                update.delete(SNAPSHOTS, ident)
                update.put(REMOVED, ident, removed_row(parents))
            case RefMoved(name=name, new=None):
                update.delete(REFS, name.encode())
            case RefMoved(name=name, new=new):
                assert new is not None
                update.put(REFS, name.encode(), new)


def says_the_same(view: View, transactions: Sequence[Transaction]) -> bool:
    """Whether these transactions list the snapshots, and have the refs where, the index does."""
    state = replay(transactions)
    listed = {ident: state.created[ident] for ident in state.listed}
    refs = {ref_name(key): value for key, value in view.items(REFS)}
    return refs == state.refs and listed == {ident: U64.unpack(row)[0] for ident, row in view.items(SNAPSHOTS)}


def relog(update: Update, transactions: Sequence[Transaction]) -> None:
    """Have the index's log of refs be that of these transactions."""
    update.clear(REFLOG)
    for transaction in transactions:
        log_transaction(update, transaction)
