"""A program that stands still in host memory, and goes on: the verbs `park` and `wake`. Made by server.py.

    park    relay held → hooks before_save → GPU memory to the host → every process stopped
    wake    every process goes on → GPU memory back → hooks after_save → relay open

Nothing is written to disk but the record, which says so before the first process stops: a keeper that is killed leaves
a parked program to its successor. Connections stay; what clients send waits in their sockets.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import msgspec

from ijfs.live.checkpoint.freeze import stopped_processes, wake_stopped
from ijfs.live.keeper import outside_hooks
from ijfs.live.keeper.state import InstanceState
from ijfs.live.keeper.threads import in_thread
from ijfs.live.model.protocol import Emit, Notice, PhaseBegan
from ijfs.live.model.records import Parked
from ijfs.live.process import procfs
from ijfs.live.sandbox.sandbox import Sandbox

# How often processes are listed anew while they are being stopped: one may have forked meanwhile.
_PASSES = 100


class Parking:
    """Parks and wakes the program of one keeper. Its methods want `busy` held."""

    def __init__(self, state: InstanceState) -> None:
        self._state = state

    @property
    def is_parked(self) -> bool:
        """Whether the program stands still."""
        return self._state.record.parked is not None

    def take_over(self) -> None:
        """Keep a program parked whose keeper was killed."""
        if self.is_parked:
            self._state.relay.hold()

    async def park(self, emit: Emit) -> None:
        """Stop the program. HookError, or the errors of ijfs.live.gpu, with the program running on."""
        if self.is_parked:
            return
        state, sandbox = self._state, self._state.live_sandbox()
        emit(PhaseBegan("park"))
        state.relay.hold()
        try:
            await outside_hooks.run(state.record.spec.hooks.before_save, sandbox, state.name)
            stopped = tuple(await in_thread(stopped_processes, sandbox))
            state.guest.close()
            parked = Parked(since_ns=time.time_ns(), stopped=stopped)
            state.write(parked=parked)
            sandbox.group.lift()  # GPU memory that comes to the host counts as the program's
            taken = await in_thread(state.gpu.suspend, sandbox.pid) if state.gpu is not None else None
            if taken is not None:
                state.write(parked=msgspec.structs.replace(parked, held=taken.held()))
            await in_thread(_stop_all, sandbox)
        except BaseException:
            await self._go_on(sandbox, emit)
            raise

    async def wake(self, emit: Emit) -> None:
        """Let it go on. PreflightError where the GPU has no room for it: it stays parked."""
        if not self.is_parked:
            return
        emit(PhaseBegan("wake"))
        await self._go_on(self._state.live_sandbox(), emit)

    async def _go_on(self, sandbox: Sandbox, emit: Emit) -> None:
        """From whatever step of parking; what was not stopped, held or moved is left as it is."""
        state = self._state
        parked = state.record.parked
        if state.gpu is not None and parked is not None:
            await in_thread(state.gpu.require_room_again, parked.held)
        await in_thread(wake_stopped, sandbox, but=frozenset(parked.stopped if parked else ()))
        if state.gpu is not None and parked is not None:
            await in_thread(state.gpu.resume_found, sandbox.pid)
        sandbox.group.restrict()
        if parked is not None:
            state.note(parked=None)
        if parked is not None and sandbox.is_alive():
            state.open_guest_port(sandbox)
        for said in await outside_hooks.run_all(state.record.spec.hooks.after_save, sandbox, state.name):
            emit(Notice(said))
        state.relay.release()


def _stop_all(sandbox: Sandbox) -> None:
    """SIGSTOP for every process, until none is left that runs."""
    for _ in range(_PASSES):
        running = [pid for pid in _members(sandbox) if procfs.state(pid) not in ("T", "t", "Z", "X")]
        if not running:
            return
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        time.sleep(0.002)


def _members(sandbox: Sandbox) -> list[int]:
    return procfs.processes_in("pid", procfs.namespace_id(sandbox.pid, "pid"))
