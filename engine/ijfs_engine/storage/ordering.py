"""In which order snapshots were made: by ancestry first, then by their times, which a wrong clock may have given.

`listed.snapshots` and `latest` ask here. A child is always newer than its parents, whatever the clock said. A time
that has not come yet is not believed: the log of refs, in the order of what happened, says what came after it.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from typing import Final

from ijfs_engine.format.records import ObjectId, Snapshot
from ijfs_engine.storage import names
from ijfs_engine.storage.index import REFLOG, REFS, SNAPSHOTS, U64, View
from ijfs_engine.storage.journal import RefMoved, decode_record
from ijfs_engine.storage.open_repository import OpenRepository

# Whose parents are looked at beyond those that are asked for: 12 µs each. A clock that was ahead for an hour leaves
# fewer snapshots out of order.
_MARGIN: Final = 500
# What two machines' clocks, or a clock and its correction, may differ by.
_SKEW_NS: Final = 2_000_000_000


def newest_first(repository: OpenRepository, count: int | None = None) -> dict[ObjectId, Snapshot | None]:
    """The listed snapshots, all or so many, newest first; None for one whose record cannot be read."""
    with repository.index.read() as view:
        times = _times(view)
        ranked = sorted(times, key=lambda ident: (times[ident], ident), reverse=True)
        near = set(ranked if count is None else ranked[: count + _MARGIN])
        near.update(head for _, head in view.items(REFS) if head in times)
    recorded = {one.id: one for one in repository.store.readable_snapshots([i for i in ranked if i in near])}
    with repository.index.read() as view:
        parents = {ident: _listed(view, recorded[ident].parents) if ident in recorded else [] for ident in near}
    ordered = _children_first([ident for ident in ranked if ident in near], parents)[:count]
    return {ident: recorded.get(ident) for ident in ordered}


def _times(view: View) -> dict[ObjectId, int]:
    """When each listed snapshot was made, in ns since 1970, as far as can be believed."""
    times = {ident: U64.unpack(row)[0] for ident, row in view.items(SNAPSHOTS)}
    now = time.time_ns() + _SKEW_NS
    if any(at > now for at in times.values()):
        _correct(view, times, now)
    return times


def _correct(view: View, times: dict[ObjectId, int], now: int) -> None:
    """Let what claims to be of the future be older than whatever a ref was moved to after it."""
    future = {ident for ident, at in times.items() if at > now}
    bound = now
    for _, row in reversed(list(view.items(REFLOG))):
        at, record = decode_record(row)
        if not isinstance(record, RefMoved) or record.new is None:
            continue
        if record.new in future:
            times[record.new] = bound - 1
        else:
            bound = min(bound, at, times.get(record.new, bound))
    for ident in future:
        times[ident] = min(times[ident], now)


def _listed(view: View, parents: Sequence[ObjectId]) -> list[ObjectId]:
    """The nearest listed ancestors."""
    if all(view.get(SNAPSHOTS, parent) is not None for parent in parents):
        return list(parents)
    return [found for parent in parents for found in names.nearest_ancestors(view, parent)]


def _children_first(ranked: Sequence[ObjectId], parents: Mapping[ObjectId, Sequence[ObjectId]]) -> list[ObjectId]:
    """In the order given, but none before the last of its children."""
    rank = {ident: number for number, ident in enumerate(ranked)}
    waits = dict.fromkeys(ranked, 0)
    for ident in ranked:
        for parent in set(parents[ident]) & rank.keys():
            waits[parent] += 1
    ready = [number for number, ident in enumerate(ranked) if not waits[ident]]
    heapq.heapify(ready)
    found: list[ObjectId] = []
    while ready:
        ident = ranked[heapq.heappop(ready)]
        found.append(ident)
        for parent in set(parents[ident]) & rank.keys():
            waits[parent] -= 1
            if not waits[parent]:
                heapq.heappush(ready, rank[parent])
    return found
