"""What happens by itself: sandboxes whose time is over end or pause, those whose program has ended are forgotten, and
what the server saved for itself and needs no more is freed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from ijfs.sdk import aio
from ijfs.serve.errors import ApiError
from ijfs.serve.sandboxes import Sandbox, Sandboxes
from ijfs_engine.errors import IjfsError

LOOK_S = 0.5
"""Between two looks at whose time is over."""
ALIVE_EVERY = 10
"""Looks between two that also ask whether programs have ended."""
SWEEP_EVERY = 40
"""Looks between two that remove what nobody needs."""
GC_AFTER = 50
"""Removed snapshots until their bytes are freed; and ten minutes free them, too."""
GC_AFTER_S = 600.0
AGAIN_S = 60.0
"""A sandbox whose save was refused gets so many seconds more before it is tried again: it is not ended unsaved."""

log = logging.getLogger("ijfs.serve")


class Upkeep:
    """A task that goes on while the server does."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._removed, self._freed_at = 0, time.monotonic()

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Around the server's life."""
        task = asyncio.create_task(self._forever())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task, *self._ending.values()])

    async def _forever(self) -> None:
        look = 0
        while True:
            try:
                await self._once(look)
            except Exception:  # the next look may go better
                log.exception("upkeep failed")
            look += 1
            await asyncio.sleep(LOOK_S)

    async def _once(self, look: int) -> None:
        for sandbox in self._sandboxes.all():
            if sandbox.record.state == "running" and sandbox.record.id not in self._ending:
                over = sandbox.record.ends_ns < time.time_ns()
                if over or (look % ALIVE_EVERY == 0 and not await aio.in_thread(_runs, sandbox)):
                    self._end(sandbox)
        if look % SWEEP_EVERY == SWEEP_EVERY - 1:
            await aio.in_thread(self._free)

    def _end(self, sandbox: Sandbox) -> None:
        """Beside the others: a save takes its time."""
        task = asyncio.create_task(self._ended(sandbox))
        self._ending[sandbox.record.id] = task
        task.add_done_callback(lambda _: self._ending.pop(sandbox.record.id, None))

    async def _ended(self, sandbox: Sandbox) -> None:
        try:
            await self._sandboxes.end_if_over(sandbox)
        except (IjfsError, ApiError) as error:
            log.warning("sandbox %s could not be ended: %s", sandbox.record.id, error)
            self._sandboxes.set_end(sandbox, AGAIN_S)

    def _free(self) -> None:
        self._removed += self._sandboxes.sweep()
        late = time.monotonic() - self._freed_at > GC_AFTER_S
        if self._removed >= GC_AFTER or (self._removed and late):
            self._removed, self._freed_at = 0, time.monotonic()
            with self._sandboxes.repo.engine() as repository:
                repository.gc()


def _runs(sandbox: Sandbox) -> bool:
    return sandbox.record.state != "running" or sandbox.box.running
