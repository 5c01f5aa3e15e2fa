"""`ijfs copy`: snapshots of one repository into another whose ids are others, because one of them is encrypted, or both
are, with keys of their own.

Everything is named anew from the bottom up: chunks by their plain bytes, then what names them. The shape stays as it
is: leaves and page layouts, and so what later saves share. `Repository.copy_from` calls it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from ijfs_engine.errors import CorruptError
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.frames import ID_SIZE, FrameKind
from ijfs_engine.format.records import (
    Entry,
    FileContent,
    ObjectId,
    Tree,
    encode_file,
    encode_leaf,
    encode_snapshot,
    encode_tree,
)
from ijfs_engine.maintenance.reachability import split
from ijfs_engine.read.reader import Reader
from ijfs_engine.storage import listed
from ijfs_engine.storage.index import REFS, SNAPSHOTS
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.refs import ref_name
from ijfs_engine.storage.session import Session
from ijfs_engine.util.progress import Progress

_BATCH: Final = 256
"""Chunks at a time: 16 MiB on average."""


class CopyReport(NamedTuple):
    """What came: ids there → ids here, in the order of their making; refs that were made or moved; refs that are
    elsewhere here and stay → the name that the other one got; bytes stored; snapshots there that cannot be read whole →
    why; branches that are at an ancestor of where they are there, and refs that did not come (None), for that reason.
    """

    snapshots: dict[ObjectId, ObjectId]
    refs: dict[str, ObjectId]
    apart: dict[str, str]
    stored: int
    damaged: dict[ObjectId, str]
    behind: dict[str, ObjectId | None]


def copy(
    source: OpenRepository,
    target: OpenRepository,
    refs: Mapping[str, ObjectId],
    also: Sequence[ObjectId] = (),
    progress: Progress | None = None,
) -> CopyReport:
    """Have refs (`branch/NAME`, `tag/NAME`) of another repository here, other snapshots of it, and their ancestors.

    What cannot be read whole stays behind: a branch at such a snapshot comes at the nearest ancestor that can, a tag
    does not come. CorruptError where nothing can, StorageError; then nothing has become visible."""
    session = target.session()
    with session, contextlib.closing(Reader(source.store)) as reader:
        copier = _Copier(source, reader, session, progress or (lambda phase, done, total: None))
        line = _copied(copier, source, [*refs.values(), *also])
        made = line.made
        places = {name: line.place(name, ident) for name, ident in refs.items()}
        heads, apart = _plan(target, {name: made[ident] for name, ident in places.items() if ident is not None})
        with target.index.read() as view:
            fresh = [one for one in made if view.get(SNAPSHOTS, made[one]) is None]
        created = {made[one]: source.store.snapshot(one).created_ns for one in fresh}
        session.commit_copies(created, heads, "copy")
    behind = {name: ident for name, ident in places.items() if ident != refs[name]}
    return CopyReport(made, heads, apart, session.stored_bytes, line.damaged, behind)


class _Line(NamedTuple):
    """Snapshots and their ancestors, as far as they can be read: ids there → ids here; why others cannot; and the
    nearest ancestors that can, of those."""

    made: dict[ObjectId, ObjectId]
    damaged: dict[ObjectId, str]
    instead: dict[ObjectId, list[ObjectId]]

    def place(self, ref: str, ident: ObjectId) -> ObjectId | None:
        """Where a ref is to be, by its id there; None: nowhere."""
        if ident in self.made:
            return ident
        return next(iter(self.instead[ident]), None) if ref.startswith("branch/") else None


def _copied(copier: _Copier, source: OpenRepository, heads: Iterable[ObjectId]) -> _Line:
    """Copy each with its ancestors; CorruptError where none can be."""
    line = _Line({}, {}, {})
    first: CorruptError | None = None
    parents = partial(listed.parents_as_far_as_known, source)
    for ident in _oldest_first(parents, heads):
        above = [one for parent in parents(ident) for one in line.instead.get(parent, [parent])]
        try:
            line.made[ident] = copier.snapshot(ident, above, line.made)
        except CorruptError as error:
            first = first or error
            line.damaged[ident] = str(error)
            line.instead[ident] = above
    if first is not None and not line.made:
        raise first
    return line


def _oldest_first(parents: Callable[[ObjectId], list[ObjectId]], heads: Iterable[ObjectId]) -> list[ObjectId]:
    """Snapshots with their listed ancestors, parents before their children."""
    found: list[ObjectId] = []
    seen: set[ObjectId] = set()
    stack = [(ident, False) for ident in heads]
    while stack:
        ident, above = stack.pop()
        if above:
            found.append(ident)
        elif ident not in seen:
            seen.add(ident)
            stack += [(ident, True), *((parent, False) for parent in parents(ident))]
    return found


def _plan(target: OpenRepository, refs: Mapping[str, ObjectId]) -> tuple[dict[str, ObjectId], dict[str, str]]:
    """Where refs go: one that is elsewhere here stays, and the other comes beside it."""
    with target.index.read() as view:
        here = {ref_name(key): ident for key, ident in view.items(REFS)}
    heads: dict[str, ObjectId] = {}
    apart: dict[str, str] = {}
    for name, ident in refs.items():
        number, place = 1, name
        while here.get(place, ident) != ident:
            place = f"{name}@copy" if number == 1 else f"{name}@copy.{number}"
            number += 1
        if place != name:
            apart[name] = place
        if here.get(place) != ident:
            heads[place] = ident
    return heads, apart


class _Copier:
    """Names anew what snapshots reach, each thing once."""

    def __init__(self, source: OpenRepository, reader: Reader, session: Session, progress: Progress) -> None:
        self._store = source.store
        self._reader = reader
        self._session = session
        self._progress = progress
        self._new: dict[ObjectId, ObjectId] = {}
        self._done = 0

    def snapshot(self, ident: ObjectId, above: Sequence[ObjectId], made: Mapping[ObjectId, ObjectId]) -> ObjectId:
        """One; its parents there, or what stands for them, are `made`. CorruptError."""
        old = self._store.snapshot(ident)
        names = {one.hex(): new.hex() for one, new in made.items()}
        parents = tuple(dict.fromkeys(made[one] for one in above))
        new = msgspec.structs.replace(
            old, root=self._content(old.root, FrameKind.TREE), parents=parents, meta=_renamed(old.meta, names)
        )
        return self._session.put_object(FrameKind.SNAPSHOT, encode_snapshot(new))

    def _content(self, ident: ObjectId, kind: int | None = None) -> ObjectId:
        """What a tree entry points at."""
        if ident not in self._new:
            make = self._makers[self._store.kind_of(ident) if kind is None else kind]
            self._new[ident] = make(self, ident)
        return self._new[ident]

    def _tree(self, ident: ObjectId) -> ObjectId:
        entries = [self._entry(entry) for entry in self._store.tree(ident).entries]
        return self._session.put_object(FrameKind.TREE, encode_tree(Tree(tuple(entries))))

    def _entry(self, entry: Entry) -> Entry:
        if entry.content is None:
            return entry
        return msgspec.structs.replace(entry, content=self._content(entry.content))

    def _file(self, ident: ObjectId) -> ObjectId:
        old = self._store.file(ident)
        layout = None
        if old.layout is not None:
            plain = self._store.get_object(old.layout, FrameKind.LAYOUT)
            layout = self._session.put_object(FrameKind.LAYOUT, plain)
        leaves = [(self._content(leaf, FrameKind.LEAF), size) for leaf, size in old.leaves()]
        return self._session.put_object(FrameKind.FILE, encode_file(FileContent.of(leaves, layout=layout)))

    def _leaf(self, ident: ObjectId) -> ObjectId:
        old = self._store.leaf(ident)
        ids = b"".join(self._chunks(list(split(old.ids))))
        return self._session.put_object(FrameKind.LEAF, encode_leaf(msgspec.structs.replace(old, ids=ids)))

    def _chunk(self, ident: ObjectId) -> ObjectId:
        return self._chunks([ident])[0]

    def _chunks(self, ids: Sequence[bytes]) -> list[bytes]:
        missing = [ident for ident in dict.fromkeys(ids) if ident not in self._new]
        for at in range(0, len(missing), _BATCH):
            lot = missing[at : at + _BATCH]
            plains = {self._session.crypt.chunk_id(memoryview(p)): p for p in self._reader.chunks(lot)}
            self._new.update(zip(lot, plains, strict=True))
            there = self._session.lookup_many(list(plains))
            fresh = [(new, plain) for (new, plain), known in zip(plains.items(), there, strict=True) if not known]
            self._session.put_chunks([chunk_codec.encode(memoryview(plain), new) for new, plain in fresh])
            self._done += sum(map(len, plains.values()))
            self._progress("copy", self._done, 0)
        return [self._new[ident] for ident in ids]

    _makers: Final[Mapping[int, Callable[[_Copier, ObjectId], ObjectId]]] = {
        FrameKind.TREE: _tree,
        FrameKind.FILE: _file,
        FrameKind.LEAF: _leaf,
        FrameKind.CHUNK: _chunk,
    }


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Meta in which whole ids of snapshots are those that they have here."""
    if isinstance(value, str) and len(value) == 2 * ID_SIZE:
        return names.get(value, value)
    if isinstance(value, dict):
        return {key: _renamed(one, names) for key, one in value.items()}
    return [_renamed(one, names) for one in value] if isinstance(value, list) else value
