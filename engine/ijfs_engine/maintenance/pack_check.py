"""Reading every pack from front to back: each frame's checksums, and that its plain bytes have the id it claims.

The part of fsck that costs time, so frames are decoded on all cores while the next ones are read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from ijfs_engine._native.frame_check import FrameCheck
from ijfs_engine._native.idset import IdSet
from ijfs_engine._native.pack_rows import PackRows
from ijfs_engine.errors import CorruptError, UnknownFormatError, is_refusal
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.frames import EncodedChunk, FrameKind, base_ids, decode_frame, padding
from ijfs_engine.format.place import Place, encode_where
from ijfs_engine.storage import disk
from ijfs_engine.storage.frame_scan import Scanned, Stretch, scan_stretches
from ijfs_engine.storage.index import BASES, CHUNKS, OBJECTS, PACK_KEY, PACK_ROW, PACKS
from ijfs_engine.storage.object_store import verify_object
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.pack import PACK_HEADER_SIZE, SIDECAR_PACK, decode_pack_header, pack_path
from ijfs_engine.storage.pack_contents import place_of
from ijfs_engine.util.byte_lru import ByteLru
from ijfs_engine.util.per_thread import PerThread
from ijfs_engine.util.pipeline import cores, thread_pool
from ijfs_engine.util.progress import Progress

if TYPE_CHECKING:
    from concurrent.futures import Future

_GROUP: Final = 512
"""Frames per task: up to 8 MiB of stored bytes, so that handing over costs nothing."""
_AHEAD: Final = 3
"""Stretches read but not checked yet, per core: 8 MiB windows of the scan stay alive as long as they do."""
_SMALL: Final = 128 << 10
"""Bytes of a pack that is checked in half a millisecond: to start a thread for it takes as long."""
_CACHE: Final = 96 << 20
"""Bytes of decoded bases kept: without it the differences of a tree of 11 kernels cost 3 decodes of each chunk."""
_ENTRY: Final = 400
"""What an entry of the cache takes besides, by Python's own count."""


MISSING_PACK: Final = "the pack is missing"
NO_FRAME: Final = "no such frame is where the index says"
NO_SUCH_PACK: Final = "the index says that it is in a pack which it does not know"
"""Of a row alone: the frame may well be in another pack."""

_TABLES: Final = (CHUNKS, OBJECTS)
_ROW_AT: Final = 8
"""Where a row goes on behind the place."""

Frame: TypeAlias = tuple[int, int, int, bytes, bool, bytes]
"""As `FrameCheck.check` gives it: offset, span, kind, id, whether it is surely right, its row but for the place."""


class Finding(NamedTuple):
    """Something wrong, before it is known what needs it; `what` is as in `records.Damage`."""

    what: str
    id: bytes | None
    where: str
    message: str


class _Wrong(NamedTuple):
    """A live frame that is damaged, or (`what` is "index") of which the index says what is not so."""

    what: str
    id: bytes
    where: str
    message: str


_DEAD, _LIVE, _MISTOLD = 0, 1, 2
"""Of a frame: the index does not mean it; means it; means it, and says of it what is not so."""


class _Checked(NamedTuple):
    """The live frames of a stretch, what they take on disk, and those of them that are damaged."""

    live: list[bytes]
    weight: int
    wrong: list[_Wrong]


_frame_check = PerThread(FrameCheck)
_sealed_check = PerThread(lambda: FrameCheck(sealed=True))


def too_short(path: Path, size: int) -> Iterator[Finding]:
    """Whether a pack has fewer bytes than its row says. OSError."""
    if path.stat().st_size < size:
        yield Finding("pack", None, path.name, f"the pack is shorter than its {size} bytes")


class PackCheck:
    """One pass over all packs that the index knows."""

    def __init__(self, repository: OpenRepository, progress: Progress | None) -> None:
        self._repository = repository
        self._index = repository.index
        self._crypt = repository.directory.crypt
        self._progress = progress
        self._met: dict[int, int] = {}
        """What the live frames that were found in each pack take."""
        self._mistold: set[int] = set()
        """Packs with a frame that claims another length than its row: it may hide others, and weigh as much as they."""
        self._torn: dict[tuple[int, int], str] = {}
        self._cache: ByteLru[chunk_codec.Plain] = ByteLru(_CACHE)
        self._workers = cores()
        self._pool = thread_pool(self._workers, "fsck")
        self.bytes_read = 0

    def run(self) -> list[Finding]:
        """What is wrong with live frames, and with packs as a whole. Dead frames are nobody's loss."""
        findings: list[Finding] = []
        with self._index.read() as view:
            rows = [(PACK_KEY.unpack(key)[0], *PACK_ROW.unpack(row)) for key, row in view.items(PACKS)]
        total = sum(size for _, _, size in rows)
        with self._pool:
            for number, kind, size in rows:
                if kind == SIDECAR_PACK:
                    findings += self._head(number, kind)
                    continue
                findings += self._head(number, kind) + self._pack(number, size)
                if self._progress is not None:
                    self._progress("fsck: packs", self.bytes_read, total)
            findings += self._unmet({number: size for number, _, size in rows})
        self._cache.clear()  # what follows in fsck has tables of its own
        return findings

    def _head(self, number: int, kind: int) -> list[Finding]:
        """What is wrong with the beginning of a pack."""
        path = pack_path(self._repository.directory.packs, number)
        try:
            with disk.read_plain(path) as file:
                named, own, owner = decode_pack_header(file.read(PACK_HEADER_SIZE), path)
        except (CorruptError, UnknownFormatError, OSError) as error:
            if kind == SIDECAR_PACK:
                return []  # it was not synced, and nobody counts on it
            gone = isinstance(error, FileNotFoundError)
            return [Finding("pack", None, path.name, MISSING_PACK if gone else str(error))]
        if named != number or owner != self._repository.directory.id:
            return [Finding("pack", None, path.name, f"{path.name} is pack {named} of another repository or place")]
        if own != kind:
            return [Finding("index", None, path.name, "the index has the pack for one of another kind")]
        return []

    def _pack(self, number: int, size: int) -> list[Finding]:
        path = pack_path(self._repository.directory.packs, number)
        findings: list[Finding] = []
        try:
            findings += too_short(path, size)
            self.bytes_read += min(size, path.stat().st_size)
            for checked in self._frames(path, number, size):
                self._met[number] = self._met.get(number, 0) + checked.weight
                findings += [Finding(*wrong) for wrong in checked.wrong]
        except FileNotFoundError:
            pass  # `_head` has said so
        except OSError as error:
            if is_refusal(error):
                raise
            findings.append(Finding("pack", None, path.name, f"cannot be read: {error.strerror}"))
        return findings

    def _frames(self, path: Path, number: int, size: int) -> Iterator[_Checked]:
        waiting: deque[Future[_Checked]] = deque()
        for found in scan_stretches(path, _GROUP, size):
            if isinstance(found, Scanned):
                yield self._check_one(number, found)
            elif size <= _SMALL:
                yield self._check(number, found)
            else:
                waiting.append(self._pool.submit(self._check, number, found))
            if len(waiting) > self._workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _check(self, number: int, stretch: Stretch) -> _Checked:
        frames = (_sealed_check if self._crypt.seals else _frame_check).value.check(stretch.data)
        states = self._states(number, stretch.offset, frames)
        live = list(compress(frames, states))
        wrong: list[_Wrong] = []
        for (at, span, kind, ident, right, _), state in zip(live, filter(None, states), strict=True):
            if state == _MISTOLD:
                self._mistold.add(number)
                wrong.append(_mistold(ident, number, stretch.offset + at))
            if not right:
                wrong.extend(self._look(kind, ident, stretch.offset + at, number, stretch.data[at : at + span]))
        weight = sum(frame[1] + padding(frame[1]) for frame in live)
        return _Checked([frame[3] for frame in live], weight, wrong)

    def _check_one(self, number: int, scanned: Scanned) -> _Checked:
        """A frame that stands where damage is, or one that is longer than a window."""
        if scanned.error is not None:
            self._torn[number, scanned.offset] = scanned.error
        header = scanned.header
        if header is None:
            return _Checked([], 0, [])
        row = place_of(number, scanned.offset, header).encode()[_ROW_AT:]
        frame = (0, header.span, header.kind, header.id, True, row)
        (state,) = self._states(number, scanned.offset, [frame])
        if state == _DEAD:
            return _Checked([], 0, [])
        wrong = [_mistold(header.id, number, scanned.offset)] if state == _MISTOLD else []
        self._mistold.update([number] if wrong else [])
        error = scanned.error or (scanned.frame and self._fault(header.kind, scanned.frame))
        if error:
            wrong.append(_Wrong("frame", header.id, _where(number, scanned.offset), error))
        return _Checked([header.id], header.span + padding(header.span), wrong)

    def _states(self, number: int, start: int, frames: Sequence[Frame]) -> list[int]:
        """Which frames the index means, at their places from `start` on; the others are left from before some gc."""
        states = [_DEAD] * len(frames)
        with self._index.read() as view:
            for table in (CHUNKS, OBJECTS):
                own = [at for at, frame in enumerate(frames) if _table_of(frame[2]) == table]
                for at, row in zip(own, view.get_many(table, [frames[at][3] for at in own]), strict=True):
                    if row is not None and row[:_ROW_AT] == encode_where(number, start + frames[at][0]):
                        states[at] = _LIVE if row[_ROW_AT:] == frames[at][5] else _MISTOLD
        return states

    def _look(self, kind: int, ident: bytes, offset: int, number: int, data: memoryview) -> Iterator[_Wrong]:
        """A frame that is an object, a difference, or not right."""
        where = _where(number, offset)
        try:
            frame = decode_frame(data, where)[1]
            error = self._fault(kind, frame)
        except CorruptError as wrong:
            error = str(wrong)
        if error is not None:
            yield _Wrong("frame", ident, where, error)
        elif frame.bases and self._bases_row(ident) != b"".join(sorted(base_ids(frame.bases))):
            yield _mistold(ident, number, offset)

    def _bases_row(self, ident: bytes) -> bytes | None:
        with self._index.read() as view:
            return view.get(BASES, ident)

    def _fault(self, kind: int, frame: EncodedChunk) -> str | None:
        try:
            self._decode(kind, self._crypt.open(kind, frame))
        except CorruptError as wrong:
            return str(wrong)
        return None

    def _decode(self, kind: int, frame: EncodedChunk) -> None:
        if kind == FrameKind.CHUNK:
            chunk_codec.decode(frame, self._bases_of(frame), self._crypt)
        else:
            verify_object(kind, frame, self._crypt)

    def _bases_of(self, frame: EncodedChunk) -> chunk_codec.FetchBases:
        """How to get the bases of one chunk: through a cache, since neighbours mostly share theirs."""

        def fetch(ids: Sequence[bytes]) -> list[chunk_codec.Plain]:
            found = {ident: plain for ident in ids if (plain := self._cache.get(ident)) is not None}
            for base in self._repository.store.get_chunks([ident for ident in ids if ident not in found]):
                if base.depth >= frame.depth:
                    raise CorruptError(f"chunk {base.id.hex()[:12]} is the base of one that is not deeper")
                found[base.id] = plain = chunk_codec.decode(base, self._bases_of(base), self._crypt)
                self._cache.put(base.id, plain, len(plain) + _ENTRY)
            return [found[ident] for ident in ids]

        return fetch

    def _unmet(self, packs: dict[int, int]) -> Iterator[Finding]:
        """Rows whose frame the scan did not find.

        Every live frame that it did is in some row: where those of a pack weigh as much as its rows, none is missing,
        and no table of ids is needed to know.
        """
        numbers = sorted(packs)
        rows_of = PackRows(numbers)
        others = sum(rows_of.weigh(b"".join(rows.values)) for table in _TABLES for rows in self._index.scan(table))
        weights = zip(numbers, rows_of.weights(), strict=True)
        suspects = {number for number, weight in weights if weight != self._met.get(number, 0)} | self._mistold
        if not suspects and not others:
            return
        met = self._met_again({number: packs[number] for number in suspects})
        for table in _TABLES:
            for rows in self._index.scan(table):
                for key, row, known in zip(*rows, met.has(b"".join(rows.keys)), strict=True):
                    place = Place.decode(row)
                    # A pack that came after the list was made is its session's business.
                    lost = place.pack in suspects if place.pack in packs else not self._exists(place.pack)
                    if lost and not known:
                        missing = "its pack is missing" if place.pack in packs else NO_SUCH_PACK
                        why = NO_FRAME if self._exists(place.pack) else missing
                        why = self._torn.get((place.pack, place.offset), why)
                        yield Finding("frame", key, _where(place.pack, place.offset), why)

    def _met_again(self, packs: dict[int, int]) -> IdSet:
        """The live frames of some packs."""
        met = IdSet()
        for number, size in packs.items():
            path = pack_path(self._repository.directory.packs, number)
            try:
                for checked in self._frames(path, number, size):
                    met.add(b"".join(checked.live))
            except OSError as error:
                if is_refusal(error):
                    raise
        return met

    def _exists(self, number: int) -> bool:
        return pack_path(self._repository.directory.packs, number).exists()


def _where(number: int, offset: int) -> str:
    """As every message names it."""
    return f"{number:08x}.pack at {offset}"


def _mistold(ident: bytes, number: int, offset: int) -> _Wrong:
    where = _where(number, offset)
    return _Wrong("index", ident, where, "the index says of a frame what is not so")


def _table_of(kind: int) -> bytes:
    """Where the index has frames of a kind."""
    return CHUNKS if kind == FrameKind.CHUNK else OBJECTS
