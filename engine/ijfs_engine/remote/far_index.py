"""Which chunks and objects are in an object store, and where: an index for each store of a repository, apart from its
own.

The repository's own index says what is here, and only that: so nothing that is here ever counts on a store. The tables
are the same; packs have numbers from `FAR` on, by which readers tell them apart (storage/elsewhere.py).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ijfs_engine.errors import ConflictError
from ijfs_engine.format.frames import ID_SIZE
from ijfs_engine.format.pack_index import CHUNK_PACK, PackIndex
from ijfs_engine.format.place import Place
from ijfs_engine.storage import disk
from ijfs_engine.storage.elsewhere import FAR
from ijfs_engine.storage.index import BASES, CHUNKS, META, OBJECTS, PACK_KEY, PACK_ROW, PACKS, U64, Index, Update, View

_PACK = b"pack/"
_NAME = b"name/"
_FORGOTTEN = b"forgotten"
_SLOT_BITS: Final = 22
"""4 million packs for each of 512 stores."""
_FORGOT = "what is known of the remote's packs changed meanwhile"


class FarPack(NamedTuple):
    """A pack of a store: which store (its repository's id), its id there, its size, its kind."""

    number: int
    store: bytes
    pack: bytes
    size: int
    kind: int


class FarIndex:
    """Safe to use from several threads and processes."""

    def __init__(self, directory: Path, store: bytes) -> None:
        """Makes it in `remotes/` where there is none for the tree with this id. StorageError."""
        with disk.storage_errors("making an index of a remote"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._first = FAR + (_slot(directory / "slots", store) << _SLOT_BITS)
        self._store = store
        self._index = Index.open(directory / f"{store.hex()}.index")

    def close(self) -> None:
        """Let go."""
        self._index.close()

    def rows(self, table: bytes, ids: Sequence[bytes]) -> list[bytes | None]:
        """Where frames are; None for what is in no pack that was registered."""
        with self._index.read() as view:
            return view.get_many(table, ids)

    def bases(self, chunks: Sequence[bytes]) -> list[bytes]:
        """Of each chunk the ids of those it is stored against there, end to end."""
        with self._index.read() as view:
            return view.bases(chunks)

    def pack_ids(self, numbers: Iterable[int]) -> list[bytes]:
        """The ids of packs in their store. ConflictError where one is not known any more."""
        found = [self.pack(number) for number in numbers]
        if None in found:
            raise ConflictError(_FORGOT)
        return [pack.pack for pack in found if pack is not None]

    def has_packs(self, packs: Iterable[bytes]) -> list[bool]:
        """For each pack id: was it registered?"""
        with self._index.read() as view:
            return [view.get(META, _PACK + pack) is not None for pack in packs]

    def register(self, packs: Sequence[PackIndex]) -> None:
        """Take in what packs hold. What is known to be in another pack stays there."""

        def change(update: Update) -> None:
            for pack in packs:
                _register(update, self._store, pack, self._first)

        self._index.write(change)

    def pack(self, number: int) -> FarPack | None:
        """What is known of a pack; None for one that is gone, or another store's."""
        with self._index.read() as view:
            return _pack(view, number)

    def by_ids(self, packs: Iterable[bytes]) -> list[FarPack]:
        """Those of some packs that were registered."""
        with self._index.read() as view:
            rows = [view.get(META, _PACK + pack) for pack in packs]
            found = [_pack(view, U64.unpack(row)[0]) for row in rows if row is not None]
        return [one for one in found if one is not None]

    def packs(self) -> list[FarPack]:
        """All that were registered."""
        with self._index.read() as view:
            numbers = [PACK_KEY.unpack(key)[0] for key, _ in view.items(PACKS)]
            found = [_pack(view, number) for number in numbers]
        return [one for one in found if one is not None]

    def packs_of(self, table: bytes, ids: Sequence[bytes]) -> set[int]:
        """The numbers of the packs without which these cannot be read: bases counted. ConflictError for what is nowhere
        (any more: another process had the index forget)."""
        found: set[int] = set()
        edge, seen = list(ids), set(ids)
        with self._index.read() as view:
            while edge:
                for row in view.get_many(table, edge):
                    if row is None:
                        raise ConflictError(_FORGOT)
                    found.add(Place.decode(row).pack)
                bases = b"".join(view.bases(edge)) if table == CHUNKS else b""
                edge = [b for at in range(0, len(bases), ID_SIZE) if (b := bases[at : at + ID_SIZE]) not in seen]
                edge = list(dict.fromkeys(edge))
                seen.update(edge)
        return found

    def forgotten(self) -> int:
        """How often `forget_all` was called, ever."""
        with self._index.read() as view:
            return view.number(_FORGOTTEN)

    def forget_all(self) -> None:
        """Know nothing any more, because packs went: what is needed is learned again. (To drop the rows of some packs
        would lose what is in others as well.) Numbers are not given again, so who reads goes on."""
        self._index.write(_forget_all)


def _slot(path: Path, store: bytes) -> int:
    """Which numbers a store's packs have: its place in a file of the ids of all that there ever were. OSError."""
    fd = disk.open_plain(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        data = os.pread(fd, len(store) << (31 - _SLOT_BITS), 0)
        known = [data[at : at + len(store)] for at in range(0, len(data) // len(store) * len(store), len(store))]
        if store not in known:
            disk.write(fd, path, store, len(known) * len(store))
            known.append(store)
        return known.index(store)
    finally:
        os.close(fd)


def _register(update: Update, store: bytes, pack: PackIndex, first: int) -> None:
    if update.get(META, _PACK + pack.pack) is not None:
        return
    number = max(update.number(b"next_pack"), first)
    update.set_number(b"next_pack", number + 1)
    key = PACK_KEY.pack(number)
    update.put(META, _PACK + pack.pack, U64.pack(number))
    update.put(META, _NAME + key, store + pack.pack)
    update.put(PACKS, key, PACK_ROW.pack(pack.kind, pack.size))
    table = CHUNKS if pack.kind == CHUNK_PACK else OBJECTS
    old = update.get_many(table, [row.id for row in pack.rows])
    new = [row for row, there in zip(pack.rows, old, strict=True) if there is None]
    places = ((r.id, Place(number, r.offset, r.span, r.plain, r.tag, r.depth).encode()) for r in new)
    update.put_many(table, places)
    update.put_many(BASES, ((row.id, row.bases) for row in new if row.bases))


def _pack(view: View, number: int) -> FarPack | None:
    key = PACK_KEY.pack(number)
    name, row = view.get(META, _NAME + key), view.get(PACKS, key)
    if name is None or row is None:
        return None
    kind, size = PACK_ROW.unpack(row)
    return FarPack(number, name[:16], name[16:], size, kind)


def _forget_all(update: Update) -> None:
    number, times = update.number(b"next_pack"), update.number(_FORGOTTEN)
    for table in (CHUNKS, OBJECTS, BASES, PACKS, META):
        update.clear(table)
    update.set_number(b"next_pack", number)
    update.set_number(_FORGOTTEN, times + 1)
