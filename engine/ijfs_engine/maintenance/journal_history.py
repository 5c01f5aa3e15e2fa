"""The journal written anew from the index: the log of refs as it was, then what is listed and removed.

`Repairer` calls `rewrite_journal` where the journal is damaged, `Rebuilder` where journal and index both are.
"""

from __future__ import annotations

from itertools import groupby

from ijfs_engine.maintenance.reachability import split
from ijfs_engine.storage.index import REFLOG, REFS, REMOVED, SNAPSHOTS, U64, Index, View
from ijfs_engine.storage.journal import Record, RefMoved, SnapshotAdded, SnapshotRemoved, Transaction, decode_record
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.refs import log_transaction, ref_name, whoami


def rewrite_journal(repository: OpenRepository, index: Index) -> list[str]:
    """Replace the journal by one that leads to what an index says; what became of another repository's that was there,
    in sentences. StorageError."""

    with index.read() as view:
        transactions = history(view, repository.journal.position(view)[1])
    aside = repository.journal.rewrite(index, transactions, lambda update: log_transaction(update, transactions[-1]))
    return [f"kept the journal of another repository as {aside.name}"] if aside is not None else []


def history(view: View, known: int) -> list[Transaction]:
    """The transactions of a journal that leads to what the index says; the last has a sequence beyond `known`."""
    transactions: list[Transaction] = []
    for sequence, rows in groupby(view.items(REFLOG), key=lambda item: int.from_bytes(item[0][:8], "big")):
        decoded = [decode_record(row) for _, row in rows]
        transactions.append(Transaction(sequence, decoded[0][0], tuple(record for _, record in decoded)))
    last = transactions[-1] if transactions else Transaction(0, 0, ())
    records: list[Record] = [SnapshotRemoved(ident, tuple(split(row[1:]))) for ident, row in view.items(REMOVED)]
    records += [SnapshotAdded(ident, U64.unpack(row)[0]) for ident, row in view.items(SNAPSHOTS)]
    records += _corrections(view, transactions)
    return [*transactions, Transaction(max(last.sequence, known) + 1, last.time_ns, tuple(records))]


def _corrections(view: View, transactions: list[Transaction]) -> list[RefMoved]:
    """Where the log of refs does not end where the refs are."""
    ends: dict[str, bytes | None] = {}
    for transaction in transactions:
        ends.update({one.name: one.new for one in transaction.records if isinstance(one, RefMoved)})
    refs = {ref_name(key): value for key, value in view.items(REFS)}
    return [
        RefMoved(name, ends.get(name), refs.get(name), "fsck --repair", whoami())
        for name in sorted(ends.keys() | refs.keys())
        if ends.get(name) != refs.get(name)
    ]
