"""What damage affects: from the ids of damaged frames to the snapshots and files that need them.

fsck asks it, only when something is wrong: it walks every listed snapshot by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.records import ObjectId
from ijfs_engine.maintenance.reachability import TreeWalker, split
from ijfs_engine.storage.index import SNAPSHOTS
from ijfs_engine.storage.open_repository import OpenRepository

_MOST_FILES: Final = 20
_NONE: Final[frozenset[bytes]] = frozenset()


class Impact:
    """Which listed snapshots and which of their files reach the ids in `bad`."""

    def __init__(self, repository: OpenRepository, bad: set[ObjectId]) -> None:
        self._repository = repository
        self._walker = TreeWalker(repository.store, repository.index)
        self._bad = bad
        self._below: dict[ObjectId, frozenset[ObjectId]] = {}
        self._snapshots: dict[ObjectId, list[ObjectId]] = {ident: [] for ident in bad}
        self._files: dict[ObjectId, list[str]] = {ident: [] for ident in bad}
        if bad:
            self._search()

    def of(self, ident: ObjectId) -> tuple[tuple[ObjectId, ...], tuple[str, ...]]:
        """(snapshots, up to 20 files as `<snapshot hex>:<path>`)."""
        return tuple(self._snapshots.get(ident, ())), tuple(self._files.get(ident, ()))

    def _listed(self) -> list[ObjectId]:
        with self._repository.index.read() as view:
            return [ident for ident, _ in view.items(SNAPSHOTS)]

    def _search(self) -> None:
        for snapshot in self._listed():
            for ident in self._reached(FrameKind.SNAPSHOT, snapshot):
                self._snapshots[ident].append(snapshot)
            self._name_files(snapshot)

    def _name_files(self, snapshot: ObjectId) -> None:
        try:
            root = self._repository.store.snapshot(snapshot).root
        except CorruptError:
            return
        for path, content in self._files_below(root, b""):
            for ident in self._reached(self._kind(content), content):
                if len(self._files[ident]) < _MOST_FILES:
                    self._files[ident].append(f"{snapshot.hex()}:{os.fsdecode(path)}")

    def _files_below(self, tree: ObjectId, path: bytes) -> Iterator[tuple[bytes, ObjectId]]:
        if not self._reached(FrameKind.TREE, tree):
            return
        try:
            entries = self._repository.store.tree(tree).entries
        except CorruptError:
            return
        for entry in entries:
            if entry.content is None:
                continue
            if entry.kind == "d":
                yield from self._files_below(entry.content, path + entry.name + b"/")
            else:
                yield path + entry.name, entry.content

    def _kind(self, content: ObjectId) -> int:
        try:
            return self._repository.store.kind_of(content)
        except CorruptError:
            return FrameKind.CHUNK

    def _reached(self, kind: int, ident: ObjectId) -> frozenset[ObjectId]:
        """The bad ids that an object reaches, itself among them."""
        known = self._below.get(ident)
        if known is None:
            known = self._below[ident] = self._look(kind, ident)
        return known

    def _look(self, kind: int, ident: ObjectId) -> frozenset[ObjectId]:
        own = frozenset((ident,)) & self._bad
        if kind == FrameKind.CHUNK:
            return own | (frozenset(split(self._walker.with_bases(ident))) & self._bad)
        expanded = self._walker.expand(kind, [ident], lambda *_: None)
        if not expanded:
            return own
        children = expanded[0][1]
        found = set(own) | (set(split(self._walker.with_bases(children.chunks))) & self._bad)
        for child_kind, child in children.objects:
            found |= self._reached(child_kind, child)
        return frozenset(found) if found else _NONE
