"""Faults of the program: each is answered, or asked of the scheduler and answered by the copy that comes.

`Faults` lives in the pager's listening thread. Used by `server`.
"""

from __future__ import annotations

from typing import Final

from ijfs.live.pager.fetch import ReadTimes
from ijfs.live.pager.memories import ProcessMemories
from ijfs.live.pager.plan import IN, MISSING
from ijfs.live.pager.scheduler import Scheduler
from ijfs.live.pager.space import Space
from ijfs.live.pager.throttle import Throttle
from ijfs.live.pager.uffd import RangeOutcome
from ijfs.live.pager.working_set import Touches

_SLOW_BLOCK_S: Final = 0.003
"""If the block of a fault is already being read, the fault waits for it: fetching its own 64 KiB would take as long.
Where decoding a block takes longer than this, it is fetched by itself."""


class Faults:
    """Which faults wait, and for what."""

    def __init__(
        self,
        scheduler: Scheduler,
        memories: ProcessMemories,
        throttle: Throttle,
        times: ReadTimes,
        touches: Touches | None,
    ) -> None:
        """`touches` collects what no working set had foreseen."""
        self.count = 0
        self._scheduler = scheduler
        self._memories = memories
        self._throttle = throttle
        self._times = times
        self._touches = touches
        self._open: list[tuple[Space, int]] = []
        """On missing pages, to be looked at again when tasks were delivered."""
        self._deferred: list[tuple[Space, int]] = []
        """To be looked at again at once: the mappings were changing."""

    @property
    def are_open(self) -> bool:
        """Whether any waits for a copy. From any thread."""
        return bool(self._open)

    @property
    def are_deferred(self) -> bool:
        return bool(self._deferred)

    def on_fault(self, space: Space, vaddr: int) -> None:
        """The program touched a page that is not there."""
        self.count += 1
        page = space.plan.page_at(vaddr)
        if page is not None and space.state_of(page) == MISSING and not self._memories.is_foreseen(space.memory, page):
            self._throttle.stray()
            if self._touches is not None:
                self._touches.add(space.memory, page)
        self._answer(space, vaddr)

    def after_deliveries(self) -> None:
        """Look again at those that wait for a copy: some of what they wait for has come, or cannot be had."""
        asked, self._open = self._open, []
        for space, vaddr in asked:
            page = space.plan.page_at(vaddr)
            if page is None or space.state_of(page) != IN:  # who waited for a copy was woken by it
                self._answer(space, vaddr)

    def try_deferred(self) -> None:
        deferred, self._deferred = self._deferred, []
        for space, vaddr in deferred:
            self._answer(space, vaddr)

    def _answer(self, space: Space, vaddr: int) -> None:
        """Answer a fault, or see to it that an answer comes."""
        if space.dead:
            return
        page = space.plan.page_at(vaddr)
        if page is None or space.state_of(page) != MISSING:
            if space.answer_with_zeros(vaddr) in (RangeOutcome.CHANGING, RangeOutcome.NO_MEMORY):
                self._deferred.append((space, vaddr))
            return
        self._open.append((space, vaddr))
        if self._times.work_s >= _SLOW_BLOCK_S or not self._scheduler.is_taken(space.memory, page):
            self._scheduler.want_now(space.memory, page)
