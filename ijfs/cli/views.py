"""A snapshot as verbs show it: the JSON object they share, its labels, what is at a path."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ijfs.cli import text

if TYPE_CHECKING:
    from ijfs.cli.output import Span
    from ijfs_engine import Entry, Reader, Refs, Repository, Snapshot


@dataclass(frozen=True)
class Labels:
    """Which branches and tags stand at which snapshot."""

    branches: Mapping[bytes, tuple[str, ...]]
    tags: Mapping[bytes, tuple[str, ...]]

    @classmethod
    def of(cls, refs: Refs) -> Labels:
        """Read both tables once and turn them round."""
        return cls(_turned(refs.branches()), _turned(refs.tags()))

    def at(self, snapshot_id: bytes) -> tuple[str, ...]:
        """All names of a snapshot, branches first."""
        return self.branches.get(snapshot_id, ()) + self.tags.get(snapshot_id, ())

    def spans(self, snapshot_id: bytes) -> list[Span]:
        """Branches in brackets, tags in parentheses: [main] (v1)."""
        spans: list[Span] = []
        for table, form, style in ((self.branches, "[{}]", "bold green"), (self.tags, "({})", "bold magenta")):
            for name in table.get(snapshot_id, ()):
                spans += [" ", (form.format(name), style)]
        return spans[1:]


def _turned(table: Mapping[str, bytes]) -> dict[bytes, tuple[str, ...]]:
    turned: dict[bytes, tuple[str, ...]] = {}
    for name in sorted(table):
        turned[table[name]] = (*turned.get(table[name], ()), name)
    return turned


@dataclass(frozen=True)
class History:
    """All snapshots, newest first, with their parents as they are now and their names; read once."""

    snapshots: Mapping[bytes, Snapshot]
    parents: Mapping[bytes, tuple[bytes, ...]]
    labels: Labels

    @classmethod
    def of(cls, repository: Repository, newest: int | None = None) -> History:
        """Read it, or so many of the newest. A parent that was removed is stepped over: its own stand for it."""
        snapshots = {s.id: s for s in repository.snapshots(newest)}

        def listed(parent: bytes) -> bytes | None:
            return parent if parent in snapshots else repository.nearest([parent])

        parents = {
            s.id: tuple(dict.fromkeys(found for parent in s.parents if (found := listed(parent)) is not None))
            for s in snapshots.values()
        }
        return cls(snapshots, parents, Labels.of(repository.refs))

    def json(self, snapshot: Snapshot) -> dict[str, Any]:
        """The object that stands for a snapshot in every verb's JSON."""
        return {
            "id": snapshot.id.hex(),
            "parents": [parent.hex() for parent in self.parents[snapshot.id]],
            "created": text.iso(snapshot.created_ns),
            "created_ns": snapshot.created_ns,
            "message": snapshot.message,
            "branches": list(self.labels.branches.get(snapshot.id, ())),
            "tags": list(self.labels.tags.get(snapshot.id, ())),
        }

    def children(self, ident: bytes) -> list[Snapshot]:
        """The snapshots that follow one."""
        return [s for s in self.snapshots.values() if ident in self.parents[s.id]]

    def ancestors(self, start: Iterable[bytes]) -> set[bytes]:
        """All that can be reached from some by parents, themselves included."""
        found: set[bytes] = set()
        todo = list(start)
        while todo:
            ident = todo.pop()
            if ident not in found and ident in self.snapshots:
                found.add(ident)
                todo.extend(self.parents[ident])
        return found

    def named(self) -> set[bytes]:
        """All that branches and tags keep."""
        return self.ancestors([*self.labels.branches, *self.labels.tags])


def lookup(reader: Reader, root: bytes, path: str) -> Entry:
    """The entry at a path: as it is typed, or as ijfs shows a name that cannot be printed. UnknownNameError."""
    from ijfs_engine.errors import UnknownNameError

    try:
        return reader.lookup(root, path)
    except UnknownNameError:
        for meant in text.unprintable(path):
            with contextlib.suppress(UnknownNameError):
                return reader.lookup(root, meant)
        raise
