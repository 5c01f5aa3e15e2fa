"""A session: the right to add chunks and objects, and to commit one snapshot made of them.

`Repository.begin` opens one for a `SnapshotWriter` (ingest.py); gc opens one to repack. It owns private packs,
so sessions of many processes write at once without waiting for each other. docs/concurrency.md says why what a
session finds in `lookup_many` cannot be taken by gc before it commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .frames import EncodedChunk
from .records import ObjectId, Snapshot


class Session:
    """Adds to a repository. Safe to use from several threads; a context manager: leaving without commit aborts."""

    stored_bytes: int
    """Pack bytes that this session has appended so far."""

    def lookup_many(self, ids: Sequence[bytes]) -> list[bool]:
        """For each chunk id: may it be referenced without putting it (stored, not condemned, or put here before)?"""
        raise NotImplementedError

    def put_chunks(self, chunks: Sequence[EncodedChunk]) -> None:
        """Append chunks; one that this session already put is dropped. The caller may reuse the payload's memory.

        Compute-heavy parts (checksums) run in the calling thread, appending is serialised. Bases must be
        present (found or put before). Raises StorageError when the disk is full.
        """
        raise NotImplementedError

    def put_object(self, kind: int, plain: bytes) -> ObjectId:
        """Store a metadata object (`Kind.LEAF`, `FILE`, `LAYOUT`, `TREE`) unless it is there; its id."""
        raise NotImplementedError

    def put_sidecar(self, leaf: ObjectId, plain: bytes) -> None:
        """Attach droppable data to a leaf (page fingerprints); it may vanish at any time, or never be written."""
        raise NotImplementedError

    def commit_snapshot(
        self,
        root: ObjectId,
        *,
        parents: Sequence[ObjectId] = (),
        message: str = "",
        meta: dict[str, Any] | None = None,
        branch: str | None = None,
    ) -> Snapshot:
        """Make everything durable, then visible in one transaction, and end the session.

        With `branch`, that branch moves to the snapshot (it is made if there is none) in the same transaction.
        """
        raise NotImplementedError

    def abort(self) -> None:
        """End the session; what it put becomes garbage that gc takes. Safe to call twice, and after commit."""
        raise NotImplementedError

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()
