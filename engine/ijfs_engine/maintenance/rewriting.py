"""Chunks that are stored anew under their ids: into packs of their own, then the index's rows point there.

gc's passes that encode chunks (flatten.py, recompress.py) write by it. A crash leaves each row at the old frame or at
the new one, and a pack that the index does not know yet as an orphan. What the rows pointed at before is garbage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

from ijfs_engine.format.frames import HEADER_SIZE, EncodedChunk, FrameKind, encode_header, padding
from ijfs_engine.format.place import Place
from ijfs_engine.storage import disk
from ijfs_engine.storage.index import BASES, CHUNKS, PACK_KEY, PACKS, Update
from ijfs_engine.storage.new_pack import new_pack, put_pack
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.pack import DATA_PACK, PACK_HEADER_SIZE, PackWriter

PUBLISH: Final = 256 << 20
"""Bytes written before the index is told."""
_ROWS: Final = 8192
"""Rows per transaction: a save that wants to commit waits for one of these (30 ms) at most."""


class Rewritten(NamedTuple):
    """A chunk as it is to be stored, no deeper than before, and the row that it replaces."""

    chunk: EncodedChunk
    old: bytes


class _Row(NamedTuple):
    id: bytes
    old: bytes
    new: bytes
    whole: bool


class Rewriter:
    """Writes chunks into packs and has the index point at them. `close` in any case, at the end."""

    def __init__(self, repository: OpenRepository) -> None:
        self._repository = repository
        self._index = repository.index
        self._pack: PackWriter | None = None
        self._rows: list[_Row] = []
        self.count = 0
        """Chunks that the index knows."""

    def put(self, chunks: Iterable[Rewritten]) -> None:
        """Store some. StorageError."""
        directory = self._repository.directory
        for encoded, old in chunks:
            if self._pack is None:
                self._pack = new_pack(self._index, directory, DATA_PACK)
            chunk = directory.crypt.seal(FrameKind.CHUNK, encoded)
            header = encode_header(FrameKind.CHUNK, chunk)
            offset = self._pack.append(header, chunk.payload)
            span = len(header) + len(chunk.payload)
            place = Place(self._pack.number, offset, span, chunk.plain_size, chunk.codec, chunk.depth)
            self._rows.append(_Row(chunk.id, old, place.encode(), not chunk.bases))
        if self._pack is not None and self._pack.size >= PUBLISH:
            self.publish()

    def publish(self) -> None:
        """Make them durable and known."""
        pack = self._pack
        if pack is None:
            return
        pack.finish()
        disk.fsync_dir(self._repository.directory.packs)
        self._index.write(partial(put_pack, number=pack.number, kind=pack.kind, size=pack.size))
        self._rows.sort()
        for start in range(0, len(self._rows), _ROWS):
            self.count += self._index.write(partial(_point, rows=self._rows[start : start + _ROWS]))
        self._pack, self._rows = None, []
        pack.close()

    def close(self) -> None:
        """Remove the pack that the index does not know."""
        if self._pack is not None:
            with self._index.read() as view:
                known = view.get(PACKS, PACK_KEY.pack(self._pack.number)) is not None
            # Before it lets go of the lock: from then on another may make a file of that name.
            if not known:
                disk.unlink(self._pack.path)
            self._pack.close()


def weigh(sizes: list[int], chunks: Iterable[Rewritten], overhead: int) -> int:
    """Add to the sizes of packs what `Rewriter.put` would write of these chunks; how many they are. `overhead`: bytes
    that sealing adds to each."""
    begins, count = not sizes or sizes[-1] >= PUBLISH, 0
    for chunk, _ in chunks:
        if begins:
            sizes.append(PACK_HEADER_SIZE)
            begins = False
        span = HEADER_SIZE + len(chunk.bases) + len(chunk.payload) + overhead
        sizes[-1] += span + padding(span)
        count += 1
    return count


def _point(update: Update, rows: Sequence[_Row]) -> int:
    done = 0
    for ident, old, new, whole in rows:
        # A session may have written the frame anew meanwhile.
        if update.get(CHUNKS, ident) == old:
            update.put(CHUNKS, ident, new)
            if whole:
                update.delete(BASES, ident)
            done += 1
    return done
