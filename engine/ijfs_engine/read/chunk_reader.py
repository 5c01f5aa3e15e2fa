"""Chunks and leaves out of a store, each fetched, decoded and checked once while it is in a cache.

The lowest part of reading: `StoredFile` (stored_file.py) asks it for the bytes of a file, `Reader` (reader.py) is one
that also opens files. A chunk is checked against its id before anyone sees a byte of it, and however many threads want
one, it is loaded once.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from ijfs_engine._native.bulk import BulkRead
from ijfs_engine.errors import CorruptError
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.chunk_codec import Plain
from ijfs_engine.format.extents import LeafMap
from ijfs_engine.format.frames import ID_SIZE, MAX_CHUNK, EncodedChunk
from ijfs_engine.format.place import NO_PLACE
from ijfs_engine.format.records import Leaf, ObjectId
from ijfs_engine.read import bulk
from ijfs_engine.storage.object_store import Store
from ijfs_engine.util.byte_lru import ByteLru
from ijfs_engine.util.io_wait import simulate_latency
from ijfs_engine.util.pipeline import cores, thread_pool

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

BATCH_CHUNKS: Final = 64
"""One call to the store: enough chunks that neighbours in a pack come in one read, few enough to bound its memory
(16 MiB if all are of the largest size, 4 MiB on average)."""
# So many together are unpacked by compiled code: 8 µs a small one in place of 60, and without the interpreter's lock.
_MANY: Final = 4
_ANY_DEPTH: Final = 256
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


class ChunkReader:
    """Thread-safe reads of chunks and leaves, with a bounded cache of each.

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

    # --- Leaves

    def leaf(self, ident: ObjectId) -> LeafMap:
        """A leaf, cached. CorruptError."""
        found = self._leaves.get(ident)
        if found is None:
            leaf = self.store.leaf(ident)
            found = LeafMap(leaf)
            self._leaves.put(ident, found, _leaf_bytes(leaf))
        return found

    def cached_leaf(self, ident: ObjectId) -> LeafMap | None:
        """A leaf, if it is in the cache."""
        return self._leaves.get(ident)

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
                    self.store.advise_reads(row for leaf in leaves for row in leaf.rows())

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

    def cached_chunk(self, ident: bytes) -> Plain | None:
        """The plain bytes of one chunk, if they are in the cache."""
        return self._chunks.get(ident)

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
            if len(wanted) >= _MANY:
                for ident, plain in bulk.whole(wanted, _ANY_DEPTH, self.store, self._bases, self.delay_s):
                    self._loaded(ident, plain, loading)
            rest = [ident for ident in wanted if ident not in loading.plains]
            for chunk in self._fetch(rest) if rest else ():
                self._loaded(chunk.id, self._decode(chunk), loading)
        except BaseException as error:
            loading.error = error
            raise
        finally:
            with self._lock:
                for ident in wanted:
                    del self._pending[ident]
            loading.done.set()

    def _loaded(self, ident: bytes, plain: Plain, loading: _Loading) -> None:
        loading.plains[ident] = plain
        self._chunks.put(ident, plain, len(plain))

    def _fetch(self, ids: list[bytes]) -> list[EncodedChunk]:
        simulate_latency(self.delay_s)
        return self.store.get_chunks(ids)

    def _decode(self, chunk: EncodedChunk) -> Plain:
        return chunk_codec.decode(chunk, lambda ids: self._bases(ids, chunk.depth), self.store.crypt)

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
        bulk.fill(what, self.store, self._chunks, self._bases, self._fetch_one, self.delay_s)

    def _fetch_one(self, ident: bytes) -> Plain:
        return self._decode(self._fetch([ident])[0])

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

    def submit_part(self, call: Callable[[], int]) -> Future[int]:
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
