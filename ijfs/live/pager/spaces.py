"""The address spaces that are being paged, from CRIU's handing them over (or a fork) to their end.

`Spaces` is changed by the pager's listening thread alone; the threads of `fetch` look up where pages go, and what is
missing. Every space is in three more places, which follow each change here: the epoll set of the listening thread, the
supervisor's table (for the next worker) and the keeper (for the next pager).
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Iterator

from ijfs.live.pager.account import AccountBook
from ijfs.live.pager.channel import Channel
from ijfs.live.pager.ledger import Ledger
from ijfs.live.pager.messages import Hold, Lost, Release
from ijfs.live.pager.plan import IN, Plan, ProcessMemory
from ijfs.live.pager.space import Space
from ijfs.live.pager.supervisor import FdRow, FdTable
from ijfs.live.pager.task import PageRange
from ijfs.live.pager.uffd import EVENT_FORK, EVENT_PAGEFAULT, Uffd
from ijfs_engine import PAGE


class Spaces:
    """Every address space of one restore, by its userfaultfd."""

    def __init__(self, channel: Channel, fd_table: FdTable, book: AccountBook, epoll: select.epoll) -> None:
        self.resumed: float | None = None
        """Since when the programs run, by the monotonic clock."""
        self._channel = channel
        self._fd_table = fd_table
        self._book = book
        self._epoll = epoll
        self._spaces: dict[int, Space] = {}
        self._numbers = 0

    # -- from any thread ----------------------------------------------------------------------------------------

    def of_memory(self, memory: ProcessMemory) -> list[Space]:
        """Those that live and that pages of this saved process go to: a process and what it forked."""
        return [space for space in list(self._spaces.values()) if space.memory is memory and not space.dead]

    def missing(self, memory: ProcessMemory, first: int, count: int) -> list[PageRange]:
        """What of these pages any address space still misses. Before the programs run, all: spaces are yet to come."""
        if self.resumed is None:
            return [(first, count)]
        spaces = self.of_memory(memory)
        if len(spaces) == 1:
            return spaces[0].missing_runs(first, count)
        return [(first, count)] if any(space.missing_runs(first, count) for space in spaces) else []

    # -- for the listening thread -------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Space]:
        return iter(list(self._spaces.values()))

    def __len__(self) -> int:
        return len(self._spaces)

    def by_fd(self, fd: int) -> Space | None:
        return self._spaces.get(fd)

    def next_number(self) -> int:
        """A number for something that the keeper is to hold: a space, or the connection to CRIU."""
        self._numbers += 1
        return self._numbers

    def skip_number(self, number: int) -> None:
        """A predecessor gave this number to something."""
        self._numbers = max(self._numbers, number)

    def resume(self) -> None:
        """The programs run, and every mapping of theirs is registered."""
        for space in self._spaces.values():
            space.settled = True
        self.resumed = time.monotonic()

    def add(self, memory: ProcessMemory, fd: int, present: Iterable[PageRange] = ()) -> None:
        """The userfaultfd of a process that CRIU has made; the pages that are `present` it has read itself."""
        ledger = Ledger.create(memory.pid, memory.pages)
        plan = Plan(memory, ledger.states)
        for first, count in present:
            plan.mark(first, count, IN)
        self._enter(Space(self.next_number(), Uffd(fd), ledger, plan))

    def adopt(self, row: FdRow, ledger: Ledger, memory: ProcessMemory, *, held: bool) -> None:
        """A predecessor's address space. `held`: the keeper has it already."""
        space = Space(row.number, Uffd(row.uffd), ledger, ledger.restore(memory))
        self.skip_number(row.number)
        self._enter(space, held=held)

    def forget(self, space: Space) -> None:
        """The address space is gone: exit or exec."""
        self._fd_table.remove(space.number)
        self._epoll.unregister(space.uffd.fd)
        del self._spaces[space.uffd.fd]
        space.close()
        self._channel.send(Release(id=space.number))

    def read_events(self, space: Space) -> list[int]:
        """Read what the kernel has to say of one and follow it; the faults among it, as addresses."""
        with space.alone():
            return self.follow_events(space) if space.ledger.read_events(space.uffd.fd) else []

    def follow_events(self, space: Space, *, after_crash: bool = False, same_table: bool = False) -> list[int]:
        """Deal with what was read, in the kernel's order, each message settled before the next is begun; the faults
        among it, which are left to do, as addresses.

        After a crash these are asked again by whoever waits, and the userfaultfd of a fork is there only where the
        descriptor table is the `same_table`.
        """
        faults = []
        for slot, (event, a, b, c) in space.ledger.inbox():
            if event == EVENT_PAGEFAULT:
                faults.append(b & ~(PAGE - 1))
            elif event == EVENT_FORK:
                child = a & 0xFFFFFFFF
                if after_crash and not same_table:
                    self._book.add_lost()
                    self._channel.send(Lost(pid=space.memory.pid))
                elif child not in self._spaces:
                    self._fork(space, child)
            else:
                space.ledger.apply(space.plan, event, a, b, c)
            space.ledger.settle(slot)
        return faults

    def _fork(self, parent: Space, fd: int) -> None:
        ledger = parent.ledger.fork()
        self._enter(Space(self.next_number(), Uffd(fd), ledger, parent.plan.fork(ledger.states)))

    def _enter(self, space: Space, *, held: bool = False) -> None:
        self._fd_table.add(FdRow(space.number, space.uffd.fd, space.ledger.fd))
        space.settled = self.resumed is not None
        self._spaces[space.uffd.fd] = space
        self._epoll.register(space.uffd.fd, select.EPOLLIN)
        if not held:
            self._channel.send(Hold(id=space.number, kind="space"), [space.uffd.fd, space.ledger.fd])
