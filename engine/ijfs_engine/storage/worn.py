"""Chunks of which all snapshots together name little: gc writes down which they are, and saves store their rest anew.

A snapshot that names a piece of a chunk keeps all of it, and gc cannot change what a leaf names: its id is part of the
snapshot's. In a long line of saves of which the old ones are removed, pages that never change would each hold a chunk
whose other pages are gone. gc looks at all that is listed, so a chunk that a kept snapshot uses is none of these, and a
history that is kept costs nothing. It is a hint: a list that is old costs a few pages stored twice.
"""

from __future__ import annotations

from typing import Final

from ijfs_engine.storage.index import META, Index, Update

_ROW: Final = b"worn"
KEY: Final = 8
"""Bytes of an id that name a chunk here."""
MOST: Final = 100_000
"""Chunks that are written down: 800 kB, 6 GB of content."""


def worn_chunks(index: Index) -> set[bytes]:
    """The first bytes of their ids, as the last gc found them. StorageError."""
    with index.read() as view:
        row = view.get(META, _ROW) or b""
    return {row[at : at + KEY] for at in range(0, len(row) - KEY + 1, KEY)}


def write_down(index: Index, keys: bytes) -> None:
    """Have saves know them; `keys` end to end. StorageError."""

    def change(update: Update) -> None:
        if keys:
            update.put(META, _ROW, keys[: MOST * KEY])
        else:
            update.delete(META, _ROW)

    with index.read() as view:
        known = view.get(META, _ROW) or b""
    if known != keys:
        index.write(change)
