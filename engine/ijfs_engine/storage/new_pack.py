"""The next pack, under a number that no other has. Sessions and gc begin their packs here.

A number is taken by making the file. The index says which numbers it has seen (`note_number`), in the transaction that
puts the pack's rows into it: two commits, each with two waits for the disk, were half of what a small save waited for.
So a pack that was given up leaves its number to the next one. Nobody can have read it: rows name packs that are known.
"""

from __future__ import annotations

from typing import Final

from ijfs_engine.errors import CorruptError
from ijfs_engine.storage.directory import RepositoryDirectory
from ijfs_engine.storage.elsewhere import FAR
from ijfs_engine.storage.index import PACK_KEY, PACK_ROW, PACKS, Index, Update
from ijfs_engine.storage.pack import PackWriter, numbers_taken

_NEXT: Final = b"next_pack"


def new_pack(index: Index, directory: RepositoryDirectory, kind: int) -> PackWriter:
    """Begin a pack. CorruptError where the index names a number that no pack here may have: what would be stored under
    it could not be read. OSError, StorageError."""
    with index.read() as view:
        number = view.number(_NEXT) + 1
    while True:
        if number >= FAR:
            raise CorruptError(
                f"the index names {number:08x} as the next pack, which none here may be",
                hint="`ijfs fsck --repair`: every snapshot is as it was",
            )
        try:
            return PackWriter(directory.packs, number, kind, directory.id)
        except FileExistsError:
            # Another session's, or a crash's; or damage has taken the count back.
            taken = (found for found in numbers_taken(directory.packs) if found < FAR)
            number = max(taken, default=number) + 1


def put_pack(update: Update, number: int, kind: int, size: int) -> None:
    """Put the row of a pack, by which it is known."""
    update.put(PACKS, PACK_KEY.pack(number), PACK_ROW.pack(kind, size))
    note_number(update, number)


def note_number(update: Update, number: int) -> None:
    """Say that a pack of this number is known: none gets it again, when it has gone."""
    if number > update.number(_NEXT):
        update.set_number(_NEXT, number)
