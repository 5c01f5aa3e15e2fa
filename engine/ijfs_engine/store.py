"""The store: chunks, objects and sidecars by id, out of the packs through the index.

The reader (reader.py), ingest (the parent's leaves and fingerprints), du, gc and fsck get their bytes here.
Nothing here decodes a chunk: `codec.decode` does, with `get_chunks` as its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .frames import EncodedChunk
from .records import FileContent, Leaf, ObjectId, Snapshot, Tree


class ChunkInfo(NamedTuple):
    """What the index knows of a chunk without reading it."""

    plain: int
    span: int
    codec: int
    depth: int


class Store:
    """Reads by id; safe to use from several threads and beside any writer or gc in other processes."""

    secret: bytes
    """32 bytes of this repository alone: the key of page fingerprints."""

    def get_chunks(self, ids: Sequence[bytes]) -> list[EncodedChunk]:
        """The stored frames, checksums checked, in the order asked; neighbours in a pack come in one read.

        Raises CorruptError for a damaged frame or an id that is not there, StorageError from the system.
        """
        raise NotImplementedError

    def chunk_info(self, ids: Sequence[bytes]) -> list[ChunkInfo | None]:
        """Sizes, codec and depth from the index alone; None where there is no such chunk."""
        raise NotImplementedError

    def kind_of(self, content: ObjectId) -> int:
        """`Kind.CHUNK`, `LEAF` or `FILE`… for an id; CorruptError if nothing has it."""
        raise NotImplementedError

    def get_object(self, ident: ObjectId, kind: int) -> bytes:
        """An object's plain bytes, checked against its id; CorruptError."""
        raise NotImplementedError

    def tree(self, ident: ObjectId) -> Tree:
        """A directory."""
        raise NotImplementedError

    def file(self, ident: ObjectId) -> FileContent:
        """A file object."""
        raise NotImplementedError

    def leaf(self, ident: ObjectId) -> Leaf:
        """A leaf; see also `leaves` for many."""
        raise NotImplementedError

    def leaves(self, ids: Sequence[ObjectId]) -> list[Leaf]:
        """Many leaves in few reads, in the order asked."""
        raise NotImplementedError

    def snapshot(self, ident: ObjectId) -> Snapshot:
        """The record of a snapshot, whether or not it is still listed."""
        raise NotImplementedError

    def sidecars(self, leaves: Sequence[ObjectId]) -> list[bytes | None]:
        """What `Session.put_sidecar` attached, where it is still there and undamaged."""
        raise NotImplementedError
