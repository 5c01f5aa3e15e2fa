"""The threads that read pages and hand them on to be copied.

A thread asks `scheduler` what to read when it is through with the last task. Some threads serve faults alone: a fault
does not wait for megabytes to be decompressed either. The thread that read also copies, because the bytes are in its
core's cache then, and out of a buffer that it uses again and again (docs/decisions.md, "The thread that reads also
copies").
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
from collections import deque
from functools import partial
from typing import Final, Protocol

from ijfs.live.pager.image_files import PageSource
from ijfs.live.pager.plan import ProcessMemory
from ijfs.live.pager.scheduler import AROUND_PAGES, SWEEP_PAGES, Scheduler
from ijfs.live.pager.shared import SharedBlocks
from ijfs.live.pager.task import PageRange, Task
from ijfs_engine import PAGE, io_waited_s
from ijfs_engine.errors import CorruptError, IjfsError

URGENT_THREADS: Final = 2
MAX_WORKING_THREADS: Final = 16
"""As many threads work at the same time. 2.5 GB for a GPU program on 16 cores: 0.69 to 0.80 s with 16 threads, 0.75 to
0.85 with 8, 1.1 with 5. (While each chunk took the interpreter's lock, 16 were slower than 8.)"""
MAX_BULK_THREADS: Final = 32
_NEAR_S: Final = 0.001
"""A wait that no further threads are worth: a disk's."""
PATIENCE_S: Final = 30.0
"""How long a place that fails to answer is asked again before its pages are given up."""


def raise_priority() -> None:
    """Run the calling thread before others: while a fault is open, the program stands still. Where that is allowed."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -10)


class ReadTimes:
    """What a background read costs, lately. The fetching threads note it, every thread may look."""

    def __init__(self) -> None:
        self.work_s = 0.0
        """Processor time of a read, in seconds."""
        self.wait_s = 0.0
        """The least wait of the last few reads: what passes only in some of them is not the way to the bytes."""
        self.waiting = 0.0
        """The share of a read that is waiting and not work: nearly 1.0 for a place far away."""
        self._waits: deque[float] = deque(maxlen=8)

    def note(self, worked_s: float, waited_s: float) -> None:
        self.work_s += (worked_s - self.work_s) / 4
        self._waits.append(waited_s)
        self.wait_s = min(self._waits)
        self.waiting = self.wait_s / max(self.wait_s + self.work_s, 1e-6)


class Receiver(Protocol):
    """Who gets what was read. Called in the fetching threads, by several of them at once."""

    def deliver(self, task: Task, address: int) -> None:
        """Copy a task's pages, which lie at `address` in the order of its ranges until this returns."""
        ...

    def stalled(self, reason: str) -> None:
        """The place with the bytes does not answer; it is asked again."""
        ...


class Fetcher:
    """The threads that bring pages; each gives what it has read to `receiver`, which copies it.

    It begins with a thread per core, MAX_WORKING_THREADS at most. Where reads wait (a remote or slow place), threads
    are added up to MAX_BULK_THREADS: the wait, not the work, is what is to be overlapped.
    """

    def __init__(
        self,
        source: PageSource,
        scheduler: Scheduler,
        receiver: Receiver,
        times: ReadTimes,
        shared: SharedBlocks | None = None,
    ) -> None:
        self._source = source
        self._scheduler = scheduler
        self._receiver = receiver
        self._times = times
        self._shared = shared
        self._bulk_threads = 0
        self._cores = min(len(os.sched_getaffinity(0)), MAX_WORKING_THREADS)

    def start(self) -> None:
        for _ in range(URGENT_THREADS):
            threading.Thread(target=self._work, args=(AROUND_PAGES, True), daemon=True).start()
        for _ in range(self._cores):
            self._add_bulk_thread()
        threading.Thread(target=self._locate, daemon=True).start()

    def close(self) -> None:
        """Have the threads end, each after what it is at."""
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
            raise_priority()
        give_back = partial(memory.madvise, mmap.MADV_DONTNEED)
        while (task := self._scheduler.next(urgent_only=urgent_only, before_rest=give_back)) is not None:
            worked, waited = time.thread_time(), io_waited_s()
            where = self._shared.bring(task, self._fill) if self._shared is not None else None
            if where is None:
                self._fill(task, buffer)
            if not task.urgent:
                self._adapt(time.thread_time() - worked, io_waited_s() - waited)
            self._receiver.deliver(task, where or address)

    def _adapt(self, worked_s: float, waited_s: float) -> None:
        """As many threads as it takes to keep every core at work while the others' reads are on their way."""
        self._times.note(worked_s, waited_s)
        useful = min(MAX_BULK_THREADS, self._cores / max(1 - self._times.waiting, 1e-3))
        if self._times.wait_s > _NEAR_S and self._bulk_threads < useful:
            self._add_bulk_thread()

    def _fill(self, task: Task, buffer: memoryview) -> None:
        """Read all of it at once; if that fails, find out which pages exactly cannot be had.

        Whatever the reader raises, the thread goes on: a fault that nobody answers would hang the program for good.
        """
        deadline = time.monotonic() + PATIENCE_S
        try:
            task.zeros = list(self._source.zero_pages(task.memory, task.ranges))
            if sum(count for _, count in task.zeros) < task.pages:
                self._read(task.memory, task.ranges, buffer[: task.pages * PAGE], deadline)
        except Exception:
            at = 0
            for first, count in task.ranges:
                self._fill_range(task, first, count, buffer[at : at + count * PAGE], deadline)
                at += count * PAGE

    def _fill_range(self, task: Task, first: int, count: int, buffer: memoryview, deadline: float) -> None:
        try:
            self._read(task.memory, [(first, count)], buffer, deadline)
        except Exception as error:
            if count == 1:
                task.bad.add(first)
                task.reason = str(error) or repr(error)
                return
            half = count // 2
            self._fill_range(task, first, half, buffer[: half * PAGE], deadline)
            self._fill_range(task, first + half, count - half, buffer[half * PAGE :], deadline)

    def _read(self, memory: ProcessMemory, ranges: list[PageRange], buffer: memoryview, deadline: float) -> None:
        """One read; an answer that does not come (not: a wrong one) is asked for again until the deadline."""
        wait_s = 0.05
        while True:
            try:
                return self._source.read(memory, ranges, buffer)
            except CorruptError:
                raise
            except Exception as error:
                if time.monotonic() > deadline or self._scheduler.closed:
                    raise
                self._receiver.stalled(str(error) or repr(error))
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, 1.0)
