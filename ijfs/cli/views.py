"""A snapshot as verbs show it: the JSON object they share, its labels, the spec `S:PATH`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ijfs.cli import text

if TYPE_CHECKING:
    from ijfs.cli.output import Span
    from ijfs_engine import Refs, Repository, Snapshot


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


def snapshot_json(snapshot: Snapshot, labels: Labels) -> dict[str, Any]:
    """The object that stands for a snapshot in every verb's JSON."""
    return {
        "id": snapshot.id.hex(),
        "parents": [parent.hex() for parent in snapshot.parents],
        "created": text.iso(snapshot.created_ns),
        "created_ns": snapshot.created_ns,
        "message": snapshot.message,
        "branches": list(labels.branches.get(snapshot.id, ())),
        "tags": list(labels.tags.get(snapshot.id, ())),
    }


def split_spec(spec: str, path: str | None) -> tuple[str, str]:
    """A snapshot and a path from `S PATH` or `S:PATH`; the path without slashes at its ends."""
    if path is None and ":" in spec:
        spec, path = spec.split(":", 1)
    return spec, (path or "").strip("/")


def ancestors(snapshots: Mapping[bytes, Snapshot], start: Iterable[bytes]) -> set[bytes]:
    """All snapshots that can be reached from some of them by parents, themselves included."""
    found: set[bytes] = set()
    todo = list(start)
    while todo:
        snapshot_id = todo.pop()
        if snapshot_id not in found and snapshot_id in snapshots:
            found.add(snapshot_id)
            todo.extend(snapshots[snapshot_id].parents)
    return found


def reachable(repository: Repository, snapshots: Mapping[bytes, Snapshot]) -> set[bytes]:
    """The snapshots that branches and tags keep."""
    heads = [*repository.refs.branches().values(), *repository.refs.tags().values()]
    return ancestors(snapshots, heads)
