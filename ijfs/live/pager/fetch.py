"""Fetching, apart from copying: which pages to read next, threads that read them, buffers to read them into.

`Scheduler` decides (faults, then what lies around them, then the recorded order, then the rest), `Fetcher` runs the
threads; the one thread that copies (`server`) takes what is `ready`. A thread takes a buffer first and only then asks
what to read, so that a fault never queues behind work that was planned earlier. Some threads serve faults alone: a
fault does not wait for a megabyte to be decompressed either.
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
from queue import SimpleQueue
from typing import Final

from ijfs.live.pager.plan import PAGE, MemoryImage
from ijfs.live.pager.source import PageSource
from ijfs_engine.errors import CorruptError

BLOCK_PAGES: Final = 256
"""A background read: 1 MiB. UFFDIO_COPY reaches its full 2.9 GB/s at this size; larger only delays faults."""
AROUND_PAGES: Final = 16
"""A fault brings its 64 KiB: about one chunk of the engine, which has to be decoded whole anyway."""
BULK_AHEAD_PAGES: Final = (512 << 20) // PAGE
"""What is decoded ahead while CRIU still makes the processes (half a second), where all memory is wanted at once."""
URGENT_THREADS: Final = 2
MAX_BULK_THREADS: Final = 32
_NEAR_S: Final = 0.001
"""A wait that no further threads are worth: a disk's."""
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
    """Pages of one image that are read together; after the read they lie in `buffer`, range after range."""

    __slots__ = ("address", "at", "bad", "buffer", "image", "near", "ranges", "reason", "recorded", "slot", "urgent")

    def __init__(
        self, image: MemoryImage, ranges: list[PageRange], *, urgent: bool = False, near: bool = False
    ) -> None:
        self.image = image
        self.ranges = ranges
        self.urgent = urgent
        """A fault waits for it."""
        self.near = near
        """It follows faults that went from one page range to the next."""
        self.recorded = False
        """It was touched at an earlier restore."""
        self.slot: Slot | None = None
        self.buffer = memoryview(b"")
        self.address = 0
        self.at = 0
        """How many of its pages the copying thread is through with."""
        self.bad: set[int] = set()
        """Page numbers that could not be had."""
        self.reason = ""

    @property
    def pages(self) -> int:
        return sum(count for _, count in self.ranges)


class Slot:
    """A buffer of fixed address that goes round between fetching and copying."""

    def __init__(self, pages: int, home: SimpleQueue[Slot | None]) -> None:
        self._memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._home = home

    def give_back(self) -> None:
        self._home.put(self)


class Scheduler:
    """What is to be read next. Every page is handed out once, unless it is put back; faults come before all else."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._changed = threading.Condition()
        self._claims: dict[int, bytearray] = {}
        self._images: list[MemoryImage] = []
        self._cursors: dict[int, int] = {}
        self._urgent: deque[Task] = deque()
        self._pending: set[tuple[int, int]] = set()
        self._near: deque[tuple[MemoryImage, int]] = deque(maxlen=4)
        self._asked: deque[tuple[int, int]] = deque(maxlen=32)
        self._recorded: Iterator[tuple[MemoryImage, list[PageRange]]] = iter(())
        self._closed = False

    def add_image(self, image: MemoryImage, zeros: Iterable[PageRange] = ()) -> None:
        claims = bytearray(image.pages)
        for first, count in zeros:
            claims[first : first + count] = bytes((_SETTLED,)) * count
        with self._changed:
            self._claims[image.pid] = claims
            self._images.append(image)
            self._cursors[image.pid] = 0
            self._changed.notify_all()

    def set_order(self, order: Iterable[tuple[MemoryImage, list[PageRange]]]) -> None:
        """The order in which pages were needed at an earlier restore, in blocks of at most BLOCK_PAGES."""
        with self._changed:
            self._recorded = iter(order)
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
                task = None if urgent_only else self._next_block()
                if task is not None:
                    return task
                self._changed.wait()
        return None

    def settle(self, task: Task, missing: Iterable[PageRange]) -> None:
        """The copying thread is through with a task; what is still `missing` may be handed out again."""
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

    def _next_block(self) -> Task | None:
        while self._near:
            image, page = self._near.popleft()
            first = page // BLOCK_PAGES * BLOCK_PAGES
            if task := self._claim(image, [(first, min(BLOCK_PAGES, image.pages - first))]):
                task.near = True
                return task
        for image, ranges in self._recorded:
            if task := self._claim(image, ranges):
                task.recorded = True
                return task
        for image in self._images:
            while (first := self._claims[image.pid].find(_FREE, self._cursors[image.pid])) >= 0:
                count = min(BLOCK_PAGES, image.pages - first)
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
    """The reading threads. `ready` holds finished tasks; the eventfd `signal` becomes readable when one is added.

    It begins with a thread per core. Where reads wait (a remote or slow place), threads are added up to
    MAX_BULK_THREADS: the wait, not the work, is what is to be overlapped.
    """

    def __init__(
        self, source: PageSource, scheduler: Scheduler, on_stall: Callable[[str], None], ahead_pages: int = 0
    ) -> None:
        """`ahead_pages` is how much may lie decoded before anything can be copied, besides two blocks a thread."""
        self._ahead_pages = ahead_pages
        self.ready: deque[Task] = deque()
        self.signal = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.work_s = 0.0
        """Processor time that a background read took lately, in seconds."""
        self.waiting = 0.0
        """The share of a background read, lately, that is waiting and not work: nearly 1.0 for a place far away."""
        self._source = source
        self._scheduler = scheduler
        self._on_stall = on_stall
        self._bulk: SimpleQueue[Slot | None] = SimpleQueue()
        self._small: SimpleQueue[Slot | None] = SimpleQueue()
        self._bulk_threads = 0
        self._cores = len(os.sched_getaffinity(0))
        self._waits: deque[float] = deque(maxlen=8)
        self._closed = False

    def start(self) -> None:
        for _ in range(URGENT_THREADS):
            for _ in range(4):
                self._small.put(Slot(AROUND_PAGES, self._small))
            threading.Thread(target=self._work, args=(self._small, True), daemon=True).start()
        for _ in range(self._ahead_pages // BLOCK_PAGES):
            self._bulk.put(Slot(BLOCK_PAGES, self._bulk))
        for _ in range(self._cores):
            self._add_bulk_thread()

    def close(self) -> None:
        self._closed = True
        self._scheduler.close()

    def _add_bulk_thread(self) -> None:
        self._bulk_threads += 1
        for _ in range(2):
            self._bulk.put(Slot(BLOCK_PAGES, self._bulk))
        threading.Thread(target=self._work, args=(self._bulk, False), daemon=True).start()

    def _work(self, slots: SimpleQueue[Slot | None], urgent_only: bool) -> None:
        if urgent_only:
            hurry()
        while not self._closed and (slot := slots.get()) is not None:
            task = self._scheduler.next(urgent_only=urgent_only)
            if task is None:
                return
            task.slot, task.buffer, task.address = slot, slot.view, slot.address
            began, worked = time.monotonic(), time.thread_time()
            self._fill(task)
            if not task.urgent:
                self._adapt(time.monotonic() - began, time.thread_time() - worked)
            self.ready.append(task)
            os.eventfd_write(self.signal, 1)

    def _adapt(self, took_s: float, worked_s: float) -> None:
        """As many threads as it takes to keep every core at work while the others' reads are on their way.

        The wait of a read is the least of the last few: time without the processor or the interpreter passes in some
        of them, the way to the bytes in all. (The share of a single read was tried: decoding then hid 5 ms of wait.)
        """
        self.work_s += (worked_s - self.work_s) / 4
        self._waits.append(took_s - worked_s)
        wait_s = min(self._waits)
        self.waiting = wait_s / max(wait_s + self.work_s, 1e-6)
        useful = min(MAX_BULK_THREADS, self._cores / max(1 - self.waiting, 1e-3))
        if wait_s > _NEAR_S and self._bulk_threads < useful:
            self._add_bulk_thread()

    def _fill(self, task: Task) -> None:
        """Read all of it at once; if that fails, find out which pages exactly cannot be had.

        Whatever the reader raises, the thread goes on: a fault that nobody answers would hang the program for good.
        """
        deadline = time.monotonic() + PATIENCE_S
        try:
            self._read(task.image, task.ranges, task.buffer[: task.pages * PAGE], deadline)
        except Exception:
            at = 0
            for first, count in task.ranges:
                self._fill_range(task, first, count, task.buffer[at : at + count * PAGE], deadline)
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
                if time.monotonic() > deadline or self._closed:
                    raise
                self._on_stall(str(error) or repr(error))
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, 1.0)
