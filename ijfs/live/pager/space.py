"""One address space being paged: its userfaultfd, its plan and its ledger held together, and every copy into it.

Called by `server` only, from its one copying thread: reading events and copying must not overlap (see `Uffd`).
"""

from __future__ import annotations

from typing import Final

from ijfs.live.pager.fetch import Task
from ijfs.live.pager.ledger import Ledger
from ijfs.live.pager.plan import IN, MISSING, PAGE, POISONED, ZERO, AddressSpace, MemoryImage
from ijfs.live.pager.uffd import Outcome, Uffd

_EVERYWHERE: Final = (1 << 47) - 3 * PAGE


class Space:
    """An address space with everything that belongs to it. `dead` once the kernel says that it is gone."""

    def __init__(self, number: int, uffd: Uffd, ledger: Ledger, plan: AddressSpace) -> None:
        self.number = number
        self.uffd = uffd
        self.ledger = ledger
        self.plan = plan
        self.dead = False
        self.settled = True
        """Whether ENOENT means "gone". Before CRIU has finished it may mean "not registered yet": it stays missing."""

    @property
    def image(self) -> MemoryImage:
        return self.plan.image

    def wake_all(self) -> None:
        """Let every waiting thread ask again: a predecessor may have read its question and not answered."""
        self.uffd.wake(PAGE, _EVERYWHERE)

    def answer_with_zeros(self, vaddr: int) -> Outcome:
        """A fault where nothing of the image belongs, or where the page came in meanwhile."""
        _, outcome = self.uffd.zero(vaddr, PAGE)
        if outcome is Outcome.EXISTS:
            self.uffd.wake(vaddr, PAGE)
        return self._checked(outcome)

    def copy_part(self, task: Task, limit: int) -> tuple[bool, Outcome]:
        """Copy up to `limit` pages of a task from its position on: (whether this space has all of it now, outcome)."""
        base = 0
        for first, count in task.ranges:
            for vaddr, page, pages in self.plan.targets(first, count):
                source = task.address + (base + page - first) * PAGE
                if limit <= 0:
                    return False, Outcome.DONE
                limit -= pages
                outcome = self._fill(task, vaddr, page, pages, source)
                if outcome is not Outcome.DONE:
                    return False, outcome
            base += count
        return True, Outcome.DONE

    def _fill(self, task: Task, vaddr: int, page: int, pages: int, source: int) -> Outcome:
        """Fill one stretch of missing pages, leaving out the bad ones, which are poisoned."""
        if not task.bad:
            return self._operate(vaddr, page, pages, source)
        for at in range(pages):
            where = None if page + at in task.bad else source + at * PAGE
            outcome = self._operate(vaddr + at * PAGE, page + at, 1, where)
            if outcome is not Outcome.DONE:
                return outcome
        return Outcome.DONE

    def _operate(self, vaddr: int, page: int, pages: int, source: int | None) -> Outcome:
        """Copy (or poison, without a source) until all is handled or the caller has to do something first."""
        at, step = 0, pages
        while at < pages:
            length = min(step, pages - at) * PAGE
            if source is None:
                done, outcome = self.uffd.poison(vaddr + at * PAGE, length)
            else:
                done, outcome = self.uffd.copy(vaddr + at * PAGE, source + at * PAGE, length)
            handled = done // PAGE
            if handled:
                self.plan.mark(page + at, handled, POISONED if source is None else IN)
                at += handled
            elif outcome is Outcome.EXISTS:
                self.uffd.wake(vaddr + at * PAGE, PAGE)
                self.plan.mark(page + at, 1, IN)
                at += 1
            elif outcome is Outcome.NOT_MAPPED and length > PAGE:
                step = length // PAGE // 2  # a boundary made by mprotect or munmap runs through it
                continue
            elif outcome is Outcome.NOT_MAPPED:
                if self.settled:
                    self.plan.mark(page + at, 1, ZERO)
                at += 1
            elif outcome is not Outcome.DONE:
                return self._checked(outcome)
            step = pages
        return Outcome.DONE

    def is_missing(self, page: int) -> bool:
        return self.plan.states[page] == MISSING

    def _checked(self, outcome: Outcome) -> Outcome:
        if outcome is Outcome.GONE:
            self.dead = True
        return outcome

    def unregister(self) -> None:
        """Hand every range back to the kernel, also those that another holder of the userfaultfd keeps open."""
        for mapping in self.image.mappings:
            self.uffd.unregister(mapping.start, mapping.end - mapping.start)
        for _, destination, length in self.ledger.moves():
            self.uffd.unregister(destination, length)

    def close(self) -> None:
        self.uffd.close()
        self.ledger.close()
