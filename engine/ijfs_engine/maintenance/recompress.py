"""Storing chunks anew in fewer bytes, by zstd that takes its time: `ijfs gc --recompress`.

A save packs at level 1, because the program's next save waits for it. What is kept for long pays for more: level 12
makes code, objects and text a seventh smaller, at 20 MB/s a core in place of 680 (9: a ninth, at 93; 19: a sixth, at
2.5), numbers a twentieth, and planes a thousandth, so those are not tried. Ids are of the plain bytes, so nothing that
names a chunk changes, and every version reads what this writes.

The packs that the chunks came from are written anew by gc's repack, however little of them has died.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import zstandard

from ijfs_engine.errors import CorruptError
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.chunk_codec import Plain
from ijfs_engine.format.frames import Codec, EncodedChunk
from ijfs_engine.format.place import NO_PLACE, Place
from ijfs_engine.maintenance.reachability import ReachableSet
from ijfs_engine.maintenance.rewriting import Rewriter, Rewritten, weigh
from ijfs_engine.storage.index import CHUNKS
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.util.per_thread import PerThread
from ijfs_engine.util.pipeline import Pipeline
from ijfs_engine.util.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Set
    from concurrent.futures import Future

_LEVEL: Final = 12
_GAIN: Final = 0.03
"""What does not get smaller by this share stays: what was packed so before is not written again."""
_CODECS: Final = frozenset({Codec.ZSTD, Codec.XOR_ZSTD, Codec.NUMBERS})
_NUMBERS: Final = struct.Struct("<16sI")
"""How a payload of numbers begins: what stays, and the size of the frame that follows (docs/format.md)."""
_BATCH: Final = 64
"""Chunks that a thread packs at a time: 4 MiB, as most are."""
_ROOM: Final = 64 << 20
"""Bytes that the disk shall have left, and twice what is being written: copies of what stays come after."""

_Known: TypeAlias = tuple[bytes, bytes]
"""A chunk's id and its row in the index."""


class Smaller(NamedTuple):
    """What a pass does: how many chunks it stores anew, the rows that they replace (end to end), the sizes of the new
    packs, where they were not written."""

    chunks: int
    dead: bytes
    sizes: list[int]

    @property
    def packs(self) -> frozenset[int]:
        """Numbers of the packs that the chunks were in."""
        rows = (self.dead[at : at + len(NO_PLACE)] for at in range(0, len(self.dead), len(NO_PLACE)))
        return frozenset(Place.decode(row).pack for row in rows)


NOTHING: Final = Smaller(0, b"", [])


def carry_out(
    repository: OpenRepository, needed: ReachableSet, leave_out: Set[bytes], progress: Progress | None
) -> Smaller:
    """Store anew what gets smaller of all that is `needed`. Where the disk gets full it ends early. StorageError."""
    dead = bytearray()
    writer = Rewriter(repository)
    with closing(writer):
        for smaller in _smaller(repository, needed, leave_out, progress):
            if not _has_room(repository, sum(len(one.chunk.payload) for one in smaller)):
                break
            writer.put(smaller)
            dead += b"".join(one.old for one in smaller)
        writer.publish()
    return Smaller(writer.count, bytes(dead), [])


def measured(
    repository: OpenRepository, needed: ReachableSet, leave_out: Set[bytes], progress: Progress | None
) -> Smaller:
    """What `carry_out` would do. It takes as long: how small a chunk gets is only known by packing it."""
    sizes: list[int] = []
    dead = bytearray()
    count = 0
    for smaller in _smaller(repository, needed, leave_out, progress):
        count += weigh(sizes, smaller, repository.directory.crypt.overhead)
        dead += b"".join(one.old for one in smaller)
    return Smaller(count, bytes(dead), sizes)


def _has_room(repository: OpenRepository, more: int) -> bool:
    space = os.statvfs(repository.directory.packs)
    return 2 * more + _ROOM <= space.f_bavail * space.f_frsize


def _smaller(
    repository: OpenRepository, needed: ReachableSet, leave_out: Set[bytes], progress: Progress | None
) -> Iterator[list[Rewritten]]:
    """The chunks that get smaller, packed by all processors, in the order of the index."""
    with repository.index.read() as view:
        total = view.count(CHUNKS)
    under_way: deque[Future[list[Rewritten]]] = deque()
    done = 0
    with closing(Pipeline()) as pipeline:
        for seen, batch in _batches(repository, needed, leave_out):
            done += seen
            if batch:
                under_way.append(pipeline.submit(_packed, repository, batch))
            while len(under_way) > pipeline.workers:
                yield under_way.popleft().result()
            if progress is not None:
                progress("gc: recompress", done, total)
        while under_way:
            yield under_way.popleft().result()


def _batches(
    repository: OpenRepository, needed: ReachableSet, leave_out: Set[bytes]
) -> Iterator[tuple[int, list[_Known]]]:
    """How many chunks were looked at, and those of them that are worth trying, neighbours in a pack together."""
    for rows in repository.index.scan(CHUNKS):
        wanted = [
            (ident, row)
            for ident, row, is_needed in zip(*rows, needed.has(rows.keys), strict=True)
            if is_needed and Place.decode(row).tag in _CODECS and ident not in leave_out
        ]
        wanted.sort(key=lambda one: Place.decode(one[1]))
        yield len(rows.keys), wanted[:_BATCH]
        for start in range(_BATCH, len(wanted), _BATCH):
            yield 0, wanted[start : start + _BATCH]


_packer = PerThread(lambda: zstandard.ZstdCompressor(level=_LEVEL))
_unpacker = PerThread(zstandard.ZstdDecompressor)


def _packed(repository: OpenRepository, chunks: Sequence[_Known]) -> list[Rewritten]:
    """Those that get smaller; one that is damaged stays as it is."""
    found: list[Rewritten] = []
    for ident, row in chunks:
        with suppress(CorruptError):
            chunk = _repacked(repository, ident)
            if chunk is not None:
                found.append(Rewritten(chunk, row))
    return found


def _repacked(repository: OpenRepository, ident: bytes) -> EncodedChunk | None:
    """A chunk with a smaller payload, None where there is none. CorruptError."""
    crypt = repository.store.crypt

    def fetch(ids: Sequence[bytes]) -> list[Plain]:
        return [chunk_codec.decode(frame, fetch, crypt) for frame in repository.store.get_chunks(ids)]

    (chunk,) = repository.store.get_chunks([ident])
    chunk_codec.decode(chunk, fetch, crypt)  # what is damaged must not get a sound checksum
    smaller = chunk._replace(payload=_pack_again(chunk.codec, bytes(chunk.payload)))
    if len(smaller.payload) > (1 - _GAIN) * len(chunk.payload):
        return None
    chunk_codec.decode(smaller, fetch, crypt)
    return smaller


def _pack_again(codec: int, payload: bytes) -> bytes:
    """The same payload with its frame of zstd made anew; one of numbers need not have any."""
    if codec != Codec.NUMBERS:
        return _packer.value.compress(_unpacker.value.decompress(payload))
    head, size = _NUMBERS.unpack_from(payload)
    end = _NUMBERS.size + size
    frame = _pack_again(Codec.ZSTD, payload[_NUMBERS.size : end]) if size else b""
    return _NUMBERS.pack(head, len(frame)) + frame + payload[end:]
