"""The next pack, under a number that no other has. Sessions and gc begin their packs here."""

from __future__ import annotations

from functools import partial
from typing import Final

from ijfs_engine.errors import CorruptError
from ijfs_engine.storage.directory import RepositoryDirectory
from ijfs_engine.storage.elsewhere import FAR
from ijfs_engine.storage.index import Index, Update
from ijfs_engine.storage.pack import PackWriter, pack_files

_NEXT: Final = b"next_pack"


def new_pack(index: Index, directory: RepositoryDirectory, kind: int, *, last_room: bool = True) -> PackWriter:
    """Begin a pack. `last_room` is `Index.write`'s. CorruptError where the index names a number that no pack here may
    have: what would be stored under it could not be read. OSError, StorageError."""
    highest = 0
    while True:
        number = index.write(partial(_take, above=highest), last_room=last_room)
        if number >= FAR:
            raise CorruptError(
                f"the index names {number:08x} as the next pack, which none here may be",
                hint="`ijfs fsck --repair`: every snapshot is as it was",
            )
        try:
            return PackWriter(directory.packs, number, kind, directory.id)
        except FileExistsError:
            # A crash, or damage, has taken the count back.
            highest = max((found for found, _ in pack_files(directory.packs) if found < FAR), default=0)


def _take(update: Update, above: int) -> int:
    """A number that was never given before."""
    number = max(update.number(_NEXT), above) + 1
    update.set_number(_NEXT, number)
    return number
