"""Reading: trees, and any bytes of any stored file, checked. Made by `Repository.reader`.

The mount, the pager, export and the snapshot writer (for the parent's bytes) all read here. A reader is a `ChunkReader`
(chunk_reader.py) that also looks up paths and opens files; the `StoredFile` that it opens asks it for chunks.
"""

from __future__ import annotations

from ijfs_engine._native.page_scan import PAGE
from ijfs_engine.errors import CorruptError, IjfsError, UnknownNameError
from ijfs_engine.format.extents import zero_leaf
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.page_layout import PageLayout
from ijfs_engine.format.records import Entry, FileContent, ObjectId, Tree
from ijfs_engine.read.chunk_reader import ChunkReader
from ijfs_engine.read.stored_file import StoredFile


class Reader(ChunkReader):
    """Thread-safe reads of what a repository holds, with a bounded cache of decoded chunks."""

    # --- Trees

    def tree(self, ident: ObjectId) -> Tree:
        """A directory. CorruptError."""
        return self.store.tree(ident)

    def lookup(self, root: ObjectId, path: str | bytes) -> Entry:
        """The entry at a path below a tree, symbolic links not followed. UnknownNameError."""
        name = path.encode(errors="surrogateescape") if isinstance(path, str) else path
        parts = [part for part in name.split(b"/") if part]
        if not parts:
            raise UnknownNameError("an empty path names no entry", hint="the top of a snapshot is its root tree")
        tree: ObjectId | None = root
        for number, part in enumerate(parts):
            entry = self.tree(tree).find(part) if tree is not None else None
            if entry is None:
                break
            if number == len(parts) - 1:
                return entry
            tree = entry.content if entry.kind == "d" else None
        shown = b"/".join(parts[: number + 1]).decode(errors="backslashreplace")
        raise UnknownNameError(f"there is no '{shown}' in this snapshot", hint="`ijfs ls SNAPSHOT` shows what there is")

    # --- Files

    def open(self, content: Entry | ObjectId | None) -> StoredFile:
        """A file by its entry or content id. IjfsError for an entry that is no file, CorruptError."""
        if isinstance(content, Entry):
            if content.kind != "f":
                raise IjfsError(f"'{content.name.decode(errors='backslashreplace')}' is not a file")
            stored = self.open(content.content)
            if stored.size != content.size:
                raise CorruptError(f"a file has {stored.size} bytes stored, its entry says {content.size}")
            return stored
        if content is None:
            return StoredFile(self, [], None)
        kind = self.store.kind_of(content)
        if kind == FrameKind.CHUNK:
            return StoredFile(self, [(content, self._chunk_size(content))], None, single=True)
        if kind == FrameKind.LEAF:
            return StoredFile(self, [(content, self.leaf(content).size)], None)
        if kind == FrameKind.FILE:
            return self._open_file(self.store.file(content))
        raise CorruptError(f"{content.hex()[:12]} is the content of a file, but names none")

    def zero_leaf_bytes(self, content: ObjectId) -> int:
        """How many bytes of a file lie in leaves that are all zeros. Their ids tell: no leaf is read. CorruptError."""
        if self.store.kind_of(content) != FrameKind.FILE:
            return 0
        return sum(
            size for ident, size in self.store.file(content).leaves() if ident == zero_leaf(size, self.store.crypt)
        )

    def _chunk_size(self, ident: bytes) -> int:
        info = self.store.chunk_info([ident])[0]
        if info is None:
            raise CorruptError(f"chunk {ident.hex()[:12]} is missing")
        return info.plain

    def _open_file(self, content: FileContent) -> StoredFile:
        layout = None
        if content.layout is not None:
            layout = PageLayout.decode(self.store.get_object(content.layout, FrameKind.LAYOUT))
            if layout.pages * PAGE != content.size:
                raise CorruptError("a page layout and its file differ in length")
        return StoredFile(self, list(content.leaves()), layout)
