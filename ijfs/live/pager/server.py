"""The pager process's listening thread: takes faults, follows the program's mapping changes, says what may be read.

Started by `__main__`; the keeper's side is `api`. It listens to CRIU's connection, the userfaultfds and the keeper.
What takes longer than a system call (reading, decompressing, copying) happens in `fetch`'s threads, which come back
here, to `_deliver`, for where the pages go.

CRIU's side of the conversation (criu/uffd.c): over one stream connection each restored task sends its pid as i32 and
then its userfaultfd; a zombie sends -pid and nothing else; when all tasks are about to run, "FTSR" comes.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from ijfs.live.criu.image_format import PAGE
from ijfs.live.pager import working_set
from ijfs.live.pager.channel import Channel, received_fds
from ijfs.live.pager.fetch import Fetcher, PageRange, Scheduler, Task, hurry
from ijfs.live.pager.ledger import Ledger
from ijfs.live.pager.plan import IN, MISSING, AddressSpace, MemoryImage
from ijfs.live.pager.shared import SharedBlocks
from ijfs.live.pager.source import PageSource
from ijfs.live.pager.space import Space
from ijfs.live.pager.supervisor import FdRow, FdTable
from ijfs.live.pager.throttle import Throttle
from ijfs.live.pager.uffd import EVENT_FORK, EVENT_PAGEFAULT, Outcome, Uffd
from ijfs_engine.errors import IjfsError

Keep = Callable[[Iterable[working_set.Touched]], None]
"""Keeps what was touched, in order, for the next restore."""

_RESTORE_FINISHED: Final = 0x52535446  # criu/uffd.c, LAZY_PAGES_RESTORE_FINISHED
_PROGRESS_S: Final = 0.1
_RELEASE_S: Final = 2.0
"""How long a keeper may take to let go of the userfaultfds before the pager leaves all the same."""
_AGAIN_S: Final = 0.0005
"""How long a copy waits that the kernel or CRIU is not ready for."""
_SLOW_BLOCK_S: Final = 0.003
"""A fault in a block that is being read waits for that block, unless decoding one takes longer than this: the way to
the bytes is as long for the fault's own 64 KiB."""


class Server:
    """Pages a restored program in. One use: construct, `run`, throw away."""

    def __init__(
        self,
        source: PageSource,
        channel: Channel,
        listener: socket.socket | None,
        *,
        roster: FdTable,
        touched: Iterable[working_set.Touched] = (),
        record: Keep | None = None,
        bulk: bool = False,
        rest_after_s: float = 0.0,
        shared: SharedBlocks | None = None,
    ) -> None:
        self._source = source
        self._roster = roster
        self._channel = channel
        self._listener = listener
        self._criu: socket.socket | None = None
        self._connection_number = 0
        self._pid: int | None = None
        self._released = False
        self._touched = list(touched)
        self._record = record
        self._recorder = working_set.Recorder()
        self._images: dict[int, MemoryImage] = {}
        self._spaces: dict[int, Space] = {}
        self._numbers = 0
        self._pacing = Throttle(
            bulk=bulk, rest_after_s=rest_after_s, recording=record is not None, first=not self._touched
        )
        self._scheduler = Scheduler(self._wanted, lambda: self._pacing.now(self._resumed, self._fetcher.waiting))
        self._fetcher = Fetcher(
            source, self._scheduler, self._deliver, lambda reason: self._stalled.append(reason), shared
        )
        self._signal = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable when deliveries have left something to be done here."""
        self._spoilt: deque[Task] = deque()
        """Delivered tasks with pages that could not be had."""
        self._stalled: deque[str] = deque(maxlen=1)
        self._open: list[tuple[Space, int]] = []
        """Faults on missing pages, to be looked at again when tasks were delivered."""
        self._deferred: list[tuple[Space, int]] = []
        """Faults to look at again at once: the mappings were changing."""
        self._epoll = select.epoll()
        self._began = time.monotonic()
        self._resumed: float | None = None
        self._foreseen: dict[int, bytearray] = {}
        self._last_progress = 0.0
        self._faults = 0
        self._failed = False

    # -- life ---------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until everything is in, or everybody is gone. The process's exit status."""
        self._enroll()
        self._epoll.register(self._signal, select.EPOLLIN)
        self._epoll.register(self._channel.fileno(), select.EPOLLIN)
        if self._listener is not None:
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._fetcher.start()
        hurry()
        try:
            while not self._done():
                self._listen(_AGAIN_S if self._deferred else 0.05)
                self._report_progress()
            return self._leave()
        finally:
            self._fetcher.close()

    def prepare(self, pids: Iterable[int]) -> None:
        """Read these processes' page maps and begin to fetch, before CRIU has even made them."""
        for pid in pids:
            self._image(pid)
        self._scheduler.set_order(working_set.blocks(self._touched, self._images))

    def adopt(self) -> None:
        """Take over from a pager that died with its warden: everything that its keeper held."""
        while self._channel.alive:
            message = self._channel.receive(None)
            if message is None:
                continue
            details, fds = message
            if details["event"] == "adopted":
                self._catch_up(resumed=details["resumed"], same_table=False)
                return
            if details["kind"] == "criu":
                self._attach(socket.socket(fileno=fds[0]), details["id"])
            else:
                self._adopt_space(FdRow(details["id"], *fds), held=True)

    def succeed(self) -> None:
        """Take over from a worker that died, with its descriptors in place."""
        listener, criu, number, resumed = self._roster.restore
        self._listener = socket.socket(fileno=listener) if listener is not None else None
        if criu is not None:
            self._attach(socket.socket(fileno=criu), number)
        for row in list(self._roster.load()):
            self._adopt_space(row, held=False)
        self._catch_up(resumed=resumed, same_table=True)

    def _catch_up(self, *, resumed: bool, same_table: bool) -> None:
        """Finish what the predecessor had read, then let every thread that waits for it ask again."""
        if resumed:
            self._on_restore_finished()
        for space in list(self._spaces.values()):
            self._handle(space, after_crash=True, same_table=same_table)
        for space in self._spaces.values():
            space.wake_all()

    def _done(self) -> bool:
        if self._failed:
            return True
        if self._resumed is None:
            return False
        return all(space.complete for space in self._spaces.values())

    def _leave(self) -> int:
        """Hand the address spaces back to the kernel. Faults are answered until nobody can hold them up any more."""
        if self._failed:
            self._channel.send("failed", message="the restore ended before its programs ran")
            return 1
        for space in self._spaces.values():
            space.unregister()
        self._channel.send("complete", **self._progress())
        deadline = time.monotonic() + _RELEASE_S
        while not self._released and self._channel.alive and time.monotonic() < deadline:
            self._listen(0.05)
        for space in list(self._spaces.values()):
            space.close()
        self._keep_record()
        return 0

    # -- listening ----------------------------------------------------------------------------------------------

    def _listen(self, timeout_s: float) -> None:
        for fd, _ in self._epoll.poll(timeout_s):
            if fd == self._signal:
                os.eventfd_read(fd)
            elif fd == self._channel.fileno():
                self._on_keeper()
            elif self._listener is not None and fd == self._listener.fileno():
                self._accept(self._listener.accept()[0])
            elif self._criu is not None and fd == self._criu.fileno():
                self._on_criu()
            elif fd in self._spaces:
                self._on_events(self._spaces[fd])
        self._after_deliveries()
        deferred, self._deferred = self._deferred, []
        for space, vaddr in deferred:
            self._answer(space, vaddr)

    def _on_keeper(self) -> None:
        message = self._channel.receive()
        if message is not None:
            self._released = message[0]["event"] == "released"
        if not self._channel.alive:  # the keeper died: the program goes on, without a guardian
            self._epoll.unregister(self._channel.fileno())
            # Its CRIU died with it, before it had come.
            self._failed |= self._listener is not None and not _is_called(self._listener)

    def _accept(self, connection: socket.socket) -> None:
        if self._listener is not None:
            self._epoll.unregister(self._listener.fileno())
            listener, self._listener = self._listener, None
            self._attach(connection, self._next_number())
            listener.close()
        self._channel.send("hold", [connection.fileno()], id=self._connection_number, kind="criu")

    def _enroll(self) -> None:
        """Note for a successor where the conversation with CRIU stands."""
        self._roster.set_restore(
            listener=self._listener.fileno() if self._listener is not None else None,
            criu=self._criu.fileno() if self._criu is not None else None,
            number=self._connection_number,
            resumed=self._resumed is not None,
        )

    def _attach(self, connection: socket.socket, number: int) -> None:
        self._criu = connection
        self._connection_number = number
        self._numbers = max(self._numbers, number)
        self._enroll()
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _on_criu(self) -> None:
        assert self._criu is not None
        data, ancillary, _, _ = self._criu.recvmsg(
            4 if self._pid is None else 1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            self._failed = self._resumed is None
            self._hang_up()
        elif self._pid is not None:
            self._add_space(self._pid, received_fds(ancillary)[0])
            self._pid = None
        else:
            (number,) = struct.unpack("<i", data)
            if number == _RESTORE_FINISHED:
                self._on_restore_finished()
                self._hang_up()
            elif number > 0:
                self._pid = number

    def _hang_up(self) -> None:
        assert self._criu is not None
        connection, self._criu = self._criu, None
        self._enroll()
        self._epoll.unregister(connection.fileno())
        connection.close()
        self._channel.send("release", id=self._connection_number)

    def _on_restore_finished(self) -> None:
        for space in self._spaces.values():
            space.settled = True
        self._resumed = time.monotonic()
        self._enroll()
        self._channel.send("resumed")

    # -- address spaces -----------------------------------------------------------------------------------------

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _image(self, pid: int) -> MemoryImage:
        image = self._images.get(pid)
        if image is None:
            image = self._images[pid] = self._source.memory(pid)
            self._scheduler.add_image(image)
            self._foreseen[pid] = working_set.pages_of(self._touched, image)
        return image

    def _add_space(self, pid: int, fd: int) -> None:
        image = self._image(pid)
        ledger = Ledger.create(pid, image.pages)
        self._enter(Space(self._next_number(), Uffd(fd), ledger, AddressSpace(image, ledger.states)))

    def _enter(self, space: Space, *, held: bool = False) -> None:
        self._roster.add(FdRow(space.number, space.uffd.fd, space.ledger.fd))
        space.settled = self._resumed is not None
        self._spaces[space.uffd.fd] = space
        self._epoll.register(space.uffd.fd, select.EPOLLIN)
        if not held:
            self._channel.send("hold", [space.uffd.fd, space.ledger.fd], id=space.number, kind="space")

    def _adopt_space(self, row: FdRow, *, held: bool) -> None:
        ledger = Ledger(row.ledger)
        space = Space(row.number, Uffd(row.uffd), ledger, ledger.restore(self._image(ledger.pid)))
        self._numbers = max(self._numbers, row.number)
        self._enter(space, held=held)

    def _forget(self, space: Space) -> None:
        """The address space is gone: exit or exec."""
        self._roster.remove(space.number)
        self._epoll.unregister(space.uffd.fd)
        del self._spaces[space.uffd.fd]
        space.close()
        self._channel.send("release", id=space.number)

    # -- events -------------------------------------------------------------------------------------------------

    def _on_events(self, space: Space) -> None:
        with space.alone():
            faults = self._handle(space) if space.ledger.read_events(space.uffd.fd) else []
        for vaddr in faults:
            self._on_fault(space, vaddr)

    def _handle(self, space: Space, *, after_crash: bool = False, same_table: bool = False) -> list[int]:
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
                    self._channel.send("lost", pid=space.image.pid)
                elif child not in self._spaces:
                    self._on_fork(space, child)
            else:
                space.ledger.apply(space.plan, event, a, b, c)
            space.ledger.settle(slot)
        return faults

    def _on_fork(self, parent: Space, fd: int) -> None:
        ledger = parent.ledger.fork()
        self._enter(Space(self._next_number(), Uffd(fd), ledger, parent.plan.fork(ledger.states)))

    def _on_fault(self, space: Space, vaddr: int) -> None:
        self._faults += 1
        page = space.plan.page_at(vaddr)
        if page is not None and space.plan.states[page] == MISSING and not self._foreseen[space.image.pid][page]:
            self._pacing.stray()
            if self._record is not None:
                self._recorder.add(space.image, page)
        self._answer(space, vaddr)

    def _answer(self, space: Space, vaddr: int) -> None:
        """Answer a fault, or see to it that an answer comes."""
        if space.dead:
            return
        page = space.plan.page_at(vaddr)
        if page is None or space.plan.states[page] != MISSING:
            if space.answer_with_zeros(vaddr) in (Outcome.CHANGING, Outcome.NO_MEMORY):
                self._deferred.append((space, vaddr))
            return
        self._open.append((space, vaddr))
        if self._fetcher.work_s >= _SLOW_BLOCK_S or not self._scheduler.is_taken(space.image, page):
            self._scheduler.want_now(space.image, page)

    # -- deliveries ---------------------------------------------------------------------------------------------

    def _deliver(self, task: Task, address: int) -> None:
        """Called by the fetching threads: copy what was read to wherever it is missing."""
        while not self._fetcher.closed:
            outcomes = {space.fill(task, address) for space in self._spaces_of(task.image)}
            if not self._is_early(task, outcomes) and outcomes <= {Outcome.DONE, Outcome.GONE, Outcome.NOT_MAPPED}:
                break
            if Outcome.INTERRUPTED not in outcomes:
                time.sleep(_AGAIN_S)
        missing = {run for space in self._spaces_of(task.image) for r in task.ranges for run in space.missing_runs(*r)}
        self._scheduler.settle(task, missing)
        if task.bad:
            self._spoilt.append(task)
        if self._open or self._spoilt or all(s.complete or s.dead for s in self._spaces_of(task.image)):
            os.eventfd_write(self._signal, 1)  # not each time: the listener would take a core from those who work

    def _is_early(self, task: Task, outcomes: set[Outcome]) -> bool:
        """Whether CRIU has not made all the places yet for something that it will have made when the program runs."""
        early = not outcomes or Outcome.NOT_MAPPED in outcomes
        return early and self._resumed is None and not task.urgent

    def _after_deliveries(self) -> None:
        while self._spoilt:
            self._report_poison(self._spoilt.popleft())
        for space in [space for space in self._spaces.values() if space.dead]:
            self._forget(space)
        asked, self._open = self._open, []
        for space, vaddr in asked:
            page = space.plan.page_at(vaddr)
            if page is None or space.plan.states[page] != IN:  # who waited for a copy was woken by it
                self._answer(space, vaddr)

    def _spaces_of(self, image: MemoryImage) -> list[Space]:
        return [space for space in list(self._spaces.values()) if space.image is image and not space.dead]

    def _wanted(self, image: MemoryImage, first: int, count: int) -> list[PageRange]:
        """Called by the fetching threads: what of these pages any address space still misses."""
        if self._resumed is None:
            return [(first, count)]
        spaces = self._spaces_of(image)
        if len(spaces) == 1:
            return spaces[0].missing_runs(first, count)
        return [(first, count)] if any(space.missing_runs(first, count) for space in spaces) else []

    # -- telling ------------------------------------------------------------------------------------------------

    def _progress(self) -> dict[str, Any]:
        every = [space.counts() for space in self._spaces.values()]
        _, brought, zero, poisoned = (sum(state) for state in zip(*every, strict=True)) if every else (0, 0, 0, 0)
        return {
            "pages": sum(space.image.pages for space in self._spaces.values()),
            "pages_in": brought,
            "zero": zero,
            "poisoned": poisoned,
            "faults": self._faults,
            "spaces": len(self._spaces),
            "seconds": round(time.monotonic() - (self._resumed or self._began), 4),
        }

    def _report_progress(self) -> None:
        for reason in _drain(self._stalled):
            self._channel.send("stalled", reason=reason)
        now = time.monotonic()
        if self._resumed is not None and now - self._last_progress >= _PROGRESS_S:
            self._last_progress = now
            self._channel.send("progress", **self._progress())

    def _report_poison(self, task: Task) -> None:
        for page in sorted(task.bad):
            run, inside, _ = next(task.image.pieces(page, 1))
            vaddr = run.vaddr + inside * PAGE
            self._channel.send("poisoned", pid=task.image.pid, vaddr=vaddr, pages=1, reason=task.reason)

    def _keep_record(self) -> None:
        """Keep the first touches for the next restore; a full disk is no reason to have failed."""
        touched = working_set.merged(self._touched, self._recorder.touched)
        if self._record is not None and touched is not None:
            with contextlib.suppress(IjfsError, OSError):
                self._record(touched)


def _drain(queue: deque[str]) -> Iterator[str]:
    while queue:
        yield queue.popleft()


def _is_called(listener: socket.socket) -> bool:
    """Whether somebody waits to be accepted."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))
