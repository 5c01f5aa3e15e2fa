"""Giving bytes back: packs that hold nothing live go, packs that hold little are written anew without the rest.

gc calls it last, under its lock. A pack leaves the index before its file is removed, so a reader that comes too late
finds the frame's new place by asking the index again.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from ijfs_engine._native.pack_rows import PackRows
from ijfs_engine.errors import CorruptError, StorageError, UnknownFormatError
from ijfs_engine.format.place import encode_where
from ijfs_engine.format.records import KeptPack
from ijfs_engine.maintenance.pack_source import TABLES, PackSource, SoundFrame, live_frames
from ijfs_engine.storage import disk
from ijfs_engine.storage.directory import RepositoryDirectory
from ijfs_engine.storage.elsewhere import FAR
from ijfs_engine.storage.index import PACK_KEY, PACK_ROW, PACKS, Update
from ijfs_engine.storage.journal import file_status
from ijfs_engine.storage.locks import try_take
from ijfs_engine.storage.new_pack import new_pack, put_pack
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.pack import (
    DATA_PACK,
    PACK_HEADER_SIZE,
    PACK_TARGET,
    PackWriter,
    decode_pack_header,
    pack_files,
    pack_path,
)
from ijfs_engine.util.progress import Progress

SPARSE: Final = 0.2
"""A pack is written anew when more than this share of it is dead: five bytes moved for each given back, at worst."""
SMALL: Final = 16 << 20
"""Packs below this count as sparse once there are `MANY_SMALL` of them: every save leaves one, and files cost too."""
MANY_SMALL: Final = 16
_BLOCK: Final = 4096
_ROWS: Final = 1_000_000
_BYTES: Final = 4 << 30
"""Frames, and bytes of them, that are copied before the index is told and the old packs go. Until then they take room
twice. So many at a time, because ids are random: with 10 million chunks, a quarter million rows touch every page of the
table, and a million touch no more. 70 bytes of memory each."""
_NO_ROOM: Final = "there is no room for copies of what is still needed, so packs that are mostly dead stay"
_NO_ROOM_HINT: Final = (
    "what could go without a copy is gone; free as much as one pack takes (512 MiB), then run gc again"
)
_ROOM: Final = 1 << 20
"""Bytes that a pack takes beside its frames, and the index as it changes."""
_SLICE: Final = 8192
"""Rows per transaction: a save that wants to commit waits for one of these (30 ms) at most."""


class _Pack(NamedTuple):
    """A pack as the index sees it."""

    number: int
    kind: int
    size: int
    live: int


class Estimate(NamedTuple):
    """What `Repacker.run` would give back in bytes on the disk, with how many packs removed and rewritten, and what
    damage would keep it from rewriting."""

    freed: int
    removed: int
    rewritten: int
    kept: tuple[KeptPack, ...]


class Repacker:
    """One run."""

    def __init__(
        self, repository: OpenRepository, progress: Progress | None, always: frozenset[int] = frozenset()
    ) -> None:
        """`always`: numbers of packs that are written anew however little of them is dead."""
        self._repository = repository
        self._index = repository.index
        self._directory = repository.directory.packs
        self._progress = progress
        self._always = always
        self.removed = 0
        self.rewritten = 0
        self._source = PackSource(repository)

    @property
    def kept(self) -> list[KeptPack]:
        """Packs that stay as they are, because there is damage in them."""
        return self._source.kept

    def run(self) -> None:
        """Remove and rewrite what deserves it. OSError, StorageError."""
        packs = self._survey()
        empty = [pack.number for pack in packs if pack.live == 0]
        self._retire(empty)
        self.removed += len(empty)
        sparse = _sparse(packs, self._always)
        live = live_frames(self._index, [pack.number for pack in sparse])
        with _room_for_copies():
            for kind in sorted({pack.kind for pack in sparse}):
                self._rewrite([pack for pack in sparse if pack.kind == kind], live)

    def rewrite_all(self, wanted: Callable[[int], bool], change: Callable[[memoryview], bytes]) -> None:
        """Write every pack anew that is wanted, by its number, with its frames changed; what is dead in them goes.
        OSError, StorageError."""
        packs = self._survey()
        self._retire([pack.number for pack in packs if pack.live == 0])
        chosen = [pack for pack in packs if pack.live and wanted(pack.number)]
        live = live_frames(self._index, [pack.number for pack in chosen])
        largest = max((pack.size for pack in chosen), default=0)
        with _room_for_copies(
            "there is no room to seal all of it anew: it opens with the new key, and part is sealed with the old one",
            hint=f"free as much as its largest pack takes ({largest >> 20} MiB), and rotate again",
        ):
            for kind in sorted({pack.kind for pack in chosen}):
                self._rewrite([pack for pack in chosen if pack.kind == kind], live, change)

    def _rewrite(
        self, packs: Sequence[_Pack], live: PackRows, change: Callable[[memoryview], bytes] | None = None
    ) -> None:
        """Copy what lives in packs of one kind. On a disk that is nearly full, the old ones go one by one, those that
        need the least room first: what they give back is room for the others."""
        if min(pack.live for pack in packs) + _ROOM > self._free():
            self._repository.directory.reserve.give_up()  # gc is what it is for, and takes it again at its end
        most = min(_BYTES, self._free() // 2)
        if sum(pack.live for pack in packs) > most:
            packs = sorted(packs, key=lambda pack: pack.live)
        mover = _Mover(self._repository, self._source, packs[0].kind, change)
        with closing(mover):
            for pack in packs:
                self._tell(pack)
                if pack.live > self._free():
                    self._replace(mover)
                    if pack.live > self._free():
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                mover.move(pack.number, live.offsets(pack.number))
                if mover.rows >= _ROWS or mover.size >= most:
                    self._replace(mover)
            self._replace(mover)

    def _free(self) -> int:
        space = os.statvfs(self._directory)
        return space.f_bavail * space.f_frsize

    def estimate(self, dead: Callable[[], Iterable[bytes]], new: Sequence[int]) -> Estimate:
        """What `run` would do if the frames of these index rows (end to end; asked for twice) were dead too, and there
        were new packs of these sizes in which nothing is.

        It reads what `run` would copy: only that tells which packs damage would keep. OSError, StorageError.
        """
        packs = self._survey()
        weights = PackRows([pack.number for pack in packs])
        for rows in dead():
            weights.weigh(rows)
        packs = [pack._replace(live=pack.live - gone) for pack, gone in zip(packs, weights.weights(), strict=True)]
        packs += [_Pack(FAR + at, DATA_PACK, size, size - PACK_HEADER_SIZE) for at, size in enumerate(new)]
        sparse = _sparse(packs, self._always)
        kept = self._damaged(sparse, dead) if sparse else []
        names = {one.pack for one in kept}
        empty = [pack for pack in packs if pack.live == 0]
        copied = [pack for pack in sparse if pack_path(self._directory, pack.number).name not in names]
        freed = sum(map(self._on_disk, [*empty, *copied])) - sum(_copies(copied))
        return Estimate(freed, len(empty), len(copied), tuple(kept))

    def _on_disk(self, pack: _Pack) -> int:
        if pack.number >= FAR:
            return whole_blocks(pack.size)
        with suppress(FileNotFoundError):
            return os.stat(pack_path(self._directory, pack.number)).st_blocks * 512
        return 0

    def _damaged(self, packs: Sequence[_Pack], dead: Callable[[], Iterable[bytes]]) -> list[KeptPack]:
        """Those of the packs in which a frame that is to be copied is damaged."""
        live, gone = live_frames(self._index, [pack.number for pack in packs]), PackRows([one.number for one in packs])
        for rows in dead():
            gone.collect(rows)
        for pack in packs:
            self._tell(pack)
            dying = set(gone.offsets(pack.number))
            offsets = [offset for offset in live.offsets(pack.number) if offset not in dying]
            self._source.each(pack.number, offsets, lambda frames, rows: None)
        return self._source.kept

    def _survey(self) -> list[_Pack]:
        """Every pack the index knows, by number, with what of it is live."""
        with self._index.read() as view:
            entries = [(PACK_KEY.unpack(key), PACK_ROW.unpack(row)) for key, row in view.items(PACKS)]
        known = [_Pack(number, kind, size, 0) for (number,), (kind, size) in entries]
        live = PackRows([pack.number for pack in known])
        for table in TABLES:
            for rows in self._index.scan(table):
                live.weigh(b"".join(rows.values))
        return [pack._replace(live=weight) for pack, weight in zip(known, live.weights(), strict=True)]

    def _replace(self, mover: _Mover) -> None:
        """Have the index point at the copies, then let the old packs go."""
        writers = mover.finish()
        self._index.write(partial(_know, writers=writers))
        for rows in mover.moved.slices():
            self._index.write(partial(_point, rows=rows))
        self._retire(mover.whole)
        self.rewritten += len(mover.whole)
        mover.renew()

    def _retire(self, numbers: Sequence[int]) -> None:
        """Forget packs, then remove their files."""
        if not numbers:
            return
        self._index.write(lambda update: update.delete_many(PACKS, map(PACK_KEY.pack, numbers)))
        for number in numbers:
            disk.unlink(pack_path(self._directory, number))

    def _tell(self, pack: _Pack) -> None:
        if self._progress is not None:
            self._progress("gc: repack", pack.size, 0)


@contextmanager
def _room_for_copies(said: str = _NO_ROOM, hint: str = _NO_ROOM_HINT) -> Iterator[None]:
    """A full disk is reported without the usual advice to run gc: this is gc."""
    try:
        yield
    except OSError as error:
        if not disk.is_full(error):
            raise
        raise StorageError(said, hint=hint) from error


class _Moved:
    """Frames that were copied: id, table, the index row before and after.

    Grouped by the first byte of the id, because the index is updated in the order of ids (`session._SLICE`)."""

    _RECORD: Final = struct.Struct("<32sB18s18s")

    def __init__(self) -> None:
        self._parts = [bytearray() for _ in range(256)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, ident: bytes, table: bytes, old: bytes, new: bytes) -> None:
        """Remember one."""
        self._parts[ident[0]] += self._RECORD.pack(ident, TABLES.index(table), old, new)
        self._count += 1

    def sizes(self) -> list[int]:
        """For `cut`."""
        return [len(part) for part in self._parts]

    def cut(self, sizes: list[int]) -> None:
        """Forget what was added since."""
        for part, size in zip(self._parts, sizes, strict=True):
            del part[size:]
        self._count = sum(sizes) // self._RECORD.size

    def slices(self) -> Iterator[list[tuple[bytes, int, bytes, bytes]]]:
        """All of them by id, some thousand at a time."""
        rows: list[tuple[bytes, int, bytes, bytes]] = []
        for part in self._parts:
            rows += sorted(self._RECORD.iter_unpack(part))
            if len(rows) >= _SLICE:
                yield rows
                rows = []
        if rows:
            yield rows


def _know(update: Update, writers: Sequence[PackWriter]) -> None:
    """No row may point at a pack that is not known."""
    for writer in writers:
        put_pack(update, writer.number, writer.kind, writer.size)


def _point(update: Update, rows: Sequence[tuple[bytes, int, bytes, bytes]]) -> None:
    for ident, table, old, new in rows:
        # A session may have written the frame anew meanwhile, or a sidecar been dropped.
        if update.get(TABLES[table], ident) == old:
            update.put(TABLES[table], ident, new)


class _Mover:
    """Copies live frames into new packs of one kind, and remembers what the index is to be told."""

    def __init__(
        self,
        repository: OpenRepository,
        source: PackSource,
        kind: int,
        change: Callable[[memoryview], bytes] | None = None,
    ) -> None:
        """`change` makes of a frame another one as long as it is."""
        self._change = change
        self._repository = repository
        self._index = repository.index
        self._kind = kind
        self._source = source
        self._writers: list[PackWriter] = []
        self.moved = _Moved()
        self.whole: list[int] = []
        """Packs of which every live frame was copied."""

    @property
    def rows(self) -> int:
        """Frames copied since the index was told."""
        return len(self.moved)

    @property
    def size(self) -> int:
        """The same in bytes."""
        return sum(writer.size for writer in self._writers)

    def move(self, number: int, offsets: Sequence[int]) -> None:
        """Copy the frames of a pack as they are. If one is damaged, the pack stays: it may hold the last trace of its
        bytes; and what was copied of it is taken back, or each gc would leave as much behind."""
        known, packs = self.moved.sizes(), len(self._writers)
        size = self._writers[-1].size if packs else 0

        if self._source.each(number, offsets, self._copy):
            self.whole.append(number)
            return
        self.moved.cut(known)
        for writer in self._writers[packs:]:
            writer.close()
            disk.unlink(writer.path)
        del self._writers[packs:]
        if packs:
            self._writers[-1].cut(size)

    def finish(self) -> list[PackWriter]:
        """Make the copies durable; the packs they are in."""
        for writer in self._writers:
            writer.finish(sync=self._kind == DATA_PACK)
        if self._writers:
            disk.fsync_dir(self._repository.directory.packs)
        return self._writers

    def renew(self) -> None:
        """The index knows all: the next frame begins a new pack."""
        for writer in self._writers:
            writer.close()
        self._writers, self.moved, self.whole = [], _Moved(), []

    def close(self) -> None:
        """Remove the packs that did not come so far as to be in the index. It is asked: an interrupt may have come just
        after it was told."""
        with self._index.read() as view:
            rows = view.get_many(PACKS, [PACK_KEY.pack(writer.number) for writer in self._writers])
        for writer, row in zip(self._writers, rows, strict=True):
            if row is None:
                disk.unlink(writer.path)
        self.renew()

    def _copy(self, frames: Sequence[SoundFrame], rows: Sequence[bytes]) -> None:
        if not frames:
            return
        writer = self._writer()
        change = self._change
        offsets = writer.append_many([(b"", change(frame.data) if change else frame.data) for frame in frames])
        for frame, old, offset in zip(frames, rows, offsets, strict=True):
            self.moved.add(frame.id, frame.table, old, encode_where(writer.number, offset) + old[8:])

    def _writer(self) -> PackWriter:
        if not self._writers or self._writers[-1].size >= PACK_TARGET:
            self._writers.append(new_pack(self._index, self._repository.directory, self._kind))
        return self._writers[-1]


class Orphan(NamedTuple):
    """A pack that a crash left."""

    path: Path
    size: int


def orphans(repository: OpenRepository) -> Iterator[Orphan]:
    """Pack files that no session holds and the index does not know, each locked while the caller has it."""
    for number, path in list(pack_files(repository.directory.packs)):
        if _known(repository, number) or not path.is_file():
            continue
        fd = try_take(path)
        if fd is None:
            continue
        try:
            # Its session may have committed, and let go, between the look and the lock.
            if not _known(repository, number) and _is_ours(fd, path, number, repository.directory.id):
                yield Orphan(path, os.fstat(fd).st_blocks * 512)
        finally:
            os.close(fd)


def _is_ours(fd: int, path: Path, number: int, repository: bytes) -> bool:
    """Whether a session of this repository made the pack; a crash may have kept its header from the disk."""
    head = os.pread(fd, PACK_HEADER_SIZE, 0)
    if not any(head):
        return True
    with suppress(CorruptError, UnknownFormatError):
        found, _, owner = decode_pack_header(head, path)
        return (found, owner) == (number, repository)
    return False


def remove_orphans(repository: OpenRepository) -> None:
    """Remove what a crash left."""
    for orphan in orphans(repository):
        disk.unlink(orphan.path)


def _known(repository: OpenRepository, number: int) -> bool:
    with repository.index.read() as view:
        return view.get(PACKS, PACK_KEY.pack(number)) is not None


def disk_size(repository: RepositoryDirectory) -> int:
    """Bytes that packs and journal take on disk."""
    return _blocks_in(repository.packs) + file_status(repository.journal).st_blocks * 512


def index_size(repository: RepositoryDirectory) -> int:
    """Bytes that the index takes on disk."""
    return _blocks_in(repository.index)


def _blocks_in(directory: Path) -> int:
    total = 0
    for path in directory.iterdir():
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def _copies(packs: Sequence[_Pack]) -> Iterator[int]:
    """Bytes on the disk of what lives in packs, copied: packs of one kind into one, whose last block is whole."""
    for kind in {pack.kind for pack in packs}:
        yield whole_blocks(PACK_HEADER_SIZE + sum(pack.live for pack in packs if pack.kind == kind))


def whole_blocks(size: int) -> int:
    """Bytes on the disk of a file of this size."""
    return -(-size // _BLOCK) * _BLOCK


def _sparse(packs: Sequence[_Pack], always: frozenset[int]) -> list[_Pack]:
    """Those worth rewriting: much of them is dead, or there are too many small ones."""
    alive = [pack for pack in packs if pack.live]
    chosen = always | {pack.number for pack in alive if pack.size - PACK_HEADER_SIZE - pack.live > SPARSE * pack.size}
    for kind in {pack.kind for pack in alive}:
        small = [pack.number for pack in alive if pack.kind == kind and pack.size < SMALL]
        if len(small) >= MANY_SMALL:
            chosen |= set(small)
    return [pack for pack in alive if pack.number in chosen]
