"""From bytes to stored chunks: a region is cut, named, looked up, and what is new is encoded and put.

A region is a stretch of fresh bytes that is chunked on its own, at most a leaf long. Called by file_writer.py and
page_writer.py. Everything here runs in the thread that calls it; several do at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from ijfs_engine._native.extent_columns import Columns
from ijfs_engine.format import chunk_codec
from ijfs_engine.storage.session import Session
from ijfs_engine.write import chunker

BaseFor: TypeAlias = Callable[[int, int], chunk_codec.Base | None]
"""What bytes [start, end) of a region may be stored as a difference to."""


def store_region(session: Session, data: memoryview, base_for: BaseFor | None = None) -> Columns:
    """Cut a region into chunks and store those that are new; where its bytes are now. StorageError."""
    bounds = list(chunker.cut(data, session.crypt.cut_key))
    ids = [session.crypt.chunk_id(data[start:end]) for start, end in bounds]
    for chunks in chunk_codec.encode_many(data, _fresh(session, ids, bounds, base_for)):
        session.put_chunks(chunks)
    lengths = array("I", (end - start for start, end in bounds))
    return Columns(b"".join(ids), array("I", range(len(ids))), array("I", bytes(4 * len(ids))), lengths)


def _fresh(
    session: Session, ids: Sequence[bytes], bounds: Sequence[tuple[int, int]], base_for: BaseFor | None
) -> Iterator[chunk_codec.Fresh]:
    """The chunks that are new, each once."""
    seen: set[bytes] = set()
    for ident, (start, end), found in zip(ids, bounds, session.lookup_many(ids), strict=True):
        if not found and ident not in seen:
            seen.add(ident)
            yield chunk_codec.Fresh(ident, start, end, base_for(start, end) if base_for else None)
