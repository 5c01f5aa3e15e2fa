"""From bytes to stored chunks: a region is cut, named, looked up, and what is new is encoded and put. Called by ingest.

A region is a stretch of fresh bytes that is chunked on its own, at most a leaf long. Everything here runs in the thread
that calls it; several do at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from . import chunker, codec
from .extents import Slice
from .frames import chunk_id
from .session import Session

BaseFor: TypeAlias = Callable[[int, int], codec.Base | None]
"""What bytes [start, end) of a region may be stored as a difference to."""


class StoredRegion:
    """Where the bytes of a region are now: chunk i ends at `ends[i]`."""

    def __init__(self, ids: Sequence[bytes], ends: Sequence[int]) -> None:
        self._ids = ids
        self._ends = ends

    def slices(self, offset: int, length: int) -> Iterator[Slice]:
        """The chunks that hold bytes [offset, offset + length) of the region."""
        at = bisect_right(self._ends, offset)
        while length > 0:
            start = self._ends[at - 1] if at else 0
            step = min(length, self._ends[at] - offset)
            yield Slice(self._ids[at], offset - start, step)
            offset, length, at = offset + step, length - step, at + 1


def store_region(session: Session, data: memoryview, base_for: BaseFor | None = None) -> StoredRegion:
    """Cut a region into chunks and store those that are new. StorageError."""
    bounds = list(chunker.cut(data))
    ids = [chunk_id(data[start:end]) for start, end in bounds]
    for chunks in codec.encode_many(data, _fresh(session, ids, bounds, base_for)):
        session.put_chunks(chunks)
    return StoredRegion(ids, [end for _, end in bounds])


def _fresh(
    session: Session, ids: Sequence[bytes], bounds: Sequence[tuple[int, int]], base_for: BaseFor | None
) -> Iterator[codec.Fresh]:
    """The chunks that are new, each once."""
    seen: set[bytes] = set()
    for ident, (start, end), found in zip(ids, bounds, session.lookup_many(ids), strict=True):
        if not found and ident not in seen:
            seen.add(ident)
            yield codec.Fresh(ident, start, end, base_for(start, end) if base_for else None)
