"""The journal written anew where most of it tells of what is gone. gc calls it, last.

Each save adds a line and each removal another, and none is needed to know what is listed and where the refs are. What
stays: the newest changes of refs, the last that led a name to a snapshot that is listed, and the last of each such
name; then one transaction that says what is listed and what was removed. It has the sequence of the last one, so the
compacted journal is one of version 1 like any other, and the next change follows it. The log of refs is cut alike.

All of it happens in one transaction of the index: the new file is written and synced, takes the old one's name, and the
index is told. A crash in between leaves a journal that ends elsewhere, with the same last sequence; whoever opens the
repository next sees that both say the same, and has the index take the journal's (`journal_tail.realign`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import groupby
from typing import Final, NamedTuple

from ijfs_engine.format.records import ObjectId
from ijfs_engine.maintenance.reachability import split
from ijfs_engine.storage.index import REFLOG, REMOVED, SNAPSHOTS, U64, Update, View
from ijfs_engine.storage.journal import (
    Record,
    RefMoved,
    SnapshotAdded,
    SnapshotRemoved,
    Transaction,
    decode_record,
    encode_journal,
    encode_transaction,
    file_status,
)
from ijfs_engine.storage.journal_tail import relog
from ijfs_engine.storage.open_repository import OpenRepository

SMALL: Final = 64 << 10
"""Bytes of a journal that is left alone: it is read in a millisecond."""
_GAIN: Final = 2
"""What is written anew has to be so many times smaller."""
NEWEST: Final = 1000
"""Changes of refs that stay whatever they lead to: what somebody may want to look up."""


class Listing(NamedTuple):
    """What a journal has to lead to: when each listed snapshot was made, and the parents of those that were removed."""

    listed: Mapping[ObjectId, int]
    removed: Mapping[ObjectId, Sequence[ObjectId]]

    @classmethod
    def of(cls, view: View) -> Listing:
        """As the index has it."""
        return cls(
            {ident: U64.unpack(row)[0] for ident, row in view.items(SNAPSHOTS)},
            {ident: tuple(split(row[1:])) for ident, row in view.items(REMOVED)},
        )


class _Change(NamedTuple):
    """A row of the log of refs."""

    sequence: int
    time_ns: int
    moved: RefMoved


def compact_journal(repository: OpenRepository) -> bool:
    """Write the journal anew if that makes it much smaller; whether it did. CorruptError, StorageError."""
    if file_status(repository.directory.journal).st_size < SMALL:
        return False
    return repository.index.write(lambda update: _compact(repository, update))


def freed_of_journal(
    repository: OpenRepository, keep: Set[ObjectId], drop: Set[ObjectId], parents: Mapping[ObjectId, Sequence[ObjectId]]
) -> int:
    """Bytes on disk that gc would give back here, were no session running; less than none where the journal only grows.
    Arguments as of `size_to_come`. StorageError, CorruptError."""
    now = file_status(repository.directory.journal)
    size = size_to_come(repository, keep, drop, parents)
    freed = now.st_blocks * 512 - -(-size // now.st_blksize) * now.st_blksize
    return freed if size < now.st_size else min(0, freed)


def size_to_come(
    repository: OpenRepository, keep: Set[ObjectId], drop: Set[ObjectId], parents: Mapping[ObjectId, Sequence[ObjectId]]
) -> int:
    """Bytes of the journal after a gc. `keep`: what stays listed; `drop`: what gc takes off the list; `parents` of
    both, and of what was removed before. StorageError, CorruptError."""
    records = [SnapshotRemoved(ident, tuple(parents[ident])) for ident in sorted(drop)]
    with repository.index.read() as view:
        end, sequence = repository.journal.position(view)
        if records:
            sequence += 1
            last = Transaction(sequence, time.time_ns(), tuple(records))
            end += len(encode_transaction(last, repository.directory.crypt))
        if end < SMALL:
            return end
        transactions = compacted(view, sequence, _to_come(view, keep, parents))
        data = encode_journal(transactions, repository.directory.id, repository.directory.crypt)
    return len(data) if _pays(data, end) else end


def _to_come(view: View, keep: Set[ObjectId], parents: Mapping[ObjectId, Sequence[ObjectId]]) -> Listing:
    """What gc leaves: of removed snapshots those that a listed one names as its parent, past which there is one."""
    listed = {ident: U64.unpack(row)[0] for ident, row in view.items(SNAPSHOTS) if ident in keep}
    named = {parent for ident in keep for parent in parents[ident]} - keep
    ways = {ident: _listed_above(ident, keep, parents) for ident in sorted(named) if ident in parents}
    return Listing(listed, {ident: way for ident, way in ways.items() if way})


def _listed_above(
    ident: ObjectId, keep: Set[ObjectId], parents: Mapping[ObjectId, Sequence[ObjectId]]
) -> list[ObjectId]:
    found: dict[ObjectId, None] = {}
    seen: set[ObjectId] = set()
    edge = [ident]
    while edge:
        one = edge.pop()
        if one in keep:
            found[one] = None
        elif one not in seen:
            seen.add(one)
            edge += parents.get(one, ())
    return list(found)


def _pays(data: bytes, end: int) -> bool:
    return _GAIN * len(data) <= end


def _compact(repository: OpenRepository, update: Update) -> bool:
    journal = repository.journal
    journal.settle(update)
    end, sequence = journal.position(update)
    transactions = compacted(update, sequence, Listing.of(update))
    data = encode_journal(transactions, repository.directory.id, repository.directory.crypt)
    if not _pays(data, end):
        return False
    relog(update, transactions)
    journal.replace(update, data, sequence)
    return True


def compacted(view: View, sequence: int, listing: Listing) -> list[Transaction]:
    """A journal that leads to what is listed and where the refs are, whose last transaction has this sequence."""
    kept = _kept(view, listing)
    found = [
        Transaction(number, changes[0].time_ns, tuple(change.moved for change in changes))
        for number, changes in ((number, list(lot)) for number, lot in groupby(kept, key=lambda one: one.sequence))
    ]
    last = found.pop() if found and found[-1].sequence == sequence else None
    time_ns = last.time_ns if last is not None else time.time_ns()
    return [*found, Transaction(sequence, time_ns, (*_state(listing), *(last.records if last is not None else ())))]


def _state(listing: Listing) -> Iterable[Record]:
    yield from (SnapshotRemoved(ident, tuple(parents)) for ident, parents in listing.removed.items())
    yield from (SnapshotAdded(ident, created_ns) for ident, created_ns in listing.listed.items())


def _kept(view: View, listing: Listing) -> list[_Change]:
    """The changes that stay, in order. Of a name of which one does, the last does: it says where the ref is now."""
    changes = list(_changes(view))
    there = listing.listed
    latest = {(one.moved.name, one.moved.new): at for at, one in enumerate(changes) if one.moved.new in there}
    leading = set(latest.values())
    wanted = [at >= len(changes) - NEWEST or at in leading for at in range(len(changes))]
    names = {one.moved.name for one, want in zip(changes, wanted, strict=True) if want}
    last = {one.moved.name: at for at, one in enumerate(changes) if one.moved.name in names}
    return [one for at, one in enumerate(changes) if wanted[at] or last.get(one.moved.name) == at]


def _changes(view: View) -> Iterable[_Change]:
    for key, row in view.items(REFLOG):
        time_ns, record = decode_record(row)
        if isinstance(record, RefMoved):
            yield _Change(int.from_bytes(key[:8], "big"), time_ns, record)
