"""All snapshots of a repository with their parents and names, read once, and the object that stands for one in JSON.

For every verb that shows some, and for the panel in JupyterLab.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ijfs.drawing import words

if TYPE_CHECKING:
    from ijfs_engine import KnownTree, Refs, Repository, Snapshot


class Labels(NamedTuple):
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


def _turned(table: Mapping[str, bytes]) -> dict[bytes, tuple[str, ...]]:
    turned: dict[bytes, tuple[str, ...]] = {}
    for name in sorted(table):
        turned[table[name]] = (*turned.get(table[name], ()), name)
    return turned


class History(NamedTuple):
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

    @classmethod
    def there(cls, tree: KnownTree) -> History:
        """That of a remote, as far as is known here."""
        snapshots = {s.id: s for s in tree.snapshots()}
        parents = {s.id: tuple(parent for parent in s.parents if parent in snapshots) for s in snapshots.values()}
        return cls(snapshots, parents, Labels(_turned(tree.named("branch")), _turned(tree.named("tag"))))

    def json(self, snapshot: Snapshot) -> dict[str, Any]:
        """The object that stands for a snapshot in every verb's JSON."""
        return {
            "id": snapshot.id.hex(),
            "parents": [parent.hex() for parent in self.parents[snapshot.id]],
            "created": words.iso(snapshot.created_ns),
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

    def only(self, kept: Collection[bytes]) -> History:
        """These alone."""
        return History(
            {ident: s for ident, s in self.snapshots.items() if ident in kept},
            {ident: parents for ident, parents in self.parents.items() if ident in kept},
            self.labels,
        )

    def relatives(self, some: Iterable[bytes]) -> set[bytes]:
        """The whole trees that these are in."""
        beside: dict[bytes, list[bytes]] = {ident: list(parents) for ident, parents in self.parents.items()}
        for ident, parents in self.parents.items():
            for parent in parents:
                beside[parent].append(ident)
        found: set[bytes] = set()
        todo = [ident for ident in some if ident in beside]
        while todo:
            ident = todo.pop()
            if ident not in found:
                found.add(ident)
                todo.extend(beside[ident])
        return found


def program_of(snapshot: Snapshot) -> str:
    """The program that a snapshot was saved from; "" for one that was imported."""
    spec = snapshot.meta.get("spec")
    return str(spec.get("name", "")) if isinstance(spec, dict) else ""
