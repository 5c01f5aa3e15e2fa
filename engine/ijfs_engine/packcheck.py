"""Reading every pack from front to back: each frame's checksums, and that its plain bytes have the id it claims.

The part of fsck that costs time, so frames are decoded on all cores while the next ones are read.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from . import codec
from .errors import CorruptError, UnknownFormatError
from .frames import EncodedChunk, Kind
from .idset import IdSet
from .index import CHUNKS, OBJECTS, PACK_KEY, PACK_ROW, PACKS, Place
from .lru import ByteLru
from .pack import PACK_HEADER_SIZE, SIDECARS, decode_pack_header, pack_path
from .scan import Scanned, scan_frames
from .store import verify_object

if TYPE_CHECKING:
    from .repository import Progress, Repository

_GROUP: Final = 64
"""Frames per task: 1.7 MB of stored bytes, so that handing over costs nothing."""
_AHEAD: Final = 4
"""Groups read but not decoded yet, per core: 8 MiB windows of the scan stay alive as long as their frames do."""
_CACHE: Final = 96 << 20
"""Bytes of decoded bases kept: without it the differences of a tree of 11 kernels cost 3 decodes of each chunk."""
_ENTRY: Final = 200
"""What an entry of the cache takes besides."""


class Finding(NamedTuple):
    """Something wrong, before it is known whom it hurts; `what` is as in `records.Damage`."""

    what: str
    id: bytes | None
    where: str
    message: str


class _Checked(NamedTuple):
    """A live frame, by table and id, and what is wrong with it."""

    table: bytes
    id: bytes
    place: str
    error: str | None


class PackCheck:
    """One pass over all packs that the index knows."""

    def __init__(self, repository: Repository, progress: Progress | None) -> None:
        self._repository = repository
        self._index = repository.index
        self._progress = progress
        self._seen = {CHUNKS: IdSet(), OBJECTS: IdSet()}
        self._torn: dict[tuple[int, int], str] = {}
        self._cache: ByteLru[codec.Plain] = ByteLru(_CACHE)
        self.bytes_read = 0

    def run(self) -> list[Finding]:
        """What is wrong with live frames, and with packs as a whole. Dead frames are nobody's loss."""
        findings: list[Finding] = []
        with self._index.read() as view:
            rows = [(PACK_KEY.unpack(key)[0], *PACK_ROW.unpack(row)) for key, row in view.items(PACKS)]
        total = sum(size for _, _, size in rows)
        for number, kind, size in rows:
            if kind == SIDECARS:
                continue
            findings += self._pack(number, size)
            self.bytes_read += size
            if self._progress is not None:
                self._progress("fsck: packs", self.bytes_read, total)
        return findings + list(self._unseen({number for number, _, _ in rows}))

    def _pack(self, number: int, size: int) -> list[Finding]:
        path = pack_path(self._repository.layout.packs, number)
        findings: list[Finding] = []
        try:
            self._header(path, number)
        except FileNotFoundError:
            return [Finding("pack", None, path.name, "the pack is missing")]
        except (CorruptError, UnknownFormatError, OSError) as error:
            findings.append(Finding("pack", None, path.name, str(error)))
        try:
            for checked in self._frames(path, number, size):
                if checked.error is not None:
                    findings.append(Finding("frame", checked.id, checked.place, checked.error))
        except OSError as error:
            findings.append(Finding("pack", None, path.name, f"cannot be read: {error.strerror}"))
        return findings

    def _header(self, path: Path, number: int) -> None:
        with path.open("rb") as file:
            named, _, owner = decode_pack_header(file.read(PACK_HEADER_SIZE), path)
        if named != number or owner != self._repository.layout.id:
            raise CorruptError(f"{path.name} is pack {named} of another repository or place")

    def _frames(self, path: Path, number: int, size: int) -> Iterator[_Checked]:
        workers = os.cpu_count() or 1
        waiting: deque[Future[list[_Checked]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="fsck") as pool:
            for group in _grouped(scan_frames(path, end=size)):
                waiting.append(pool.submit(self._check, path.name, number, group))
                if len(waiting) > workers * _AHEAD:
                    yield from self._note(waiting.popleft().result())
            while waiting:
                yield from self._note(waiting.popleft().result())

    def _note(self, group: list[_Checked]) -> list[_Checked]:
        for table, seen in self._seen.items():
            seen.add(b"".join(one.id for one in group if one.table == table))
        return group

    def _check(self, name: str, number: int, group: list[Scanned]) -> list[_Checked]:
        live = self._live(number, group)
        checked = []
        for scanned, table in live:
            where = f"{name} at {scanned.offset}"
            assert scanned.header is not None
            error = scanned.error
            if error is None and scanned.frame is not None:
                try:
                    self._decode(scanned.header.kind, scanned.frame)
                except CorruptError as wrong:
                    error = str(wrong)
            checked.append(_Checked(table, scanned.header.id, where, error))
        return checked

    def _live(self, number: int, group: list[Scanned]) -> list[tuple[Scanned, bytes]]:
        """The frames that the index means, with their table; the others are left from before some gc."""
        for scanned in group:
            if scanned.error is not None:
                self._torn[number, scanned.offset] = scanned.error
        named = [(scanned, scanned.header) for scanned in group if scanned.header is not None]
        live = []
        with self._index.read() as view:
            for scanned, header in named:
                table = CHUNKS if header.kind == Kind.CHUNK else OBJECTS
                row = view.get(table, header.id)
                place = Place.decode(row) if row is not None else None
                if place is not None and (place.pack, place.offset) == (number, scanned.offset):
                    live.append((scanned, table))
        return live

    def _decode(self, kind: int, frame: EncodedChunk) -> None:
        if kind == Kind.CHUNK:
            codec.decode(frame, self._bases_of(frame))
        else:
            verify_object(kind, frame)

    def _bases_of(self, frame: EncodedChunk) -> codec.FetchBases:
        """How to get the bases of one chunk: through a cache, since neighbours mostly share theirs."""

        def fetch(ids: Sequence[bytes]) -> list[codec.Plain]:
            found = {ident: plain for ident in ids if (plain := self._cache.get(ident)) is not None}
            for base in self._repository.store.get_chunks([ident for ident in ids if ident not in found]):
                if base.depth >= frame.depth:
                    raise CorruptError(f"chunk {base.id.hex()[:12]} is the base of one that is not deeper")
                found[base.id] = plain = codec.decode(base, self._bases_of(base))
                self._cache.put(base.id, plain, len(plain) + _ENTRY)
            return [found[ident] for ident in ids]

        return fetch

    def _unseen(self, packs: set[int]) -> Iterator[Finding]:
        """Rows whose frame the scan did not come upon."""
        for table, seen in self._seen.items():
            for rows in self._index.scan(table):
                found = seen.has(b"".join(rows.keys))
                for key, row, known in zip(*rows, found, strict=True):
                    if known:
                        continue
                    place = Place.decode(row)
                    # A pack that came after the list was made is its session's business.
                    if place.pack in packs or not self._exists(place.pack):
                        why = self._torn.get((place.pack, place.offset), "no such frame is where the index says")
                        yield Finding("frame", key, f"{place.pack:08x}.pack at {place.offset}", why)

    def _exists(self, number: int) -> bool:
        return pack_path(self._repository.layout.packs, number).exists()


def _grouped(frames: Iterator[Scanned]) -> Iterator[list[Scanned]]:
    group: list[Scanned] = []
    for scanned in frames:
        group.append(scanned)
        if len(group) == _GROUP:
            yield group
            group = []
    if group:
        yield group
