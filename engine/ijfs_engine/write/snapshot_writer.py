"""SnapshotWriter: files, directories and CRIU image sets go in, a snapshot comes out. Made by `Repository.begin`.

The thread that calls it walks and opens; the bytes are stored by `file_writer.py`'s pool of threads. `import_directory`
is the whole of `ijfs import`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import msgspec

from ijfs_engine.errors import CorruptError, IjfsError, UnknownNameError
from ijfs_engine.format.records import Entry, ObjectId, Snapshot, Tree
from ijfs_engine.read.reader import Reader
from ijfs_engine.storage import listed
from ijfs_engine.storage.object_store import Store
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.session import Session
from ijfs_engine.storage.signatures import sign_as_set
from ijfs_engine.util.progress import Progress
from ijfs_engine.write.file_writer import FileWriter, OnStored
from ijfs_engine.write.fingerprints import expand_key
from ijfs_engine.write.image_sets import find_layouts, find_parent, is_image_directory
from ijfs_engine.write.kept_prints import KeptPrints
from ijfs_engine.write.proving_session import ProvingSession
from ijfs_engine.write.sources import Source
from ijfs_engine.write.tree_builder import (
    Attrs,
    OnDisk,
    TreeDirectory,
    blank_file,
    read_directory,
    split_name,
    split_path,
)


class SnapshotWriter:
    """Collects a snapshot. A context manager: leaving it without `commit` leaves nothing that is visible.

    Used from one thread; works with as many as there are cores. Sources are read while the call that names them lasts.
    """

    def __init__(
        self,
        store: Store,
        session: Session,
        parents: Sequence[Snapshot] = (),
        *,
        unread: Sequence[ObjectId] = (),
        anew: bool = False,
        progress: Progress | None = None,
        kept: KeptPrints | None = None,
    ) -> None:
        """`unread`: more parents, of which nothing is used; `anew` and `kept` are `begin`'s."""
        self.anew = anew
        """Whether the parent is not read, and what is stored counts only if it can be."""
        self._session = session
        self._parents = parents
        self._parent_ids = [*(parent.id for parent in parents), *unread]
        # The parent's chunks are read where something changed. With the kernel reading on behind each, a save in which
        # nearly nothing had changed took 103 ms in place of 86, one of a sibling 367 in place of 339.
        self._parent_store = store.without_readahead()
        self._reader = Reader(self._parent_store)
        self._key = expand_key(store.secret)
        self._worn = session.worn_chunks() if parents else set()
        self._root = TreeDirectory()
        self._kept = kept
        if kept is not None:
            kept.begin(self._key)
        self._files = FileWriter(session, self._key, progress, kept)
        self._links = 0

    @property
    def stored_bytes(self) -> int:
        """Pack bytes that this snapshot has added so far, metadata counted."""
        return self._session.stored_bytes

    @property
    def not_kept(self) -> dict[str, Any]:
        """What of the files that were added is in no snapshot: for its `meta`. Empty where all is kept."""
        if not self._files.flagged:
            return {}
        return {"chattr": "".join(sorted(self._files.flags)), "files": self._files.flagged}

    def add_directory(self, at: str, path: Path) -> None:
        """A tree from disk with all its metadata, its top standing at `at` ("" for the snapshot's top).

        CRIU images in it are understood. StorageError if something cannot be read.
        """
        found = read_directory(path)
        parts = split_path(at)
        self._graft(parts, found.top)
        for letters in found.flags:
            self._files.notice_flags(letters)
        files = found.files
        first_of: dict[tuple[int, int], OnDisk] = {}
        named = [*files, *found.linked]
        again = [file for file in named if file.inode and first_of.setdefault(file.inode, file) is not file]
        linked = {id(file) for file in again}
        groups: dict[tuple[bytes, ...], list[OnDisk]] = {}
        for file in files:
            if id(file) not in linked:
                groups.setdefault((*parts, *file.below), []).append(file)
        self._files.add_expected_bytes(sum(file.size for group in groups.values() for file in group))
        for where, group in groups.items():
            self._store_group(group[0].into, where, [(file.entry, file.path) for file in group])
        self._files.finish()
        self._link((first_of[file.inode], file) for file in again if file.inode)

    def add_images(self, at: str, files: Mapping[str, Source]) -> None:
        """A CRIU image set by name. Pages files are understood through their pagemaps and guided by the parent's."""
        groups: dict[tuple[bytes, ...], list[tuple[Entry, Source]]] = {}
        for name, source in files.items():
            above, last = split_name(f"{at}/{name}")
            groups.setdefault(tuple(above), []).append((blank_file(last, Attrs()), source))
        self._files.add_expected_bytes(sum(_size(source) for source in files.values()))
        for where, group in groups.items():
            self._store_group(self._root.descend(where), where, group)
        self._files.finish()

    def add_file(self, at: str, source: Source, *, attrs: Attrs | None = None) -> None:
        """One file."""
        above, name = split_name(at)
        self._files.add_expected_bytes(_size(source))
        self._files.store(source, _place(self._root.descend(above), blank_file(name, attrs or Attrs())))
        self._files.finish()

    def add_entries(self, entries: Iterable[tuple[str, Entry, Source | None]]) -> None:
        """Anything by path, with the metadata of its entry (the name is the path's last); in any order.

        A file's bytes come from its source; without one the entry's own `content` stands, as with `reuse`. Entries
        with the same `link` number are names of one file. Directories that are not named get plain metadata.
        """
        for at, entry, source in entries:
            *above, name = split_path(at)
            if entry.kind == "d":
                attrs = Attrs(entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs)
                self._root.descend([*above, name]).attrs = attrs
            elif source is None:
                self.reuse(at, entry)
            else:
                self._files.add_expected_bytes(_size(source))
                place = _place(self._root.descend(above), msgspec.structs.replace(entry, name=name))
                self._files.store(source, place)
        self._files.finish()

    def is_whole(self, entry: Entry) -> bool:
        """Whether a stored file may be reused: in a snapshot that is made anew, whether all of it can be read."""
        return not isinstance(self._session, ProvingSession) or self._session.is_whole(entry)

    def reuse(self, at: str, entry: Entry) -> None:
        """Something that a parent has, a whole directory perhaps, unread; it takes the name that `at` ends in. In a
        snapshot that is made anew, `is_whole` has to have said so."""
        above, name = split_name(at)
        self._root.descend(above).children[name] = msgspec.structs.replace(entry, name=name)

    def commit(
        self, *, message: str = "", branch: str | None = None, meta: Mapping[str, Any] | None = None
    ) -> Snapshot:
        """Make it durable, then visible; the branch, if one is named, moves to it in the same transaction."""
        size = self._root.size(self._reader.tree)
        self._root.settle_links()
        root = self._root.store(self._session)
        snapshot = self._session.commit_snapshot(
            root, parents=self._parent_ids, message=_storable(message), meta=dict(meta or {}), branch=branch, size=size
        )
        self.close()
        if self._kept is not None:
            self._kept.settle()
        sign_as_set(self._session.directory, snapshot.id)
        return snapshot

    def close(self) -> None:
        """Give up what is not committed. Safe to call twice, and after `commit`."""
        try:
            self._files.close()
            self._reader.close()
            self._parent_store.close()
        finally:
            self._session.abort()

    def __enter__(self) -> SnapshotWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _graft(self, parts: Sequence[bytes], found: TreeDirectory) -> None:
        if not parts:
            found.children.update(self._root.children)
            self._root = found
            return
        above = self._root.descend(parts[:-1])
        if parts[-1] in above.children:
            raise IjfsError(f"'{os.fsdecode(parts[-1])}' was added before")
        above.children[parts[-1]] = found

    def _store_group(self, into: TreeDirectory, where: Sequence[bytes], files: Sequence[tuple[Entry, Source]]) -> None:
        """The files of one directory: the pages files among them by what they mean, the others as they come."""
        images = find_layouts({entry.name: source for entry, source in files})
        tree = self._parent_tree(where) if images else None
        for entry, source in files:
            image = images.get(entry.name)
            parent = (
                find_parent(self._reader, tree, image, self._key, self._worn, self._kept) if image and tree else None
            )
            self._files.store(source, _place(into, entry), image.layout if image else None, parent)

    def _parent_tree(self, where: Sequence[bytes]) -> Tree | None:
        """The directory at the same place in the first parent that has one."""
        for parent in self._parents:
            try:
                top = self._reader.lookup(parent.root, b"/".join(where)).content if where else parent.root
            except UnknownNameError:
                continue
            if top is not None:
                return self._reader.tree(top)
        return None

    def _link(self, pairs: Iterable[tuple[OnDisk, OnDisk]]) -> None:
        """Give both names of each pair the first one's bytes, and the same link number."""
        for first, other in pairs:
            stored = first.into.children[first.entry.name]
            assert isinstance(stored, Entry)
            if not stored.link:
                self._links += 1
                stored = msgspec.structs.replace(stored, link=self._links)
                first.into.children[stored.name] = stored
            other.into.children[other.entry.name] = msgspec.structs.replace(stored, name=other.entry.name)


def begin(
    repository: OpenRepository,
    parents: Sequence[ObjectId],
    *,
    anew: bool = False,
    elsewhere: Sequence[ObjectId] = (),
    lost: Set[int] = frozenset(),
    progress: Progress | None = None,
    kept: KeptPrints | None = None,
) -> SnapshotWriter:
    """Start a snapshot whose bytes resemble those of `parents`. UnknownNameError, CorruptError, StorageError.

    `anew`: where a parent is damaged. It is not read then, and what is stored counts only if it can be read; so it does
    beside `lost` packs, and damaged ones. Nor are those parents read that are `elsewhere`: nothing that is stored here
    may count on what is not. `kept` is `Repository.begin`'s.
    """
    # The session first: from then on gc takes nothing that the parents reach.
    repository.directory.check_writable()
    session = ProvingSession(repository, lost=lost) if anew else ProvingSession.where_needed(repository, lost)
    try:
        near = [parent for parent in parents if parent not in elsewhere]
        if anew:
            listed.check_listed(repository, near)
            return SnapshotWriter(repository.store, session, unread=parents, anew=True, progress=progress, kept=kept)
        snapshots = tuple(listed.snapshot(repository, parent) for parent in near)
        return SnapshotWriter(repository.store, session, snapshots, unread=elsewhere, progress=progress, kept=kept)
    except BaseException:
        session.abort()
        raise


def _add(writer: SnapshotWriter, path: Path) -> None:
    writer.add_directory("images" if is_image_directory(path) else "files", path)


def _storable(message: str) -> str:
    """A message as UTF-8 has it: what cannot be encoded is made visible."""
    return message.encode("utf-8", "backslashreplace").decode()


def _place(into: TreeDirectory, entry: Entry) -> OnStored:
    def place(content: ObjectId | None, size: int) -> None:
        into.children[entry.name] = msgspec.structs.replace(entry, content=content, size=size)

    return place


def _size(source: Source) -> int:
    if isinstance(source, Path):
        return source.stat().st_size if source.is_file() else 0
    return memoryview(source).nbytes if isinstance(source, bytes) else source.nbytes


class Begins(Protocol):
    """A repository as far as an import needs it."""

    def begin(
        self, parents: Sequence[ObjectId] = (), *, anew: bool = False, progress: Progress | None = None
    ) -> SnapshotWriter:
        """`Repository.begin`."""


def import_directory(
    repository: Begins,
    path: Path,
    *,
    parents: Sequence[ObjectId] = (),
    message: str = "",
    branch: str | None = None,
    meta: Mapping[str, Any] | None = None,
    add: Callable[[SnapshotWriter, Path], None] | None = None,
    on_damage: Callable[[CorruptError], None] | None = None,
    progress: Progress | None = None,
) -> Snapshot:
    """Store a directory as a snapshot: a CRIU image set at `images/`, any other at `files/`, or as `add` adds it.
    StorageError.

    What is not kept is in the snapshot's meta, as `not_kept`: {"chattr": letters, "files": how many have some}. Where a
    parent is damaged, `on_damage` is called, and it is stored without it.
    """

    def store(*, anew: bool) -> Snapshot:
        with repository.begin(parents, anew=anew, progress=progress) as writer:
            (add or _add)(writer, path)
            lost = {"not_kept": writer.not_kept} if writer.not_kept else {}
            return writer.commit(message=message, branch=branch, meta={**(meta or {}), **lost})

    try:
        return store(anew=False)
    except CorruptError as error:
        if not parents:
            raise
        if on_damage is not None:
            on_damage(error)
    return store(anew=True)
