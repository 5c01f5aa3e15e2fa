"""Storing anew what can still be read out of damaged frames, before a repair lets go of them.

A reader needs less of a frame than a check holds against it: with one bit of a checksum turned, the bytes are still
those that the id stands for. `Repairer` calls `rescue` before it changes anything else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import closing
from functools import partial
from typing import Final

from ijfs_engine.errors import CorruptError, StorageError
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.place import Place
from ijfs_engine.read.chunk_reader import ChunkReader
from ijfs_engine.storage.index import BASES, CHUNKS, CONDEMNED, OBJECTS, U64, Update
from ijfs_engine.storage.object_store import Store
from ijfs_engine.storage.open_repository import OpenRepository

_LOT: Final = 256
"""Frames in one session: up to 64 MiB of chunks."""
_CACHE: Final = 16 << 20


def rescue(repository: OpenRepository, bad: Collection[bytes]) -> int:
    """Store anew what can be read of these ids, whole and without bases; how many there were. StorageError."""
    ids = sorted(bad)
    return sum(_rescue(repository, ids[at : at + _LOT]) for at in range(0, len(ids), _LOT))


def _rescue(repository: OpenRepository, ids: Sequence[bytes]) -> int:
    with repository.index.read() as view:
        chunks = [ident for ident, row in zip(ids, view.get_many(CHUNKS, ids), strict=True) if row is not None]
        kinds = {
            ident: Place.decode(row).tag
            for ident, row in zip(ids, view.get_many(OBJECTS, ids), strict=True)
            if row is not None
        }
    with closing(ChunkReader(repository.store, cache_bytes=_CACHE)) as reader:
        plains = {ident: plain for ident in chunks if (plain := _chunk(reader, ident)) is not None}
    objects = {ident: plain for ident, kind in kinds.items() if (plain := _object(repository.store, ident, kind))}
    if not plains and not objects:
        return 0
    # An object that is condemned is stored again, and stays readable meanwhile. No gc runs beside a repair.
    repository.index.write(partial(_condemn, ids=list(objects)))
    with repository.session() as session:
        session.put_chunks([chunk_codec.encode(memoryview(plain), ident) for ident, plain in plains.items()])
        for ident, plain in objects.items():
            session.put_object(kinds[ident], plain)
        rows = session.publish()
        repository.index.write(partial(_point, chunks=list(plains), objects=list(objects), rows=rows))
    return len(plains) + len(objects)


def _chunk(reader: ChunkReader, ident: bytes) -> bytes | None:
    try:
        return bytes(reader.chunk(ident))
    except CorruptError:
        return None
    except StorageError as error:
        # What the disk does not give is lost; what the system refuses for now is not.
        if error.refused:
            raise
        return None


def _object(store: Store, ident: bytes, kind: int) -> bytes | None:
    try:
        return store.get_object(ident, kind) if kind in FrameKind.NAMES else None
    except CorruptError:
        return None
    except StorageError as error:
        # What the disk does not give is lost; what the system refuses for now is not.
        if error.refused:
            raise
        return None


def _condemn(update: Update, ids: Sequence[bytes]) -> None:
    update.put_many(CONDEMNED, ((ident, U64.pack(update.number(b"epoch") + 1)) for ident in ids))


def _point(update: Update, chunks: Sequence[bytes], objects: Sequence[bytes], rows: dict[bytes, bytes]) -> None:
    """Have the index mean the new frames."""
    update.put_many(CHUNKS, ((ident, rows[ident]) for ident in chunks))
    update.delete_many(BASES, chunks)
    update.put_many(OBJECTS, ((ident, rows[ident]) for ident in objects))
    update.delete_many(CONDEMNED, [*chunks, *objects])
