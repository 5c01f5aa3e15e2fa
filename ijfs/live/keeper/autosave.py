"""Saving after cells by itself: when it is worth it, never in anyone's way, and thinned out again.

Made by server.py; save.py tells it of every save. The program only says that a cell has ended (docs/architecture.md,
"The guest protocol"); whether that is worth a save is decided here, outside the program, while it goes on.
docs/jupyter.md has the rules as people see them.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

import trio

from ijfs.live.errors import InstanceExitedError, ProtocolError
from ijfs.live.keeper import dirty_sample
from ijfs.live.keeper.save_queue import SaveQueue
from ijfs.live.keeper.state import InstanceState
from ijfs.live.keeper.threads import in_thread
from ijfs.live.model.guest_protocol import CellAnswer, GuestCell
from ijfs.live.model.protocol import Emit, SaveArguments
from ijfs.live.model.records import SaveResult
from ijfs.live.process import procfs
from ijfs.live.sandbox.sandbox import Sandbox
from ijfs_engine import PrunePolicy, Repository
from ijfs_engine.errors import IjfsError

# A program does not stand still for saves of this kind for more than one part in so many of its time.
REST = 20

# Before the first save: how long a freeze takes for each byte. Slow, so that the bound holds.
UNKNOWN_RATE = 1 / 1e9

THINNED = PrunePolicy(last=10, hourly=24, daily=7, weekly=4)
"""What stays of saves after cells. Only such saves are removed; others count as kept."""

SaveVerb = Callable[[SaveArguments, Emit], Awaitable[SaveResult]]
"""The keeper's verb `save`."""

_log = logging.getLogger("ijfs.keeper")


class Autosaver:
    """The saves after cells of one keeper, and what it needs to know for them of all others."""

    def __init__(self, state: InstanceState, queue: SaveQueue) -> None:
        self._state = state
        self._queue = queue
        self._used = False
        self._considering = False
        self._said = ""
        self._told = ""
        self._latest = GuestCell()
        self._thawed: float | None = None
        self._frozen_s = 0.0
        self._rate = UNKNOWN_RATE
        self._sample: dirty_sample.Sample | None = None
        self._next_sample: dirty_sample.Sample | None = None

    # -- around every save

    async def before_freeze(self, sandbox: Sandbox) -> None:
        """Before, not after: what changes meanwhile counts as not saved."""
        if not self._used:
            return
        with contextlib.suppress(OSError):  # it ends just now, and the freeze will say so
            self._next_sample = await in_thread(dirty_sample.take, _members(sandbox))

    def after_freeze(self, frozen_s: float, image_bytes: int) -> None:
        """Whoever asked for it: the next save after a cell counts from here."""
        self._sample, self._next_sample = self._next_sample, None
        self._thawed, self._frozen_s = time.monotonic(), frozen_s
        self._rate = frozen_s / max(image_bytes, 1)

    # -- after a cell

    def cell(self, cell: GuestCell, save: SaveVerb) -> CellAnswer:
        """A cell has ended: consider a save, and answer without waiting for it."""
        _check(cell)
        if cell.dry:  # somebody turns it on and asks whether that will do
            return CellAnswer()
        self._used = True
        self._latest = cell
        if not self._considering:
            self._considering = True
            self._state.spawn(self._consider, save)
        return CellAnswer(self._news() or None)

    def _news(self) -> str:
        """What went wrong since the last cell: before the thaw, or afterwards on the way into the repository."""
        said, self._said = self._said, ""
        lost = self._state.record.save_error
        if lost and lost != self._told:
            said = said or f"the last save was not stored: {lost}"
        self._told = lost
        return said

    async def _consider(self, save: SaveVerb) -> None:
        try:
            await self._quiet()
            cell = self._latest
            if await self._is_worth_it(cell):
                message = cell.message or "after a cell"
                await save(SaveArguments(message=message, wait=False, auto=True), lambda event: None)
        except InstanceExitedError:
            _log.info("no save after a cell: the program has ended")
        except (IjfsError, OSError) as error:
            _log.warning("no save after a cell: %s", error)
            self._said = f"not saved after the last cell: {error}"
        finally:
            self._considering = False

    async def _quiet(self) -> None:
        """Wait until nothing else is being done to the instance, all memory is in, and the program had its rest."""
        state = self._state
        while True:
            rest_s = 0.0 if self._thawed is None else self._thawed + REST * self._frozen_s - time.monotonic()
            if rest_s > 0:
                await trio.sleep(rest_s)
            elif len(self._queue):
                await self._queue.settled()
            elif state.busy.locked() or state.record.pager is not None:
                async with state.busy:
                    await state.wait_for_memory()
            else:
                return

    async def _is_worth_it(self, cell: GuestCell) -> bool:
        state = self._state
        now = time.monotonic()
        pids = _members(state.live_sandbox())
        if self._expected_freeze_s(pids) > cell.limit_s:
            return self._too_large(pids, cell)
        if state.record.snapshot is None and self._thawed is None:
            return True
        if self._thawed is None:
            self._thawed = now  # restored, or adopted: it counts from the first cell seen
        if now - self._thawed >= cell.every_s:
            return True
        if self._sample is None:
            self._sample = await in_thread(dirty_sample.take, pids)
            return False
        share = await in_thread(dirty_sample.changed_share, self._sample, pids)
        return share is not None and share >= cell.changed

    def _expected_freeze_s(self, pids: list[int]) -> float:
        return self._rate * sum(procfs.dumpable_bytes(pid) for pid in pids)

    def _too_large(self, pids: list[int], cell: GuestCell) -> bool:
        self._said = (
            "not saved after the last cell: the program would stand still for about "
            f"{self._expected_freeze_s(pids):.1f} s, and the limit is {cell.limit_s:g} s"
        )
        return False


def thin(repository: Repository, instance: str) -> None:
    """Remove what the policy does not keep of an instance's saves after cells. What is in use or tagged stays."""
    unwanted = set(repository.prune(THINNED, dry_run=True).removed)
    for snapshot in repository.snapshots():
        spec = snapshot.meta.get("spec")
        mine = isinstance(spec, dict) and spec.get("name") == instance
        if snapshot.id in unwanted and mine and snapshot.meta.get("auto") is True:
            with contextlib.suppress(IjfsError):  # a tag or a pin came between, or another prune was quicker
                repository.remove(snapshot.id)


def _members(sandbox: Sandbox) -> list[int]:
    return procfs.processes_in("pid", procfs.namespace_id(sandbox.pid, "pid"))


def _check(cell: GuestCell) -> None:
    """ProtocolError where the rules that came with a cell are none."""
    if not (cell.every_s >= 0 and 0 < cell.changed <= 1 and cell.limit_s > 0):
        raise ProtocolError("every_s is at least 0, changed between 0 and 1, limit_s more than 0")


__all__ = ["THINNED", "Autosaver", "SaveVerb", "thin"]
