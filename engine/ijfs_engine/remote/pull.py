"""`ijfs pull`: branches and tags of a remote, whole: what they reach is copied here, and needs the remote no longer.

Chunks come through the cache and are checked against their ids before they count. A branch that went on at both ends
stays as it is; the other end's comes beside it, as `NAME@REMOTE`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from ijfs_engine.errors import CorruptError, UnknownNameError
from ijfs_engine.format.place import Place
from ijfs_engine.format.records import ObjectId
from ijfs_engine.maintenance.reachability import TreeWalker, split, walk
from ijfs_engine.read.reader import Reader
from ijfs_engine.remote.known import KnownTree
from ijfs_engine.storage import listed
from ijfs_engine.storage.index import REFS, SNAPSHOTS, Index
from ijfs_engine.storage.known_damage import lost_packs
from ijfs_engine.storage.object_store import Store
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.refs import ref_name
from ijfs_engine.storage.session import Session
from ijfs_engine.util.progress import Progress
from ijfs_engine.write.proving_session import ProvingSession

_BATCH: Final = 256
"""Chunks at a time: 16 MiB on average."""


class PullReport(NamedTuple):
    """What came. `refs`: local name → where it is now; `apart`: their name → the one it has here."""

    snapshots: list[ObjectId]
    refs: dict[str, ObjectId]
    apart: dict[str, str]
    stored: int


class Source(NamedTuple):
    """Where a pull reads: a store that looks elsewhere, and where that has what chunks are stored against."""

    store: Store
    tree: KnownTree
    remote: str
    bases: Callable[[Sequence[bytes]], list[bytes]]


def pull(
    repository: OpenRepository, source: Source, refs: Mapping[str, ObjectId], progress: Progress | None = None
) -> PullReport:
    """Have refs (`branch/NAME`, `tag/NAME`) of a remote here, and what they reach. CorruptError, StorageError; then
    nothing has become visible."""
    new = _new_snapshots(repository, source.tree, refs.values())
    session = ProvingSession.where_needed(repository, lost_packs(repository.index, repository.directory.packs))
    with session:
        copier = _Copier(repository.index, source, session, progress or (lambda phase, done, total: None))
        copier.copy(new)
        heads, apart = _plan(repository, source, refs)
        made = {ident: source.tree.snapshot(ident).created_ns for ident in new}
        session.commit_copies(made, heads, f"pull from {source.remote}")
    return PullReport(new, heads, apart, session.stored_bytes)


def _new_snapshots(repository: OpenRepository, tree: KnownTree, heads: Iterable[ObjectId]) -> list[ObjectId]:
    """What is not listed here of some snapshots there and their ancestors, oldest first."""
    found: dict[ObjectId, int] = {}
    stack = list(heads)
    with repository.index.read() as view:
        while stack:
            ident = stack.pop()
            if ident not in found and tree.listing(ident) is not None and view.get(SNAPSHOTS, ident) is None:
                snapshot = tree.snapshot(ident)
                found[ident] = snapshot.created_ns
                stack += snapshot.parents
    return sorted(found, key=lambda ident: (found[ident], ident))


class _Copier:
    """Puts what snapshots reach into a session."""

    def __init__(self, index: Index, source: Source, session: Session, progress: Progress) -> None:
        self._index = index
        self._source = source
        self._session = session
        self._progress = progress
        self._seen: set[ObjectId] = set()

    def copy(self, snapshots: Sequence[ObjectId]) -> None:
        """Objects and chunks, and what those are stored against. CorruptError, StorageError."""
        walker = TreeWalker(self._source.store, self._index, elsewhere=True)
        chunks: dict[bytes, None] = {}
        objects: dict[int, list[ObjectId]] = {}
        for kind, ident, children in walk(walker, snapshots, self._seen):
            objects.setdefault(kind, []).append(ident)
            chunks.update(dict.fromkeys(split(children.chunks)))
        self._chunks(self._with_bases(list(chunks)))
        for kind, idents in objects.items():
            for ident in idents:
                self._session.put_object(kind, self._source.store.get_object(ident, kind))

    def _with_bases(self, ids: list[bytes]) -> list[bytes]:
        """What is not here of chunks and of those they are stored against."""
        found: dict[bytes, None] = {}
        edge = ids
        while edge:
            here = self._session.lookup_many(edge)
            new = [ident for ident, there in zip(edge, here, strict=True) if not there and ident not in found]
            found.update(dict.fromkeys(new))
            edge = list(dict.fromkeys(split(b"".join(self._source.bases(new)))))
        return list(found)

    def _chunks(self, ids: Sequence[bytes]) -> None:
        """Shallow ones first, so that what they are stored against is here before; in the order of their packs."""
        rows = zip(ids, self._source.store.chunk_rows(ids), strict=True)
        places = [(place.depth, place.pack, place.offset, place.span, ident)
                  for ident, row in rows if row is not None for place in (Place.decode(row),)]  # fmt: skip
        places.sort()
        done, total = 0, sum(place[3] for place in places)
        with contextlib.closing(Reader(self._source.store)) as reader:
            for at in range(0, len(places), _BATCH):
                batch = [place[4] for place in places[at : at + _BATCH]]
                reader.chunks(batch)  # checks each against its id
                self._session.put_chunks(self._source.store.get_chunks(batch))
                done += sum(place[3] for place in places[at : at + _BATCH])
                self._progress("pull", done, total)


def _plan(
    repository: OpenRepository, source: Source, refs: Mapping[str, ObjectId]
) -> tuple[dict[str, ObjectId], dict[str, str]]:
    """Where refs here are to move, and which of theirs get another name."""
    with repository.index.read() as view:
        here = {ref_name(key): ident for key, ident in view.items(REFS)}
    heads: dict[str, ObjectId] = {}
    apart: dict[str, str] = {}
    for name, ident in refs.items():
        old = here.get(name)
        if old is None or _descends(repository, source, ident, old):
            heads[name] = ident
        elif old != ident and not _descends(repository, source, old, ident):
            apart[name] = _free(here, f"{name}@{source.remote}", ident)
            heads[apart[name]] = ident
    return {name: ident for name, ident in heads.items() if here.get(name) != ident}, apart


def _free(taken: Mapping[str, ObjectId], wish: str, ident: ObjectId) -> str:
    number, name = 1, wish
    while taken.get(name, ident) != ident:
        number += 1
        name = f"{wish}.{number}"
    return name


def _descends(repository: OpenRepository, source: Source, ident: ObjectId, ancestor: ObjectId) -> bool:
    """Whether one snapshot comes from another, by what is known here and there."""
    seen: set[ObjectId] = set()
    stack = [ident]
    while stack:
        one = stack.pop()
        if one == ancestor:
            return True
        if one in seen:
            continue
        seen.add(one)
        if source.tree.listing(one) is not None:
            stack += source.tree.snapshot(one).parents
        else:
            with contextlib.suppress(UnknownNameError, CorruptError):
                stack += listed.parents(repository, one)
    return False
