"""One keeper at work: its state, its verbs, and how it ends. Run by process.py; the wire is control_socket.py's, how a
program comes to run lifecycle.py's, how it is saved save.py's.

One verb that changes the program (a save until its thaw, restore, stop) runs at a time; others wait for `busy`. What
was saved and is not yet in the repository (saver.line) outlives the program, never the keeper. The state is the loop's
own: threads get what they need as arguments.
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

from ijfs.live.checkpoint.snapshot_io import SnapshotStore
from ijfs.live.checkpoint.workspace import StatCache
from ijfs.live.criu import kernel_features
from ijfs.live.errors import InstanceExitedError, ProtocolError
from ijfs.live.keeper import control_socket
from ijfs.live.keeper.control_socket import Emit, in_thread
from ijfs.live.keeper.guest_port import GuestPort
from ijfs.live.keeper.guest_requests import GuestRequests
from ijfs.live.keeper.lifecycle import Lifecycle
from ijfs.live.keeper.save import Saver
from ijfs.live.model import protocol
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import info_of, write_record
from ijfs.live.model.records import InstanceInfo, InstanceRecord, InstanceSpec, Process, SaveResult
from ijfs.live.process import procfs
from ijfs.live.relay.relay import Relay
from ijfs.live.sandbox.sandbox import Sandbox
from ijfs_engine.errors import IjfsError

if TYPE_CHECKING:
    from ijfs.live.gpu.program import GpuProgram
    from ijfs.live.keeper.early_restore import EarlyRestore
    from ijfs.live.pager.api import Pager

# How long a save waits for the memory of a lazy restore: a day, because where it comes from may be slow or far.
MEMORY_LIMIT_S = 86400.0

# How long a keeper whose program has ended stays for the answers it still owes.
FAREWELL_S = 2.0

# How often a keeper looks whether its directory is still there.
DIRECTORY_S = 2.0

_log = logging.getLogger("ijfs.keeper")


class Keeper:
    """The state of one instance, and the verbs on it."""

    def __init__(self, directory: Path, head: EarlyRestore | None = None) -> None:
        self.name = directory.name
        self.repo = directory.parent.parent
        self.paths = InstancePaths(directory)
        self.head = head
        self.vault = (head and head.vault) or SnapshotStore(self.repo)
        self.relay = Relay()
        self.asked = GuestRequests(self, self._save)
        self.guest = GuestPort(self.asked.answer, lambda ports: self.note(hook_ports=ports))
        self.record = InstanceRecord(spec=InstanceSpec(name=self.name, argv=()))
        self.box: Sandbox | None = None
        self.pager: Pager | None = None
        self.gpu: GpuProgram | None = None
        self.known: StatCache = {}
        self.saver = Saver(self)
        self.arrivals = Lifecycle(self)
        self.busy = trio.Lock()
        self._requests = 0
        self._ended = trio.Event()
        self.nursery: trio.Nursery | None = None

    # -- life ---------------------------------------------------------------------------------------------------

    async def run(self, first: socket.socket) -> None:
        """Serve the first client's request; when it made the instance, serve everyone until the program ends."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(first))
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            nursery.start_soon(self._obey_signals)
            # Listening first: who connects as soon as the first answer is out waits in line instead of being refused.
            listener = control_socket.listen(self.paths.socket)
            line = await in_thread(self.head.line) if self.head else await _first_line(stream)
            if line is not None and await control_socket.serve_request(stream, line, self._first_dispatch):
                nursery.start_soon(control_socket.serve, listener, self._dispatch)
                nursery.start_soon(control_socket.serve_connection, stream, self._dispatch)
                nursery.start_soon(self._watch_directory)
                await self._ended.wait()
                await self.saver.line.settled()
                await self._answered()
                self.note(keeper=None)
            nursery.cancel_scope.cancel()
        self.relay.close()
        self.saver.close()
        self.vault.close()
        if self.head is not None and self.head.pager is not None:
            self.head.pager.close()
        if self.gpu is not None:
            self.gpu.close()

    async def _answered(self) -> None:
        """Give answers that are being made or sent a moment."""
        with trio.move_on_after(FAREWELL_S):
            while self._requests:
                await trio.sleep(0.005)
            await trio.sleep(0.01)

    async def _obey_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                _log.info("SIGTERM")
                with contextlib.suppress(IjfsError):
                    await self._stop({"force": True}, lambda event: None)
                self._ended.set()

    async def _watch_directory(self) -> None:
        """When the instance's directory is deleted (with the repository, say), nobody can reach the keeper any more: it
        ends, and the program, whose files were in there, with it."""
        directory = os.open(self.paths.root, os.O_PATH | os.O_DIRECTORY)
        try:
            while not os.readlink(f"/proc/self/fd/{directory}").endswith(" (deleted)"):
                await trio.sleep(DIRECTORY_S)
        finally:
            os.close(directory)
        _log.warning("%s was deleted: the program ends", self.paths.root)
        async with self.busy:
            await self.kill("its directory was deleted")
        self._ended.set()

    async def _watch(self, box: Sandbox) -> None:
        """The end of the program is the end of the instance, unless another program took its place."""
        assert box.pidfd is not None
        watched = os.dup(box.pidfd)
        try:
            await trio.lowlevel.wait_readable(watched)
        finally:
            os.close(watched)
        async with self.busy:
            if self.box is box:
                await self._finish()

    async def _finish(self, note: str = "") -> None:
        """The program has ended: clean up, write down how it ended."""
        box, self.box = self.box, None
        if box is None:
            return
        self.guest.close()
        self.relay.bar()
        self.relay.drop()
        status = box.reap()
        if self.pager is not None:
            await in_thread(self.pager.close)
        await in_thread(box.dispose, keep_files=True)
        # The record keeps its keeper for as long as saves are on their way into the repository.
        self.note(status="exited", exit_status=status, pager=None, note=note or self.record.note)
        self._ended.set()

    def spawn(self, task: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run something in the background for as long as the keeper lives."""
        assert self.nursery is not None
        self.nursery.start_soon(task, *args)

    def take(self, box: Sandbox) -> None:
        """Make this sandbox the instance's: watched and relayed."""
        self.box = box
        self.relay.attach(box.network_fd)
        self.spawn(self._watch, box)

    def write(self, **changes: Any) -> None:
        """Change the record, on disk too."""
        self.record = msgspec.structs.replace(self.record, **changes)
        write_record(self.paths, self.record)

    def note(self, **changes: Any) -> None:
        """The same where a directory that is gone or full must stop nothing."""
        try:
            self.write(**changes)
        except IjfsError as error:
            self.record = msgspec.structs.replace(self.record, **changes)
            _log.warning("not written down: %s", error)

    def reopen_guest(self, box: Sandbox) -> None:
        """Listen for the program's own requests: from its start, and again after a freeze."""
        assert self.nursery is not None
        self.guest.open(box.network_fd, self.nursery)

    def saved(self, snapshot: str) -> None:
        """The instance stands on a new snapshot, which is durable whether or not this can be written down."""
        self.note(snapshot=snapshot, save_error="")

    def live_box(self) -> Sandbox:
        """The sandbox; InstanceExitedError when its program has ended."""
        if self.box is None or not self.box.is_alive():
            raise InstanceExitedError(f"the program of `{self.name}` has ended")
        return self.box

    # -- verbs --------------------------------------------------------------------------------------------------

    async def _first_dispatch(self, verb: str, args: dict[str, Any], emit: Emit) -> dict[str, Any]:
        verbs = {"start": self.arrivals.start, "restore": self.arrivals.restore, "adopt": self.arrivals.adopt}
        return await self._run(verbs, verb, args, emit)

    async def _dispatch(self, verb: str, args: dict[str, Any], emit: Emit) -> dict[str, Any]:
        verbs = {
            "status": self._status,
            "save": self._save,
            "wait_save": self._wait_save,
            "restore": self.arrivals.go_back,
            "wait_memory": self._wait_memory,
            "signal": self._signal,
            "stop": self._stop,
        }
        return await self._run(verbs, verb, args, emit)

    async def _run(self, verbs: dict[str, Any], verb: str, args: dict[str, Any], emit: Emit) -> dict[str, Any]:
        if verb not in verbs:
            raise ProtocolError(f"a keeper knows no verb `{verb}` here")
        began = time.monotonic()
        self._requests += 1
        try:
            result = await verbs[verb](args, emit)
        finally:
            self._requests -= 1
        if isinstance(result, InstanceInfo | SaveResult) and verb != "wait_save":
            total = time.monotonic() - began
            if isinstance(result, InstanceInfo):  # a restore may have begun before its request was looked at
                total = max(total, sum(result.phases.values()))
            phases = {**result.phases, "total": total}
            result = msgspec.structs.replace(result, phases=_rounded(phases))
        answer: dict[str, Any] = msgspec.to_builtins(result) if result is not None else {}
        return answer

    async def _save(self, args: dict[str, Any], emit: Emit) -> SaveResult:
        await in_thread(kernel_features.mount_cache)
        return await self.saver.save(args, emit)

    async def _wait_save(self, args: dict[str, Any], emit: Emit) -> SaveResult:
        return await self.saver.line.outcome(int(args["number"]))

    async def _stop(self, args: dict[str, Any], emit: Emit) -> InstanceInfo:
        async with self.busy:
            box = self.live_box()
            if len(self.saver.line):
                emit({"kind": "notice", "text": "waiting until what was saved is durable"})
            failed = await self.saver.line.settled()
            if failed and not args.get("force"):
                raise failed[0].not_stopped()
            timeout_s = float(args.get("timeout_s", 5.0))
            if timeout_s > 0:
                with contextlib.suppress(InstanceExitedError):
                    box.signal(signal.SIGTERM)
                await in_thread(box.wait, timeout_s)
            await self.kill("stopped")
            return self.info()

    async def kill(self, note: str) -> None:
        """End the program and clean up; for who holds `busy`."""
        if self.box is not None:
            if self.gpu is not None and self.box.is_alive():
                await in_thread(self.gpu.prepare_to_kill, self.box.pid)
            await in_thread(self.box.kill)
            await self._finish(note)

    async def _signal(self, args: dict[str, Any], emit: Emit) -> None:
        self.live_box().signal(int(args["number"]))

    async def _status(self, args: dict[str, Any], emit: Emit) -> InstanceInfo:
        return self.info()

    async def _wait_memory(self, args: dict[str, Any], emit: Emit) -> InstanceInfo:
        await self.memory_in()
        return self.info()

    async def memory_in(self) -> None:
        """Wait until a lazy restore is complete: what is not in yet cannot be saved."""
        if self.pager is not None:
            await in_thread(self.pager.wait, MEMORY_LIMIT_S)
            await in_thread(self.pager.close)
            self.pager = None
            self.write(pager=None)
        while self.record.pager is not None:  # a pager that an earlier keeper started
            if not procfs.is_alive(self.record.pager):
                self.write(pager=None)
                return
            await trio.sleep(0.05)

    def info(self) -> InstanceInfo:
        """The instance as callers are shown it."""
        return info_of(self.paths, self.record, memory=self.memory())

    def memory(self) -> float:
        """The share of the memory that is in."""
        return self.pager.status.share if self.pager is not None else 1.0

    def pager_process(self) -> Process | None:
        """The pager at work, as the record has it."""
        return procfs.identify(self.pager.pid) if self.pager is not None else None


async def _first_line(stream: trio.SocketStream) -> bytes | None:
    lines = protocol.LineBuffer()
    while data := await stream.receive_some(1 << 16):
        found = lines.feed(data)
        if found:
            return found[0]
    return None


def _rounded(phases: dict[str, float]) -> dict[str, float]:
    return {name: round(seconds, 6) for name, seconds in phases.items()}
