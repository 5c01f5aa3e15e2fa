"""The pager process's one copying thread: answers faults, follows the program's mapping changes, fills in the rest.

Started by `__main__`; the keeper's side is `api`. The loop alternates between *listening* (CRIU's connection, the
userfaultfds, the keeper, finished reads) and *copying* one piece of at most a mebibyte, so that no fault waits longer
than one such piece. Reading and decompressing happen in `fetch`'s threads.

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

from ijfs.live.pager import order
from ijfs.live.pager.channel import Channel, received_fds
from ijfs.live.pager.fetch import (
    AROUND_PAGES,
    BLOCK_PAGES,
    BULK_AHEAD_PAGES,
    Fetcher,
    PageRange,
    Scheduler,
    Task,
    hurry,
)
from ijfs.live.pager.ledger import Ledger
from ijfs.live.pager.plan import IN, PAGE, POISONED, ZERO, AddressSpace, MemoryImage
from ijfs.live.pager.source import PageSource
from ijfs.live.pager.space import Space
from ijfs.live.pager.uffd import EVENT_FORK, EVENT_PAGEFAULT, Outcome, Uffd
from ijfs.live.pager.warden import Roster, Row
from ijfs_engine.errors import IjfsError

Keep = Callable[[Iterable[order.Touched]], None]
"""Keeps what was touched, in order, for the next restore."""

_RESTORE_FINISHED: Final = 0x52535446  # criu/uffd.c, LAZY_PAGES_RESTORE_FINISHED
_PROGRESS_S: Final = 0.1
_RECENT_S: Final = 0.010
"""A fault this young announces more: what nobody asked for waits, or is copied in short pieces …"""
_QUIET_S: Final = 0.100
"""… longer while the first touches are recorded for the first time (with 10 ms, a busy machine's scheduler looked like
the end of the working set, and most of it went unrecorded) …"""
_HOLD_S: Final = 2.0
"""… but never longer than this after the program began to run."""
_RELEASE_S: Final = 2.0
"""How long a keeper may take to let go of the userfaultfds before the pager leaves all the same."""
_SMALL_PAGES: Final = 64
"""Size of a background copy while faults keep coming: 256 KiB, 0.1 ms."""
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
        roster: Roster,
        touched: Iterable[order.Touched] = (),
        record: Keep | None = None,
        bulk: bool = False,
    ) -> None:
        self._source = source
        self._bulk = bulk
        self._roster = roster
        self._channel = channel
        self._listener = listener
        self._criu: socket.socket | None = None
        self._connection_number = 0
        self._pid: int | None = None
        self._released = False
        self._touched = list(touched)
        self._record = record
        self._recorder = order.Recorder()
        self._images: dict[int, MemoryImage] = {}
        self._zeros: dict[int, list[PageRange]] = {}
        self._spaces: dict[int, Space] = {}
        self._numbers = 0
        self._scheduler = Scheduler(self._wanted)
        ahead = BULK_AHEAD_PAGES if bulk else 0
        self._fetcher = Fetcher(source, self._scheduler, lambda reason: self._stalled.append(reason), ahead)
        self._stalled: deque[str] = deque(maxlen=1)
        self._ready: list[Task] = []
        self._deferred: list[tuple[Space, int]] = []
        """Faults to look at again at once: the mappings were changing."""
        self._expected: list[tuple[Space, int]] = []
        """Faults to look at again when a read is finished: theirs was under way."""
        self._epoll = select.epoll()
        self._began = time.monotonic()
        self._resumed: float | None = None
        self._last_fault = 0.0
        self._last_stray = 0.0
        """When a page was last asked for that no recorded order had foreseen."""
        self._foreseen: dict[int, bytearray] = {}
        self._last_progress = 0.0
        self._faults = 0
        self._failed = False

    # -- life ---------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until everything is in, or everybody is gone. The process's exit status."""
        self._enroll()
        self._epoll.register(self._fetcher.signal, select.EPOLLIN)
        self._epoll.register(self._channel.fileno(), select.EPOLLIN)
        if self._listener is not None:
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._fetcher.start()
        hurry()
        try:
            while not self._done():
                self._listen(0.0 if self._copy() else 0.05)
                self._report_progress()
            return self._leave()
        finally:
            self._fetcher.close()

    def prepare(self, pids: Iterable[int]) -> None:
        """Read these processes' page maps and begin to fetch, before CRIU has even made them."""
        for pid in pids:
            self._image(pid)
        self._scheduler.set_order(order.blocks(self._touched, self._images))

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
                self._adopt_space(Row(details["id"], *fds), held=True)

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
        return not any(space.plan.missing for space in self._spaces.values())

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
            if fd == self._fetcher.signal:
                os.eventfd_read(fd)
            elif fd == self._channel.fileno():
                self._on_keeper()
            elif self._listener is not None and fd == self._listener.fileno():
                self._accept(self._listener.accept()[0])
            elif self._criu is not None and fd == self._criu.fileno():
                self._on_criu()
            elif fd in self._spaces:
                self._on_events(self._spaces[fd])
        while self._fetcher.ready:
            self._ready.append(self._fetcher.ready.popleft())
            self._deferred += self._expected
            self._expected.clear()

    def _on_keeper(self) -> None:
        message = self._channel.receive()
        if message is not None:
            self._released = message[0]["event"] == "released"
        if not self._channel.alive:  # the keeper died: the program goes on, without a guardian
            self._epoll.unregister(self._channel.fileno())

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
        self._resumed = time.monotonic()
        self._enroll()
        for space in self._spaces.values():
            space.settled = True
        self._channel.send("resumed")

    # -- address spaces -----------------------------------------------------------------------------------------

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _image(self, pid: int) -> MemoryImage:
        image = self._images.get(pid)
        if image is None:
            image = self._images[pid] = self._source.memory(pid)
            self._zeros[pid] = list(self._source.zero_pages(image))
            self._scheduler.add_image(image, self._zeros[pid])
            self._foreseen[pid] = order.pages_of(self._touched, image)
        return image

    def _add_space(self, pid: int, fd: int) -> None:
        image = self._image(pid)
        ledger = Ledger.create(pid, image.pages)
        plan = AddressSpace(image, ledger.states)
        for first, count in self._zeros[pid]:
            plan.mark(first, count, ZERO)
        self._enter(Space(self._next_number(), Uffd(fd), ledger, plan))

    def _enter(self, space: Space, *, held: bool = False) -> None:
        self._roster.add(Row(space.number, space.uffd.fd, space.ledger.fd))
        space.settled = self._resumed is not None
        self._spaces[space.uffd.fd] = space
        self._epoll.register(space.uffd.fd, select.EPOLLIN)
        if not held:
            self._channel.send("hold", [space.uffd.fd, space.ledger.fd], id=space.number, kind="space")

    def _adopt_space(self, row: Row, *, held: bool) -> None:
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
        if space.ledger.read_events(space.uffd.fd):
            self._handle(space)

    def _handle(self, space: Space, *, after_crash: bool = False, same_table: bool = False) -> None:
        """Deal with what was read, in the kernel's order, each message settled before the next is begun.

        After a crash the faults among it are asked again by whoever waits, and the userfaultfd of a fork is there only
        where the descriptor table is the `same_table`.
        """
        for slot, (event, a, b, c) in space.ledger.inbox():
            if event == EVENT_PAGEFAULT:
                if not after_crash:
                    self._on_fault(space, b & ~(PAGE - 1))
            elif event == EVENT_FORK:
                child = a & 0xFFFFFFFF
                if after_crash and not same_table:
                    self._channel.send("lost", pid=space.image.pid)
                elif child not in self._spaces:
                    self._on_fork(space, child)
            else:
                space.ledger.apply(space.plan, event, a, b, c)
            space.ledger.settle(slot)

    def _on_fork(self, parent: Space, fd: int) -> None:
        ledger = parent.ledger.fork()
        self._enter(Space(self._next_number(), Uffd(fd), ledger, parent.plan.fork(ledger.states)))

    def _on_fault(self, space: Space, vaddr: int) -> None:
        self._faults += 1
        self._last_fault = time.monotonic()
        if not self._answer(space, vaddr):
            self._deferred.append((space, vaddr))

    def _answer(self, space: Space, vaddr: int) -> bool:
        """Answer a fault, or see to it that an answer comes. False: the program's mappings change, ask again."""
        page = space.plan.page_at(vaddr)
        if page is None or not space.is_missing(page):
            return space.answer_with_zeros(vaddr) not in (Outcome.CHANGING, Outcome.NO_MEMORY)
        if not self._foreseen[space.image.pid][page]:
            self._last_stray = time.monotonic()
            if self._record is not None:
                self._recorder.add(space.image, page)
        for task in self._ready:
            part = _part_of(task, space.image, page)
            if part is not None:
                return space.copy_part(part, AROUND_PAGES)[1] in (Outcome.DONE, Outcome.GONE)
        if self._fetcher.work_s < _SLOW_BLOCK_S and self._scheduler.is_taken(space.image, page):
            self._expected.append((space, vaddr))
        else:
            self._scheduler.want_now(space.image, page)
        return True

    # -- copying ------------------------------------------------------------------------------------------------

    def _copy(self) -> bool:
        """Do one piece of copying; whether there may be more to do at once."""
        for reason in _drain(self._stalled):
            self._channel.send("stalled", reason=reason)
        deferred, self._deferred = self._deferred, []
        for space, vaddr in deferred:
            if not space.dead and not self._answer(space, vaddr):
                self._deferred.append((space, vaddr))
        task = self._choose()
        if task is None:
            return False
        recent = time.monotonic() - self._last_fault < _RECENT_S
        limit = BLOCK_PAGES if task.urgent or task.recorded or not recent else _SMALL_PAGES
        finished = True
        for space in self._spaces_of(task.image):
            through, outcome = space.copy_part(task, limit)
            finished = finished and through
            if outcome is Outcome.GONE:
                self._forget(space)
            elif outcome in (Outcome.CHANGING, Outcome.NO_MEMORY):
                self._ready.append(task)
                return outcome is Outcome.CHANGING
        if finished:
            self._finish(task)
        else:
            self._ready.insert(0, task)
        return True

    def _choose(self) -> Task | None:
        """The next finished read to copy from: for a fault before any other; others not while they should wait."""
        held = self._holds_back()
        for at, task in enumerate(self._ready):
            if task.urgent or (task.near and self._resumed is not None and not (held and self._record)):
                return self._ready.pop(at)
        if self._resumed is None:
            return None
        for at, task in enumerate(self._ready):
            if task.recorded or not held:
                return self._ready.pop(at)
        return None

    def _holds_back(self) -> bool:
        """While faults keep coming that no recorded order had foreseen, what nobody asked for waits.

        Its reading and decompressing (which stop when the buffers are full) would take the processor from the faults:
        touching 64 MiB of 1 GiB took 2.4 s beside it and 0.8 s before it, on two busy cores. It also lets the faults
        show what is touched, where that is being recorded. Reads that mostly wait take no processor: with 5 ms each
        the same took 3.7 s when the rest was held back, and 2.4 s when not.
        """
        if self._bulk or self._resumed is None or self._fetcher.waiting > 0.5:
            return False
        now = time.monotonic()
        quiet_s = _QUIET_S if self._record is not None and not self._touched else _RECENT_S
        return now - self._resumed < _HOLD_S and now - self._last_stray < quiet_s

    def _finish(self, task: Task) -> None:
        if task.bad:
            self._report_poison(task)
        missing = {
            run for space in self._spaces_of(task.image) for r in task.ranges for run in space.plan.missing_runs(*r)
        }
        self._scheduler.settle(task, missing)
        if task.slot is not None:
            task.slot.give_back()

    def _spaces_of(self, image: MemoryImage) -> list[Space]:
        return [space for space in list(self._spaces.values()) if space.image is image and not space.dead]

    def _wanted(self, image: MemoryImage, first: int, count: int) -> list[PageRange]:
        """Called by the fetching threads: what of these pages any address space still misses."""
        if self._resumed is None:
            return [(first, count)]
        spaces = self._spaces_of(image)
        try:
            if len(spaces) == 1:
                return list(spaces[0].plan.missing_runs(first, count))
            return [(first, count)] if any(True for s in spaces for _ in s.plan.missing_runs(first, count)) else []
        except ValueError:  # a space whose ledger was closed meanwhile
            return [(first, count)]

    # -- telling ------------------------------------------------------------------------------------------------

    def _progress(self) -> dict[str, Any]:
        counts = dict.fromkeys((IN, ZERO, POISONED), 0)
        for space in self._spaces.values():
            states = bytes(space.plan.states[0 : space.image.pages])
            for state in counts:
                counts[state] += states.count(state)
        return {
            "pages": sum(space.image.pages for space in self._spaces.values()),
            "pages_in": counts[IN],
            "zero": counts[ZERO],
            "poisoned": counts[POISONED],
            "faults": self._faults,
            "spaces": len(self._spaces),
            "seconds": round(time.monotonic() - (self._resumed or self._began), 4),
        }

    def _report_progress(self) -> None:
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
        touched = order.merged(self._touched, self._recorder.touched)
        if self._record is not None and touched is not None:
            with contextlib.suppress(IjfsError, OSError):
                self._record(touched)


def _part_of(task: Task, image: MemoryImage, page: int) -> Task | None:
    """What lies around this page in a finished read, as a task of its own in the same buffer."""
    if task.image is not image:
        return None
    base = 0
    for first, count in task.ranges:
        if first <= page < first + count:
            begin = max(first, page // AROUND_PAGES * AROUND_PAGES)
            end = min(first + count, page // AROUND_PAGES * AROUND_PAGES + AROUND_PAGES)
            part = Task(image, [(begin, end - begin)], urgent=True)
            part.address = task.address + (base + begin - first) * PAGE
            part.bad = task.bad
            return part
        base += count
    return None


def _drain(queue: deque[str]) -> Iterator[str]:
    while queue:
        yield queue.popleft()
