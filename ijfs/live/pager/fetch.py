"""Bringing pages: which to read next, and the threads that read them and hand them on to be copied.

`Scheduler` decides (faults, then what lies around them, then the recorded order, then the rest), `Fetcher` runs the
threads. A thread asks what to read when it is through with the last, so that a fault never queues behind work that was
planned earlier, and some threads serve faults alone: a fault does not wait for megabytes to be decompressed either.

The thread that read also copies, while the bytes are in its core's cache, out of a buffer that it uses again and again.
Reading ahead of one copying thread was tried: what waited had left the caches, 512 MiB of fresh memory for it cost more
than they gained, and the one thread was the bound on 16 cores (2.3 s for 3.2 GiB with 12 of them idle).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from ijfs.live.criu.image_format import PAGE
from ijfs.live.pager.plan import MemoryImage
from ijfs.live.pager.shared import SharedBlocks
from ijfs.live.pager.source import PageSource
from ijfs.live.pager.throttle import Pace
from ijfs_engine import io_waited_s
from ijfs_engine.errors import CorruptError, IjfsError

BLOCK_PAGES: Final = 256
"""A read of what is wanted soon: 1 MiB."""
SWEEP_PAGES: Final = 1024
"""A read of the rest: 4 MiB, a leaf of the engine. Four times smaller, the interpreter's share of it is four times
larger; larger, it leaves the cache."""
AROUND_PAGES: Final = 16
"""A fault brings its 64 KiB: about one chunk of the engine, which has to be decoded whole anyway."""
URGENT_THREADS: Final = 2
MAX_WORKING_THREADS: Final = 16
"""As many threads work at the same time. 2.5 GB for a GPU program on 16 cores: 0.69 to 0.80 s with 16 threads, 0.75 to
0.85 with 8, 1.1 with 5. (While each chunk took the interpreter's lock, 16 were slower than 8.)"""
MAX_BULK_THREADS: Final = 32
_NEAR_S: Final = 0.001
"""A wait that no further threads are worth: a disk's."""
_POLL_S: Final = 0.005
"""How often a thread asks whether what is held back is held back still."""
PATIENCE_S: Final = 30.0
"""How long a place that fails to answer is asked again before its pages are given up."""

PageRange = tuple[int, int]
"""(first page number, pages)"""

_FREE, _TAKEN, _SETTLED = 0, 1, 2
Wanted = Callable[[MemoryImage, int, int], Iterable[PageRange]]


def hurry() -> None:
    """Run the calling thread before others: while a fault is open, the program stands still. Where that is allowed."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -10)


class Task:
    """Pages of one image that are read together."""

    __slots__ = ("bad", "block", "image", "near", "ranges", "reason", "urgent", "zeros")

    def __init__(
        self, image: MemoryImage, ranges: list[PageRange], *, urgent: bool = False, near: bool = False
    ) -> None:
        self.image = image
        self.ranges = ranges
        """The bytes of one follow those of the one before."""
        self.zeros: list[PageRange] = []
        """Those of the pages that hold only zeros: not to be copied."""
        self.urgent = urgent
        """A fault waits for it."""
        self.near = near
        """It follows faults that went from one page range to the next."""
        self.block: int | None = None
        """The number of this block in the recorded order; None for what is in no order."""
        self.bad: set[int] = set()
        """Page numbers that could not be had."""
        self.reason = ""

    @property
    def pages(self) -> int:
        return sum(count for _, count in self.ranges)


class Scheduler:
    """What is to be read next. Every page is handed out once, unless it is put back; faults come before all else."""

    def __init__(self, wanted: Wanted, pace: Callable[[], Pace]) -> None:
        self._wanted = wanted
        self._pace = pace
        self._changed = threading.Condition()
        self._claims: dict[int, bytearray] = {}
        self._images: list[MemoryImage] = []
        self._cursors: dict[int, int] = {}
        self._urgent: deque[Task] = deque()
        self._pending: set[tuple[int, int]] = set()
        self._near: deque[tuple[MemoryImage, int]] = deque(maxlen=4)
        self._asked: deque[tuple[int, int]] = deque(maxlen=32)
        self._recorded: Iterator[tuple[int, tuple[MemoryImage, list[PageRange]]]] = enumerate(())
        self._closed = False

    def add_image(self, image: MemoryImage) -> None:
        with self._changed:
            self._claims[image.pid] = bytearray(image.pages)
            self._images.append(image)
            self._cursors[image.pid] = 0
            self._changed.notify_all()

    def set_order(self, order: Iterable[tuple[MemoryImage, list[PageRange]]]) -> None:
        """The order in which pages were needed at an earlier restore, in blocks of at most BLOCK_PAGES."""
        with self._changed:
            self._recorded = enumerate(order)
            self._changed.notify_all()

    def want_now(self, image: MemoryImage, page: int) -> PageRange | None:
        """A fault needs this page: read what lies around it before all else. None: that is under way already."""
        first = page // AROUND_PAGES * AROUND_PAGES
        count = min(AROUND_PAGES, image.pages - first)
        with self._changed:
            if (image.pid, first) in self._pending:
                return None
            self._pending.add((image.pid, first))
            self._urgent.append(Task(image, [(first, count)], urgent=True))
            # Only for faults that walk: around scattered ones, a mebibyte each would be read for nothing.
            neighbours = {(image.pid, first - AROUND_PAGES), (image.pid, first + AROUND_PAGES)}
            if neighbours & set(self._asked):
                self._near.append((image, page))
            self._asked.append((image.pid, first))
            self._changed.notify_all()
        return first, count

    def is_taken(self, image: MemoryImage, page: int) -> bool:
        """Whether a block that is being read, or waits to be copied, holds this page."""
        return self._claims[image.pid][page] == _TAKEN

    def next(self, *, urgent_only: bool) -> Task | None:
        """The next task, waiting for one; None when closed."""
        with self._changed:
            while not self._closed:
                if self._urgent:
                    return self._urgent.popleft()
                pace = Pace.NOTHING if urgent_only else self._pace()
                task = None if urgent_only else self._next_block(pace)
                if task is not None:
                    return task
                self._changed.wait(None if urgent_only or pace is Pace.ALL else _POLL_S)
        return None

    def settle(self, task: Task, missing: Iterable[PageRange]) -> None:
        """A task is through; what is still `missing` of it may be handed out again."""
        with self._changed:
            claims = self._claims[task.image.pid]
            for first, count in task.ranges:
                claims[first : first + count] = bytes((_SETTLED,)) * count
            for first, count in missing:
                claims[first : first + count] = bytes((_FREE,)) * count
                self._cursors[task.image.pid] = min(self._cursors[task.image.pid], first)
                self._changed.notify_all()
            if task.urgent:
                self._pending.discard((task.image.pid, task.ranges[0][0]))

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next_block(self, pace: Pace) -> Task | None:
        while self._near and pace >= Pace.NEAR:
            image, page = self._near.popleft()
            first = page // BLOCK_PAGES * BLOCK_PAGES
            if task := self._claim(image, [(first, min(BLOCK_PAGES, image.pages - first))]):
                task.near = True
                return task
        for number, (image, ranges) in self._recorded:
            if task := self._claim(image, ranges):
                task.block = number
                task.ranges = ranges  # whole, as each of several siblings has it; what is there already is passed over
                return task
        for image in self._images if pace is Pace.ALL else ():
            while (first := self._claims[image.pid].find(_FREE, self._cursors[image.pid])) >= 0:
                count = min(SWEEP_PAGES, image.pages - first)
                self._cursors[image.pid] = first + count
                if task := self._claim(image, [(first, count)]):
                    return task
        return None

    def _claim(self, image: MemoryImage, ranges: list[PageRange]) -> Task | None:
        """A task for what is free and wanted in these ranges."""
        claims = self._claims[image.pid]
        chosen: list[PageRange] = []
        for first, count in ranges:
            for begin, pages in self._wanted(image, first, count):
                chosen.extend(_free_runs(claims, begin, pages))
        for first, count in chosen:
            claims[first : first + count] = bytes((_TAKEN,)) * count
        return Task(image, chosen) if chosen else None


def _free_runs(claims: bytearray, first: int, count: int) -> Iterator[PageRange]:
    end = first + count
    while first < end and (begin := claims.find(_FREE, first, end)) >= 0:
        stops = [at for mark in (_TAKEN, _SETTLED) if (at := claims.find(mark, begin, end)) >= 0]
        first = min(stops, default=end)
        yield begin, first - begin


class Fetcher:
    """The threads that bring pages; each gives what it has read to `deliver`, which copies it.

    It begins with a thread per core, MAX_WORKING_THREADS at most. Where reads wait (a remote or slow place), threads
    are added up to MAX_BULK_THREADS: the wait, not the work, is what is to be overlapped.
    """

    def __init__(
        self,
        source: PageSource,
        scheduler: Scheduler,
        deliver: Callable[[Task, int], None],
        on_stall: Callable[[str], None],
        shared: SharedBlocks | None = None,
    ) -> None:
        """`deliver(task, address)` is called in the threads; the pages of the task's `ranges` lie at `address`."""
        self.work_s = 0.0
        """Processor time that a background read took lately, in seconds."""
        self.waiting = 0.0
        """The share of a background read, lately, that is waiting and not work: nearly 1.0 for a place far away."""
        self.closed = False
        self._source = source
        self._scheduler = scheduler
        self._deliver = deliver
        self._on_stall = on_stall
        self._shared = shared
        self._bulk_threads = 0
        self._cores = min(len(os.sched_getaffinity(0)), MAX_WORKING_THREADS)
        self._waits: deque[float] = deque(maxlen=8)

    def start(self) -> None:
        for _ in range(URGENT_THREADS):
            threading.Thread(target=self._work, args=(AROUND_PAGES, True), daemon=True).start()
        for _ in range(self._cores):
            self._add_bulk_thread()
        threading.Thread(target=self._locate, daemon=True).start()

    def close(self) -> None:
        self.closed = True
        self._scheduler.close()

    def _locate(self) -> None:
        """While CRIU is at work; whoever reads a part would have to find it then."""
        with contextlib.suppress(IjfsError, OSError):
            self._source.locate()

    def _add_bulk_thread(self) -> None:
        self._bulk_threads += 1
        threading.Thread(target=self._work, args=(SWEEP_PAGES, False), daemon=True).start()

    def _work(self, pages: int, urgent_only: bool) -> None:
        memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        buffer, address = memoryview(memory), ctypes.addressof(ctypes.c_char.from_buffer(memory))
        if urgent_only:
            hurry()
        while (task := self._scheduler.next(urgent_only=urgent_only)) is not None:
            worked, waited = time.thread_time(), io_waited_s()
            where = self._shared.bring(task, self._fill) if self._shared is not None else None
            if where is None:
                self._fill(task, buffer)
            if not task.urgent:
                self._adapt(time.thread_time() - worked, io_waited_s() - waited)
            self._deliver(task, where or address)

    def _adapt(self, worked_s: float, waited_s: float) -> None:
        """As many threads as it takes to keep every core at work while the others' reads are on their way.

        The wait of a read is the least of the last few: what passes only in some of them is not the way to the bytes.
        """
        self.work_s += (worked_s - self.work_s) / 4
        self._waits.append(waited_s)
        wait_s = min(self._waits)
        self.waiting = wait_s / max(wait_s + self.work_s, 1e-6)
        useful = min(MAX_BULK_THREADS, self._cores / max(1 - self.waiting, 1e-3))
        if wait_s > _NEAR_S and self._bulk_threads < useful:
            self._add_bulk_thread()

    def _fill(self, task: Task, buffer: memoryview) -> None:
        """Read all of it at once; if that fails, find out which pages exactly cannot be had.

        Whatever the reader raises, the thread goes on: a fault that nobody answers would hang the program for good.
        """
        deadline = time.monotonic() + PATIENCE_S
        try:
            task.zeros = list(self._source.zero_pages(task.image, task.ranges))
            if sum(count for _, count in task.zeros) < task.pages:
                self._read(task.image, task.ranges, buffer[: task.pages * PAGE], deadline)
        except Exception:
            at = 0
            for first, count in task.ranges:
                self._fill_range(task, first, count, buffer[at : at + count * PAGE], deadline)
                at += count * PAGE

    def _fill_range(self, task: Task, first: int, count: int, buffer: memoryview, deadline: float) -> None:
        try:
            self._read(task.image, [(first, count)], buffer, deadline)
        except Exception as error:
            if count == 1:
                task.bad.add(first)
                task.reason = str(error) or repr(error)
                return
            half = count // 2
            self._fill_range(task, first, half, buffer[: half * PAGE], deadline)
            self._fill_range(task, first + half, count - half, buffer[half * PAGE :], deadline)

    def _read(self, image: MemoryImage, ranges: list[PageRange], buffer: memoryview, deadline: float) -> None:
        """One read; an answer that does not come (not: a wrong one) is asked for again until the deadline."""
        wait_s = 0.05
        while True:
            try:
                return self._source.read(image, ranges, buffer)
            except CorruptError:
                raise
            except Exception as error:
                if time.monotonic() > deadline or self.closed:
                    raise
                self._on_stall(str(error) or repr(error))
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, 1.0)
