"""What trees, files and leaves say of one another, held against what is there: the part of fsck that a reader would
trip over file by file.

No disk and no accident makes a record that is wrong, since its id is the hash of it; a program does, or somebody who
wants to see what a reader makes of it. Nothing repairs one: the snapshot can only be removed.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from typing import Final

from ijfs_engine._native.idset import ChunkTable
from ijfs_engine._native.page_scan import PAGE
from ijfs_engine.errors import CorruptError
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.page_layout import PageLayout
from ijfs_engine.format.records import Entry, FileContent, Leaf, ObjectId, Tree
from ijfs_engine.maintenance.pack_check import Finding
from ijfs_engine.maintenance.reachability import Children
from ijfs_engine.storage.object_store import Store

_FILES: Final = (FrameKind.LEAF, FrameKind.FILE)
_FIRST: Final = array("I", [0])


class RecordCheck:
    """Takes the objects of a walk one by one; at its end `findings` has all that does not agree."""

    def __init__(self, store: Store, chunks: ChunkTable) -> None:
        self._store = store
        self._chunks = chunks
        self._sizes: dict[ObjectId, int] = {}
        self._claims: dict[ObjectId, int] = {}
        self._found: dict[ObjectId, Finding] = {}

    def take(self, ident: ObjectId, children: Children) -> None:
        """Look at one object."""
        match children.record:
            case Tree() as tree:
                kinds = {child: kind for kind, child in children.objects}
                for entry in tree.entries:
                    self._entry(ident, entry, kinds)
            case FileContent() as content:
                self._file(ident, content)
            case Leaf() as leaf:
                self._sizes[ident] = leaf.size
                if not self._chunks.fits(leaf.ids, leaf.index, leaf.offset, leaf.length):
                    self._add(ident, "a leaf names bytes that its chunk does not have")

    def findings(self) -> Iterator[Finding]:
        """What was wrong, once the walk is at its end."""
        for ident, claimed in self._claims.items():
            size = self._sizes.get(ident, claimed)
            if size != claimed:
                self._add(ident, f"has {size} bytes, and what names it says {claimed}")
        yield from self._found.values()

    def _entry(self, tree: ObjectId, entry: Entry, kinds: dict[ObjectId, int]) -> None:
        if entry.kind != "f":
            return
        name = os.fsdecode(entry.name)
        if entry.content is None:
            if entry.size:
                self._add(tree, f"the file {name!r} has no bytes, and its entry says {entry.size}")
            return
        kind = kinds.get(entry.content, FrameKind.CHUNK)
        if kind in _FILES:
            self._claim(tree, entry.content, entry.size)
        elif kind != FrameKind.CHUNK:
            self._add(tree, f"the file {name!r} has a {FrameKind.NAMES[kind]} for its bytes")
        elif not self._is_chunk_of(entry.content, entry.size):
            self._add(tree, f"the file {name!r} has another size than its entry says, {entry.size}")

    def _file(self, ident: ObjectId, content: FileContent) -> None:
        self._sizes[ident] = content.size
        for leaf, size in content.leaves():
            self._claim(ident, leaf, size)
        if content.layout is None:
            return
        try:
            layout = PageLayout.decode(self._store.get_object(content.layout, FrameKind.LAYOUT))
        except CorruptError:
            return  # the walk says so
        if layout.pages * PAGE != content.size:
            self._add(ident, "a page layout and its file differ in length")

    def _claim(self, claimant: ObjectId, content: ObjectId, size: int) -> None:
        if self._claims.setdefault(content, size) != size:
            self._add(claimant, f"says of {content.hex()[:12]} another size than others do, {size}")

    def _is_chunk_of(self, chunk: ObjectId, size: int) -> bool:
        """Whether a chunk has so many bytes; one that is not there is named elsewhere."""
        if size >= 1 << 31:
            return False
        sizes = (array("I", [size]), array("I", [size + 1]))
        fits, fits_more = (self._chunks.fits(chunk, _FIRST, _FIRST, length) for length in sizes)
        return fits and (not fits_more or not self._is_there(chunk))

    def _is_there(self, chunk: ObjectId) -> bool:
        return self._chunks.need(chunk) == b"\1"

    def _add(self, ident: ObjectId, message: str) -> None:
        self._found.setdefault(ident, Finding("content", ident, ident.hex(), message))
