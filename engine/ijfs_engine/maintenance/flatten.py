"""Storing differences whole where their bases live for them alone, and whole takes less than base and difference.

In a long line of saves of which the old ones are removed, a chunk that changes is a difference to one that no snapshot
has any more: both stay. gc asks `plan` what could go that way, and `carry_out` does it: the chunk's row then points at
a frame without bases, and what it was stored against is garbage like any other.

That a row gets less deep is always allowed (docs/concurrency.md): who is stored against it stays deeper than its base.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import compress
from typing import Final, NamedTuple

from ijfs_engine.errors import CorruptError
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.chunk_codec import Plain
from ijfs_engine.format.frames import HEADER_SIZE
from ijfs_engine.format.place import Place
from ijfs_engine.maintenance.reachability import ReachableSet, split
from ijfs_engine.maintenance.rewriting import Rewriter, Rewritten, weigh
from ijfs_engine.storage.index import BASES, CHUNKS
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.util.progress import Progress

_GAIN: Final = 0.2
"""What is written anew has to give back this share of what it and its bases take: as much as makes a pack sparse."""
_MOST: Final = 1_000_000
"""Chunks looked at: 500 bytes of memory each. With more than that of them nothing is done."""
_BATCH: Final = 256
"""Chunks decoded at a time: 64 MiB at most, their bases not counted."""


class Plan(NamedTuple):
    """What is to be stored whole, and what nobody needs then: ids and the index's rows."""

    chunks: list[tuple[bytes, bytes]]
    bases: list[tuple[bytes, bytes]]
    size: int
    """About what the chunks will take."""


NOTHING: Final = Plan([], [], 0)


def plan(repository: OpenRepository, needed: ReachableSet) -> Plan:
    """What pays. `needed` is all that gc keeps. StorageError."""
    edges = _edges(repository, needed)
    if not edges or len(edges) > _MOST:
        return NOTHING
    groups = _groups(edges)
    places = _places(repository, edges)
    chunks: list[tuple[bytes, bytes]] = []
    bases: list[tuple[bytes, bytes]] = []
    size = 0
    for group in groups:
        found = [(ident, places[ident]) for ident in group if ident in places]
        direct = needed.is_direct([ident for ident, _ in found])
        whole = list(compress(found, direct))
        gone = [pair for pair, keeps in zip(found, direct, strict=True) if not keeps]
        estimate = _estimate([Place.decode(row) for _, row in whole], [Place.decode(row) for _, row in gone])
        now = sum(Place.decode(row).on_disk for _, row in found)
        if now - estimate > _GAIN * now:
            chunks += whole
            bases += gone
            size += estimate
    return Plan(chunks, bases, size)


def _edges(repository: OpenRepository, needed: ReachableSet) -> dict[bytes, list[bytes]]:
    """Needed chunks with those of their bases that live only as bases."""
    edges: dict[bytes, list[bytes]] = {}
    for rows in repository.index.scan(BASES):
        for ident, row in compress(zip(*rows, strict=True), needed.has(rows.keys)):
            ids = list(split(row))
            alone = [base for base, direct in zip(ids, needed.is_direct(ids), strict=True) if not direct]
            if alone:
                edges[ident] = alone
        if len(edges) > _MOST:
            break
    return edges


def _groups(edges: dict[bytes, list[bytes]]) -> list[list[bytes]]:
    """Chunks that hang together by bases that could go: those of a group go only if all that need them let go."""
    above: dict[bytes, bytes] = {}

    def top(ident: bytes) -> bytes:
        while (over := above.setdefault(ident, ident)) != ident:
            above[ident] = above.setdefault(over, over)
            ident = over
        return ident

    for ident, bases in edges.items():
        for base in bases:
            above[top(base)] = top(ident)
    found: dict[bytes, list[bytes]] = defaultdict(list)
    for ident in list(above):
        found[top(ident)].append(ident)
    return list(found.values())


def _places(repository: OpenRepository, edges: dict[bytes, list[bytes]]) -> dict[bytes, bytes]:
    ids = list({*edges, *(base for bases in edges.values() for base in bases)})
    with repository.index.read() as view:
        rows = view.get_many(CHUNKS, ids)
    return {ident: row for ident, row in zip(ids, rows, strict=True) if row is not None}


def _estimate(chunks: Sequence[Place], bases: Sequence[Place]) -> int:
    """What the chunks take when they are whole: they pack about as well as the whole ones they were stored against."""
    roots = [place for place in bases if place.depth == 0]
    plain = sum(place.plain for place in roots)
    share = min(1.0, sum(place.span for place in roots) / plain) if plain else 1.0
    return sum(int(place.plain * share) + HEADER_SIZE for place in chunks)


def measured(repository: OpenRepository, what: Plan) -> tuple[Plan, list[int]]:
    """What `carry_out` would do, and the sizes of the packs that it would write. Chunks are encoded for that: how well
    each packs is not known before. StorageError."""
    if not _has_room(repository, what):
        return NOTHING, []
    sizes: list[int] = []
    for start in range(0, len(what.chunks), _BATCH):
        weigh(sizes, _whole(repository, what.chunks[start : start + _BATCH]), repository.directory.crypt.overhead)
    return what, sizes


def _has_room(repository: OpenRepository, what: Plan) -> bool:
    space = os.statvfs(repository.directory.packs)
    return bool(what.chunks) and 2 * what.size <= space.f_bavail * space.f_frsize


def carry_out(repository: OpenRepository, what: Plan, progress: Progress | None) -> int:
    """Store the plan's chunks whole; how many. Where the disk has no room for them there are none. StorageError."""
    if not _has_room(repository, what):
        return 0
    writer = Rewriter(repository)
    try:
        for start in range(0, len(what.chunks), _BATCH):
            if progress is not None:
                progress("gc: flatten", start, len(what.chunks))
            writer.put(_whole(repository, what.chunks[start : start + _BATCH]))
        writer.publish()
    finally:
        writer.close()
    return writer.count


def _whole(repository: OpenRepository, chunks: Sequence[tuple[bytes, bytes]]) -> Iterator[Rewritten]:
    """The chunks encoded anew; one that is damaged is left out."""

    def fetch(ids: Sequence[bytes]) -> list[Plain]:
        return [chunk_codec.decode(frame, fetch, repository.store.crypt) for frame in repository.store.get_chunks(ids)]

    for ident, row in chunks:
        with suppress(CorruptError):
            (plain,) = fetch([ident])
            yield Rewritten(chunk_codec.encode(memoryview(plain), ident), row)
