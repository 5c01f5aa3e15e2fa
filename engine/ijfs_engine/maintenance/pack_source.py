"""Reading what lives in packs, for repacking: frames with their index rows, and word of a pack that is damaged.

`Repacker` (repack.py) copies what it gets from here, or only looks whether it could.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Final, NamedTuple, TypeAlias

from ijfs_engine._native.pack_rows import PackRows
from ijfs_engine.errors import CorruptError
from ijfs_engine.format.frames import MAX_CHUNK, FrameKind, decode_frame, decode_header
from ijfs_engine.format.place import encode_where
from ijfs_engine.format.records import KeptPack
from ijfs_engine.storage.index import CHUNKS, OBJECTS, SIDECARS, Index
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.pack import PackReader, pack_path

TABLES: Final = (CHUNKS, OBJECTS, SIDECARS)
"""Where the index has the places of frames."""
_WINDOW: Final = 4 << 20
"""One read."""
_FAR: Final = MAX_CHUNK + (64 << 10)
"""Frames that begin this far apart are read one by one: there are dead bytes between them."""
_LAST: Final = 64 << 10
"""Read behind the beginning of the last frame; what is longer is read again."""


class SoundFrame(NamedTuple):
    """A frame of a pack, its checksums right."""

    id: bytes
    table: bytes
    offset: int
    data: memoryview


Use: TypeAlias = Callable[[Sequence[SoundFrame], Sequence[bytes]], None]
"""Called with frames and, for each, what the index says of it."""


class PackSource:
    """Reads packs. Not thread-safe."""

    def __init__(self, repository: OpenRepository) -> None:
        self._index = repository.index
        self._directory = repository.directory.packs
        self._reader = PackReader(self._directory)
        self.kept: list[KeptPack] = []
        """Packs in which a live frame is damaged."""

    def each(self, number: int, offsets: Sequence[int], use: Use) -> bool:
        """Read the frames that begin at these offsets and give them away with their index rows; False, and a line in
        `kept`, if there is damage among them."""
        strange: list[int] = []
        try:
            for frames in _windows(self._reader, number, offsets):
                rows = self._rows(frames)
                here = [
                    row is not None and row.startswith(encode_where(number, frame.offset))
                    for frame, row in zip(frames, rows, strict=True)
                ]
                strange += [frame.offset for frame, known in zip(frames, here, strict=True) if not known]
                use(list(compress(frames, here)), [row for row in compress(rows, here) if row is not None])
            self._check_dead(number, strange)
        except CorruptError as error:
            self.kept.append(KeptPack(pack=pack_path(self._directory, number).name, why=str(error)))
            return False
        finally:
            self._reader.forget(number)
        return True

    def _rows(self, frames: Sequence[SoundFrame]) -> list[bytes | None]:
        """What the index says of frames, by the ids they have."""
        found: dict[int, bytes | None] = {}
        with self._index.read() as view:
            for table in TABLES:
                group = [frame for frame in frames if frame.table == table]
                rows = view.get_many(table, [frame.id for frame in group])
                found.update((frame.offset, row) for frame, row in zip(group, rows, strict=True))
        return [found[frame.offset] for frame in frames]

    def _check_dead(self, number: int, offsets: Sequence[int]) -> None:
        """Make sure that nobody needs what lies at these offsets: it was written anew elsewhere meanwhile, or dropped.
        CorruptError where the index still points there: it is not the frame that the index means."""
        if not offsets:
            return
        wrong = set(offsets).intersection(live_frames(self._index, [number]).offsets(number))
        if wrong:
            raise CorruptError(f"{_where(number, min(wrong))}: holds another frame than the index says")


def live_frames(index: Index, numbers: Sequence[int]) -> PackRows:
    """Where the live frames of some packs begin."""
    live = PackRows(numbers)
    for table in TABLES if numbers else ():
        for rows in index.scan(table):
            live.collect(b"".join(rows.values))
    return live


def _windows(reader: PackReader, number: int, offsets: Sequence[int]) -> Iterator[list[SoundFrame]]:
    """The frames that begin at these offsets, those that lie together in one read. CorruptError, OSError."""
    first = 0
    while first < len(offsets):
        start, end = offsets[first], first + 1
        while end < len(offsets) and offsets[end] - offsets[end - 1] < _FAR and offsets[end] - start < _WINDOW:
            end += 1
        data = memoryview(_read(reader, number, start, offsets[end - 1] - start + _LAST))
        yield [_frame(reader, number, offset, data[offset - start :]) for offset in offsets[first:end]]
        first = end


def _frame(reader: PackReader, number: int, offset: int, data: memoryview) -> SoundFrame:
    """The frame at the beginning of `data`. Only the last one of a read may be longer than that."""
    where = _where(number, offset)
    if len(data) <= _LAST:
        span = decode_header(data, where).span
        data = data if span <= len(data) else memoryview(_read(reader, number, offset, span))
    header, _ = decode_frame(data, where)
    table = {FrameKind.CHUNK: CHUNKS, FrameKind.SIDECAR: SIDECARS}.get(header.kind, OBJECTS)
    return SoundFrame(header.id, table, offset, data[: header.span])


def _read(reader: PackReader, number: int, offset: int, length: int) -> bytes:
    try:
        return reader.read(number, offset, length)
    except FileNotFoundError:
        raise CorruptError(f"{_where(number, offset)}: the pack is missing") from None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise CorruptError(f"{_where(number, offset)}: the disk cannot read it") from error


def _where(number: int, offset: int) -> str:
    return f"pack {number:08x} at {offset}"
