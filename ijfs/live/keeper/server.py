"""One keeper at work: it makes the parts of an instance and joins them, dispatches verbs, and ends. Run by main.py.

    state.py            what the instance is: record, sandbox, pager, relay, the snapshot it stands on
    lifecycle.py        how its program comes to run: start, restore, going back, adopt
    parking.py          how it stands still in host memory, and goes on
    idle.py             when nobody uses it: parked on disk, or ended
    save.py             how it is saved; save_queue.py: saves on their way into the repository
    autosave.py         saves after cells
    guest_requests.py   what the program itself asks
    control_socket.py   the wire

What was saved and is not yet in the repository outlives the program, never the keeper.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from ijfs.live.errors import CommandError, InstanceExitedError, KeeperError, ProtocolError
from ijfs.live.keeper import control_socket
from ijfs.live.keeper.autosave import Autosaver
from ijfs.live.keeper.guest_requests import GuestRequests
from ijfs.live.keeper.idle import IdleWatch
from ijfs.live.keeper.lifecycle import Lifecycle
from ijfs.live.keeper.parking import Parking
from ijfs.live.keeper.save import Saver
from ijfs.live.keeper.save_queue import SaveQueue
from ijfs.live.keeper.state import InstanceState
from ijfs.live.keeper.threads import in_thread
from ijfs.live.model import protocol
from ijfs.live.model.guest_protocol import GuestAnswer, GuestRequest
from ijfs.live.model.protocol import (
    AdoptArguments,
    Arguments,
    Emit,
    GiveArguments,
    Happened,
    NotebookArguments,
    Notice,
    ParkArguments,
    RestoreArguments,
    SaveArguments,
    SignalArguments,
    StartArguments,
    StatusArguments,
    StopArguments,
    WaitMemoryArguments,
    WaitSaveArguments,
    WakeArguments,
    WatchArguments,
)
from ijfs.live.model.records import STOPPED, WENT_DOWN, InstanceInfo, SaveResult
from ijfs_engine.errors import IjfsError

if TYPE_CHECKING:
    from ijfs.live.keeper.early_restore import EarlyRestore

# How long a keeper whose program has ended stays for the answers it still owes.
FAREWELL_S = 2.0

# How long a keeper whose program was ended by SIGTERM waits for one of its own.
TOLD_TOO_S = 0.2

# How often a keeper looks whether its directory is still there.
DIRECTORY_S = 2.0

# How often it looks whether gc has removed packs that it has open.
REMOVED_S = 15.0

_Reply = InstanceInfo | SaveResult | None
_Verbs = dict[type[Arguments[Any]], Callable[[Any, Emit], Awaitable[_Reply]]]

_LOOKING = (StatusArguments, WatchArguments)
"""Verbs that use no program."""

_log = logging.getLogger("ijfs.keeper")


class Keeper:
    """The keeper of one instance. `early`: a restore that began before this was loaded."""

    def __init__(self, directory: Path, early: EarlyRestore | None = None) -> None:
        self.came_to_nothing = False
        """There is no instance (any more), and its directory may go."""
        self._early = early
        self._first: socket.socket | None = None
        self._state = InstanceState(directory, early.snapshots if early is not None else None, self._answer_program)
        self._queue = SaveQueue(
            self._state.spawn,
            changed=lambda count: self._state.note(saving=count),
            failed=self._save_failed,
        )
        autosaver = Autosaver(self._state, self._queue)
        self._saver = Saver(self._state, self._queue, autosaver)
        self._requests = GuestRequests(self._state, autosaver, self._saver.save, self._go_back)
        self._parking = Parking(self._state)
        self._lifecycle = Lifecycle(self._state, self._queue, self._requests, early, self._parking)
        self._idle = IdleWatch(self._state, self._park_on_disk, self._end_idle)
        self._requests_under_way = 0

    def _save_failed(self, error: IjfsError, waited_for: bool) -> None:
        self._state.watchers.tell(Happened("failed", text=str(error)))
        if not waited_for:
            self._state.note(save_error=str(error))  # said wherever the instance is shown

    async def _go_back(self, arguments: RestoreArguments, emit: Emit) -> InstanceInfo:
        return await self._lifecycle.go_back(arguments, emit)

    async def _answer_program(self, request: GuestRequest) -> GuestAnswer:
        return await self._requests.answer(request)

    # -- life ---------------------------------------------------------------------------------------------------

    async def run(self, first: socket.socket, line: bytes | None) -> None:
        """Serve the first client's request (`line`; None when it left without one); when it made the instance, serve
        everyone until the program ends."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        self._first = first
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(first))
        async with trio.open_nursery() as nursery:
            self._state.run_tasks_in(nursery)
            nursery.start_soon(self._obey_signals)
            # Listening first: who connects as soon as the first answer is out waits in line instead of being refused.
            listener = control_socket.listen(self._state.paths.socket)
            if line is not None and await control_socket.serve_request(stream, line, self._first_dispatch):
                nursery.start_soon(control_socket.serve, listener, self._dispatch)
                nursery.start_soon(control_socket.serve_connection, stream, self._dispatch)
                nursery.start_soon(self._watch_directory)
                nursery.start_soon(self._idle.watch)
                nursery.start_soon(self._let_go_of_removed)
                await self._state.ended.wait()
                await self._told_too()
                await self._queue.settled()
                await self._answered()
                self.came_to_nothing = self._state.record.spec.ephemeral
            else:
                self.came_to_nothing = self._holds_nothing(asked=line is not None)
            nursery.cancel_scope.cancel()
        if self._state.record.spec.ephemeral:
            self._state.forget_branch()
        self._state.close()
        if self._early is not None:
            self._early.close()

    def _holds_nothing(self, *, asked: bool) -> bool:
        """Whether the instance's directory may go: nothing came of what was asked, or nobody came to ask and nothing
        was begun."""
        paths = self._state.paths
        return not paths.record.exists() and (asked or not any(paths.root.glob("box-*")))

    async def _answered(self) -> None:
        """Give answers that are being made or sent a moment."""
        with trio.move_on_after(FAREWELL_S):
            while self._requests_under_way:
                await trio.sleep(0.005)
            await trio.sleep(0.01)

    async def _obey_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                _log.info("SIGTERM")
                with contextlib.suppress(IjfsError):
                    await self._end(StopArguments(force=True), lambda event: None, WENT_DOWN)
                if self._state.ended_by(signal.SIGTERM):  # by itself, before or meanwhile
                    self._state.note(note=WENT_DOWN)
                self._state.ended.set()

    async def _told_too(self) -> None:
        """A machine that goes down sends SIGTERM to program and keeper at once, and the program's end may come first:
        wait a moment for the other."""
        if self._state.ended_by(signal.SIGTERM):
            await trio.sleep(TOLD_TOO_S)

    async def _watch_directory(self) -> None:
        """When the instance's directory is deleted (with the repository, say), nobody can reach the keeper any more.
        So keeper and program both end; the program's files are gone anyway."""
        directory = os.open(self._state.paths.root, os.O_PATH | os.O_DIRECTORY)
        try:
            while not os.readlink(f"/proc/self/fd/{directory}").endswith(" (deleted)"):
                await trio.sleep(DIRECTORY_S)
        finally:
            os.close(directory)
        _log.warning("%s was deleted: the program ends", self._state.paths.root)
        async with self._state.busy:
            await self._state.kill("its directory was deleted")
        self._state.ended.set()

    async def _let_go_of_removed(self) -> None:
        """What gc removes is free when the last one closes it; an idle keeper would hold it until its next save."""
        while True:
            await trio.sleep(REMOVED_S)
            self._state.snapshots.forget_removed()

    # -- verbs --------------------------------------------------------------------------------------------------

    async def _first_dispatch(self, arguments: Arguments[Any], emit: Emit) -> _Reply:
        """What the client asks for that had this keeper made."""
        lifecycle = self._lifecycle
        verbs: _Verbs = {
            StartArguments: lifecycle.start,
            RestoreArguments: lifecycle.restore,
            AdoptArguments: lifecycle.adopt,
        }
        reply = await self._run(verbs, arguments, emit)
        if self._has_left() and not isinstance(arguments, AdoptArguments):
            await self._abandon()
            raise KeeperError(f"who wanted `{self._state.name}` has left; it was ended")
        return reply

    def _has_left(self) -> bool:
        """Whether the client that had this keeper made is gone: interrupted, or killed."""
        assert self._first is not None
        try:
            return not self._first.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    async def _abandon(self) -> None:
        """End the program that has just come up, because nobody knows of it. One that began again is an ended one, as
        it was."""
        state, again = self._state, self._lifecycle.began_again
        async with state.busy:
            await state.kill("interrupted before it ran")
        if not again:
            state.paths.record.unlink(missing_ok=True)

    async def _dispatch(self, arguments: Arguments[Any], emit: Emit) -> _Reply:
        """What clients ask for of a running instance."""
        verbs: _Verbs = {
            StatusArguments: self._status,
            SaveArguments: self._save,
            ParkArguments: self._park,
            WakeArguments: self._wake,
            WaitSaveArguments: self._wait_save,
            RestoreArguments: self._lifecycle.go_back,
            WaitMemoryArguments: self._wait_memory,
            WatchArguments: self._watch,
            GiveArguments: self._give,
            NotebookArguments: self._notebook,
            SignalArguments: self._signal,
            StopArguments: self._stop,
        }
        return await self._run(verbs, arguments, emit)

    async def _run(self, verbs: _Verbs, arguments: Arguments[Any], emit: Emit) -> _Reply:
        verb = verbs.get(type(arguments))
        if verb is None:
            raise ProtocolError(f"a keeper knows no verb `{protocol.verb_of(arguments)}` here")
        if not isinstance(arguments, _LOOKING):
            self._idle.touch()
        began = time.monotonic()
        self._requests_under_way += 1
        try:
            result = await verb(arguments, emit)
        finally:
            self._requests_under_way -= 1
        if isinstance(result, InstanceInfo | SaveResult) and not isinstance(arguments, WaitSaveArguments):
            total = time.monotonic() - began
            if isinstance(result, InstanceInfo):  # a restore may have begun before its request was looked at
                total = max(total, sum(result.phases.values()))
            phases = {**result.phases, "total": total}
            result = msgspec.structs.replace(result, phases=_rounded(phases))
        return result

    async def _save(self, arguments: SaveArguments, emit: Emit) -> SaveResult:
        """A parked program is woken for it, and stands still again afterwards."""
        parked = self._parking.is_parked
        if parked:
            await self._wake(WakeArguments(), emit)
        result = await self._saver.save(arguments, emit)
        if parked and not result.stopped:
            await self._park(ParkArguments(), emit)
        return result

    async def _park(self, arguments: ParkArguments, emit: Emit) -> InstanceInfo:
        if arguments.disk:
            await self._park_on_disk(emit)
            return self._state.info()
        async with self._state.busy:
            await self._parking.park(emit)
            return self._state.info()

    async def _park_on_disk(self, emit: Emit = lambda event: None) -> None:
        """Save it and end it, to be woken."""
        if self._state.record.spec.ephemeral:
            raise CommandError(f"`{self._state.name}` is ephemeral: at its end it leaves nothing that could be woken")
        await self._save(SaveArguments(message="parked", stop=True, park=True), emit)

    async def _end_idle(self) -> None:
        """Nobody used it for long enough. What was saved is stored first."""
        async with self._state.busy:
            await self._queue.settled()
            await self._state.kill(f"idle for {self._state.record.spec.idle.after_s:g} s")

    async def _wake(self, arguments: WakeArguments, emit: Emit) -> InstanceInfo:
        async with self._state.busy:
            await self._parking.wake(emit)
            return self._state.info()

    async def _wait_save(self, arguments: WaitSaveArguments, emit: Emit) -> SaveResult:
        return await self._queue.outcome(arguments.number)

    async def _stop(self, arguments: StopArguments, emit: Emit) -> InstanceInfo:
        return await self._end(arguments, emit, STOPPED)

    async def _end(self, arguments: StopArguments, emit: Emit, note: str) -> InstanceInfo:
        state = self._state
        async with state.busy:
            sandbox = state.live_sandbox()
            if len(self._queue):
                emit(Notice("waiting until what was saved is durable"))
            failed = await self._queue.settled()
            if failed and not arguments.force:
                raise failed[0].reason_not_to_stop()
            if arguments.timeout_s > 0 and not self._parking.is_parked:  # what stands still takes no SIGTERM
                with contextlib.suppress(InstanceExitedError):
                    sandbox.signal(signal.SIGTERM)
                await in_thread(sandbox.wait, arguments.timeout_s)
            await state.kill(note)
            return state.info()

    async def _signal(self, arguments: SignalArguments, emit: Emit) -> None:
        self._state.live_sandbox().signal(arguments.number)

    async def _status(self, arguments: StatusArguments, emit: Emit) -> InstanceInfo:
        self._state.mend_record()
        return self._state.info()

    async def _wait_memory(self, arguments: WaitMemoryArguments, emit: Emit) -> InstanceInfo:
        await self._state.wait_for_memory()
        return self._state.info()

    async def _give(self, arguments: GiveArguments, emit: Emit) -> None:
        self._state.documents.give(arguments.ticket, arguments.document)

    async def _notebook(self, arguments: NotebookArguments, emit: Emit) -> None:
        spec = msgspec.structs.replace(self._state.record.spec, notebook=arguments.path)
        self._state.write(spec=spec)

    async def _watch(self, arguments: WatchArguments, emit: Emit) -> InstanceInfo:
        with self._state.watchers.listening(emit, documents=arguments.documents):
            await self._state.ended.wait()
        return self._state.info()


def _rounded(phases: dict[str, float]) -> dict[str, float]:
    return {name: round(seconds, 6) for name, seconds in phases.items()}
