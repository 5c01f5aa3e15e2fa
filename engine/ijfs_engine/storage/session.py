"""A session: the right to add chunks and objects, and to commit one snapshot made of them.

`Repository.begin` opens one for a `SnapshotWriter` (write/snapshot_writer.py); gc opens one to repack. It owns private
packs, so sessions of many processes write at once without waiting for each other. docs/concurrency.md says why what a
session finds in `lookup_many` cannot be taken by gc before it commits.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence, Set
from threading import RLock
from typing import Any, Final, NamedTuple

import msgspec
import zstandard

from ijfs_engine.errors import CorruptError, IjfsError, StorageError
from ijfs_engine.format.frames import Codec, EncodedChunk, FrameKind, base_ids, encode_header
from ijfs_engine.format.place import Place
from ijfs_engine.format.records import ObjectId, Snapshot, encode_snapshot
from ijfs_engine.storage import disk
from ijfs_engine.storage.chunk_rows import put_chunks
from ijfs_engine.storage.directory import RepositoryDirectory
from ijfs_engine.storage.index import (
    CHUNKS,
    CONDEMNED,
    OBJECTS,
    PACK_KEY,
    PACK_ROW,
    PACKS,
    REFS,
    REMOVED,
    SIDECARS,
    SNAPSHOTS,
    U64,
    Index,
    Update,
)
from ijfs_engine.storage.journal import Journal, Record, SnapshotAdded
from ijfs_engine.storage.known_damage import lost_packs
from ijfs_engine.storage.locks import LockFile
from ijfs_engine.storage.new_pack import new_pack, note_number
from ijfs_engine.storage.pack import DATA_PACK, PACK_TARGET, SIDECAR_PACK, PackWriter
from ijfs_engine.storage.refs import branch_key, log_records, move_ref
from ijfs_engine.storage.worn import worn_chunks
from ijfs_engine.util.per_thread import PerThread
from ijfs_engine.util.words import count

_CLUSTER: Final = 1 << 20
"""Objects are held back until so many bytes are together: a tree walk then reads a few large stretches of the pack
instead of one small one every 4 MiB of chunks."""


class _Held(NamedTuple):
    """An object that waits to be written with its neighbours."""

    kind: int
    chunk: EncodedChunk


_SLICE: Final = 512
"""Rows per index transaction. Ids are random, so a save's rows touch every page of a table, and LMDB writes a touched
page to a new place: all in one transaction would double the file. In slices by id each copies its part of the table."""
_MOST_SLICES: Final = 24
"""At most so many, since each is a commit of some milliseconds."""


class _PendingRows:
    """Index rows of frames that are in a pack, but not yet in the index. `anew`: ids whose rows take the place of those
    that are there."""

    def __init__(self, anew: Set[bytes]) -> None:
        self._anew = anew
        self.chunks: dict[bytes, bytes] = {}
        self.bases: dict[bytes, bytes] = {}
        self.objects: dict[bytes, bytes] = {}
        self.sidecars: dict[bytes, bytes] = {}
        self.packs: dict[bytes, bytes] = {}

    def sliced(self) -> list[_PendingRows]:
        """The same rows in parts, chunks by id. The first has the packs: no row may point to one that is not known."""
        count = min(_MOST_SLICES, len(self.chunks) // _SLICE + 1)
        ids = sorted(self.chunks)
        parts = [_PendingRows(self._anew) for _ in range(count)]
        for number, part in enumerate(parts):
            for ident in ids[len(ids) * number // count : len(ids) * (number + 1) // count]:
                part.chunks[ident] = self.chunks[ident]
                if ident in self.bases:
                    part.bases[ident] = self.bases[ident]
        parts[0].packs = self.packs
        parts[-1].objects, parts[-1].sidecars = self.objects, self.sidecars
        return parts

    def put(self, update: Update) -> None:
        """Put them into the index. What gc had condemned is no longer."""
        put_chunks(update, self.chunks, self.bases, self._anew)
        there = update.get_many(OBJECTS, self.objects)
        fresh = [ident for ident, old in zip(self.objects, there, strict=True) if not old or ident in self._anew]
        update.put_many(OBJECTS, sorted((ident, self.objects[ident]) for ident in fresh))
        update.put_many(SIDECARS, sorted(self.sidecars.items()))
        update.put_many(PACKS, sorted(self.packs.items()))
        for key in self.packs:
            note_number(update, PACK_KEY.unpack(key)[0])
        if update.count(CONDEMNED):
            update.delete_many(CONDEMNED, self.chunks)
            update.delete_many(CONDEMNED, self.objects)


class Session:
    """Adds to a repository. Safe to use from several threads; a context manager: leaving without commit aborts."""

    def __init__(
        self,
        directory: RepositoryDirectory,
        index: Index,
        journal: Journal,
        *,
        pack_target: int = PACK_TARGET,
        lost: Set[int] | None = None,
    ) -> None:
        """Registers; StorageError. `lost`: packs that are known to be gone, by default those that are now."""
        self.directory = directory
        self.crypt = directory.crypt
        self._index = index
        self._journal = journal
        self._pack_target = pack_target
        self._lock = RLock()
        self._anew: set[bytes] = set()
        """Ids that are stored, but cannot be read: what this session puts takes their place."""
        self._rows = _PendingRows(self._anew)
        self._held: dict[bytes, _Held] = {}
        self._held_bytes = 0
        self._data: PackWriter | None = None
        self._sidecars: PackWriter | None = None
        self._ended = False
        self.stored_bytes = 0
        """Pack bytes that this session has appended so far."""
        with disk.storage_errors("starting a session"):
            self._registration = LockFile.create(directory.sessions)
        try:
            with index.read() as view:
                self.epoch = view.number(b"epoch")
            # Behind the registration: a rotation of keys that began before is known from here on, a later one waits.
            self.crypt.renew()
            with disk.storage_errors("starting a session"):
                self._registration.write(U64.pack(self.epoch))
            self._lost = lost_packs(index, directory.packs) if lost is None else lost
        except BaseException:
            self._registration.close()
            raise

    def lookup_many(self, ids: Sequence[bytes]) -> list[bool]:
        """For each chunk id: may it be referenced without putting it (stored, not condemned, or put here before)?"""
        # `new` is taken before the view is opened: rows leave it only once the index has them.
        new = self._rows.chunks
        with self._index.read() as view:
            rows = view.get_many(CHUNKS, ids)
            doomed = view.get_many(CONDEMNED, ids) if view.count(CONDEMNED) else [None] * len(ids)
        return [
            ident in new or (row is not None and condemned is None)
            for ident, row, condemned in zip(ids, rows, doomed, strict=True)
        ]

    def worn_chunks(self) -> set[bytes]:
        """What `worn.worn_chunks` says."""
        return worn_chunks(self._index)

    def put_chunks(self, chunks: Sequence[EncodedChunk]) -> None:
        """Append chunks; one that this session already put is dropped. The caller may reuse the payload's memory.

        Compute-heavy parts (sealing, checksums) run in the calling thread, appending is serialised. Bases must be
        present (found or put before). Raises StorageError when the disk is full.
        """
        if self.crypt.seals:
            chunks = [self.crypt.seal(FrameKind.CHUNK, chunk) for chunk in chunks]
        headers = [encode_header(FrameKind.CHUNK, chunk) for chunk in chunks]
        with self._lock, disk.storage_errors("writing a pack"):
            self._check_open()
            new = {
                chunk.id: (header, chunk)
                for header, chunk in zip(headers, chunks, strict=True)
                if chunk.id not in self._rows.chunks
            }
            writer = self._data = self._data or self._new_pack(DATA_PACK)
            before = writer.size
            offsets = writer.append_many([(header, chunk.payload) for header, chunk in new.values()])
            self.stored_bytes += writer.size - before
            for offset, (header, chunk) in zip(offsets, new.values(), strict=True):
                span = len(header) + len(chunk.payload)
                place = Place(writer.number, offset, span, chunk.plain_size, chunk.codec, chunk.depth)
                self._rows.chunks[chunk.id] = place.encode()
                if chunk.bases:
                    self._rows.bases[chunk.id] = b"".join(sorted(base_ids(chunk.bases)))
            self._roll()

    def put_object(self, kind: int, plain: bytes) -> ObjectId:
        """Store a metadata object (`FrameKind.LEAF`, `FILE`, `LAYOUT`, `TREE`) unless it is there; its id."""
        ident = self.crypt.object_id(kind, plain)
        if self._stored(ident):
            return ident
        chunk = self.crypt.seal(kind, compress(ident, plain))
        with self._lock:
            self._check_open()
            if ident in self._rows.objects or ident in self._held:
                return ident
            self._held[ident] = _Held(kind, chunk)
            self._held_bytes += len(chunk.payload)
            if self._held_bytes >= _CLUSTER:
                with disk.storage_errors("writing a pack"):
                    self._release()
                    self._roll()
        return ident

    def put_sidecar(self, leaf: ObjectId, plain: bytes) -> None:
        """Attach data to a leaf (page fingerprints) or a snapshot (working set), in place of what it had.

        Nobody may count on it: it may vanish at any time, or never be written."""
        chunk = self.crypt.seal(FrameKind.SIDECAR, compress(leaf, plain))
        header = encode_header(FrameKind.SIDECAR, chunk)
        with self._lock, disk.storage_errors("writing a pack"):
            self._check_open()
            if leaf in self._rows.sidecars:
                return
            if self._sidecars is None:
                self._sidecars = self._new_pack(SIDECAR_PACK)
            place = self._place(self._sidecars, header, chunk, FrameKind.SIDECAR)
            self._rows.sidecars[leaf] = place.encode()

    def commit_snapshot(
        self,
        root: ObjectId,
        *,
        parents: Sequence[ObjectId] = (),
        message: str = "",
        meta: dict[str, Any] | None = None,
        branch: str | None = None,
        size: int | None = None,
    ) -> Snapshot:
        """Make everything durable, then visible in one transaction, and end the session. CorruptError where a pack has
        gone meanwhile: it may hold what was found stored.

        With `branch`, that branch moves to the snapshot (it is made if there is none) in the same transaction.
        `size` is what the files add up to.
        """
        key = branch_key(branch) if branch is not None else None
        with self._lock, disk.storage_errors("writing a pack"):
            self._release()
        blank = Snapshot(b"", root, tuple(parents), time.time_ns(), message, meta or {}, size, self.stored_bytes)
        plain = encode_snapshot(blank)
        ident = self.put_object(FrameKind.SNAPSHOT, plain)

        def visible(update: Update) -> None:
            self._rows.put(update)
            records: list[Record] = [SnapshotAdded(ident, blank.created_ns)]
            update.put(SNAPSHOTS, ident, U64.pack(blank.created_ns))
            if key is not None:
                old = update.get(REFS, key)
                records.append(move_ref(update, key, old, ident, message or "save"))
            log_records(update, self._journal, records)

        with self._lock, disk.storage_errors("committing the snapshot"):
            self._check_open()
            self._settle()
            self._check_packs()
            self._index.write(visible, last_room=False)
            self._end()
            self.directory.reserve.take(self._index.size_on_disk())
        return msgspec.structs.replace(blank, id=ident)

    def commit_copies(self, snapshots: Mapping[ObjectId, int], heads: Mapping[str, ObjectId], why: str) -> None:
        """Make durable and visible what was copied from another tree, and end the session: snapshots (with when they
        were made, ns), whose records and all they reach were put here, and branches or tags that move to some."""

        def visible(update: Update) -> None:
            self._rows.put(update)
            records: list[Record] = []
            for ident, created_ns in snapshots.items():
                records.append(SnapshotAdded(ident, created_ns))
                update.put(SNAPSHOTS, ident, U64.pack(created_ns))
                update.delete(REMOVED, ident)
            for name, ident in heads.items():
                records.append(move_ref(update, name.encode(), update.get(REFS, name.encode()), ident, why))
            if records:
                log_records(update, self._journal, records)

        with self._lock, disk.storage_errors("committing snapshots"):
            self._check_open()
            self._settle()
            self._check_packs()
            self._index.write(visible, last_room=False)
            self._end()

    def publish(self) -> dict[bytes, bytes]:
        """Make what was put so far durable and put it into the index without a snapshot."""
        with self._lock, disk.storage_errors("writing a pack"):
            self._check_open()
            self._settle()
            self._index.write(self._rows.put, last_room=False)
            placed = {**self._rows.chunks, **self._rows.objects}
            self._forget()
        return placed

    def abort(self) -> None:
        """End the session; what it put becomes garbage that gc takes. Safe to call twice, and after commit."""
        with self._lock:
            try:
                with contextlib.suppress(OSError, StorageError):
                    self._drop_unknown_packs()
            finally:
                self._end()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()

    def _drop_unknown_packs(self) -> None:
        """Remove the packs that the index does not know; gc would, later. The index is asked, because an interrupt may
        have come just after the commit."""
        writers = [writer for writer in (self._data, self._sidecars) if writer is not None]
        if not writers:
            return
        # A commit that failed may have left a line in the journal that names what is about to vanish. Else nothing is
        # written: on a full disk that would take the reserve, which `rm` and gc are to have.
        with self._index.read() as view:
            behind = self._journal.differs(view)
        if behind:
            self._index.write(self._journal.settle)
        with self._index.read() as view:
            known = view.get_many(PACKS, [PACK_KEY.pack(writer.number) for writer in writers])
        for writer, row in zip(writers, known, strict=True):
            if row is None:
                disk.unlink(writer.path)

    def _stored(self, ident: bytes) -> bool:
        with self._index.read() as view:
            return view.get(OBJECTS, ident) is not None and view.get(CONDEMNED, ident) is None

    def _check_packs(self) -> None:
        gone = lost_packs(self._index, self.directory.packs) - self._lost
        if gone:
            raise CorruptError(
                f"while this was being stored, {count(len(gone), 'pack')} went, and it may need what was there",
                hint="put them back, or try again: what was in them is stored anew then",
            )

    def _check_open(self) -> None:
        if self._ended:
            raise IjfsError("this session has ended")

    def _append(self, header: bytes, chunk: EncodedChunk, tag: int) -> Place:
        if self._data is None:
            self._data = self._new_pack(DATA_PACK)
        return self._place(self._data, header, chunk, tag)

    def _place(self, writer: PackWriter, header: bytes, chunk: EncodedChunk, tag: int) -> Place:
        offset = writer.append(header, chunk.payload)
        self.stored_bytes += writer.size - offset
        return Place(writer.number, offset, len(header) + len(chunk.payload), chunk.plain_size, tag, chunk.depth)

    def _release(self) -> None:
        """Write the objects that were held back, one behind the other."""
        for ident, (kind, chunk) in self._held.items():
            place = self._append(encode_header(kind, chunk), chunk, kind)
            self._rows.objects[ident] = place.encode()
        self._held.clear()
        self._held_bytes = 0

    def _roll(self) -> None:
        """Finish a pack that is large enough, and publish what it holds: memory stays bounded."""
        if self._data is not None and self._data.size >= self._pack_target:
            self.publish()

    def _new_pack(self, kind: int) -> PackWriter:
        return new_pack(self._index, self.directory, kind)

    def _settle(self) -> None:
        """Write and sync all that was put. Where there are many rows, all but the last slice go into the index, too."""
        self._release()
        writers = [writer for writer in (self._data, self._sidecars) if writer is not None]
        for writer in writers:
            writer.finish(sync=writer.kind == DATA_PACK)
            self._rows.packs[PACK_KEY.pack(writer.number)] = PACK_ROW.pack(writer.kind, writer.size)
        if writers:
            disk.fsync_dir(self.directory.packs)
        *first, last = self._rows.sliced()
        for part in first:
            self._index.write(part.put, last_room=False)
        self._rows = last

    def _forget(self) -> None:
        """Close the packs, which the index knows now: the next frame begins a new one."""
        with contextlib.ExitStack() as packs:
            for writer in (self._data, self._sidecars):
                if writer is not None:
                    packs.callback(writer.close)
        self._data = self._sidecars = None
        self._rows = _PendingRows(self._anew)

    def _end(self) -> None:
        self._ended = True
        self._held.clear()
        try:
            self._forget()
        finally:
            self._registration.close()


# To make one takes longer than to pack a leaf.
_compressor = PerThread(lambda: zstandard.ZstdCompressor(level=1))


def compress(ident: bytes, plain: bytes) -> EncodedChunk:
    """An object's stored form: zstd where that is smaller."""
    packed = _compressor.value.compress(plain)
    if len(packed) < len(plain):
        return EncodedChunk(ident, Codec.ZSTD, len(plain), packed)
    return EncodedChunk(ident, Codec.RAW, len(plain), plain)
