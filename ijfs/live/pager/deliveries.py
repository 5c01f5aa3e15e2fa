"""From the fetching threads back to the listening one: pages are copied by the former, their consequences told by the
latter. The `Receiver` of `fetch`; used by `server`.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from ijfs.live.pager.faults import Faults
from ijfs.live.pager.scheduler import Scheduler
from ijfs.live.pager.space import Space
from ijfs.live.pager.spaces import Spaces
from ijfs.live.pager.task import Task
from ijfs.live.pager.uffd import RangeOutcome

AGAIN_S: Final = 0.0005
"""How long a copy waits that the kernel or CRIU is not ready for."""
_TOLD_S: Final = 1.0
"""How long one waits for the keeper to be told: a listener that is ending tells nobody any more."""


class Deliveries:
    """Copies what was read, and two queues of what the listening thread is to tell the keeper of it."""

    def __init__(self, spaces: Spaces, scheduler: Scheduler, faults: Faults) -> None:
        self.signal = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable when deliveries have left something to be done in the listening thread."""
        self._spaces = spaces
        self._scheduler = scheduler
        self._faults = faults
        self._spoilt: deque[tuple[Task, threading.Event]] = deque()
        self._stalled: deque[str] = deque(maxlen=1)

    # -- called by the fetching threads -------------------------------------------------------------------------

    def deliver(self, task: Task, address: int) -> None:
        """Copy what was read to wherever it is missing.

        Of pages that could not be had the keeper is told first: the program may end of them at once."""
        if task.bad:
            self._tell(task)
        while not self._scheduler.closed:
            outcomes = {space.fill(task, address) for space in self._spaces_of(task)}
            if not self._is_early(task, outcomes) and outcomes <= {
                RangeOutcome.DONE,
                RangeOutcome.GONE,
                RangeOutcome.NOT_MAPPED,
            }:
                break
            if RangeOutcome.INTERRUPTED not in outcomes:
                time.sleep(AGAIN_S)
        missing = {run for space in self._spaces_of(task) for r in task.ranges for run in space.missing_runs(*r)}
        self._scheduler.settle(task, missing)
        if self._faults.are_open or all(s.complete or s.dead for s in self._spaces_of(task)):
            os.eventfd_write(self.signal, 1)  # not each time: the listener would take a core from those who work

    def _tell(self, task: Task) -> None:
        told = threading.Event()
        self._spoilt.append((task, told))
        os.eventfd_write(self.signal, 1)
        told.wait(_TOLD_S)

    def stalled(self, reason: str) -> None:
        self._stalled.append(reason)

    def _is_early(self, task: Task, outcomes: set[RangeOutcome]) -> bool:
        """Whether CRIU has not made all the places yet for something that it will have made when the program runs."""
        early = not outcomes or RangeOutcome.NOT_MAPPED in outcomes
        return early and self._spaces.resumed is None and not task.urgent

    def _spaces_of(self, task: Task) -> list[Space]:
        return self._spaces.of_memory(task.memory)

    # -- called by the listening thread -------------------------------------------------------------------------

    def spoilt(self) -> Iterator[Task]:
        """Tasks with pages that could not be had, each once; they are delivered when the caller has told of them."""
        while self._spoilt:
            task, told = self._spoilt.popleft()
            yield task
            told.set()

    def stalls(self) -> Iterator[str]:
        """Why the place with the bytes does not answer, each reason once."""
        while self._stalled:
            yield self._stalled.popleft()
