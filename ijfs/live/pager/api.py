"""What the keeper calls: start a pager, follow it, keep its userfaultfds alive, put another in its place if it dies.

    with Pager(workdir, Source(images="/…/images")) as pager:      # or repo=…, snapshot=…
        … run `criu restore --lazy-pages -W workdir …` at any time: the socket listens already …
        pager.wait_resumed(timeout_s=30)
        pager.wait(timeout_s=600)

The guardian is a thread of the keeper, apart from its event loop, so that a keeper that is busy saving still replaces a
pager at once. Everything here blocks or returns at once; from trio, wait with `trio.to_thread.run_sync`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Literal, NamedTuple

import msgspec

from ijfs.live.pager import account
from ijfs.live.pager.channel import Channel
from ijfs.live.pager.messages import (
    Adopt,
    Adopted,
    Begin,
    Complete,
    Failed,
    Hello,
    Hold,
    Hurry,
    Lost,
    Message,
    Poisoned,
    Progress,
    Release,
    Released,
    Resumed,
    Source,
    Stalled,
)
from ijfs.live.pager.shared import SharedBlocks
from ijfs.live.process import fork_request
from ijfs.live.process.child import ForkedChild, UnrelatedProcess, name_process
from ijfs_engine.errors import IjfsError, TargetDiedError

SOCKET_NAME: Final = "lazy-pages.socket"
_HELLO_S: Final = 2.0
"""How long a pager forked off the forkserver gets to say who it is."""
_MAX_DEATHS: Final = 5
"""Pagers that may die within _DEATHS_S before the guardian stops starting new ones."""
_DEATHS_S: Final = 10.0

_log = logging.getLogger("ijfs.keeper")


class PagerStatus(NamedTuple):
    """How far a restore's memory has come. Pages are of 4096 bytes; counts are over all its processes."""

    resumed: bool = False
    """The program runs."""
    complete: bool = False
    """Everything is in and the pager is gone: only now may the program be saved again."""
    failed: str | None = None
    """Why there will be no more progress."""
    pages: int = 0
    pages_in: int = 0
    """Copied in."""
    zero: int = 0
    """Not copied because they are zero or were given up by the program."""
    poisoned: int = 0
    """Could not be had: a touch raises SIGBUS."""
    lost: int = 0
    """Forked children whose missing memory nobody brings any more."""
    faults: int = 0
    spaces: int = 0
    """Address spaces (processes) that are being paged."""
    seconds: float = 0.0
    """Since the program runs."""
    replaced: int = 0
    """Pagers that died and were replaced."""

    @property
    def share(self) -> float:
        """0.0 … 1.0 of the memory is in."""
        return (self.pages_in + self.zero + self.poisoned) / self.pages if self.pages else float(self.complete)

    @property
    def damage(self) -> str:
        """Why the program's memory is not what was saved; empty where it is."""
        return self.failed or account.damage(self.poisoned, self.lost)


def serve_stranger(fd: int) -> int:
    """Be a pager that its keeper did not fork itself: say who this is, then as any other. The exit status."""
    from ijfs.live.pager.__main__ import main

    end = socket.socket(fileno=fd)
    Channel(end).send(Hello(pid=os.getpid()))
    return main(end.detach())


class PagerProcess:
    """A pager that waits for work, and its channel."""

    def __init__(
        self, process: subprocess.Popen[bytes] | ForkedChild | UnrelatedProcess, end: socket.socket | Channel
    ) -> None:
        self.process = process
        self.channel = end if isinstance(end, Channel) else Channel(end)

    @classmethod
    def started(cls, log: IO[bytes] | int | None = None) -> PagerProcess:
        """A program of its own: for processes that have threads."""
        ours, theirs = Channel.pair()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ijfs.live.pager", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=log if log is not None else subprocess.DEVNULL,
            stderr=log,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # neither a terminal's ^C nor the keeper's death may end it
        )
        theirs.close()
        return cls(process, ours)

    @classmethod
    def forked(cls, shared: SharedBlocks | None = None) -> PagerProcess:
        """Forked off this process, which has loaded it and has no other thread; it complains to the same log."""
        from ijfs.live.pager.__main__ import main

        def run() -> int:
            name_process("ijfs-pager")
            return main(theirs.fileno(), shared)

        ours, theirs = Channel.pair()
        process = ForkedChild(run, [theirs.fileno(), *(shared.descriptors if shared else ())])
        theirs.close()
        return cls(process, ours)

    @classmethod
    def asked(cls, instance: Path) -> PagerProcess | None:
        """Forked off the forkserver that this process, an instance's keeper, was forked off; None where that is gone. A
        program of its own takes 0.1 s longer."""
        ours, theirs = Channel.pair()
        channel = Channel(ours)
        with theirs:
            request = fork_request.pager_for(instance)
            asked = fork_request.ask(instance.parent / fork_request.SOCKET_NAME, request, [theirs.fileno()])
        introduced = channel.receive(_HELLO_S) if asked else None
        with contextlib.suppress(OSError):
            if introduced is not None and isinstance(introduced[0], Hello):
                return cls(UnrelatedProcess(introduced[0].pid), channel)
        channel.close()
        return None

    def close(self) -> None:
        """End a pager that was never given work."""
        self.channel.close()
        self.process.wait()


class Pager:
    """One restore's pager, its guardian included."""

    def __init__(
        self,
        workdir: Path,
        source: Source,
        *,
        log: IO[bytes] | int | None = None,
        process: PagerProcess | None = None,
    ) -> None:
        """`workdir` is what criu gets as -W. `process` is a pager started earlier, which this one then owns."""
        self._source = source
        self._account = account.create(workdir)
        self._log = os.dup(log if isinstance(log, int) else log.fileno()) if log is not None else None
        self._held: dict[int, tuple[Literal["space", "criu"], list[int]]] = {}
        self._deaths: list[float] = []
        self._status = PagerStatus()
        self._said = ""
        self._changed = threading.Condition()
        self._closing = False
        self._listener = _listen(workdir)
        self._start(process or PagerProcess.started(self._log), replacement=False)
        self._guardian = threading.Thread(target=self._guard, name="pager-guardian", daemon=True)
        self._guardian.start()

    # -- what the keeper asks -----------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The process that pages at the moment."""
        return self._process.pid

    @property
    def status(self) -> PagerStatus:
        with self._changed:
            return self._status

    def wait_resumed(self, timeout_s: float) -> PagerStatus:
        """Wait until CRIU says that the program runs. TargetDiedError when it never will."""
        return self._wait(lambda status: status.resumed, timeout_s)

    def wait(self, timeout_s: float) -> PagerStatus:
        """Wait until all memory is in and the pager has left. TargetDiedError where it never will be, also when `close`
        comes first."""
        return self._wait(lambda status: status.complete, timeout_s)

    def hurry(self) -> None:
        """All memory is wanted, also where it was to come on demand; from pagers that take over as well."""
        with self._changed:
            self._source = msgspec.structs.replace(self._source, on_demand=False)
        self._channel.send(Hurry())

    def close(self) -> None:
        """End paging, after `wait` or for a program that is dead: what is not in yet would read as zeros."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._process.poll() is None and not self.status.complete:
            self._process.kill()
        self._guardian.join()
        self._let_go()
        self._listener.close()
        log, self._log = self._log, None
        if log is not None:
            os.close(log)

    def __enter__(self) -> Pager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, reached: Callable[[PagerStatus], bool], timeout_s: float) -> PagerStatus:
        with self._changed:
            self._changed.wait_for(
                lambda: reached(self._status) or self._status.failed is not None or self._closing, timeout_s
            )
            if reached(self._status):
                return self._status
            if self._status.failed is not None:
                raise TargetDiedError(self._status.failed)
            if self._closing:
                raise TargetDiedError("its memory is not brought in any more")
        raise IjfsError(f"the memory did not come in within {timeout_s:g} s", hint="`ijfs ps` shows the share")

    # -- the guardian -------------------------------------------------------------------------------------------

    def _start(self, process: PagerProcess, *, replacement: bool) -> None:
        self._process = process.process
        self._channel = process.channel
        connected = self._status.resumed or any(kind == "criu" for kind, _ in self._held.values())
        fds = [] if connected else [self._listener.fileno()]
        self._channel.send(Begin(source=self._source, account=str(self._account), adopt=replacement), fds)
        if replacement:
            for number, (kind, held) in self._held.items():
                self._channel.send(Adopt(id=number, kind=kind), held)
            self._channel.send(Adopted(resumed=self._status.resumed))

    def _guard(self) -> None:
        while True:
            message = self._channel.receive(1.0)
            if message is not None:
                self._on_message(*message)
            elif not self._channel.alive and not self._succeed():
                return

    def _on_message(self, message: Message, fds: list[int]) -> None:
        match message:
            case Hold(id=number, kind=kind):
                self._release(number)  # a new worker may send what the old one had sent
                self._held[number] = (kind, fds)
            case Release(id=number):
                self._release(number)
            case Resumed():
                self._update(resumed=True)
            case Progress():  # Complete too
                said = msgspec.structs.asdict(message)
                # What a process lost that has ended meanwhile, perhaps of it, the message counts no more.
                said["poisoned"] = max(said["poisoned"], self._status.poisoned)
                self._update(**said, complete=isinstance(message, Complete))
            case Failed(message=text):
                self._update(failed=text)
            case Lost(pid=pid):
                self._update(lost=self._status.lost + 1)
                self._log_once(f"a process forked by {pid} has lost its memory that was missing")
            case Poisoned(pid=pid, vaddr=vaddr, reason=reason):
                # Before the next progress says how many: the program may be dead by then.
                self._update(poisoned=max(1, self._status.poisoned))
                self._log_once(reason, f"memory of process {pid} at {vaddr:#x} cannot be had: ")
            case Stalled(reason=reason):
                self._log_once(reason, "memory does not come: ")
        if isinstance(message, Complete):
            self._let_go()
            self._channel.send(Released())

    def _release(self, number: int) -> None:
        _close_all(self._held.pop(number, ("space", []))[1])

    def _log_once(self, reason: str, about: str = "") -> None:
        """Say it, but the same reason once: a damaged chunk spoils many pages."""
        if reason != self._said:
            _log.warning("%s%s", about, reason)
        self._said = reason

    def _succeed(self) -> bool:
        """The pager's end of the channel is closed: it left, or it died. True when another took its place."""
        status = self._process.wait()
        self._channel.close()
        if status == 0 or self._status.complete or self._closing or self._status.failed is not None:
            self._let_go()
            if status == 0:
                self._update(complete=True)
            return False
        now = time.monotonic()
        self._deaths = [at for at in self._deaths if now - at < _DEATHS_S] + [now]
        if len(self._deaths) > _MAX_DEATHS:
            self._give_up(f"the pager died {len(self._deaths)} times in a row (last status {status})")
            return False
        self._update(replaced=self._status.replaced + 1)
        self._start(PagerProcess.started(self._log), replacement=True)
        return True

    def _give_up(self, reason: str) -> None:
        """A program that runs keeps waiting: let go of, it would find zeros where its memory was. A restore that is
        still under way ends instead: CRIU must not wait for ever.
        """
        if not self._status.resumed:
            self._let_go()
            self._listener.close()
            self._update(failed=reason)
        else:
            self._update(failed=f"{reason}; the program waits for memory that nobody brings")

    def _let_go(self) -> None:
        while self._held:
            _close_all(self._held.popitem()[1][1])

    def _update(self, **changes: Any) -> None:
        with self._changed:
            self._status = self._status._replace(**changes)
            self._changed.notify_all()


def _listen(workdir: Path) -> socket.socket:
    """The socket CRIU connects to, listening before CRIU or the pager exist; a long path is no obstacle."""
    directory = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        (workdir / SOCKET_NAME).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
        listener.listen(1)
    finally:
        os.close(directory)
    return listener


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
