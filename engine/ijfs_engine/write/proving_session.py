"""A session for a save beside damage: what is stored counts only if it can be read.

`snapshot_writer.begin` makes one for a snapshot that is made `anew`, because its parent is damaged, and where packs are
gone or were found damaged. What the index has and the packs do not give is stored again, and takes the damaged one's
place in the index: whatever else needs it heals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Final

from ijfs_engine.errors import CorruptError, StorageError
from ijfs_engine.format.records import Entry, ObjectId
from ijfs_engine.read.reader import Reader
from ijfs_engine.storage.known_damage import are_doubted, doubt
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.session import Session

_UNREADABLE: Final = (CorruptError, StorageError)
_STEP: Final = 4 << 20
"""Bytes that are read together."""


class ProvingSession(Session):
    """Safe to use from several threads, as any session. Nothing may be stored against chunks of a damaged parent."""

    def __init__(self, repository: OpenRepository, *, lost: Set[int] | None = None) -> None:
        """Registers; StorageError. `lost` is `Session`'s."""
        super().__init__(repository.directory, repository.index, repository.journal, lost=lost)
        # A pack that somebody removed can still be read here, for as long as it is open.
        repository.forget_removed()
        self._reader = Reader(repository.store)
        self._sound: set[bytes] = set()

    @classmethod
    def where_needed(cls, repository: OpenRepository, lost: Set[int]) -> Session:
        """A session of this kind beside `lost` packs or such as were found damaged, else one as any other."""
        if lost or are_doubted(repository.index):
            return cls(repository, lost=lost)
        return repository.session(lost=lost)

    def lookup_many(self, ids: Sequence[bytes]) -> list[bool]:
        """As of any session; but what cannot be read is not there."""
        new = self._rows.chunks
        found = super().lookup_many(ids)
        lost = self._unreadable(ident for ident, there in zip(ids, found, strict=True) if there and ident not in new)
        self._take_for_lost(lost)
        return [there and ident not in lost for ident, there in zip(ids, found, strict=True)]

    def is_whole(self, entry: Entry) -> bool:
        """Whether every byte of a file that is stored can be read."""
        buffer = memoryview(bytearray(_STEP))
        try:
            file = self._reader.open(entry)
            for start, length, zero in file.extents():
                for at in range(start, start + length, _STEP) if not zero else ():
                    file.read_into(at, buffer[: min(_STEP, start + length - at)])
        except _UNREADABLE:
            return False
        return True

    def abort(self) -> None:
        """As of any session."""
        self._reader.close()
        super().abort()

    def _stored(self, ident: ObjectId) -> bool:
        if not super()._stored(ident):
            return False
        if ident not in self._sound:
            try:
                store = self._reader.store
                store.get_object(ident, store.kind_of(ident))
            except _UNREADABLE:
                self._take_for_lost({ident})
                return False
            self._sound.add(ident)
        return True

    def _take_for_lost(self, ids: set[bytes]) -> None:
        """Have what is put here take their place, and the saves to come prove what they count on, too: what lies beside
        these in a pack may be lost as well."""
        if ids and not self._anew and not are_doubted(self._index):
            self._index.write(doubt, last_room=False)
        self._anew |= ids

    def _unreadable(self, ids: Iterable[bytes]) -> set[bytes]:
        """Those of these chunks that cannot be read."""
        unknown = [ident for ident in dict.fromkeys(ids) if ident not in self._sound]
        lost = set() if self._can_read(unknown) else {ident for ident in unknown if not self._can_read([ident])}
        self._sound.update(ident for ident in unknown if ident not in lost)
        return lost

    def _can_read(self, ids: list[bytes]) -> bool:
        try:
            self._reader.chunks(ids)
        except _UNREADABLE:
            return False
        return True
