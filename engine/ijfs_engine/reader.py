"""Reading: trees, and any bytes of any stored file, checked. Made by `Repository.reader`.

The mount, the pager, export and ingest (for the parent's bytes) all read here. A chunk is fetched and decoded once
while it is in the cache, however many threads want it, and is checked against its id before anyone sees a byte of it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Final, NamedTuple

from . import codec
from .codec import Plain
from .errors import CorruptError, IjfsError, UnknownNameError
from .extents import LeafMap, Slice
from .frames import MAX_CHUNK, EncodedChunk, Kind
from .lru import ByteLru
from .native import PAGE
from .pages import PageLayout
from .records import Entry, FileContent, Leaf, ObjectId, Tree
from .store import Store

# One call to the store: enough chunks that neighbours in a pack come in one read, few enough to bound its memory
# (16 MiB if all are of the largest size, 4 MiB on average).
_BATCH_CHUNKS: Final = 64
_LEAF_CACHE: Final = 8 << 20
# What a decoded leaf takes besides its bytes: the list of extent positions.
_LEAF_OVERHEAD: Final = 512


class Extent(NamedTuple):
    """`length` bytes at `offset` of a file; `zero` if they are known to be zeros without being read."""

    offset: int
    length: int
    zero: bool


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
        if kind == Kind.CHUNK:
            return StoredFile(self, [(content, self._chunk_size(content))], None, single=True)
        if kind == Kind.LEAF:
            return StoredFile(self, [(content, self.leaf(content).size)], None)
        if kind == Kind.FILE:
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
            layout = PageLayout.decode(self.store.get_object(content.layout, Kind.LAYOUT))
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
        if self.delay_s:
            time.sleep(self.delay_s)
        return self.store.get_chunks(ids)

    def _decode(self, chunk: EncodedChunk) -> Plain:
        return codec.decode(chunk, lambda ids: self._bases(ids, chunk.depth))

    def _bases(self, ids: Sequence[bytes], depth: int) -> list[Plain]:
        """The base chunks of a chunk of this depth. Not through `_pending`: a loader never waits for another loader.

        (Two threads that each loaded a chunk the other's chunk is based on would wait forever.)
        """
        found = {ident: plain for ident in ids if (plain := self._chunks.get(ident)) is not None}
        missing = [ident for ident in ids if ident not in found]
        for chunk in self._fetch(missing) if missing else ():
            if chunk.depth >= depth:
                raise CorruptError(f"chunk {chunk.id.hex()[:12]} is the base of one that is not deeper")
            found[chunk.id] = decoded = self._decode(chunk)
            self._chunks.put(chunk.id, decoded, len(decoded))
        return [found[ident] for ident in ids]

    def holds(self, leaves: Iterable[bytes], chunks: Iterable[bytes | None] = ()) -> bool:
        """Whether these leaves and chunks are in the caches now; another thread may drop them a moment later."""
        return all(ident in self._leaves for ident in leaves) and all(
            ident is None or ident in self._chunks for ident in chunks
        )

    # --- Ahead of need

    def prefetch(self, ids: Iterable[bytes]) -> None:
        """Start loading chunks into the cache in the background; a failure shows when they are read."""
        wanted = [ident for ident in dict.fromkeys(ids) if ident not in self._chunks]
        per_batch = max(1, min(_BATCH_CHUNKS // 4, self._chunks.limit // 4 // MAX_CHUNK))
        for at in range(0, len(wanted), per_batch):
            self._background(self.chunks, wanted[at : at + per_batch])

    def _background(self, call: Callable[[list[bytes]], object], ids: list[bytes]) -> None:
        with self._lock:
            if self._ahead is None:
                self._ahead = ThreadPoolExecutor(4, thread_name_prefix="ijfs-ahead")
            self._ahead.submit(call, ids)

    def close(self) -> None:
        """Stop what `prefetch` started and drop the caches; reads after this still work."""
        with self._lock:
            ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.shutdown(cancel_futures=True)
        self._chunks.clear()
        self._leaves.clear()


def _leaf_bytes(leaf: Leaf) -> int:
    return len(leaf.ids) + 48 * len(leaf.index) + _LEAF_OVERHEAD


class StoredFile:
    """The bytes of one stored file. Immutable, thread-safe; holds no resource of its own.

    `layout` says which addresses the pages of a process image belong to; None for any other file.
    """

    def __init__(
        self, reader: Reader, parts: list[tuple[bytes, int]], layout: PageLayout | None, *, single: bool = False
    ) -> None:
        self._reader = reader
        self._parts = parts
        self._single = single
        starts = list(accumulate((size for _, size in parts), initial=0))
        self.size = starts.pop()
        """Bytes."""
        self._starts = starts
        self.layout = layout

    def leaves(self) -> list[tuple[ObjectId, int]]:
        """(leaf id, plain bytes) in file order; none for a file of one chunk."""
        return [] if self._single else list(self._parts)

    def slices(self, offset: int, length: int) -> Iterator[Slice]:
        """What bytes [offset, offset + length) are made of, cut at the end of the file. ValueError if negative."""
        if offset < 0 or length < 0:
            raise ValueError(f"no range: {offset}, {length}")
        length = max(0, min(length, self.size - offset))
        at = bisect_right(self._starts, offset) - 1 if length else 0
        while length > 0:
            ident, size = self._parts[at]
            inside = offset - self._starts[at]
            step = min(length, size - inside)
            if self._single:
                yield Slice(ident, inside, step)
            else:
                yield from self._leaf(ident, size).slices(inside, step)
            offset, length, at = offset + step, length - step, at + 1

    def _leaf(self, ident: bytes, size: int) -> LeafMap:
        leaf = self._reader.leaf(ident)
        if leaf.size != size:
            raise CorruptError(f"leaf {ident.hex()[:12]} has {leaf.size} bytes, its file says {size}")
        return leaf

    def cached(self, offset: int, length: int) -> bool:
        """Whether reading these bytes would touch no disk and decode nothing, as far as can be told now.

        For callers that read at once if so and in another thread if not.
        """
        first = max(0, bisect_right(self._starts, offset) - 1)
        parts = self._parts[first : bisect_right(self._starts, offset + length - 1)]
        if not self._single and not self._reader.holds(ident for ident, _ in parts):
            return False
        return self._reader.holds((), (piece.id for piece in self.slices(offset, length)))

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`, fewer only at the end of the file. CorruptError, never wrong bytes."""
        buffer = bytearray(max(0, min(length, self.size - offset)))
        self.read_into(offset, buffer)
        return bytes(buffer)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill `buffer` from `offset`; how many bytes there were. CorruptError, never wrong bytes."""
        view = memoryview(buffer).cast("B")
        return self.read_many([(offset, view)])

    def read_many(self, wanted: Iterable[tuple[int, memoryview]]) -> int:
        """`read_into` for several (offset, buffer of bytes), each chunk fetched once; how many bytes there were."""
        total = 0
        targets: list[memoryview] = []
        slices: list[Slice] = []
        for offset, view in wanted:
            at = 0
            for piece in self.slices(offset, len(view)):
                targets.append(view[at : at + piece.length])
                slices.append(piece)
                at += piece.length
            total += at
        for target, plain in zip(targets, self._resolved(slices), strict=True):
            if plain is None:
                _fill_zeros(target)
            else:
                target[:] = plain
        return total

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, memoryview]]:
        """(offset, bytes) of what is not known to be zeros, in order, as decoded chunks hold it: nothing is copied."""
        slices = list(self.slices(offset, length))
        for piece, plain in zip(slices, self._resolved(slices), strict=True):
            if plain is not None:
                yield offset, plain
            offset += piece.length

    def _resolved(self, slices: Sequence[Slice]) -> Iterator[memoryview | None]:
        """The bytes of slices in order, None for zeros; a bounded number of chunks at a time."""
        at = 0
        while at < len(slices):
            ids: dict[bytes, None] = {}
            end = at
            while end < len(slices) and len(ids) < _BATCH_CHUNKS:
                ident = slices[end].id
                if ident is not None:
                    ids[ident] = None
                end += 1
            plains = dict(zip(ids, self._reader.chunks(list(ids)), strict=True)) if ids else {}
            for piece in slices[at:end]:
                yield _cut(plains[piece.id], piece) if piece.id is not None else None
            at = end

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """Maximal stretches of stored bytes and of zeros that cover [offset, offset + length), in order."""
        start, zero = offset, False
        at = offset
        for piece in self.slices(offset, self.size if length is None else length):
            if (piece.id is None) != zero and at > start:
                yield Extent(start, at - start, zero)
                start = at
            zero = piece.id is None
            at += piece.length
        if at > start:
            yield Extent(start, at - start, zero)

    def read_pages(self, first: int, count: int, buffer: memoryview) -> list[tuple[int, int]]:
        """Fill `buffer` with pages [first, first + count) by virtual page number; (first, count) of those there are.

        Pages that the image does not hold are left as they are in `buffer`. ValueError without a layout.
        """
        if self.layout is None:
            raise ValueError("the file has no page layout")
        found = []
        for number, page, n in self.layout.locate(first, count):
            at = (number - first) * PAGE
            self.read_into(page * PAGE, buffer[at : at + n * PAGE])
            found.append((number, n))
        return found

    def prefetch(self, offset: int, length: int) -> None:
        """Start loading these bytes into the reader's cache in the background."""
        self._reader.prefetch(piece.id for piece in self.slices(offset, length) if piece.id is not None)


def _cut(plain: Plain, piece: Slice) -> memoryview:
    if piece.offset + piece.length > len(plain):
        raise CorruptError(f"a leaf refers to bytes that chunk {(piece.id or b'').hex()[:12]} does not have")
    return memoryview(plain)[piece.offset : piece.offset + piece.length]


_ZEROS: Final = memoryview(bytes(1 << 20))


def _fill_zeros(view: memoryview) -> None:
    for at in range(0, len(view), len(_ZEROS)):
        part = view[at : at + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]
