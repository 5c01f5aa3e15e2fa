"""Whether snapshots are whole as far as the index and the names of packs tell. `Repository.begin` asks it of a save's
parents where some damage is known: what a parent names is taken over without a look at each chunk."""

from __future__ import annotations

from collections.abc import Sequence, Set

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.place import Place
from ijfs_engine.format.records import ObjectId
from ijfs_engine.maintenance.reachability import ReachableSet
from ijfs_engine.storage.index import CHUNKS, OBJECTS
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.util.words import count


def check_parents(repository: OpenRepository, parents: Sequence[ObjectId], lost: Set[int]) -> None:
    """CorruptError if they need something that stood in these packs, or that the index has not. Reads all of their
    metadata, and looks at every row of the index. StorageError."""
    needed = ReachableSet(repository.store, repository.index)
    needed.add(parents)
    there = 0
    for table in (CHUNKS, OBJECTS):
        for rows in repository.index.scan(table):
            if any(needed.has([key for key, row in zip(*rows, strict=True) if Place.decode(row).pack in lost])):
                raise CorruptError(
                    f"it needs some of what is gone: {count(len(lost), 'pack')}",
                    hint="put them back, or let `ijfs fsck --repair` say what is lost",
                )
            if table == CHUNKS:
                there += sum(needed.is_direct(rows.keys))
    # A repair that lets go of a base lets go of what is stored against it, too.
    if there < len(needed.chunks):
        raise CorruptError("a repair had to let go of some of it", hint="`ijfs fsck` names what is lost")
