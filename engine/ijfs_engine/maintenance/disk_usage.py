"""du: how many bytes each snapshot of a set takes, alone and together with others.

`Repository.du` calls it. Every frame that a snapshot reaches counts once, metadata and padding included, so that the
total is what the set would take in packs that hold nothing else.

Each object is read once, whoever shares it; what it points at is kept in a graph of numbers (`UsageGraph`), and
there each snapshot is then walked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Final, NamedTuple

from ijfs_engine._native.usage_graph import UsageGraph
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.records import DiskUsage, ObjectId, Usage
from ijfs_engine.maintenance.reachability import Children, TreeWalker, split
from ijfs_engine.storage import listed
from ijfs_engine.storage.index import BASES, CHUNKS, OBJECTS, SNAPSHOTS
from ijfs_engine.storage.open_repository import OpenRepository

_BATCH: Final = 512
_MOST: Final = 0.2
"""From this share of all snapshots on, sizes come from a scan of the index: 0.3 µs a row, against 2 for each that is
looked up."""


def disk_usage(repository: OpenRepository, ids: Sequence[ObjectId]) -> DiskUsage:
    """Usage of each snapshot against the others of `ids`, and of all as one. UnknownNameError, CorruptError."""
    for ident in ids:
        listed.snapshot(repository, ident)
    counter = _Counter(repository)
    counter.load(ids)
    logical = [counter.logical(ident) for ident in ids]
    total, sizes = counter.graph.count(b"".join(ids))
    snapshots = [_usage(ident, size, *pair) for ident, size, pair in zip(ids, logical, sizes, strict=True)]
    everything = _usage(None, sum(logical), total, sum(alone for _, alone in sizes))
    stored = sum(one.stored for one in snapshots)
    sharing = sum(one.shared for one in snapshots) / stored if stored else 0.0
    return DiskUsage(snapshots=snapshots, total=everything, sharing=sharing)


def _usage(ident: ObjectId | None, logical: int, stored: int, unique: int) -> Usage:
    return Usage(id=ident, logical=logical, stored=stored, unique=unique, shared=stored - unique)


class _TreeSum(NamedTuple):
    """What the files of a tree add up to, and its subtrees: one entry each time that one occurs."""

    size: int
    trees: list[ObjectId]

    @classmethod
    def of(cls, children: Children) -> _TreeSum:
        return cls(children.logical, [ident for kind, ident in children.objects if kind == FrameKind.TREE])


class _Counter:
    """Reads everything that snapshots reach into a graph."""

    def __init__(self, repository: OpenRepository) -> None:
        self.graph = UsageGraph()
        self._index = repository.index
        self._walker = TreeWalker(repository.store, repository.index)
        self._sums_of: dict[ObjectId, _TreeSum] = {}
        self._sums: dict[ObjectId, int] = {}
        self._scan = False

    def load(self, snapshots: Sequence[ObjectId]) -> None:
        """Read what they point at, and how much each of it takes. CorruptError."""
        with self._index.read() as view:
            self._scan = len(snapshots) >= _MOST * view.count(SNAPSHOTS)
        pending: dict[int, list[ObjectId]] = {kind: [] for kind in FrameKind.NAMES}
        pending[FrameKind.SNAPSHOT] = list(dict.fromkeys(snapshots))
        self.graph.add(b"".join(snapshots))
        self._measure(OBJECTS, pending[FrameKind.SNAPSHOT])
        while any(pending.values()):
            # Leaves first, so that what is waiting stays small.
            kind = next(kind for kind in sorted(pending) if pending[kind])
            batch = pending[kind][-_BATCH:]
            del pending[kind][-_BATCH:]
            self._expand(kind, batch, pending)
        if self._scan:
            self._scan_index()

    def logical(self, snapshot: ObjectId) -> int:
        """What its files add up to. A tree that stands in two places counts twice."""
        stack = [snapshot]
        while stack:
            directory = self._sums_of[stack[-1]]
            missing = [tree for tree in directory.trees if tree not in self._sums]
            if missing:
                stack += missing
                continue
            self._sums[stack.pop()] = directory.size + sum(self._sums[tree] for tree in directory.trees)
        return self._sums[snapshot]

    def _expand(self, kind: int, batch: list[ObjectId], pending: dict[int, list[ObjectId]]) -> None:
        chunks: list[bytes] = []
        objects: list[ObjectId] = []
        for ident, children in self._walker.expand(kind, batch):
            names = [child for _, child in children.objects]
            fresh = self.graph.add_edges(ident, b"".join([*names, children.chunks]))
            for (child_kind, child), new in zip(children.objects, fresh, strict=False):
                if new:
                    pending[child_kind].append(child)
                    objects.append(child)
            if kind in (FrameKind.SNAPSHOT, FrameKind.TREE):
                self._sums_of[ident] = _TreeSum.of(children)
            if not self._scan:
                chunks += compress(split(children.chunks), fresh[len(names) :])
        if not self._scan:
            self._measure(OBJECTS, objects)
            self._measure(CHUNKS, self._with_bases(chunks))

    # --- sizes and bases, of what was met or of all there is

    def _with_bases(self, chunks: list[bytes]) -> list[bytes]:
        edge = chunks
        while edge:
            with self._index.read() as view:
                rows = view.bases(edge)
            edge = [
                base
                for ident, row in zip(edge, rows, strict=True)
                if row
                for base in compress(split(row), self.graph.add_edges(ident, row))
            ]
            chunks = chunks + edge
        return chunks

    def _measure(self, table: bytes, ids: list[bytes]) -> None:
        with self._index.read() as view:
            found = [(ident, row) for ident, row in zip(ids, view.get_many(table, ids), strict=True) if row is not None]
        self.graph.set_sizes(b"".join(ident for ident, _ in found), b"".join(row for _, row in found))

    def _scan_index(self) -> None:
        for rows in self._index.scan(BASES):
            for ident, bases in zip(*rows, strict=True):
                self.graph.add_edges(ident, bases)
        for table in (CHUNKS, OBJECTS):
            for rows in self._index.scan(table):
                self.graph.set_sizes(b"".join(rows.keys), b"".join(rows.values))
