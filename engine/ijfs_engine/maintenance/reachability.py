"""What snapshots reach: the walk from roots through trees, files and leaves to chunks and their bases.

gc marks with it, du counts with it, fsck checks with it. Objects are visited once each, in batches that read the packs
in large stretches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import compress
from typing import Final, NamedTuple

from ijfs_engine._native.idset import ChunkUse, IdSet
from ijfs_engine.errors import CorruptError
from ijfs_engine.format.frames import ID_SIZE, FrameKind
from ijfs_engine.format.place import Place
from ijfs_engine.format.records import FileContent, Leaf, ObjectId, Snapshot, Tree
from ijfs_engine.storage.index import BASES, OBJECTS, Index
from ijfs_engine.storage.object_store import Store

_BATCH: Final = 512

OnError = Callable[[ObjectId, int, CorruptError], None]
"""Called with an object that cannot be read and the kind it should have."""


class Children(NamedTuple):
    """What one object points at: (kind, id) of objects, and chunk ids end to end; for a tree its files' sizes, and of a
    tree, file or leaf the record itself."""

    objects: list[tuple[int, ObjectId]]
    chunks: bytes
    logical: int = 0
    record: Tree | FileContent | Leaf | None = None


class TreeWalker:
    """Expands objects into what they point at."""

    def __init__(self, store: Store, index: Index, *, elsewhere: bool = False) -> None:
        """With `elsewhere`, what is walked may be where the store looks else, and not in the index."""
        self._store = store
        self._index = index
        self._elsewhere = elsewhere

    def expand(
        self, kind: int, ids: Sequence[ObjectId], on_error: OnError | None = None
    ) -> list[tuple[ObjectId, Children]]:
        """The children of objects of one kind. CorruptError; with `on_error`, the sound ones and a call for others."""
        try:
            return list(zip(ids, self._expand(kind, ids), strict=True))
        except CorruptError:
            if on_error is None:
                raise
        found: list[tuple[ObjectId, Children]] = []
        for ident in ids:
            try:
                found.append((ident, self._expand(kind, [ident])[0]))
            except CorruptError as error:
                on_error(ident, kind, error)
        return found

    def with_bases(self, chunks: bytes) -> bytes:
        """The chunk ids, and those of all chunks that their codecs need."""
        known = dict.fromkeys(split(chunks))
        edge = list(known)
        while edge:
            with self._index.read() as view:
                if not view.count(BASES):
                    break
                rows = view.bases(edge)
            edge = [base for row in rows if row for base in split(row) if base not in known]
            known.update(dict.fromkeys(edge))
        return b"".join(known)

    def _expand(self, kind: int, ids: Sequence[ObjectId]) -> list[Children]:
        match kind:
            case FrameKind.SNAPSHOT:
                return [_snapshot(one) for one in self._store.snapshots(ids)]
            case FrameKind.TREE:
                return self._trees(self._store.trees(ids))
            case FrameKind.FILE:
                return [_file(one) for one in self._store.files(ids)]
            case FrameKind.LEAF:
                return [_leaf(one) for one in self._store.leaves(ids)]
            case FrameKind.LAYOUT:
                self._store.check_objects(ids, kind)
                return [Children([], b"") for _ in ids]
        raise CorruptError(f"an object of kind {kind} is in a place where none may be")

    def _trees(self, trees: Sequence[Tree]) -> list[Children]:
        contents = [entry.content for tree in trees for entry in tree.entries if entry.content and entry.kind != "d"]
        if self._elsewhere:
            rows = self._store.object_rows(contents)
        else:
            with self._index.read() as view:
                rows = view.get_many(OBJECTS, contents)
        kinds = {
            ident: Place.decode(row).tag if row is not None else FrameKind.CHUNK
            for ident, row in zip(contents, rows, strict=True)
        }
        return [_tree(tree, kinds) for tree in trees]


def walk(
    walker: TreeWalker,
    snapshots: Iterable[ObjectId],
    seen: set[ObjectId],
    *,
    on_error: OnError | None = None,
    exclude: Set[ObjectId] = frozenset(),
    leaves: bool = True,
) -> Iterator[tuple[int, ObjectId, Children]]:
    """Each object that snapshots reach, with its kind and children, once: `seen` grows by it.

    What is in `exclude`, and so all that is below it, is left out; without `leaves`, leaves are not read. CorruptError
    for what cannot be read, unless there is an `on_error`.
    """

    def fresh(ids: Iterable[ObjectId]) -> list[ObjectId]:
        found = [ident for ident in dict.fromkeys(ids) if ident not in seen and ident not in exclude]
        seen.update(found)
        return found

    pending: dict[int, list[ObjectId]] = {kind: [] for kind in FrameKind.NAMES}
    pending[FrameKind.SNAPSHOT] = fresh(snapshots)
    while any(pending.values()):
        # Leaves first, so that what is waiting stays small.
        kind = next(kind for kind in sorted(pending) if pending[kind])
        batch = pending[kind][-_BATCH:]
        del pending[kind][-_BATCH:]
        for ident, children in walker.expand(kind, batch, on_error):
            for child_kind, child in children.objects:
                if child not in seen and child not in exclude:
                    seen.add(child)
                    if child_kind != FrameKind.LEAF or leaves:
                        pending[child_kind].append(child)
            yield kind, ident, children


class ReachableSet:
    """Everything that the snapshots added so far reach. `objects` are exact, `chunks` a compact set, and so are
    `bases`: what chunks are stored against, whether or not a snapshot has it itself.

    With `exclude`, what that one reaches, and so all that is below it, is left out; without `leaves`, leaves are not
    read: their chunks are then missing. `use` is told what of each chunk is named.
    """

    def __init__(
        self,
        store: Store,
        index: Index,
        on_error: OnError | None = None,
        *,
        exclude: ReachableSet | None = None,
        leaves: bool = True,
        use: ChunkUse | None = None,
    ) -> None:
        self._use = use
        self.objects: set[ObjectId] = set()
        self.chunks = IdSet()
        self.bases = IdSet()
        self._index = index
        self._walker = TreeWalker(store, index)
        self._on_error = on_error
        self._exclude = exclude.objects if exclude is not None else frozenset[ObjectId]()
        self._leaves = leaves

    def has(self, ids: Sequence[bytes]) -> list[bool]:
        """For each id of a chunk or an object: is it reached?"""
        joined = b"".join(ids)
        found = zip(self.chunks.has(joined), self.bases.has(joined), ids, strict=True)
        return [bool(chunk or base) or ident in self.objects for chunk, base, ident in found]

    def is_direct(self, ids: Sequence[bytes]) -> list[bool]:
        """For each chunk id: does a snapshot have it itself?"""
        return [bool(chunk) for chunk in self.chunks.has(b"".join(ids))]

    def look_for_bases_again(self) -> None:
        """Chunks were stored whole: forget what they were stored against."""
        self.bases = IdSet()
        self._mark_bases()

    def add(self, snapshots: Iterable[ObjectId]) -> None:
        """Walk snapshots too. CorruptError for what cannot be read, unless there is an `on_error`."""
        marked = len(self.chunks)
        found = walk(
            self._walker, snapshots, self.objects, on_error=self._on_error, exclude=self._exclude, leaves=self._leaves
        )
        for _, _, children in found:
            self.chunks.add(children.chunks)
            if self._use is not None:
                _count(self._use, children)
        if len(self.chunks) != marked:
            self._mark_bases()

    def _mark_bases(self) -> None:
        """A base is needed wherever what is stored against it is. Chains are short, so a few looks at all of the table
        are quicker than one for each chunk: 0.3 µs a row against 2."""
        before = -1
        while len(self.bases) != before:
            before = len(self.bases)
            for rows in self._index.scan(BASES):
                keys = b"".join(rows.keys)
                needed = map(max, self.chunks.has(keys), self.bases.has(keys))
                self.bases.add(b"".join(compress(rows.values, needed)))


def _count(use: ChunkUse, children: Children) -> None:
    """What an object names of chunks."""
    if isinstance(children.record, Leaf):
        leaf = children.record
        use.name(leaf.ids, leaf.index, leaf.offset, leaf.length)
    else:
        use.name_whole(children.chunks)


def split(ids: bytes) -> Iterator[bytes]:
    """32-byte ids that stand end to end, one by one."""
    return (ids[at : at + ID_SIZE] for at in range(0, len(ids), ID_SIZE))


def _snapshot(snapshot: Snapshot) -> Children:
    return Children([(FrameKind.TREE, snapshot.root)], b"")


def _tree(tree: Tree, kinds: dict[ObjectId, int]) -> Children:
    objects: list[tuple[int, ObjectId]] = []
    chunks: list[bytes] = []
    for entry in tree.entries:
        if entry.content is None:
            continue
        kind = FrameKind.TREE if entry.kind == "d" else kinds[entry.content]
        if kind == FrameKind.CHUNK:
            chunks.append(entry.content)
        else:
            objects.append((kind, entry.content))
    logical = sum(entry.size for entry in tree.entries if entry.kind == "f")
    return Children(objects, b"".join(chunks), logical, tree)


def _file(content: FileContent) -> Children:
    objects: list[tuple[int, ObjectId]] = [(FrameKind.LEAF, leaf) for leaf, _ in content.leaves()]
    if content.layout is not None:
        objects.append((FrameKind.LAYOUT, content.layout))
    return Children(objects, b"", record=content)


def _leaf(leaf: Leaf) -> Children:
    return Children([], leaf.ids, record=leaf)
