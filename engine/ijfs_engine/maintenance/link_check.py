"""Hard links as trees tell of them: names that share a link number in a snapshot have to be names of one file.

What writes files links equal entries only, so nothing comes of a lie but a file by itself; fsck says that there is one.
A directory has no link number: its names were made through a symbolic link of the same number, once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Final

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.records import Entry, ObjectId, Tree
from ijfs_engine.maintenance.pack_check import Finding
from ijfs_engine.storage.object_store import Store

_READ: Final = 512
"""Trees read at a time."""


class LinkCheck:
    """Takes the trees of a walk; at its end `findings` looks at each snapshot as a whole. Where nothing is linked, that
    costs nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._linked: dict[ObjectId, list[Entry]] = {}
        self._below: dict[ObjectId, list[ObjectId]] = {}

    def take(self, ident: ObjectId, tree: Tree) -> None:
        """Look at one tree."""
        linked = [entry for entry in tree.entries if entry.link]
        if linked:
            self._linked[ident] = linked

    def findings(self, snapshots: Iterable[ObjectId]) -> Iterator[Finding]:
        """The snapshots of which names share a link number, and are not names of one file."""
        if not self._linked:
            return
        for ident in snapshots:
            try:
                lie = self._lie(self._trees(self._store.snapshot(ident).root))
            except CorruptError:
                continue  # the walk says so
            if lie is not None:
                yield Finding("content", ident, ident.hex(), lie)

    def _lie(self, trees: Iterable[ObjectId]) -> str | None:
        firsts: dict[int, Entry] = {}
        for tree in trees:
            for entry in self._linked.get(tree, ()):
                name = os.fsdecode(entry.name)
                if entry.kind == "d":
                    return f"the directory {name!r} has a link number"
                first = firsts.setdefault(entry.link, entry)
                if first.inode_part != entry.inode_part:
                    return f"{os.fsdecode(first.name)!r} and {name!r} have one link number and are not one file"
        return None

    def _trees(self, root: ObjectId) -> Iterable[ObjectId]:
        """Every tree of a snapshot, once. CorruptError."""
        met = {root: None}
        edge = [root]
        while edge:
            self._read([tree for tree in edge if tree not in self._below])
            edge = list(dict.fromkeys(child for tree in edge for child in self._below[tree] if child not in met))
            met.update(dict.fromkeys(edge))
        return met

    def _read(self, unknown: list[ObjectId]) -> None:
        for at in range(0, len(unknown), _READ):
            some = unknown[at : at + _READ]
            for ident, tree in zip(some, self._store.trees(some), strict=True):
                self._below[ident] = [one.content for one in tree.entries if one.kind == "d" and one.content]
