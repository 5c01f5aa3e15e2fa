"""The store: chunks, objects and sidecars by id, out of the packs through the index.

The reader (read/chunk_reader.py), the writer (for the parent's leaves and fingerprints), du, gc and fsck get their
bytes here. Nothing here decodes a chunk: `chunk_codec.decode` does, with `get_chunks` as its source.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import zstandard

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.crypt import PLAIN, Crypt
from ijfs_engine.format.frames import (
    BASE_SIZE,
    FRAME_MAGIC,
    HEADER,
    HEADER_SIZE,
    Codec,
    EncodedChunk,
    FrameKind,
    decode_frame,
)
from ijfs_engine.format.place import NO_PLACE, Place
from ijfs_engine.format.records import (
    FileContent,
    Leaf,
    ObjectId,
    Snapshot,
    Tree,
    decode_file,
    decode_leaf,
    decode_snapshot,
    decode_tree,
)
from ijfs_engine.format.row import misshapen
from ijfs_engine.storage import disk
from ijfs_engine.storage.directory import RepositoryDirectory
from ijfs_engine.storage.elsewhere import FAR, Elsewhere, OpenFile
from ijfs_engine.storage.index import CHUNKS, OBJECTS, SIDECARS, Index
from ijfs_engine.storage.pack import PackReader
from ijfs_engine.util.io_wait import add_io_wait
from ijfs_engine.util.per_thread import PerThread

if TYPE_CHECKING:
    from ijfs_engine._native.bulk import BulkRead

T = TypeVar("T")

READ_GAP: Final = 64 << 10
"""Frames closer than this are fetched in one read: at 1 GB/s the gap costs as much as the system call and the seek."""
_LONGEST: Final = 4 << 20
"""Longest single read, so that memory stays bounded."""
_ATTEMPTS: Final = 3
"""gc may move a frame between the look into the index and the read; hardly ever twice in a row."""


def _nowhere() -> Elsewhere | None:
    """There is no other place."""
    return None


class ChunkInfo(NamedTuple):
    """What the index knows of a chunk without reading it."""

    plain: int
    span: int
    codec: int
    depth: int


class _Failed(NamedTuple):
    """A frame that could not be read, and why."""

    place: Place | None
    error: CorruptError


class Store:
    """Reads by id; safe to use from several threads and beside any writer or gc in other processes."""

    def __init__(self, directory: RepositoryDirectory, index: Index, *, ahead: bool = True) -> None:
        """`ahead` is `PackReader`'s."""
        self._directory = directory
        self.crypt = directory.crypt
        self._index = index
        self._packs = PackReader(directory.packs, ahead=ahead)
        self._find_elsewhere: Callable[[], Elsewhere | None] = _nowhere

    def look_elsewhere(self, find: Callable[[], Elsewhere | None]) -> None:
        """From now on, what is not here may be where `find` says; it is called when something is not here."""
        self._find_elsewhere = find

    def without_readahead(self) -> Store:
        """A second store over the same repository without read-ahead, for small reads in many places; of what is here
        alone. Close it."""
        return Store(self._directory, self._index, ahead=False)

    @cached_property
    def secret(self) -> bytes:
        """32 bytes of this repository alone: the key of page fingerprints."""
        return self._directory.secret()

    def forget_removed(self) -> None:
        """Let go of the packs that gc has removed: their space is free then."""
        self._packs.forget_removed()

    def close(self) -> None:
        """Let go of every pack."""
        self._packs.close()

    def get_chunks(self, ids: Sequence[bytes]) -> list[EncodedChunk]:
        """The stored frames, in the order asked; neighbours in a pack come in one read.

        Headers are checked; payloads are not: `chunk_codec.decode` compares the plain bytes with the id, and hashing
        the stored form as well cost 4% of an export. Raises CorruptError for a frame that is not what the index says
        or an id that is not there, StorageError from the system.
        """
        frames = self._frames(CHUNKS, ids)
        return [frames[ident] for ident in ids]

    def chunk_rows(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """The index's rows (`Place.encode`), for `ReadPlan`, which parses them itself; None for no such chunk."""
        rows = self._rows(CHUNKS, ids)
        if any(row is not None and len(row) != len(NO_PLACE) for row in rows):
            raise misshapen()
        return rows

    def object_rows(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """The same of objects, for who walks; None for no such object."""
        return self._rows(OBJECTS, ids)

    def _rows(self, table: bytes, ids: Sequence[bytes]) -> list[bytes | None]:
        """Where frames are: here, or elsewhere what is not here."""
        with self._index.read() as view:
            rows = view.get_many(table, ids)
        if None not in rows or table == SIDECARS or (elsewhere := self._find_elsewhere()) is None:
            return rows
        missing = [ident for ident, row in zip(ids, rows, strict=True) if row is None]
        far = iter(elsewhere.rows(table, missing))
        return [row if row is not None else next(far) for row in rows]

    def advise_reads(self, rows: Iterable[bytes]) -> None:
        """Have the kernel begin to read the frames at these rows: large reads follow, in this order. StorageError."""
        spans: dict[int, list[int]] = {}
        for place in map(Place.decode, rows):
            if place.pack >= FAR:
                continue
            span = spans.setdefault(place.pack, [place.pack, place.offset, place.offset])
            span[2] = max(span[2], place.offset + place.span)
        with disk.storage_errors("reading packs"):
            self._packs.advise_reads(spans.values())

    def read_planned(self, what: BulkRead, packs: Sequence[Sequence[int]]) -> None:
        """Do the reads that `schedule` planned of these packs; packs that gc has removed are left out. StorageError."""
        names = ", ".join(f"{number:08x}" for number, _, _ in packs)
        near = [pack for pack in packs if pack[0] < FAR]
        with disk.storage_errors(f"reading pack {names}"), self._packs.opened(near) as descriptors:
            # Packs are sorted by number: those elsewhere come last.
            far = self._fetched(what, packs, len(near))
            add_io_wait(what.read([*descriptors, *(file.fd if file is not None else -1 for file in far)]))

    def _fetched(self, what: BulkRead, packs: Sequence[Sequence[int]], near: int) -> list[OpenFile | None]:
        """Files that hold what is about to be read of the packs elsewhere."""
        elsewhere = self._find_elsewhere() if near < len(packs) else None
        if elsewhere is None:
            return [None] * (len(packs) - near)
        wanted: dict[int, list[tuple[int, int]]] = {at: [] for at in range(near, len(packs))}
        for at, offset, length in what.planned():
            if at >= near:
                wanted[at].append((offset, length))
        return elsewhere.files([(packs[at][0], reads) for at, reads in wanted.items()])

    def chunk_info(self, ids: Sequence[bytes]) -> list[ChunkInfo | None]:
        """Sizes, codec and depth from the index alone; None where there is no such chunk."""
        rows = self._rows(CHUNKS, ids)
        places = [Place.decode(row) if row is not None else None for row in rows]
        return [place and ChunkInfo(place.plain, place.span, place.tag, place.depth) for place in places]

    def kind_of(self, content: ObjectId) -> int:
        """The kind of frame with an id (`FrameKind.CHUNK`, `LEAF`, `FILE`…); CorruptError if there is none."""
        with self._index.read() as view:
            row = view.get(OBJECTS, content)
            if row is not None:
                return Place.decode(row).tag
            if view.get(CHUNKS, content) is not None:
                return FrameKind.CHUNK
        for table in (OBJECTS, CHUNKS):
            (row,) = self._rows(table, [content])
            if row is not None:
                return Place.decode(row).tag if table == OBJECTS else FrameKind.CHUNK
        raise CorruptError(f"nothing has the id {content.hex()[:12]}")

    def get_object(self, ident: ObjectId, kind: int) -> bytes:
        """An object's plain bytes, checked against its id; CorruptError."""
        return verify_object(kind, self._frames(OBJECTS, [ident])[ident], self.crypt)

    def tree(self, ident: ObjectId) -> Tree:
        """A directory."""
        return decode_tree(self.get_object(ident, FrameKind.TREE))

    def file(self, ident: ObjectId) -> FileContent:
        """A file object."""
        return decode_file(self.get_object(ident, FrameKind.FILE))

    def leaf(self, ident: ObjectId) -> Leaf:
        """A leaf; see also `leaves` for many."""
        return decode_leaf(self.get_object(ident, FrameKind.LEAF))

    def leaves(self, ids: Sequence[ObjectId]) -> list[Leaf]:
        """Many leaves in few reads, in the order asked."""
        return self._many(ids, FrameKind.LEAF, decode_leaf)

    def trees(self, ids: Sequence[ObjectId]) -> list[Tree]:
        """Many directories in few reads, in the order asked."""
        return self._many(ids, FrameKind.TREE, decode_tree)

    def files(self, ids: Sequence[ObjectId]) -> list[FileContent]:
        """Many file objects in few reads, in the order asked."""
        return self._many(ids, FrameKind.FILE, decode_file)

    def check_objects(self, ids: Sequence[ObjectId], kind: int) -> None:
        """Read objects and check them against their ids; CorruptError."""
        self._many(ids, kind, len)

    def snapshot(self, ident: ObjectId) -> Snapshot:
        """The record of a snapshot, whether or not it is still listed."""
        return decode_snapshot(ident, self.get_object(ident, FrameKind.SNAPSHOT))

    def snapshots(self, ids: Sequence[ObjectId]) -> list[Snapshot]:
        """Many records in few reads, in the order asked; CorruptError if one cannot be read."""
        frames = self._frames(OBJECTS, ids)
        return [decode_snapshot(ident, verify_object(FrameKind.SNAPSHOT, frames[ident], self.crypt)) for ident in ids]

    def readable_snapshots(self, ids: Sequence[ObjectId]) -> list[Snapshot]:
        """The same without those that cannot be read."""
        try:
            return self.snapshots(ids)
        except CorruptError:
            return [one for ident in ids if (one := self._snapshot_or_none(ident)) is not None]

    def _snapshot_or_none(self, ident: ObjectId) -> Snapshot | None:
        try:
            return self.snapshot(ident)
        except CorruptError:
            return None

    def sidecars(self, leaves: Sequence[ObjectId]) -> list[bytes | None]:
        """What `Session.put_sidecar` attached, where it is still there and undamaged."""
        found, _ = self._attempt(SIDECARS, leaves)
        return [_expand_or_none(found.get(leaf)) for leaf in leaves]

    def _many(self, ids: Sequence[ObjectId], kind: int, decode: Callable[[bytes], T]) -> list[T]:
        frames = self._frames(OBJECTS, ids)
        return [decode(verify_object(kind, frames[ident], self.crypt)) for ident in ids]

    def _frames(self, table: bytes, ids: Sequence[bytes]) -> dict[bytes, EncodedChunk]:
        """Every frame asked for, or CorruptError for the first that cannot be had."""
        found, failed = self._attempt(table, ids)
        for _ in range(_ATTEMPTS):
            if not failed:
                return found
            for failure in failed.values():
                if failure.place is not None:
                    self._distrust(failure.place)
            before = failed
            more, failed = self._attempt(table, list(failed))
            found.update(more)
            stuck = [now for ident, now in failed.items() if now.place == before[ident].place]
            if stuck:
                raise stuck[0].error
        if failed:
            raise next(iter(failed.values())).error
        return found

    def _distrust(self, place: Place) -> None:
        """A frame that was read there is not what it should be: look anew."""
        if place.pack < FAR:
            self._packs.forget(place.pack)
        elif (elsewhere := self._find_elsewhere()) is not None:
            elsewhere.distrust(place.pack, place.offset, place.span)

    def _read(self, number: int, offset: int, length: int) -> bytes:
        """Bytes of a pack, wherever it is. FileNotFoundError, OSError, StorageError."""
        if number < FAR:
            return self._packs.read(number, offset, length)
        elsewhere = self._find_elsewhere()
        if elsewhere is None:
            raise FileNotFoundError(number)
        return elsewhere.read(number, offset, length)

    def _attempt(self, table: bytes, ids: Sequence[bytes]) -> tuple[dict[bytes, EncodedChunk], dict[bytes, _Failed]]:
        rows = self._rows(table, ids)
        found: dict[bytes, EncodedChunk] = {}
        failed: dict[bytes, _Failed] = {}
        wanted: list[tuple[Place, bytes]] = []
        for ident, row in zip(ids, rows, strict=True):
            if row is None:
                failed[ident] = _Failed(None, CorruptError(f"nothing stored has the id {ident.hex()[:12]}"))
            else:
                wanted.append((Place.decode(row), ident))
        for batch in _batches(wanted):
            self._read_batch(table, batch, found, failed)
        return found, failed

    def _read_batch(
        self,
        table: bytes,
        batch: Sequence[tuple[Place, bytes]],
        found: dict[bytes, EncodedChunk],
        failed: dict[bytes, _Failed],
    ) -> None:
        first, last = batch[0][0], batch[-1][0]
        name = f"pack {first.pack:08x}"
        data = b""
        with disk.storage_errors(f"reading {name}"):
            try:
                data = self._read(first.pack, first.offset, last.offset + last.span - first.offset)
            except FileNotFoundError:
                name = f"{name} (which is missing)"
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self._read_around(table, batch, found, failed)
                return
        view = memoryview(data)
        for place, ident in batch:
            at = place.offset - first.offset
            try:
                found[ident] = self._frame(table, view[at : at + place.span], place, ident, name)
            except CorruptError as error:
                failed[ident] = _Failed(place, error)

    def _read_around(
        self,
        table: bytes,
        batch: Sequence[tuple[Place, bytes]],
        found: dict[bytes, EncodedChunk],
        failed: dict[bytes, _Failed],
    ) -> None:
        """Read frames one by one: a sector that the disk does not give costs those that lie in it. StorageError."""
        for place, ident in batch:
            where = f"pack {place.pack:08x} at {place.offset}"
            try:
                data = self._read(place.pack, place.offset, place.span)
                found[ident] = self._frame(table, memoryview(data), place, ident, f"pack {place.pack:08x}")
            except CorruptError as error:
                failed[ident] = _Failed(place, error)
            except FileNotFoundError:
                failed[ident] = _Failed(place, CorruptError(f"{where}: the pack is missing"))
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                failed[ident] = _Failed(place, CorruptError(f"{where}: the disk does not give it: {error.strerror}"))

    def _frame(self, table: bytes, data: memoryview, place: Place, ident: bytes, name: str) -> EncodedChunk:
        """One frame, opened. CorruptError."""
        frame = _frame(table, data, place, ident, name)
        return self.crypt.open(FrameKind.CHUNK if table == CHUNKS else place.tag, frame) if self.crypt.seals else frame


def _frame(table: bytes, data: memoryview, place: Place, ident: bytes, name: str) -> EncodedChunk:
    """One frame. What is used is checked against its id later, except a sidecar: that has nothing but its checksum."""
    # The span is a row's word: one that was damaged may say 0.
    if table != SIDECARS and len(data) == place.span >= HEADER_SIZE:
        magic, kind, codec, depth, n_bases, stored, plain, _, own, _ = HEADER.unpack_from(data)
        start = HEADER_SIZE + n_bases * BASE_SIZE
        meant = FrameKind.CHUNK if table == CHUNKS else place.tag
        same = (magic, kind, own, plain, depth, start + stored) == (
            FRAME_MAGIC, meant, ident, place.plain, place.depth, place.span,
        )  # fmt: skip
        if same:
            bases = bytes(data[HEADER_SIZE:start]) if n_bases else b""
            return EncodedChunk(ident, codec, plain, data[start:], bases, depth)
    where = f"{name} at {place.offset}"
    header, frame = decode_frame(data, where)
    if header.id != ident or table != SIDECARS:
        raise CorruptError(f"{where}: holds another frame than the index says")
    return frame


def _batches(wanted: list[tuple[Place, bytes]]) -> Iterator[list[tuple[Place, bytes]]]:
    """Runs of frames that lie near one another in one pack, for one read each."""
    batch: list[tuple[Place, bytes]] = []
    for item in sorted(wanted):
        place = item[0]
        if batch:
            first, last = batch[0][0], batch[-1][0]
            near = place.pack == last.pack and place.offset - (last.offset + last.span) <= READ_GAP
            if not near or place.offset + place.span - first.offset > _LONGEST:
                yield batch
                batch = []
        batch.append(item)
    if batch:
        yield batch


_decompressor = PerThread(zstandard.ZstdDecompressor)


def expand(frame: EncodedChunk) -> bytes:
    """The plain bytes of a frame with one of the store's own codecs (raw, zstd); CorruptError."""
    if frame.codec == Codec.RAW:
        plain = bytes(frame.payload)
    elif frame.codec == Codec.ZSTD:
        try:
            # zstd believes the size in its own frame and allocates it, so that has to agree with ours first.
            claimed = zstandard.frame_content_size(frame.payload)
            if claimed not in (frame.plain_size, -1):
                raise CorruptError(f"the object {frame.id.hex()[:12]} claims two different sizes")
            plain = _decompressor.value.decompress(
                frame.payload, max_output_size=frame.plain_size, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise CorruptError(f"the object {frame.id.hex()[:12]} cannot be decompressed: {error}") from error
    else:
        raise CorruptError(f"the object {frame.id.hex()[:12]} has codec {frame.codec}, which is none of an object's")
    if len(plain) != frame.plain_size:
        raise CorruptError(f"the object {frame.id.hex()[:12]} is not as long as its header says")
    return plain


def verify_object(kind: int, frame: EncodedChunk, crypt: Crypt = PLAIN) -> bytes:
    """The plain bytes of an object's opened frame, checked against its id; CorruptError."""
    plain = expand(frame)
    if kind not in FrameKind.NAMES or kind == FrameKind.CHUNK or crypt.object_id(kind, plain) != frame.id:
        name = FrameKind.NAMES.get(kind, str(kind))
        raise CorruptError(f"the object {frame.id.hex()[:12]} is not the {name} that its id says")
    return plain


def _expand_or_none(frame: EncodedChunk | None) -> bytes | None:
    try:
        return expand(frame) if frame is not None else None
    except CorruptError:
        return None
