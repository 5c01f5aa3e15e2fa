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
from ijfs_engine.maintenance.reachability import Children, TreeWalker, split
from ijfs_engine.storage.index import SNAPSHOTS
from ijfs_engine.storage.open_repository import OpenRepository

_MOST_FILES: Final = 20
_MOST_TREES: Final = 100_000
"""Directories of a snapshot that are looked into for names: a few kB can hold more paths than anyone waits for."""
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
        unnamed = set(self._reached(FrameKind.TREE, root))
        for path, content in self._files_below(root):
            for ident in self._reached(self._kind(content), content):
                if len(self._files[ident]) < _MOST_FILES:
                    self._files[ident].append(f"{snapshot.hex()}:{os.fsdecode(path)}")
                else:
                    unnamed.discard(ident)
            if not unnamed:
                return

    def _files_below(self, top: ObjectId) -> Iterator[tuple[bytes, ObjectId]]:
        """Files with damage, or in the way to none: only trees that reach some are looked into, and so many at most."""
        todo = [(b"", top)]
        for _ in range(_MOST_TREES):
            if not todo:
                return
            path, tree = todo.pop()
            if not self._reached(FrameKind.TREE, tree):
                continue
            try:
                entries = self._repository.store.tree(tree).entries
            except CorruptError:
                continue
            for entry in entries:
                if entry.content is None:
                    continue
                if entry.kind == "d":
                    todo.append((path + entry.name + b"/", entry.content))
                else:
                    yield path + entry.name, entry.content

    def _kind(self, content: ObjectId) -> int:
        try:
            return self._repository.store.kind_of(content)
        except CorruptError:
            return FrameKind.CHUNK

    def _reached(self, kind: int, ident: ObjectId) -> frozenset[ObjectId]:
        """The bad ids that an object reaches, itself among them."""
        waiting: dict[ObjectId, Children] = {}
        stack = [(kind, ident)]
        while stack:
            at_kind, at = stack[-1]
            if at not in self._below and at not in waiting:
                children = self._children(at_kind, at)
                if children is not None:
                    waiting[at] = children
                    stack += [child for child in children.objects if child[1] not in self._below]
                    continue
                self._below[at] = self._own(at_kind, at)
            stack.pop()
            if at not in self._below:
                children = waiting.pop(at)
                found = set(self._own(at_kind, at)) | self._bad_chunks(children.chunks)
                found.update(*(self._below[child] for _, child in children.objects))
                self._below[at] = frozenset(found) if found else _NONE
        return self._below[ident]

    def _children(self, kind: int, ident: ObjectId) -> Children | None:
        """What an object points at; None for a chunk, and for what cannot be read."""
        if kind == FrameKind.CHUNK:
            return None
        expanded = self._walker.expand(kind, [ident], lambda *_: None)
        return expanded[0][1] if expanded else None

    def _own(self, kind: int, ident: ObjectId) -> frozenset[ObjectId]:
        """The bad ones of itself and, for a chunk, of what it is stored against."""
        own = frozenset((ident,)) & self._bad
        return own | self._bad_chunks(ident) if kind == FrameKind.CHUNK else own

    def _bad_chunks(self, ids: bytes) -> frozenset[ObjectId]:
        return frozenset(split(self._walker.with_bases(ids))) & self._bad
