"""The bytes of one stored file: ranges of them, where its zeros are, its pages by address. Made by `Reader.open`.

Small reads go through the reader's cache of chunks; large ones straight from the packs to the caller's buffers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Final, NamedTuple

from ijfs_engine._native.bulk import BulkRead
from ijfs_engine._native.page_scan import PAGE
from ijfs_engine.errors import CorruptError
from ijfs_engine.format.chunk_codec import Plain
from ijfs_engine.format.extents import LeafMap, Slice
from ijfs_engine.format.page_layout import PageLayout
from ijfs_engine.format.records import ObjectId
from ijfs_engine.read import bulk
from ijfs_engine.read.chunk_reader import BATCH_CHUNKS, ChunkReader

# From so many bytes on most chunks are wanted whole.
_BULK: Final = 512 << 10
# What is read in one go; of more, threads read parts.
_PART: Final = 4 << 20


class Extent(NamedTuple):
    """`length` bytes at `offset` of a file; `zero` if they are known to be zeros without being read."""

    offset: int
    length: int
    zero: bool


class StoredFile:
    """The bytes of one stored file. Immutable, thread-safe; holds no resource of its own.

    `layout` says which addresses the pages of a process image belong to; None for any other file.
    """

    def __init__(
        self, chunks: ChunkReader, parts: list[tuple[bytes, int]], layout: PageLayout | None, *, single: bool = False
    ) -> None:
        self._chunks = chunks
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
        leaf = self._chunks.leaf(ident)
        if leaf.size != size:
            raise CorruptError(f"leaf {ident.hex()[:12]} has {leaf.size} bytes, its file says {size}")
        return leaf

    def locate(self) -> None:
        """Find out where everything is, ahead of large reads. CorruptError."""
        if not self._single:
            self._chunks.locate([ident for ident, _ in self._parts])

    def cached(self, offset: int, length: int) -> memoryview | None:
        """These bytes without a copy, if they are there, and zeros or all of one chunk in the cache; `length` is at
        most a MiB. For small reads of what was read before: 4 µs."""
        at = bisect_right(self._starts, offset) - 1
        if at < 0:
            return None
        ident, size = self._parts[at]
        inside = offset - self._starts[at]
        if length <= 0 or inside + length > size:
            return None
        piece: Slice | None = Slice(ident, inside, length)
        if not self._single:
            leaf = self._chunks.cached_leaf(ident)
            piece = leaf.piece(inside, length) if leaf is not None and leaf.size == size else None
        if piece is None:
            return None
        if piece.id is None:
            return _ZEROS[:length]
        plain = self._chunks.cached_chunk(piece.id)
        return _cut(plain, piece) if plain is not None else None

    def find(self, offset: int, *, hole: bool) -> int | None:
        """Where the next bytes that are known to be zeros, or that are not, begin from `offset` on: for SEEK_HOLE, to
        which the end of a file is a hole, and SEEK_DATA. None where there are none. CorruptError."""
        for extent in self.extents(offset) if offset < self.size else ():
            if extent.zero == hole:
                return extent.offset
        return self.size if hole and offset < self.size else None

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
        asked = [(offset, view[: max(0, self.size - offset)]) for offset, view in wanted]
        total = sum(len(view) for _, view in asked)
        if any(offset < 0 for offset, _ in asked):
            raise ValueError("no range begins before a file")
        if total < _BULK:
            self._read_cached(asked)
        elif total < 2 * _PART or len(asked) > 1:
            self._read_bulk(asked)
        else:
            self._read_parts(*asked[0])
        return total

    def _read_cached(self, asked: Iterable[tuple[int, memoryview]]) -> None:
        targets: list[memoryview] = []
        slices: list[Slice] = []
        for offset, view in asked:
            at = 0
            for piece in self.slices(offset, len(view)):
                targets.append(view[at : at + piece.length])
                slices.append(piece)
                at += piece.length
        for target, plain in zip(targets, self._resolved(slices), strict=True):
            if plain is None:
                _fill_zeros(target)
            else:
                target[:] = plain

    def _read_bulk(self, asked: Iterable[tuple[int, memoryview]]) -> None:
        what, size = bulk.new_read(self._chunks.store.crypt), 0
        for offset, view in asked:
            for ident, length, inside, part in self._parts_of(offset, view):
                if size + len(part) > _PART:
                    self._chunks.fill(what)
                    what, size = bulk.new_read(self._chunks.store.crypt), 0
                size += len(part)
                self._want(what, ident, length, inside, part)
        self._chunks.fill(what)

    def _want(self, what: BulkRead, ident: bytes, length: int, inside: int, part: memoryview) -> None:
        try:
            if self._single:
                what.add_chunk(ident, inside, part)
            else:
                leaf = self._leaf(ident, length)
                self._chunks.place([leaf])
                what.add_leaf(leaf.columns, inside, part)
        except ValueError as error:
            raise CorruptError(str(error)) from error

    def _read_parts(self, offset: int, view: memoryview) -> None:
        """Much at once: in several threads."""
        from concurrent.futures import wait

        tasks = [
            self._chunks.submit_part(partial(self.read_many, [(offset + at, view[at : at + _PART])]))
            for at in range(0, len(view), _PART)
        ]
        # All of them end before the buffer is the caller's again.
        wait(tasks)
        for task in tasks:
            task.result()

    def _parts_of(self, offset: int, view: memoryview) -> Iterator[tuple[bytes, int, int, memoryview]]:
        """(leaf or chunk, its bytes, where the wanted ones begin in it, where they go)."""
        done = 0
        at = bisect_right(self._starts, offset) - 1
        while done < len(view):
            ident, size = self._parts[at]
            inside = offset + done - self._starts[at]
            step = min(len(view) - done, size - inside)
            yield ident, size, inside, view[done : done + step]
            done, at = done + step, at + 1

    def _resolved(self, slices: Sequence[Slice]) -> Iterator[memoryview | None]:
        """The bytes of slices in order, None for zeros; a bounded number of chunks at a time."""
        at = 0
        while at < len(slices):
            ids: dict[bytes, None] = {}
            end = at
            while end < len(slices) and len(ids) < BATCH_CHUNKS:
                ident = slices[end].id
                if ident is not None:
                    ids[ident] = None
                end += 1
            plains = dict(zip(ids, self._chunks.chunks(list(ids)), strict=True)) if ids else {}
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

    def zeros(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Stretches (offset, bytes) of zeros in [offset, offset + length), at next to no cost. CorruptError."""
        end = min(offset + length, self.size)
        at = bisect_right(self._starts, offset) - 1
        while offset < end and not self._single:
            start = self._starts[at]
            stop = min(end, start + self._parts[at][1])
            for inside, size in self._leaf(*self._parts[at]).columns.zeros(offset - start, stop - offset):
                yield start + inside, size
            offset, at = stop, at + 1

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
        self._chunks.prefetch(piece.id for piece in self.slices(offset, length) if piece.id is not None)


def _cut(plain: Plain, piece: Slice) -> memoryview:
    if piece.offset + piece.length > len(plain):
        raise CorruptError(f"a leaf refers to bytes that chunk {(piece.id or b'').hex()[:12]} does not have")
    return memoryview(plain)[piece.offset : piece.offset + piece.length]


_ZEROS: Final = memoryview(bytes(1 << 20))


def _fill_zeros(view: memoryview) -> None:
    for at in range(0, len(view), len(_ZEROS)):
        part = view[at : at + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]
