"""What a repository's store reads that is not here: from the object stores of its remotes, through the cache on the
disk.

Nothing is opened before something is asked for that is not here. A snapshot's packs are looked up when its root tree is
read, since everything that is read of a snapshot begins with its root.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from threading import RLock
from typing import Final

from ijfs_engine.errors import CorruptError, IjfsError
from ijfs_engine.format.crypt import Crypt
from ijfs_engine.format.pack_index import METADATA_PACK
from ijfs_engine.format.records import ObjectId, Snapshot
from ijfs_engine.remote import indexes
from ijfs_engine.remote.bucket import Bucket, RemoteError
from ijfs_engine.remote.cache import CachedPack, PackCache
from ijfs_engine.remote.far_index import FarIndex, FarPack
from ijfs_engine.remote.known import KnownTree, read_known
from ijfs_engine.remote.packing import pack_name, working_set_name
from ijfs_engine.remote.ranges import RangeReader
from ijfs_engine.remote.remote import known_path
from ijfs_engine.remote.signed import signatures_at
from ijfs_engine.remote.stored_names import RemoteName, RemoteNames
from ijfs_engine.storage import disk
from ijfs_engine.storage.elsewhere import OpenFile
from ijfs_engine.storage.index import OBJECTS
from ijfs_engine.storage.signatures import Signature
from ijfs_engine.util.io_wait import waited_for

_REQUEST_S: Final = 15.0
"""Of one request for bytes, 4 MiB at most: 2 Mbit/s."""
_RETRY_S: Final = 5.0
"""Who waits for a page is better served by a second request (ranges.py)."""


_MOST_OBJECTS: Final = 32 << 20
"""Objects of a snapshot that come at once: 0.2% of its bytes, so those of 16 GB. Of a larger one as they are needed."""


class RemoteElsewhere:
    """Implements `storage.elsewhere.Elsewhere`. Safe to use from several threads."""

    def __init__(self, directory: Path, cache_limit: int, crypt: Crypt) -> None:
        """`directory` is the repository's `remotes/`. StorageError."""
        self._crypt = crypt
        self._directory = directory
        self._lock = RLock()
        self._fars: dict[str, FarIndex] = {}
        self._names = RemoteNames(directory)
        self._cache = PackCache(directory / "cache", cache_limit, self._fetch)
        self._ranges: dict[bytes, RangeReader] = {}
        self._known: dict[str, tuple[int, KnownTree]] = {}
        self._packs: dict[int, FarPack] = {}
        self._opened: set[ObjectId] = set()
        self._generation = 0

    def close(self) -> None:
        """Let go of everything."""
        self._cache.close()
        for reader in self._ranges.values():
            reader.close()
        for far in self._fars.values():
            far.close()

    def far(self, name: RemoteName) -> FarIndex:
        """Where the chunks of one remote's tree are."""
        with self._lock:
            found = self._fars.get(name.store)
            if found is None:
                found = self._fars[name.store] = FarIndex(self._directory, bytes.fromhex(name.store))
            return found

    def rows(self, table: bytes, ids: Sequence[bytes]) -> list[bytes | None]:
        """As `Elsewhere` says. CorruptError, RemoteError."""
        if table == OBJECTS:
            self._open(ids)
        rows = self._rows(table, ids)
        if None in rows and self._opened and self._forgotten() != self._generation:
            self._open_again()
            rows = self._rows(table, ids)
        return rows

    def _rows(self, table: bytes, ids: Sequence[bytes]) -> list[bytes | None]:
        rows: list[bytes | None] = [None] * len(ids)
        for name, _ in self._trees():
            missing = [at for at, row in enumerate(rows) if row is None]
            for at, row in zip(missing, self.far(name).rows(table, [ids[at] for at in missing]), strict=True):
                rows[at] = row
        return rows

    def _forgotten(self) -> int:
        """How often somebody made one of the indexes forget."""
        return sum(self.far(name).forgotten() for name, _ in self._trees())

    def _open(self, ids: Sequence[ObjectId]) -> None:
        """Know the packs of the snapshots that these are, or the root trees of. (That these themselves are known says
        nothing: they may be in a pack with what another snapshot needs.)"""
        for name, known in self._trees():
            new = {snapshot for ident in ids for snapshot in known.snapshots_of(ident)} - self._opened
            if new:
                self._load(name, known, new)

    def _load(self, name: RemoteName, known: KnownTree, snapshots: set[ObjectId]) -> None:
        packs = {pack for ident in snapshots for pack in known.view.listings[ident].pack_ids()}
        with self._lock:
            generation = self._forgotten()
            indexes.load(Bucket.open(name.url), self.far(name), packs)
            self._generation = generation
            self._opened |= snapshots  # now, and not where the store did not answer
        self._bring_objects(self.far(name), packs)

    def _bring_objects(self, far: FarIndex, packs: set[bytes]) -> None:
        """Have what describes files here at once: whoever opens a snapshot goes through it step by step, and each step
        would be a request."""
        metadata = [pack for pack in far.by_ids(packs) if pack.kind == METADATA_PACK]
        if sum(pack.size for pack in metadata) <= _MOST_OBJECTS:
            with waited_for():
                self._cache.bring([(self._cache.opened(pack), [(0, pack.size)]) for pack in metadata])

    def _open_again(self) -> None:
        """Somebody made the far index forget, because packs went."""
        for name, known in self._trees():
            self._load(name, known, self._opened & known.view.listings.keys())

    def _trees(self) -> list[tuple[RemoteName, KnownTree]]:
        """What is known of each remote, read anew where somebody fetched."""
        return [(name, self.tree(name)) for name in self._names.all().values() if name.store]

    def tree(self, name: RemoteName) -> KnownTree:
        """What is known of one remote."""
        path = known_path(self._directory, name.store)
        stamp = path.stat().st_mtime_ns if path.exists() else 0
        with self._lock:
            kept = self._known.get(name.store)
            if kept is None or kept[0] != stamp:
                kept = self._known[name.store] = (stamp, read_known(path, self._crypt))
            return kept[1]

    def snapshot(self, ident: ObjectId) -> Snapshot | None:
        """The record of a snapshot that some remote's tree lists."""
        for _, known in self._trees():
            if known.listing(ident) is not None:
                return known.snapshot(ident)
        return None

    def listed_by(self, ident: ObjectId) -> RemoteName | None:
        """The first remote whose tree lists a snapshot."""
        return next((name for name, known in self._trees() if known.listing(ident) is not None), None)

    def working_set(self, ident: ObjectId) -> bytes | None:
        """What a restore needed first of a snapshot; a hint, so a store that does not give it has none."""
        name = self.listed_by(ident)
        if name is None:
            return None
        try:
            return self._crypt.open_bytes(Bucket.open(name.url).get(working_set_name(ident)), ident)
        except (RemoteError, CorruptError):
            return None

    def signatures(self, ident: ObjectId) -> list[Signature]:
        """Of a snapshot that a remote has; none where its store does not give them."""
        name = self.listed_by(ident)
        try:
            return signatures_at(Bucket.open(name.url), ident, self._crypt) if name is not None else []
        except (RemoteError, CorruptError):
            return []

    # --- Bytes

    def _pack(self, number: int) -> FarPack | None:
        """What a number stands for: it is never given again, so it is looked up once."""
        if number not in self._packs:
            found = (self.far(name).pack(number) for name, _ in self._trees())
            pack = next((pack for pack in found if pack is not None), None)
            if pack is None:
                return None
            self._packs[number] = pack
        return self._packs[number]

    def read(self, number: int, offset: int, length: int) -> bytes:
        """As `Elsewhere` says."""
        pack = self._pack(number)
        if pack is None:
            raise FileNotFoundError(number)
        file = self._cache.opened(pack)
        with waited_for():
            self._cache.bring([(file, [(offset, length)])])
        return os.pread(file.fd, length, offset)

    def files(self, wanted: Sequence[tuple[int, Sequence[tuple[int, int]]]]) -> list[OpenFile | None]:
        """As `Elsewhere` says."""
        found: list[CachedPack | None] = []
        for number, _ in wanted:
            pack = self._pack(number)
            found.append(self._cache.opened(pack) if pack is not None else None)
        with waited_for():
            self._cache.bring([(f, reads) for f, (_, reads) in zip(found, wanted, strict=True) if f is not None])
        return list(found)

    def distrust(self, number: int, offset: int, length: int) -> None:
        """As `Elsewhere` says."""
        pack = self._pack(number)
        if pack is not None:
            self._cache.distrust(self._cache.opened(pack), offset, length)

    def _fetch(self, pack: FarPack, start: int, end: int) -> bytes:
        with self._lock:
            reader = self._ranges.get(pack.store)
            if reader is None:
                reader = self._ranges[pack.store] = RangeReader(self._bucket(pack.store))
        return reader.read(pack_name(pack.pack), start, end)

    def _bucket(self, store: bytes) -> Bucket:
        for name in self._names.all().values():
            if name.store == store.hex():
                return Bucket.open(name.url, request_s=_REQUEST_S, retry_s=_RETRY_S)
        raise IjfsError("the remote that has these bytes was removed", hint="`ijfs remote add` it again")


def find_elsewhere(repository: Path, cache_limit: int, crypt: Crypt) -> RemoteElsewhere:
    """What a repository's remotes have. StorageError."""
    with disk.storage_errors("opening what is known of remotes"):
        return RemoteElsewhere(repository / "remotes", cache_limit, crypt)
