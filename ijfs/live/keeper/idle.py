"""A program that nobody uses and that does nothing: after a while it is parked on disk, or ended, where that was asked
for (`InstanceSpec.idle`). Made by server.py.

What counts as use: a connection at one of its ports or its terminal, a cell, a command that was run inside and goes on,
a verb of its keeper's but for those that only look. What counts as work: more of a processor than programs take that
wait (BUSY_SHARE), and bytes that go out or come in where it has a way out. A program that only waits (for a clock, a
disk, a GPU whose host threads sleep) does nothing by this.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from ijfs.live.errors import InstanceExitedError
from ijfs.live.keeper.state import InstanceState
from ijfs.live.keeper.threads import in_thread
from ijfs.live.model.paths import TERMINAL_PORT
from ijfs.live.process import procfs
from ijfs.live.sandbox.sandbox import Sandbox
from ijfs_engine.errors import IjfsError

BUSY_SHARE = 0.02
"""Of one processor. A kernel that waits takes a third of a percent, a shell none."""
TICKS_S = 0.02
"""What the kernel's count of processor time is inexact by."""
BUSY_BYTES = 1024
"""A second, each way together: neighbours and routers are looked for at less."""
SHORTEST_S, LONGEST_S = 0.2, 10.0
"""Between two looks."""

_log = logging.getLogger("ijfs.keeper")

End = Callable[[], Awaitable[None]]


class _Look(NamedTuple):
    """What was seen of a program: seconds of processor and bytes so far, and whether somebody is inside."""

    at: float
    processor_s: float
    traffic: int
    inside: bool

    def is_work_since(self, before: _Look) -> bool:
        """Whether it did something since then."""
        passed = self.at - before.at
        busy = self.processor_s - before.processor_s > BUSY_SHARE * passed + TICKS_S
        return busy or self.traffic - before.traffic > BUSY_BYTES * passed


class IdleWatch:
    """Looks at the program of one keeper. `park` saves it and ends it, to be woken; `kill` ends it."""

    def __init__(self, state: InstanceState, park: End, kill: End) -> None:
        self._state, self._park, self._kill = state, park, kill
        self._used = time.monotonic()

    def touch(self) -> None:
        """Somebody used it just now."""
        self._used = time.monotonic()

    async def watch(self) -> None:
        """Until the keeper ends."""
        before: _Look | None = None
        while True:
            after_s = self._state.record.spec.idle.after_s
            await trio.sleep(min(max(after_s / 10, SHORTEST_S), LONGEST_S) if after_s else LONGEST_S)
            sandbox = self._state.sandbox
            if not after_s or sandbox is None:
                self.touch()
                continue
            look = await in_thread(_look_at, sandbox)
            if self._is_used() or look.inside or before is None or look.is_work_since(before):
                self.touch()
            before = look
            if time.monotonic() - self._used >= after_s:
                await self._end(after_s)

    def _is_used(self) -> bool:
        """Whether somebody is connected to it, or something is being done to it; one that is parked in memory is left
        to who parked it."""
        state = self._state
        held = state.busy.locked() or state.record.parked is not None
        return held or state.relay.in_use or state.relay.traffic.busy

    async def _end(self, after_s: float) -> None:
        """As it was asked for. One that cannot be saved runs on, says so, and is tried again as much later."""
        spec = self._state.record.spec
        ends = self._kill if spec.idle.then == "kill" or spec.ephemeral else self._park
        try:
            await ends()
        except InstanceExitedError:
            return
        except (IjfsError, OSError) as error:
            _log.warning("not parked: %s", error)
            self._state.note(note=f"idle for {after_s:g} s, and could not be parked: {error}")
            self.touch()


def _look_at(sandbox: Sandbox) -> _Look:
    pids = procfs.processes_in("pid", procfs.namespace_id(sandbox.pid, "pid")) if sandbox.is_alive() else []
    entered = any(pid != sandbox.pid and procfs.parent_of(pid) not in {*pids, None} for pid in pids)
    return _Look(
        time.monotonic(),
        sum(procfs.processor_seconds(pid) for pid in pids),
        procfs.network_bytes(sandbox.pid),
        entered or procfs.is_connected(sandbox.pid, TERMINAL_PORT),
    )
