"""Giving bytes back: packs that hold nothing live go, packs that hold little are written anew without the rest.

gc calls it last, under its lock. A pack leaves the index before its file is removed, so a reader that comes too late
finds the frame's new place by asking the index again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from . import disk
from .errors import CorruptError
from .frames import decode_frame
from .index import CHUNKS, OBJECTS, PACK_KEY, PACK_ROW, PACKS, SIDECARS, Place, Update, View, next_pack
from .layout import Layout
from .locks import try_take
from .pack import DATA, PACK_HEADER_SIZE, PACK_TARGET, PackReader, PackWriter, pack_files, pack_path

if TYPE_CHECKING:
    from .repository import Progress, Repository

SPARSE: Final = 0.2
"""A pack is written anew when more than this share of it is dead: five bytes moved for each given back, at worst."""
SMALL: Final = 16 << 20
"""Packs below this count as sparse once there are `MANY_SMALL` of them: every save leaves one, and files cost too."""
MANY_SMALL: Final = 16
_GROUP: Final = 4 << 30
"""Bytes of sparse packs whose live frames are listed in memory at a time: 150,000 rows."""
_TABLES: Final = (CHUNKS, OBJECTS, SIDECARS)


class _Pack(NamedTuple):
    """A pack as the index sees it."""

    number: int
    kind: int
    size: int
    live: int


class _Live(NamedTuple):
    """A frame that something reaches."""

    place: Place
    table: bytes
    key: bytes
    row: bytes


class Repacker:
    """One run."""

    def __init__(self, repository: Repository, progress: Progress | None) -> None:
        self._repository = repository
        self._index = repository.index
        self._directory = repository.layout.packs
        self._progress = progress
        self.removed = 0
        self.rewritten = 0

    def run(self) -> None:
        """Remove and rewrite what deserves it. OSError, StorageError."""
        packs = self._survey()
        empty = [pack.number for pack in packs if pack.live == 0]
        self._retire(empty, [])
        self.removed += len(empty)
        for group in _groups(_sparse(packs)):
            self._rewrite(group)

    def dead_bytes(self, dead: Iterable[Place]) -> int:
        """About how much `run` would give back if the frames at these places were dead too."""
        packs = {pack.number: pack for pack in self._survey()}
        for place in dead:
            pack = packs[place.pack]
            packs[place.pack] = pack._replace(live=pack.live - place.on_disk)
        given = [pack for pack in packs.values() if pack.live == 0] + _sparse(list(packs.values()))
        return sum(pack.size - pack.live for pack in given)

    def _survey(self) -> list[_Pack]:
        with self._index.read() as view:
            return _survey(view)

    def _rewrite(self, packs: Sequence[_Pack]) -> None:
        live = self._live_frames({pack.number for pack in packs})
        for kind in sorted({pack.kind for pack in packs}):
            mine = [pack for pack in packs if pack.kind == kind]
            with closing(_Mover(self._repository, kind)) as mover:
                whole = [pack.number for pack in mine if self._move(pack, live.get(pack.number, []), mover)]
                self._retire(whole, mover.finish(), mover.rows)
                mover.kept = True
            self.rewritten += len(whole)

    def _move(self, pack: _Pack, frames: list[_Live], mover: _Mover) -> bool:
        """Copy the live frames; False, and nothing moved, if one is damaged: it may be the last trace of its bytes."""
        self._tell(pack)
        try:
            for frame, data in _read(self._directory, frames):
                mover.add(pack.number, frame, data)
        except CorruptError:
            mover.forget(pack.number)
            return False
        return True

    def _live_frames(self, numbers: set[int]) -> dict[int, list[_Live]]:
        found: dict[int, list[_Live]] = {}
        with self._index.read() as view:
            for table in _TABLES:
                for key, row in view.items(table):
                    place = Place.decode(row)
                    if place.pack in numbers:
                        found.setdefault(place.pack, []).append(_Live(place, table, key, row))
        return {number: sorted(frames) for number, frames in found.items()}

    def _retire(
        self,
        numbers: Sequence[int],
        writers: Sequence[PackWriter],
        moved: dict[tuple[bytes, bytes], _Live] | None = None,
    ) -> None:
        """Point the index at the new places and forget the old packs, then remove their files."""

        def change(update: Update) -> None:
            for writer in writers:
                update.put(PACKS, PACK_KEY.pack(writer.number), PACK_ROW.pack(writer.kind, writer.size))
            for (table, key), new in (moved or {}).items():
                # A session may have written the frame anew meanwhile, or a sidecar been dropped.
                if update.get(table, key) == new.row:
                    update.put(table, key, new.place.encode())
            update.delete_many(PACKS, (PACK_KEY.pack(number) for number in numbers))

        if not numbers and not writers:
            return
        self._index.write(change)
        for number in numbers:
            disk.unlink(pack_path(self._directory, number))

    def _tell(self, pack: _Pack) -> None:
        if self._progress is not None:
            self._progress("gc: repack", pack.size, 0)


class _Mover:
    """Writes live frames into new packs of one kind."""

    def __init__(self, repository: Repository, kind: int) -> None:
        self._repository = repository
        self._kind = kind
        self._writers: list[PackWriter] = []
        self.kept = False
        """Whether the index knows the packs."""
        self.rows: dict[tuple[bytes, bytes], _Live] = {}
        """(table, key) → the old row, with the new place."""

    def add(self, source: int, frame: _Live, data: memoryview) -> None:
        """Copy one frame as it is."""
        writer = self._writer()
        offset = writer.append(b"", data)
        place = frame.place._replace(pack=writer.number, offset=offset)
        self.rows[frame.table, frame.key] = frame._replace(place=place)

    def forget(self, source: int) -> None:
        """The frames of that pack stay where they are."""
        self.rows = {key: new for key, new in self.rows.items() if Place.decode(new.row).pack != source}

    def finish(self) -> list[PackWriter]:
        """Make all of it durable."""
        for writer in self._writers:
            writer.finish(sync=self._kind == DATA)
        if self._writers:
            disk.fsync_dir(self._repository.layout.packs)
        return self._writers

    def close(self) -> None:
        """Let go of the packs; those that did not come so far as to be in the index are removed."""
        for writer in self._writers:
            if not self.kept:
                disk.unlink(writer.path)
            writer.close()

    def _writer(self) -> PackWriter:
        if not self._writers or self._writers[-1].size >= PACK_TARGET:
            number = self._repository.index.write(next_pack)
            layout = self._repository.layout
            self._writers.append(PackWriter(layout.packs, number, self._kind, layout.id))
        return self._writers[-1]


def remove_orphans(repository: Repository) -> None:
    """Remove pack files that no session holds and the index does not know: what a crash left."""
    layout = repository.layout
    for number, path in list(pack_files(layout.packs)):
        with repository.index.read() as view:
            known = view.get(PACKS, PACK_KEY.pack(number)) is not None
        if known:
            continue
        fd = try_take(path)
        if fd is None:
            continue
        # Its session may have committed, and let go, between the look and the lock.
        with repository.index.read() as view:
            known = view.get(PACKS, PACK_KEY.pack(number)) is not None
        if not known:
            disk.unlink(path)
        os.close(fd)


def disk_size(layout: Layout) -> int:
    """Bytes that packs, index and journal take on disk."""
    total = 0
    for directory in (layout.packs, layout.index):
        for path in directory.iterdir():
            with suppress(FileNotFoundError):
                total += path.stat().st_blocks * 512
    return total + layout.journal.stat().st_blocks * 512


def _survey(view: View) -> list[_Pack]:
    live: dict[int, int] = {}
    for table in _TABLES:
        for _, row in view.items(table):
            place = Place.decode(row)
            live[place.pack] = live.get(place.pack, 0) + place.on_disk
    packs = []
    for key, row in view.items(PACKS):
        (number,), (kind, size) = PACK_KEY.unpack(key), PACK_ROW.unpack(row)
        packs.append(_Pack(number, kind, size, live.get(number, 0)))
    return packs


def _sparse(packs: Sequence[_Pack]) -> list[_Pack]:
    """Those worth rewriting: much of them is dead, or there are too many small ones."""
    alive = [pack for pack in packs if pack.live]
    chosen = {pack.number for pack in alive if pack.size - PACK_HEADER_SIZE - pack.live > SPARSE * pack.size}
    for kind in {pack.kind for pack in alive}:
        small = [pack.number for pack in alive if pack.kind == kind and pack.size < SMALL]
        if len(small) >= MANY_SMALL:
            chosen.update(small)
    return [pack for pack in alive if pack.number in chosen]


def _groups(packs: Sequence[_Pack]) -> Iterator[list[_Pack]]:
    group: list[_Pack] = []
    for pack in packs:
        if group and sum(one.size for one in group) + pack.size > _GROUP:
            yield group
            group = []
        group.append(pack)
    if group:
        yield group


def _read(directory: Path, frames: Sequence[_Live]) -> Iterator[tuple[_Live, memoryview]]:
    """Each frame's bytes, checked. CorruptError."""
    with closing(PackReader(directory)) as reader:
        for frame in frames:
            place = frame.place
            where = f"pack {place.pack:08x} at {place.offset}"
            try:
                data = reader.read(place.pack, place.offset, place.span)
            except FileNotFoundError:
                raise CorruptError(f"{where}: the pack is missing") from None
            header, _ = decode_frame(data, where)
            if header.id != frame.key:
                raise CorruptError(f"{where}: holds another frame than the index says")
            yield frame, memoryview(data)
