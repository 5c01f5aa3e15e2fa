"""The lazy pages of a restore's processes, and what of them an earlier restore needed first. Used by `server`."""

from __future__ import annotations

from collections.abc import Iterable

from ijfs.live.pager import present, working_set
from ijfs.live.pager.image_files import PageSource
from ijfs.live.pager.plan import ProcessMemory
from ijfs.live.pager.scheduler import Scheduler


class ProcessMemories:
    """Each process's, read once and then known to the scheduler. For the listening thread."""

    def __init__(
        self,
        source: PageSource,
        scheduler: Scheduler,
        touched: Iterable[working_set.Touched],
        present_file: str | None = None,
    ) -> None:
        """`touched`: what an earlier restore needed first, in its order. `present_file`: of `present`."""
        self._source = source
        self._scheduler = scheduler
        self._touched = list(touched)
        self._present_file = present_file
        self._memories: dict[int, ProcessMemory] = {}
        self._foreseen: dict[int, bytearray] = {}

    def prepare(self, pids: Iterable[int]) -> None:
        """Read these processes' page maps and begin to fetch, before CRIU has even made them."""
        for pid in pids:
            self.of_process(pid)
        self._scheduler.set_order(working_set.blocks(self._touched, self._memories))

    def of_process(self, pid: int) -> ProcessMemory:
        """By the pid that the images have. Errors as of `PageSource.memory`."""
        memory = self._memories.get(pid)
        if memory is None:
            memory = self._memories[pid] = self._source.memory(pid)
            self._scheduler.add_memory(memory)
            self._foreseen[pid] = working_set.pages_of(self._touched, memory)
        return memory

    def present(self, memory: ProcessMemory) -> list[tuple[int, int]]:
        """The pages (first, count) of a process that CRIU has read itself; known when CRIU hands it over."""
        spans = present.read(self._present_file, memory.pid)
        return [found for start, end in spans for found in memory.numbers_in(start, end)]

    def is_foreseen(self, memory: ProcessMemory, page: int) -> bool:
        """Whether the working set has this page."""
        return bool(self._foreseen[memory.pid][page])
