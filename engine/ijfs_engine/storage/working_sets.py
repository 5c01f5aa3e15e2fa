"""Working sets: what a restored program touched first, kept with its snapshot for the next restore to begin with.

To the engine they are bytes: the pager writes and reads them (ijfs.live.pager.working_set). Each is a sidecar whose key
is the snapshot's id: no part of its identity, droppable at any time, kept by gc for as long as the snapshot is listed.
Called through `Repository.working_set` and `Repository.put_working_set`.
"""

from __future__ import annotations

import contextlib
from typing import Final

from ijfs_engine.errors import UnknownNameError
from ijfs_engine.format.records import ObjectId
from ijfs_engine.storage import listed
from ijfs_engine.storage.open_repository import OpenRepository

MAX_BYTES: Final = 1 << 20
"""A working set is a hint; one this long names 4 GiB in pieces of 64 KiB even where nothing of it compresses."""
MAX_GENERATIONS: Final = 64
"""How far back an ancestor's working set is looked for: what a program touched longer ago says little of it now."""


def put(repository: OpenRepository, ident: ObjectId, data: bytes) -> None:
    """Keep `data` as the working set of a snapshot; the latest one wins. StorageError, ValueError."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"a working set has at most {MAX_BYTES} bytes, not {len(data)}")
    with repository.session() as session:
        session.put_sidecar(ident, data)
        session.publish()


def find(repository: OpenRepository, ident: ObjectId, generations: int = MAX_GENERATIONS) -> bytes | None:
    """The working set of a snapshot, or of the nearest ancestor that has one. CorruptError."""
    generation = [ident]
    seen = set(generation)
    for _ in range(generations):
        for found in repository.store.sidecars(generation):
            if found is not None:
                return found
        generation = _parents(repository, generation, seen)
        if not generation:
            break
    return None


def _parents(repository: OpenRepository, generation: list[ObjectId], seen: set[ObjectId]) -> list[ObjectId]:
    found: list[ObjectId] = []
    for ident in generation:
        with contextlib.suppress(UnknownNameError):  # removed since
            found += [parent for parent in listed.parents(repository, ident) if parent not in seen]
            seen.update(found)
    return found
