"""du: how many bytes each snapshot of a set takes, alone and together with others.

`Repository.du` calls it. Every frame that a snapshot reaches counts once, metadata and padding included, so that the
total is what the set would take in packs that hold nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from .frames import Kind
from .idset import Tally
from .index import CHUNKS, OBJECTS, span_on_disk
from .reach import Children, Walker
from .records import DiskUsage, ObjectId, Usage

if TYPE_CHECKING:
    from .repository import Repository

_REMEMBERED: Final = 96 << 20
"""Bytes of expanded objects kept between snapshots; siblings share nearly all of theirs."""


def disk_usage(repository: Repository, ids: Sequence[ObjectId]) -> DiskUsage:
    """Usage of each snapshot against the others of `ids`, and of all as one. UnknownNameError, CorruptError."""
    for ident in ids:
        repository.snapshot(ident)
    counter = _Counter(repository, len(ids))
    groups = list(enumerate(ids, 1))
    logical = {number: counter.add(ident, number) for number, ident in groups}
    snapshots = [_usage(ident, logical[number], *counter.tally.of(number)) for number, ident in groups]
    total = _usage(None, sum(logical.values()), *counter.tally.total())
    stored = sum(one.stored for one in snapshots)
    sharing = sum(one.shared for one in snapshots) / stored if stored else 0.0
    return DiskUsage(snapshots=snapshots, total=total, sharing=sharing)


def _usage(ident: ObjectId | None, logical: int, stored: int, unique: int) -> Usage:
    return Usage(id=ident, logical=logical, stored=stored, unique=unique, shared=stored - unique)


class _Counter:
    """Walks snapshots one after the other and counts what they reach."""

    def __init__(self, repository: Repository, groups: int) -> None:
        self.tally = Tally(groups)
        self._index = repository.index
        self._walker = Walker(repository.store, repository.index)
        self._known: dict[ObjectId, Children] = {}
        self._known_bytes = 0

    def add(self, snapshot: ObjectId, group: int) -> int:
        """Count one snapshot; its logical bytes."""
        logical = 0
        # A tree that stands in two places counts twice in the logical size, so trees are walked by occurrence.
        trees: list[tuple[int, ObjectId]] = [(Kind.SNAPSHOT, snapshot)]
        others: dict[ObjectId, int] = {}
        while trees:
            found = self._expand(trees)
            self.tally.count(b"".join(ident for _, ident in trees), group)
            trees = []
            for children in found:
                logical += children.logical
                self.tally.count(children.chunks, group)
                trees += [child for child in children.objects if child[0] == Kind.TREE]
                others.update((ident, kind) for kind, ident in children.objects if kind != Kind.TREE)
        self._add_contents(others, group)
        return logical

    def _add_contents(self, contents: dict[ObjectId, int], group: int) -> None:
        edge = contents
        while edge:
            found = self._expand([(kind, ident) for ident, kind in edge.items()])
            self.tally.count(b"".join(edge), group)
            self.tally.count(b"".join(children.chunks for children in found), group)
            edge = {ident: kind for children in found for kind, ident in children.objects}

    def _expand(self, objects: Sequence[tuple[int, ObjectId]]) -> list[Children]:
        by_kind: dict[int, list[ObjectId]] = {}
        for kind, ident in dict.fromkeys(objects):
            if ident not in self._known:
                by_kind.setdefault(kind, []).append(ident)
        fresh: dict[ObjectId, Children] = {}
        for kind, ids in by_kind.items():
            self._learn(b"".join(ids), OBJECTS)
            for ident, children in self._walker.expand(kind, ids):
                fresh[ident] = children._replace(chunks=self._walker.with_bases(children.chunks))
            self._learn(b"".join(children.chunks for children in fresh.values()), CHUNKS)
        answer = [fresh.get(ident) or self._known[ident] for _, ident in objects]
        self._remember(fresh)
        return answer

    def _remember(self, fresh: dict[ObjectId, Children]) -> None:
        self._known_bytes += sum(200 + len(one.chunks) + 120 * len(one.objects) for one in fresh.values())
        if self._known_bytes > _REMEMBERED:
            self._known.clear()
            self._known_bytes = 0
        else:
            self._known.update(fresh)

    def _learn(self, ids: bytes, table: bytes) -> None:
        """Fetch the sizes that the tally does not know."""
        unknown = self.tally.unknown(ids)
        with self._index.read() as view:
            rows = view.get_many(table, unknown)
        for ident, row in zip(unknown, rows, strict=True):
            if row is not None:
                self.tally.learn(ident, span_on_disk(row))
