"""Reading: trees, and any bytes of any stored file, checked. Made by `Repository.reader`.

The mount, the pager, export and ingest (for the parent's bytes) all read here. A chunk is fetched and decoded once
while it is in the cache, however many threads want it, and is checked against its id before anyone sees a byte of it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from ijfs_engine._native.bulk import BulkRead
from ijfs_engine._native.native import PAGE
from ijfs_engine.errors import CorruptError, IjfsError, UnknownNameError
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.chunk_codec import Plain
from ijfs_engine.format.extents import LeafMap
from ijfs_engine.format.frames import ID_SIZE, MAX_CHUNK, EncodedChunk, FrameKind
from ijfs_engine.format.page_layout import PageLayout
from ijfs_engine.format.records import Entry, FileContent, Leaf, ObjectId, Tree
from ijfs_engine.read import bulk
from ijfs_engine.read.stored_file import BATCH_CHUNKS
from ijfs_engine.read.stored_file import Extent as Extent
from ijfs_engine.read.stored_file import StoredFile as StoredFile
from ijfs_engine.storage.index import NO_PLACE
from ijfs_engine.storage.object_store import Store
from ijfs_engine.util import io_wait
from ijfs_engine.util.byte_lru import ByteLru
from ijfs_engine.util.pipeline import cores, thread_pool

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

# Threads of one large read: each has a buffer, and the bandwidth of memory ends the gain.
_MOST_PARTS: Final = 16
_LEAF_CACHE: Final = 8 << 20
_LEAVES_AT_ONCE: Final = 16
# What a decoded leaf takes besides its bytes: the list of extent positions.
_LEAF_OVERHEAD: Final = 512


class _Loading:
    """Chunks that one thread is loading, for the others that want them too."""

    __slots__ = ("done", "error", "plains")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.plains: dict[bytes, Plain] = {}
        self.error: BaseException | None = None

    def result(self, ident: bytes) -> Plain:
        """Waits. Raises what the loading thread met, if that was before this chunk."""
        self.done.wait()
        plain = self.plains.get(ident)
        if plain is None:
            raise self.error or CorruptError(f"chunk {ident.hex()[:12]} is missing")
        return plain


class Reader:
    """Thread-safe reads out of a store, with a bounded cache of decoded chunks.

    `delay_s` is waited before each request to the store, to stand for a place that is far away (one request may be
    for many chunks, and several threads wait at the same time).
    """

    def __init__(self, store: Store, *, cache_bytes: int = 64 << 20, delay_s: float = 0.0) -> None:
        self.store = store
        self.delay_s = delay_s
        self._chunks: ByteLru[Plain] = ByteLru(cache_bytes)
        self._leaves: ByteLru[LeafMap] = ByteLru(_LEAF_CACHE)
        self._pending: dict[bytes, _Loading] = {}
        self._lock = threading.Lock()
        self._ahead: ThreadPoolExecutor | None = None
        self._parts: ThreadPoolExecutor | None = None

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
        raise UnknownNameError(f"there is no '{shown}' in this snapshot", hint="`ijfs ls` shows what there is")

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

    def leaf(self, ident: ObjectId) -> LeafMap:
        """A leaf, cached. CorruptError."""
        found = self._leaves.get(ident)
        if found is None:
            leaf = self.store.leaf(ident)
            found = LeafMap(leaf)
            self._leaves.put(ident, found, _leaf_bytes(leaf))
        return found

    def leaves(self, idents: Sequence[ObjectId]) -> list[LeafMap]:
        """Many leaves in the order asked, those that are not cached in few reads. CorruptError."""
        found = {ident: known for ident in idents if (known := self._leaves.get(ident)) is not None}
        missing = [ident for ident in dict.fromkeys(idents) if ident not in found]
        for ident, leaf in zip(missing, self.store.leaves(missing) if missing else (), strict=True):
            found[ident] = LeafMap(leaf)
            self._leaves.put(ident, found[ident], _leaf_bytes(leaf))
        return [found[ident] for ident in idents]

    def locate(self, idents: Sequence[ObjectId]) -> None:
        """Load leaves and find out where their chunks are, ahead of large reads; as many as are kept. CorruptError."""
        for at in range(0, len(idents), _LEAVES_AT_ONCE):
            if self._leaves.used < self._leaves.limit * 3 // 4:
                leaves = self.leaves(idents[at : at + _LEAVES_AT_ONCE])
                self.place(leaves)
                if at == 0:
                    self.store.expect(row for leaf in leaves for row in leaf.rows())

    def place(self, leaves: Sequence[LeafMap]) -> None:
        """Look up where the chunks of these leaves are, for large reads, in one go and once for each leaf."""
        new = [leaf.columns for leaf in leaves if leaf.columns.rows is None]
        ids = [columns.ids[at : at + ID_SIZE] for columns in new for at in range(0, len(columns.ids), ID_SIZE)]
        rows = iter(self.store.chunk_rows(ids) if ids else ())
        for columns in new:
            count = len(columns.ids) // ID_SIZE
            columns.place(b"".join(row or NO_PLACE for row in itertools.islice(rows, count)))

    # --- Chunks

    def chunk(self, ident: bytes) -> Plain:
        """The plain bytes of one chunk, checked. CorruptError."""
        return self.chunks([ident])[0]

    def chunks(self, ids: Sequence[bytes]) -> list[Plain]:
        """The plain bytes of chunks, in the order asked; the caller bounds how many. CorruptError."""
        have: dict[bytes, Plain] = {}
        mine: list[bytes] = []
        theirs: dict[bytes, _Loading] = {}
        loading = _Loading()
        with self._lock:
            for ident in dict.fromkeys(ids):
                cached = self._chunks.get(ident)
                if cached is not None:
                    have[ident] = cached
                elif ident in self._pending:
                    theirs[ident] = self._pending[ident]
                else:
                    mine.append(ident)
                    self._pending[ident] = loading
        if mine:
            self._load(mine, loading)
            have.update(loading.plains)
        for ident, other in theirs.items():
            have[ident] = other.result(ident)
        return [have[ident] for ident in ids]

    def _load(self, wanted: list[bytes], loading: _Loading) -> None:
        """Fetch and decode chunks that no other thread is loading; whoever waits for them gets the same answer."""
        try:
            for chunk in self._fetch(wanted):
                plain = self._decode(chunk)
                loading.plains[chunk.id] = plain
                self._chunks.put(chunk.id, plain, len(plain))
        except BaseException as error:
            loading.error = error
            raise
        finally:
            with self._lock:
                for ident in wanted:
                    del self._pending[ident]
            loading.done.set()

    def _fetch(self, ids: list[bytes]) -> list[EncodedChunk]:
        io_wait.pause(self.delay_s)
        return self.store.get_chunks(ids)

    def _decode(self, chunk: EncodedChunk) -> Plain:
        return chunk_codec.decode(chunk, lambda ids: self._bases(ids, chunk.depth))

    def _bases(self, ids: Sequence[bytes], depth: int) -> list[Plain]:
        """The base chunks of a chunk of this depth. Not through `_pending`: a loader never waits for another loader.

        (Two threads that each loaded a chunk the other's chunk is based on would wait forever.)
        """
        found = {ident: plain for ident in ids if (plain := self._chunks.get(ident)) is not None}
        missing = [ident for ident in ids if ident not in found]
        if len(missing) > 1:
            for ident, plain in bulk.whole(missing, depth, self.store, self._bases, self.delay_s):
                found[ident] = plain
                self._chunks.put(ident, plain, len(plain))
            missing = [ident for ident in missing if ident not in found]
        for chunk in self._fetch(missing) if missing else ():
            if chunk.depth >= depth:
                raise CorruptError(f"chunk {chunk.id.hex()[:12]} is the base of one that is not deeper")
            found[chunk.id] = decoded = self._decode(chunk)
            self._chunks.put(chunk.id, decoded, len(decoded))
        return [found[ident] for ident in ids]

    def fill(self, what: BulkRead) -> None:
        """Get what is wanted, past the cache but for what is there and what was wanted only in part. CorruptError."""
        bulk.fill(what, self.store, self._chunks, self._bases, self._one, self.delay_s)

    def _one(self, ident: bytes) -> Plain:
        return self._decode(self._fetch([ident])[0])

    def holds(self, leaves: Iterable[bytes], chunks: Iterable[bytes | None] = ()) -> bool:
        """Whether these leaves and chunks are in the caches now; another thread may drop them a moment later."""
        return all(ident in self._leaves for ident in leaves) and all(
            ident is None or ident in self._chunks for ident in chunks
        )

    # --- Ahead of need

    def prefetch(self, ids: Iterable[bytes]) -> None:
        """Start loading chunks into the cache in the background; a failure shows when they are read."""
        wanted = [ident for ident in dict.fromkeys(ids) if ident not in self._chunks]
        per_batch = max(1, min(BATCH_CHUNKS // 4, self._chunks.limit // 4 // MAX_CHUNK))
        for at in range(0, len(wanted), per_batch):
            self._background(self.chunks, wanted[at : at + per_batch])

    def _background(self, call: Callable[[list[bytes]], object], ids: list[bytes]) -> None:
        with self._lock:
            if self._ahead is None:
                self._ahead = thread_pool(4, "ijfs-ahead")
            self._ahead.submit(call, ids)

    def beside(self, call: Callable[[], int]) -> Future[int]:
        """Run a part of a large read in a thread; parts do not wait for one another."""
        with self._lock:
            if self._parts is None:
                self._parts = thread_pool(min(cores(), _MOST_PARTS), "ijfs-read")
            return self._parts.submit(call)

    def close(self) -> None:
        """Stop what `prefetch` started and drop the caches; reads after this still work."""
        with self._lock:
            pools = [pool for pool in (self._ahead, self._parts) if pool is not None]
            self._ahead = self._parts = None
        for pool in pools:
            pool.shutdown(cancel_futures=True)
        self._chunks.clear()
        self._leaves.clear()


def _leaf_bytes(leaf: Leaf) -> int:
    return 2 * len(leaf.ids) + 64 * len(leaf.index) + _LEAF_OVERHEAD
