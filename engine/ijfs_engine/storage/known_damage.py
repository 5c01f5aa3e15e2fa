"""Damage that is known of, so that no save counts on what is lost.

Packs may have been taken away: by hand, by a copy that left them out, by a disk that was put back as it was. The index
still has rows for what was in them, and a process that has one open can still read it. So a session looks which packs
are gone when it begins and again when it commits. One that begins beside packs that are gone, or that a save found
damaged, proves what it counts on (write/proving_session.py) until `fsck --repair` has let go of those rows; and the
snapshots that this harms for good are written down, so that a save whose parent is one of them is made anew.
"""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path
from typing import Final

from ijfs_engine.format.frames import ID_SIZE
from ijfs_engine.format.records import ObjectId
from ijfs_engine.storage import disk
from ijfs_engine.storage.index import META, PACK_KEY, PACK_ROW, PACKS, Index, Update, View
from ijfs_engine.storage.pack import DATA_PACK, pack_path

_DOUBTED: Final = b"doubted"
_HARMED: Final = b"harmed"
_MOST: Final = 10_000
"""Snapshots that are written down: more are not looked at one by one."""


def missing_packs(view: View, packs: Path) -> list[int]:
    """Packs of data that the index knows and that are not there. OSError."""
    numbers = [PACK_KEY.unpack(key)[0] for key, row in view.items(PACKS) if PACK_ROW.unpack(row)[0] == DATA_PACK]
    there = set(os.listdir(packs))
    return [number for number in numbers if pack_path(packs, number).name not in there]


def lost_packs(index: Index, packs: Path) -> frozenset[int]:
    """The same beside a gc, which forgets a pack before it removes it: what the index has forgotten is not lost.
    StorageError."""
    with disk.storage_errors("looking for the packs"):
        with index.read() as view:
            missing = missing_packs(view, packs)
        if not missing:
            return frozenset()
        with index.read() as view:
            return frozenset(number for number in missing if view.get(PACKS, PACK_KEY.pack(number)) is not None)


def are_doubted(index: Index) -> bool:
    """Whether a save has met something that is stored and cannot be read, and no repair has come since."""
    with index.read() as view:
        return view.get(META, _DOUBTED) is not None


def doubt(update: Update) -> None:
    """Note that something stored cannot be read."""
    update.put(META, _DOUBTED, b"1")


def harmed(index: Index) -> frozenset[ObjectId]:
    """The snapshots that the last repair could not make whole. What is stored since may have."""
    with index.read() as view:
        row = view.get(META, _HARMED) or b""
    return frozenset(row[at : at + ID_SIZE] for at in range(0, len(row), ID_SIZE))


def settle(index: Index, lost: Set[ObjectId]) -> None:
    """Note that a repair has let go of what cannot be read, and which snapshots need some of it. StorageError."""
    if not are_doubted(index) and harmed(index) == lost:
        return

    def change(update: Update) -> None:
        update.delete(META, _DOUBTED)
        update.delete(META, _HARMED)
        if lost:
            update.put(META, _HARMED, b"".join(sorted(lost)[:_MOST]))

    index.write(change)
