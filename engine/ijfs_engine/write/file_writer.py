"""The bytes of files on their way into the store: small files in batches, large ones leaf by leaf, on all cores.

Made by `SnapshotWriter`, which says where each file's content id goes once it is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from threading import Lock
from typing import TYPE_CHECKING, Final, TypeAlias

from ijfs_engine._native import page_scan
from ijfs_engine._native.extent_columns import Assembly
from ijfs_engine._native.page_scan import PAGE, ZERO
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.extents import leaf_from
from ijfs_engine.format.frames import MAX_CHUNK, EncodedChunk, FrameKind
from ijfs_engine.format.page_layout import PageLayout
from ijfs_engine.format.records import LEAF_SPAN, FileContent, ObjectId, encode_file, encode_leaf
from ijfs_engine.storage.session import Session
from ijfs_engine.util.pipeline import Pipeline
from ijfs_engine.write.kept_prints import KeptPrints
from ijfs_engine.write.page_writer import PageFile
from ijfs_engine.write.parent_pages import ParentPages
from ijfs_engine.write.regions import store_region
from ijfs_engine.write.sources import Opened, Source, opened

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ijfs_engine.util.progress import Progress

# Files that have begun and not ended: each holds a descriptor and its leaves' ids.
_MOST_OPEN: Final = 64
# Small files are stored in batches: one look-up and one append for all of them.
_BATCH_FILES: Final = 128
_BATCH_BYTES: Final = 2 << 20
# Leaves of an image in one task: the parent's fingerprints of all of them come in one request.
_GROUP: Final = 4
# A shorter run of zeros inside a file that is no process image costs less compressed than as an extent.
_ZERO_PAGES: Final = 4

OnStored: TypeAlias = Callable[[ObjectId | None, int], None]
"""Called with a file's content id (None for no bytes) and its size, in the thread that uses the FileWriter."""
Leaves: TypeAlias = list[tuple[ObjectId, int]]


class _Job:
    """A large file under way: what to close, the leaves to come, what to do with them."""

    def __init__(self, stack: ExitStack, place: OnStored, layout: PageLayout | None) -> None:
        self.stack = stack
        self.place = place
        self.layout = layout
        self.leaves: list[Future[Leaves] | Leaves] = []

    def results(self) -> Leaves:
        """Waits for all of them; raises what the first one that failed raised."""
        groups = [group if isinstance(group, list) else group.result() for group in self.leaves]
        return [leaf for group in groups for leaf in group]


class FileWriter:
    """Stores files. Used from one thread; `close` in any case, at the end."""

    def __init__(self, session: Session, key: bytes, progress: Progress | None, kept: KeptPrints | None = None) -> None:
        """`kept` gets the fingerprints of all pages of process images."""
        self._session = session
        self._key = key
        self._kept = kept
        self._progress = progress
        self._pipeline = Pipeline()
        self._jobs: deque[_Job] = deque()
        self._batch: list[tuple[memoryview, OnStored]] = []
        self._batches: deque[tuple[Future[list[bytes]], list[tuple[memoryview, OnStored]]]] = deque()
        self._zero_leaves: dict[int, ObjectId] = {}
        self._lock = Lock()
        self._done = self._total = 0
        self.flagged = 0
        """How many of the files had chattr flags, which are not kept."""
        self.flags: set[str] = set()
        """The letters of those flags."""

    def add_expected_bytes(self, size: int) -> None:
        """So many more bytes are coming: for the progress that is shown."""
        self._total += size

    def store(
        self, source: Source, place: OnStored, layout: PageLayout | None = None, parent: ParentPages | None = None
    ) -> None:
        """Begin to store a file; `place` is called before or during `finish`. StorageError, CorruptError."""
        with ExitStack() as stack:
            file = stack.enter_context(opened(source))
            self.notice_flags(file.flags)
            if layout is not None and layout.pages * PAGE != file.size:
                layout = None
            if file.size == 0:
                place(None, 0)
            elif file.size <= MAX_CHUNK and layout is None:
                self._add_small(file.view(0, file.size), place)
            else:
                job = _Job(stack.pop_all(), place, layout)
                # Known before its first task runs, so that its descriptor outlives them whatever happens.
                self._jobs.append(job)
                self._begin(job, file, parent)
        while len(self._jobs) > _MOST_OPEN:
            self._end_oldest()

    def notice_flags(self, letters: str) -> None:
        """Count what has chattr flags."""
        self.flagged += bool(letters)
        self.flags.update(letters)

    def finish(self) -> None:
        """Wait until every file begun has been placed."""
        self._send_batch()
        while self._batches:
            self._end_batch()
        while self._jobs:
            self._end_oldest()

    def close(self) -> None:
        """Drop what is not finished. Safe to call twice."""
        self._pipeline.close()
        while self._jobs:
            self._jobs.pop().stack.close()

    # --- Large files

    def _begin(self, job: _Job, file: Opened, parent: ParentPages | None) -> None:
        if job.layout is None:
            for offset, length, empty in _windows(file):
                leaf = self._zero_leaf(length) if empty else self._submit(self._plain_leaf, file, offset, length)
                job.leaves.append(leaf)
            return
        pages = PageFile(self._session, file, job.layout, self._key, parent, self._kept)
        for spans in _groups(job.layout.leaf_counts()):
            job.leaves.append(self._submit(pages.store_leaves, spans))

    def _submit(self, call: Callable[..., Leaves], *args: object) -> Future[Leaves]:
        def task() -> Leaves:
            leaves = call(*args)
            self._advance(sum(size for _, size in leaves))
            return leaves

        return self._pipeline.submit(task)

    def _plain_leaf(self, file: Opened, offset: int, length: int) -> Leaves:
        data = file.view(offset, length)
        leaf = leaf_from(_assemble(self._session, data))
        return [(self._session.put_object(FrameKind.LEAF, encode_leaf(leaf)), length)]

    def _zero_leaf(self, length: int) -> Leaves:
        ident = self._zero_leaves.get(length)
        if ident is None:
            zeros = Assembly()
            zeros.zeros(length)
            ident = self._session.put_object(FrameKind.LEAF, encode_leaf(leaf_from(zeros)))
            self._zero_leaves[length] = ident
        self._advance(length)
        return [(ident, length)]

    def _end_oldest(self) -> None:
        job = self._jobs[0]
        leaves = job.results()
        self._jobs.popleft()
        job.stack.close()
        job.place(self._content(leaves, job.layout), sum(size for _, size in leaves))

    def _content(self, leaves: Leaves, layout: PageLayout | None) -> ObjectId:
        if len(leaves) == 1 and layout is None:
            return leaves[0][0]
        ident = self._session.put_object(FrameKind.LAYOUT, layout.encode()) if layout else None
        return self._session.put_object(FrameKind.FILE, encode_file(FileContent.of(leaves, layout=ident)))

    # --- Small files

    def _add_small(self, data: memoryview, place: OnStored) -> None:
        self._batch.append((data, place))
        if len(self._batch) >= _BATCH_FILES or sum(len(data) for data, _ in self._batch) >= _BATCH_BYTES:
            self._send_batch()

    def _send_batch(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._batches.append((self._pipeline.submit(self._store_small, [data for data, _ in batch]), batch))
        while len(self._batches) > 2 * self._pipeline.workers:
            self._end_batch()

    def _store_small(self, plains: Sequence[memoryview]) -> list[bytes]:
        ids = [self._session.crypt.chunk_id(plain) for plain in plains]
        fresh: dict[bytes, EncodedChunk] = {}
        for ident, plain, found in zip(ids, plains, self._session.lookup_many(ids), strict=True):
            if not found and ident not in fresh:
                fresh[ident] = chunk_codec.encode(plain, ident)
        self._session.put_chunks(list(fresh.values()))
        self._advance(sum(len(plain) for plain in plains))
        return ids

    def _end_batch(self) -> None:
        future, batch = self._batches.popleft()
        for ident, (data, place) in zip(future.result(), batch, strict=True):
            place(ident, len(data))

    def _advance(self, size: int) -> None:
        with self._lock:
            self._done += size
            done = self._done
        if self._progress is not None:
            self._progress("ingest", done, self._total)


def _groups(counts: Iterable[int]) -> Iterator[list[tuple[int, int]]]:
    """(first page, pages) of leaves, a few at a time."""
    page, group = 0, []
    for count in counts:
        group.append((page, count))
        page += count
        if len(group) == _GROUP:
            yield group
            group = []
    if group:
        yield group


def _windows(file: Opened) -> Iterator[tuple[int, int, bool]]:
    """(offset, length, whether it is all hole) of the leaves of a file that is no process image."""
    ranges = file.data_ranges()
    start, end = next(ranges, (file.size, file.size))
    for offset in range(0, file.size, LEAF_SPAN):
        length = min(LEAF_SPAN, file.size - offset)
        while end <= offset < file.size and start < file.size:
            start, end = next(ranges, (file.size, file.size))
        yield offset, length, start >= offset + length


def _assemble(session: Session, data: memoryview) -> Assembly:
    """Store what is not zeros; what the leaf is then made of."""
    found = Assembly()
    kinds = bytearray(-(-len(data) // PAGE))
    page_scan.zero_kinds(data, kinds)
    for first, end, zero in _stretches(page_scan.runs(kinds), len(kinds)):
        length = min(end * PAGE, len(data)) - first * PAGE
        if zero:
            found.zeros(length)
        else:
            found.span(store_region(session, data[first * PAGE : first * PAGE + length]), 0, length)
    return found


def _stretches(runs: list[tuple[int, int, int]], pages: int) -> Iterator[tuple[int, int, bool]]:
    """(first page, end page, zero) where short runs of zeros count as bytes."""
    start = 0
    for first, count, kind in runs:
        if kind == ZERO and count >= _ZERO_PAGES:
            if first > start:
                yield start, first, False
            yield first, first + count, True
            start = first + count
    if start < pages:
        yield start, pages, False
