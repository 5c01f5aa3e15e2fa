"""Putting rows of chunks into the index, so that none gets deeper and the bases of each are there.

Sessions do it for what they wrote, the journal for what a crash kept from the index.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from ijfs_engine.format.frames import ID_SIZE
from ijfs_engine.format.place import Place
from ijfs_engine.storage.index import BASES, CHUNKS, CONDEMNED, Update
from ijfs_engine.storage.pack_contents import Based


def put_chunks(
    update: Update, rows: dict[bytes, bytes], bases: dict[bytes, bytes], anew: Set[bytes] = frozenset()
) -> None:
    """Put chunk rows. One that is there already stays, unless it is condemned and this one is no deeper, or what it
    says cannot be read (`anew`: ids of such, which are stored whole now).

    Other chunks may have the old frame as their base and count on its depth; that a row never gets deeper keeps every
    chunk deeper than its bases, and so free of circles. A condemned row that stays takes its bases back to life; one
    whose bases were swept is replaced whatever its depth, since nothing readable can depend on it.
    """
    doomed = bool(update.count(CONDEMNED))
    wins: list[bytes] = []
    for ident, old in zip(rows, update.get_many(CHUNKS, rows), strict=True):
        if (
            old is None
            or ident in anew
            or (doomed and _replaces(update, ident, Place.decode(old), Place.decode(rows[ident])))
        ):
            wins.append(ident)
    update.put_many(CHUNKS, sorted((ident, rows[ident]) for ident in wins))
    update.delete_many(BASES, wins)
    update.put_many(BASES, sorted((ident, bases[ident]) for ident in wins if ident in bases))


def _replaces(update: Update, ident: bytes, old: Place, new: Place) -> bool:
    if update.get(CONDEMNED, ident) is None or old.depth == 0:
        return False
    if new.depth <= old.depth:
        return True
    chain = [ident]
    for link in chain:
        row = update.get(BASES, link) or b""
        chain += [row[at : at + ID_SIZE] for at in range(0, len(row), ID_SIZE)]
    if any(update.get(CHUNKS, link) is None for link in chain):
        return True
    update.delete_many(CONDEMNED, chain)
    return False


def put_based(update: Update, based: Iterable[Based]) -> None:
    """Put chunks with bases, shallow ones first, so that bases come before. One whose bases are not there stays out."""
    for one in sorted(based):
        if update.get(CHUNKS, one.id) is not None:
            continue
        rows = update.get_many(CHUNKS, (one.bases[at : at + ID_SIZE] for at in range(0, len(one.bases), ID_SIZE)))
        if all(row is not None and Place.decode(row).depth < one.depth for row in rows):
            update.put(CHUNKS, one.id, one.place.encode())
            update.put(BASES, one.id, one.bases)
