"""One address space being paged: its userfaultfd, its plan and its ledger held together, and every copy into it.

`server`'s one listening thread reads events and answers with zeros; `fetch`'s threads fill. Reading events and filling
must not overlap: `alone` is the side of the one, `fill` has the other side within (filling.pyx says why).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ijfs.live.pager.filling import Filler
from ijfs.live.pager.ledger import Ledger
from ijfs.live.pager.plan import Plan, ProcessMemory
from ijfs.live.pager.task import Task
from ijfs.live.pager.uffd import RangeOutcome, Uffd
from ijfs_engine import PAGE

_EVERYWHERE: Final = (1 << 47) - 3 * PAGE


class Space:
    """An address space with everything that belongs to it. `dead` once the kernel says that it is gone."""

    def __init__(self, number: int, uffd: Uffd, ledger: Ledger, plan: Plan) -> None:
        self.number = number
        self.uffd = uffd
        self.ledger = ledger
        self.plan = plan
        self.dead = False
        self.settled = True
        """Whether ENOENT means "gone". Before CRIU has finished it may mean "not registered yet": it stays missing."""
        self._filler = Filler(uffd.fd, ledger.states)

    @property
    def memory(self) -> ProcessMemory:
        return self.plan.memory

    @property
    def complete(self) -> bool:
        """Whether no page is missing any more."""
        return not self._filler.any_missing()

    def counts(self) -> tuple[int, ...]:
        """How many pages there are in each state of `plan`, by its number."""
        return self._filler.counts()

    def state_of(self, page: int) -> int:
        """The state of a page, one of `plan`'s; for the listening thread."""
        return self.plan.states[page]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nothing is filled meanwhile: to read events, to change the plan, to close. A fill in progress stops early."""
        self._filler.seize()
        try:
            yield
        finally:
            self._filler.release()

    def wake_all(self) -> None:
        """Let every waiting thread ask again: a predecessor may have read its question and not answered."""
        self.uffd.wake(PAGE, _EVERYWHERE)

    def answer_with_zeros(self, vaddr: int) -> RangeOutcome:
        """A fault where no saved page belongs, or where the page came in meanwhile."""
        _, outcome = self.uffd.zero(vaddr, PAGE)
        if outcome is RangeOutcome.EXISTS:
            self.uffd.wake(vaddr, PAGE)
        return self._checked(outcome)

    def fill(self, task: Task, address: int) -> RangeOutcome:
        """Copy what is missing of a task's pages, which lie at `address`; DONE where nothing is left to do.

        From any thread, several at once. NOT_MAPPED: some of it, before all mappings are settled.
        """
        self._filler.share()
        try:
            if self.dead:
                return RangeOutcome.GONE
            for first, count in task.zeros:
                self._filler.zero(first, count)
            return self._checked(RangeOutcome(self._filler.fill(self._targets(task, address), self.settled)))
        finally:
            self._filler.release()

    def _targets(self, task: Task, address: int) -> list[tuple[int, int, int, int]]:
        """(where it goes, first page, pages, where it lies) of each stretch; a bad page lies at 0 and is poisoned."""
        targets: list[tuple[int, int, int, int]] = []
        for first, count in task.ranges:
            begin = address - first * PAGE
            targets += [
                (vaddr, page, pages, begin + page * PAGE) for vaddr, page, pages in self.plan.places(first, count)
            ]
            address += count * PAGE
        if not task.bad:
            return targets
        return [
            (vaddr + at * PAGE, page + at, 1, 0 if page + at in task.bad else source + at * PAGE)
            for vaddr, page, pages, source in targets
            for at in range(pages)
        ]

    def _checked(self, outcome: RangeOutcome) -> RangeOutcome:
        if outcome is RangeOutcome.GONE:
            self.dead = True
        return outcome

    def missing_runs(self, first: int, count: int) -> list[tuple[int, int]]:
        """The missing pages among [first, first + count) as (first, count), none once it is dead; from any thread."""
        self._filler.share()
        try:
            return list(self.plan.missing_runs(first, count)) if not self.dead else []
        finally:
            self._filler.release()

    def unregister(self) -> None:
        """Hand every range back to the kernel, also those that another holder of the userfaultfd keeps open."""
        for mapping in self.memory.mappings:
            self.uffd.unregister(mapping.start, mapping.end - mapping.start)
        for _, destination, length in self.ledger.moves():
            self.uffd.unregister(destination, length)

    def close(self) -> None:
        with self.alone():
            self.dead = True
            self._filler.close()
            self.uffd.close()
            self.ledger.close()
