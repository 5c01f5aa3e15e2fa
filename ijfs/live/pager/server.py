"""The pager process's listening thread: takes faults, follows the program's mapping changes, says what may be read.

Started by `__main__`; the keeper's side is `api`. `Server` listens to CRIU, the userfaultfds and the keeper, and has
each event dealt with by the part whose it is. What takes longer than a system call (reading, decompressing, copying)
happens in `fetch`'s threads.

    part                owns                                                    who changes it
    CriuConversation    the listening socket, the connection to CRIU            this thread
    Recovery            nothing: it hands a dead pager's things to the others   this thread
    Spaces              address spaces, since when the programs run             this thread; looked at by all
    ProcessMemories     lazy pages, the working set                             this thread
    Faults              faults that wait                                        this thread; `are_open` is looked at
    Deliveries          queues from the fetching threads to this one            fetching threads fill, this one empties
    Scheduler           what is read, what is to be read next                   all, under its lock
    ReadTimes           what a read costs                                       fetching threads; looked at by this one
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterable
from typing import Final

from ijfs.live.pager import working_set
from ijfs.live.pager.account import AccountBook
from ijfs.live.pager.channel import Channel
from ijfs.live.pager.conversation import CriuConversation
from ijfs.live.pager.deliveries import AGAIN_S, Deliveries
from ijfs.live.pager.faults import Faults
from ijfs.live.pager.fetch import Fetcher, ReadTimes, raise_priority
from ijfs.live.pager.image_files import PageSource
from ijfs.live.pager.memories import ProcessMemories
from ijfs.live.pager.messages import Complete, Failed, Hurry, Poisoned, Progress, Released, Stalled
from ijfs.live.pager.plan import ProcessMemory
from ijfs.live.pager.recovery import Recovery
from ijfs.live.pager.scheduler import Scheduler
from ijfs.live.pager.shared import SharedBlocks
from ijfs.live.pager.spaces import Spaces
from ijfs.live.pager.supervisor import FdTable
from ijfs.live.pager.task import PageRange, Task
from ijfs.live.pager.throttle import Pace, Throttle
from ijfs_engine import PAGE
from ijfs_engine.errors import IjfsError

Keep = Callable[[Iterable[working_set.Touched]], None]
"""Keeps what was touched, in order, for the next restore."""

_LISTEN_S: Final = 0.05
_WAITING_S: Final = 1.0
_PROGRESS_S: Final = 0.1
_RELEASE_S: Final = 2.0
"""How long a keeper may take to let go of the userfaultfds before the pager leaves all the same."""


class Server:
    """Pages a restored program in. One use: construct, `run`, throw away."""

    def __init__(
        self,
        source: PageSource,
        channel: Channel,
        listener: socket.socket | None,
        *,
        fd_table: FdTable,
        book: AccountBook,
        touched: Iterable[working_set.Touched] = (),
        keep: Keep | None = None,
        bulk: bool = False,
        rest_after_s: float = 0.0,
        on_demand: bool = False,
        shared: SharedBlocks | None = None,
        present_file: str | None = None,
    ) -> None:
        self._channel = channel
        self._book = book
        self._touched = list(touched)
        self._keep = keep
        self._touches = working_set.Touches()
        self._epoll = select.epoll()
        self._spaces = Spaces(channel, fd_table, book, self._epoll)
        learning = keep is not None and not on_demand  # what is touched in an hour is no working set
        self._throttle = throttle = Throttle(
            bulk=bulk, rest_after_s=rest_after_s, learning=learning, first=not self._touched, on_demand=on_demand
        )
        times = ReadTimes()
        self._scheduler = scheduler = Scheduler(_Demand(self._spaces, throttle, times))
        self._memories = ProcessMemories(source, scheduler, self._touched, present_file)
        touches = self._touches if learning else None
        self._faults = Faults(scheduler, self._memories, throttle, times, touches)
        self._deliveries = Deliveries(self._spaces, scheduler, self._faults)
        self._fetcher = Fetcher(source, scheduler, self._deliveries, times, shared)
        self._conversation = CriuConversation(listener, channel, fd_table, self._epoll, self._spaces, self._memories)
        self._recovery = Recovery(channel, fd_table, self._conversation, self._spaces, self._memories)
        self._released = False
        """The keeper has let go of the userfaultfds."""
        self._began = time.monotonic()
        self._last_progress = 0.0

    def prepare(self, pids: Iterable[int]) -> None:
        """Read these processes' page maps and begin to fetch, before CRIU has even made them."""
        self._memories.prepare(pids)

    def adopt(self) -> None:
        """Take over from a pager that died with its supervisor."""
        self._recovery.adopt()

    def succeed(self) -> None:
        """Take over from a worker that died."""
        self._recovery.succeed()

    def run(self) -> int:
        """Serve until everything is in, or everybody is gone. The process's exit status."""
        self._conversation.begin()
        self._epoll.register(self._deliveries.signal, select.EPOLLIN)
        self._epoll.register(self._channel.fileno(), select.EPOLLIN)
        self._fetcher.start()
        raise_priority()
        try:
            while not self._done():
                self._listen(AGAIN_S if self._faults.are_deferred else self._idle_s())
                self._report_progress()
            return self._leave()
        finally:
            self._fetcher.close()

    def _idle_s(self) -> float:
        """How long there may be nothing to hear of. A pager that waits for faults alone takes no processor."""
        return _WAITING_S if self._throttle.waits and self._spaces.resumed is not None else _LISTEN_S

    def _hurry(self) -> None:
        """All memory is wanted."""
        self._throttle.hurry()
        self._scheduler.pace_changed()

    def _done(self) -> bool:
        if self._conversation.failed:
            return True
        if self._spaces.resumed is None:
            return False
        return all(space.complete for space in self._spaces)

    def _leave(self) -> int:
        """Hand the address spaces back to the kernel. Faults are answered until nobody can hold them up any more."""
        if self._conversation.failed:
            self._channel.send(Failed(message="the restore ended before its programs ran"))
            return 1
        for space in self._spaces:
            space.unregister()
        self._channel.send(self._noted(self._progress(Complete)))
        deadline = time.monotonic() + _RELEASE_S
        while not self._released and self._channel.alive and time.monotonic() < deadline:
            self._listen(0.05)
        for space in self._spaces:
            space.close()
        self._keep_working_set()
        return 0

    # -- listening ----------------------------------------------------------------------------------------------

    def _listen(self, timeout_s: float) -> None:
        for fd, _ in self._epoll.poll(timeout_s):
            if (space := self._spaces.by_fd(fd)) is not None:
                for vaddr in self._spaces.read_events(space):
                    self._faults.on_fault(space, vaddr)
            elif fd == self._deliveries.signal:
                os.eventfd_read(fd)
            elif fd == self._channel.fileno():
                self._on_keeper()
            elif self._conversation.serves(fd):
                self._conversation.on_ready(fd)
        self._after_deliveries()
        self._faults.try_deferred()

    def _on_keeper(self) -> None:
        message = self._channel.receive()
        if message is not None:
            self._released = isinstance(message[0], Released)
            if isinstance(message[0], Hurry):
                self._hurry()
        if not self._channel.alive:  # the keeper died: the program goes on, without a guardian, and soon without this
            self._hurry()
            self._epoll.unregister(self._channel.fileno())
            self._conversation.on_keeper_gone()

    def _after_deliveries(self) -> None:
        for task in self._deliveries.spoilt():
            self._report_poison(task)
        for space in self._spaces:
            if space.dead:
                self._spaces.forget(space)
        self._faults.after_deliveries()

    # -- telling ------------------------------------------------------------------------------------------------

    def _progress(self, kind: type[Progress]) -> Progress:
        every = [space.counts() for space in self._spaces]
        _, brought, zero, poisoned = (sum(state) for state in zip(*every, strict=True)) if every else (0, 0, 0, 0)
        return kind(
            pages=sum(space.memory.pages for space in self._spaces),
            pages_in=brought,
            zero=zero,
            poisoned=poisoned,
            faults=self._faults.count,
            spaces=len(self._spaces),
            seconds=round(time.monotonic() - (self._spaces.resumed or self._began), 4),
        )

    def _noted(self, progress: Progress) -> Progress:
        """The progress, which the account has by then."""
        self._book.note(
            complete=isinstance(progress, Complete),
            pages=progress.pages,
            arrived=progress.pages_in + progress.zero + progress.poisoned,
            poisoned=progress.poisoned,
        )
        return progress

    def _report_progress(self) -> None:
        for reason in self._deliveries.stalls():
            self._channel.send(Stalled(reason=reason))
        now = time.monotonic()
        if self._spaces.resumed is not None and now - self._last_progress >= _PROGRESS_S:
            self._last_progress = now
            self._channel.send(self._noted(self._progress(Progress)))

    def _report_poison(self, task: Task) -> None:
        for page in sorted(task.bad):
            run, inside, _ = next(task.memory.pieces(page, 1))
            vaddr = run.vaddr + inside * PAGE
            self._channel.send(Poisoned(pid=task.memory.pid, vaddr=vaddr, pages=1, reason=task.reason))

    def _keep_working_set(self) -> None:
        """Keep the first touches for the next restore; a full disk is no reason to have failed."""
        touched = working_set.merged(self._touched, self._touches.touched)
        if self._keep is not None and touched is not None:
            with contextlib.suppress(IjfsError, OSError):
                self._keep(touched)


class _Demand:
    """The scheduler's `Demand`: what the spaces miss, at the throttle's pace. Asked by the fetching threads."""

    def __init__(self, spaces: Spaces, throttle: Throttle, times: ReadTimes) -> None:
        self._spaces = spaces
        self._throttle = throttle
        self._times = times

    def missing(self, memory: ProcessMemory, first: int, count: int) -> Iterable[PageRange]:
        return self._spaces.missing(memory, first, count)

    def pace(self) -> Pace:
        return self._throttle.now(self._spaces.resumed, self._times.waiting)

    def pace_stays(self) -> bool:
        return self._throttle.waits and self._spaces.resumed is not None
