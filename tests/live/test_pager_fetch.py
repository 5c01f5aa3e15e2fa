"""The threads that bring pages: how many there are, and that each page is brought once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

import pytest
from pagerlab import BASE

from ijfs.live.pager.fetch import Fetcher, ReadTimes
from ijfs.live.pager.plan import ProcessMemory, Run
from ijfs.live.pager.scheduler import SWEEP_PAGES, Scheduler
from ijfs.live.pager.task import PageRange, Task
from ijfs.live.pager.throttle import Pace
from ijfs_engine import simulate_latency

BLOCKS = 48


class Place:
    """A `PageSource` whose reads take as long as `passing` does; in every other block the first page is zero."""

    def __init__(self, passing: Callable[[], None]) -> None:
        self.image = ProcessMemory(7, [Run(BASE, BLOCKS * SWEEP_PAGES, 0)], [])
        self._passing = passing
        self.located = threading.Event()

    def memory(self, pid: int) -> ProcessMemory:
        return self.image

    def zero_pages(self, image: ProcessMemory, ranges: Iterable[PageRange]) -> Iterable[PageRange]:
        return [(first, 1) for first, _ in ranges if first // SWEEP_PAGES % 2]

    def locate(self) -> None:
        self.located.set()

    def read(self, image: ProcessMemory, ranges: Iterable[PageRange], buffer: memoryview) -> None:
        self._passing()


class Everything:
    """A `Demand` for all there is, at once."""

    def missing(self, image: ProcessMemory, first: int, count: int) -> Iterable[PageRange]:
        return [(first, count)]

    def pace(self) -> Pace:
        return Pace.ALL

    def pace_stays(self) -> bool:
        return False


class Copies:
    """A `Receiver` that counts what comes; `through` once every page has."""

    def __init__(self, scheduler: Scheduler, image: ProcessMemory) -> None:
        self.pages: Counter[int] = Counter()
        self.zeros: list[PageRange] = []
        self.through = threading.Event()
        self._scheduler = scheduler
        self._image = image
        self._counting = threading.Lock()

    def deliver(self, task: Task, address: int) -> None:
        self._scheduler.settle(task, [])
        with self._counting:
            for first, count in task.ranges:
                self.pages.update(range(first, first + count))
            self.zeros.extend(task.zeros)
            if len(self.pages) == self._image.pages:
                self.through.set()

    def stalled(self, reason: str) -> None:
        raise AssertionError(reason)


def brought(passing: Callable[[], None]) -> tuple[Counter[int], int, int]:
    """Bring everything: how often each page came, how many were zeros, with how many threads for blocks."""
    place = Place(passing)
    scheduler = Scheduler(Everything())
    copies = Copies(scheduler, place.image)
    fetcher = Fetcher(place, scheduler, copies, ReadTimes())
    scheduler.add_memory(place.image)
    fetcher.start()
    assert copies.through.wait(20)
    assert place.located.wait(20)
    fetcher.close()
    return copies.pages, sum(count for _, count in copies.zeros), fetcher._bulk_threads


def test_every_page_comes_once_and_zeros_are_known() -> None:
    pages, zeros, _ = brought(lambda: None)
    assert set(pages.values()) == {1}
    assert zeros == BLOCKS // 2


@pytest.mark.parametrize(
    ("passing", "more"),
    [(lambda: simulate_latency(0.005), True), (lambda: time.sleep(0.005), False)],
    ids=["a far place", "a busy machine"],
)
def test_threads_are_added_for_what_requests_wait_and_for_nothing_else(passing: Callable[[], None], more: bool) -> None:
    start = brought(lambda: None)[2]
    assert (brought(passing)[2] > start) is more
