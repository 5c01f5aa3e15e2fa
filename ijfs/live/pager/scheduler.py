"""Which pages to read next: those of faults, then what lies around them, then the working set, then the rest.

The threads of `fetch` ask when they are through with the last task, so that a fault never queues behind work that was
planned earlier.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from ijfs.live.pager.plan import ProcessMemory
from ijfs.live.pager.task import PageRange, Task
from ijfs.live.pager.throttle import Pace

BLOCK_PAGES: Final = 256
"""A read of what is wanted soon: 1 MiB."""
SWEEP_PAGES: Final = 1024
"""A read of the rest: 4 MiB, a leaf of the engine. Four times smaller, the interpreter's share of it is four times
larger; larger, it leaves the cache."""
AROUND_PAGES: Final = 16
"""A fault brings its 64 KiB: about one chunk of the engine, which has to be decoded whole anyway."""
_POLL_S: Final = 0.005
"""How often a thread asks whether what is held back is held back still."""

_FREE, _TAKEN, _SETTLED = 0, 1, 2


class Demand(Protocol):
    """What may be read besides faults. Asked by the fetching threads."""

    def missing(self, memory: ProcessMemory, first: int, count: int) -> Iterable[PageRange]:
        """Those of these pages that any address space still misses."""
        ...

    def pace(self) -> Pace:
        """How much may be read that no fault asked for."""
        ...

    def pace_stays(self) -> bool:
        """Whether it changes only where the scheduler is told (`pace_changed`)."""
        ...


class Scheduler:
    """What is to be read next. Every page is handed out once, unless it is put back; faults come before all else.

    The listening thread adds images, orders and faults; fetching threads take tasks and settle them. One lock guards
    all of it, and `demand` is asked under that lock: it may not call back.
    """

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self._changed = threading.Condition()
        self._claims: dict[int, bytearray] = {}
        self._memories: list[ProcessMemory] = []
        self._cursors: dict[int, int] = {}
        self._urgent: deque[Task] = deque()
        self._pending: set[tuple[int, int]] = set()
        self._near: deque[tuple[ProcessMemory, int]] = deque(maxlen=4)
        self._asked: deque[tuple[int, int]] = deque(maxlen=32)
        self._working_set: Iterator[tuple[int, tuple[ProcessMemory, list[PageRange]]]] = enumerate(())
        self._closed = False

    def add_memory(self, memory: ProcessMemory) -> None:
        with self._changed:
            self._claims[memory.pid] = bytearray(memory.pages)
            self._memories.append(memory)
            self._cursors[memory.pid] = 0
            self._changed.notify_all()

    def set_order(self, order: Iterable[tuple[ProcessMemory, list[PageRange]]]) -> None:
        """The working set: pages in the order of an earlier restore's needs, in blocks of at most BLOCK_PAGES."""
        with self._changed:
            self._working_set = enumerate(order)
            self._changed.notify_all()

    def want_now(self, memory: ProcessMemory, page: int) -> PageRange | None:
        """A fault needs this page: read what lies around it before all else. None: that is under way already."""
        first = page // AROUND_PAGES * AROUND_PAGES
        count = min(AROUND_PAGES, memory.pages - first)
        with self._changed:
            if (memory.pid, first) in self._pending:
                return None
            self._pending.add((memory.pid, first))
            self._urgent.append(Task(memory, [(first, count)], urgent=True))
            # Only for faults that walk: around scattered ones, a mebibyte each would be read for nothing.
            neighbours = {(memory.pid, first - AROUND_PAGES), (memory.pid, first + AROUND_PAGES)}
            if neighbours & set(self._asked):
                self._near.append((memory, page))
            self._asked.append((memory.pid, first))
            self._changed.notify_all()
        return first, count

    def is_taken(self, memory: ProcessMemory, page: int) -> bool:
        """Whether a block that is being read, or waits to be copied, holds this page."""
        return self._claims[memory.pid][page] == _TAKEN

    @property
    def closed(self) -> bool:
        """Whether nothing more is to be read or copied."""
        return self._closed

    def next(self, *, urgent_only: bool, before_rest: Callable[[], None]) -> Task | None:
        """The next task, waiting for one; None when closed. `before_rest` is called where that may take long, under the
        lock: a pager whose program has what it touches is to take no memory."""
        with self._changed:
            while not self._closed:
                if self._urgent:
                    return self._urgent.popleft()
                pace = Pace.NOTHING if urgent_only else self._demand.pace()
                task = None if urgent_only else self._next_block(pace)
                if task is not None:
                    return task
                stays = self._demand.pace_stays()
                asleep = urgent_only or pace is Pace.ALL or stays
                if stays:
                    before_rest()
                self._changed.wait(None if asleep else _POLL_S)
        return None

    def settle(self, task: Task, missing: Iterable[PageRange]) -> None:
        """A task is through; what is still `missing` of it may be handed out again."""
        with self._changed:
            claims = self._claims[task.memory.pid]
            for first, count in task.ranges:
                claims[first : first + count] = bytes((_SETTLED,)) * count
            for first, count in missing:
                claims[first : first + count] = bytes((_FREE,)) * count
                self._cursors[task.memory.pid] = min(self._cursors[task.memory.pid], first)
                self._changed.notify_all()
            if task.urgent:
                self._pending.discard((task.memory.pid, task.ranges[0][0]))

    def pace_changed(self) -> None:
        """More may be read than before."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next_block(self, pace: Pace) -> Task | None:
        while self._near and pace >= Pace.NEAR:
            memory, page = self._near.popleft()
            first = page // BLOCK_PAGES * BLOCK_PAGES
            if task := self._claim(memory, [(first, min(BLOCK_PAGES, memory.pages - first))]):
                task.near = True
                return task
        for number, (memory, ranges) in self._working_set:
            if task := self._claim(memory, ranges):
                task.block = number
                task.ranges = ranges  # whole, as each of several siblings has it; what is there already is passed over
                return task
        for memory in self._memories if pace is Pace.ALL else ():
            while (first := self._claims[memory.pid].find(_FREE, self._cursors[memory.pid])) >= 0:
                count = min(SWEEP_PAGES, memory.pages - first)
                self._cursors[memory.pid] = first + count
                if task := self._claim(memory, [(first, count)]):
                    return task
        return None

    def _claim(self, memory: ProcessMemory, ranges: list[PageRange]) -> Task | None:
        """A task for what is free and wanted in these ranges."""
        claims = self._claims[memory.pid]
        chosen: list[PageRange] = []
        for first, count in ranges:
            for begin, pages in self._demand.missing(memory, first, count):
                chosen.extend(_free_runs(claims, begin, pages))
        for first, count in chosen:
            claims[first : first + count] = bytes((_TAKEN,)) * count
        return Task(memory, chosen) if chosen else None


def _free_runs(claims: bytearray, first: int, count: int) -> Iterator[PageRange]:
    end = first + count
    while first < end and (begin := claims.find(_FREE, first, end)) >= 0:
        stops = [at for mark in (_TAKEN, _SETTLED) if (at := claims.find(mark, begin, end)) >= 0]
        first = min(stops, default=end)
        yield begin, first - begin
