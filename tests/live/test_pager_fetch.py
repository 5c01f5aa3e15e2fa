"""The threads that bring pages: how many there are, and that each page is brought once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

import pytest
from pagerlab import BASE

from ijfs.live.pager.fetch import SWEEP_PAGES, Fetcher, PageRange, Scheduler, Task
from ijfs.live.pager.plan import MemoryImage, Run
from ijfs.live.pager.throttle import Pace
from ijfs_engine import simulate_latency

BLOCKS = 48


class Place:
    """A `PageSource` whose reads take as long as `passing` does; in every other block the first page is zero."""

    def __init__(self, passing: Callable[[], None]) -> None:
        self.image = MemoryImage(7, [Run(BASE, BLOCKS * SWEEP_PAGES, 0)], [])
        self._passing = passing
        self.located = threading.Event()

    def memory(self, pid: int) -> MemoryImage:
        return self.image

    def zero_pages(self, image: MemoryImage, ranges: Iterable[PageRange]) -> Iterable[PageRange]:
        return [(first, 1) for first, _ in ranges if first // SWEEP_PAGES % 2]

    def locate(self) -> None:
        self.located.set()

    def read(self, image: MemoryImage, ranges: Iterable[PageRange], buffer: memoryview) -> None:
        self._passing()


def brought(passing: Callable[[], None]) -> tuple[Counter[int], int, int]:
    """Bring everything: how often each page came, how many were zeros, with how many threads for blocks."""
    place = Place(passing)
    pages: Counter[int] = Counter()
    zeros: list[PageRange] = []
    through, counting = threading.Event(), threading.Lock()

    def deliver(task: Task, address: int) -> None:
        scheduler.settle(task, [])
        with counting:
            for first, count in task.ranges:
                pages.update(range(first, first + count))
            zeros.extend(task.zeros)
            if len(pages) == place.image.pages:
                through.set()

    scheduler = Scheduler(lambda image, first, count: [(first, count)], lambda: Pace.ALL)
    fetcher = Fetcher(place, scheduler, deliver, lambda reason: None)
    scheduler.add_image(place.image)
    fetcher.start()
    assert through.wait(20)
    assert place.located.wait(20)
    fetcher.close()
    return pages, sum(count for _, count in zeros), fetcher._bulk_threads


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
