"""The line of saves that are frozen, thawed and not yet in the repository. Part of the keeper; used by save.py.

Only a freeze needs the program for itself. What it brought is in memory, and goes into the repository one save after
the other, in the order of the freezes: each save's parent is the one before it, if that one succeeded.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from ijfs.live.keeper.control_socket import Emit
from ijfs.live.model.records import SaveResult
from ijfs_engine.errors import IjfsError, UnknownNameError

# Each one holds a whole image in memory: one that is being stored, one that waits for it.
MOST = 2

# What became of a save is known so long for those who come later to ask.
REMEMBERED = 64

_log = logging.getLogger("ijfs.keeper")


@dataclass(slots=True, eq=False)
class QueuedSave:
    """One save after its freeze. `waited_for`: somebody is waiting who will be told how it ended. `auto`: nobody asked
    for it."""

    number: int
    waited_for: bool
    auto: bool
    done: trio.Event = field(default_factory=trio.Event)
    result: SaveResult | None = None
    error: IjfsError | None = None

    def not_stopped(self) -> IjfsError:
        """Why a program is not ended whose state would go with it."""
        assert self.error is not None
        return IjfsError(
            f"a save that was still being stored failed, so the program was not stopped: {self.error}",
            hint="save it again; another `ijfs stop` ends it all the same",
        )

    async def outcome(self) -> SaveResult:
        """Wait for the result; raises what the save failed with."""
        await self.done.wait()
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


class SaveQueue:
    """The saves of one keeper that are being stored. `changed` is called when one joins the line or leaves it."""

    def __init__(
        self, spawn: Callable[..., None], changed: Callable[[], None], lost: Callable[[IjfsError], None]
    ) -> None:
        self._spawn = spawn
        self._changed = changed
        self._lost = lost
        self._room = trio.Semaphore(MOST)
        self._line: list[QueuedSave] = []
        self._all: dict[int, QueuedSave] = {}
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._line)

    async def make_room(self, emit: Emit) -> None:
        """Wait until there is room for one more; whoever got it calls `put`, or `leave` when nothing came of it."""
        try:
            self._room.acquire_nowait()
        except trio.WouldBlock:
            emit({"kind": "notice", "text": f"waiting until one of the {MOST} saves before is durable"})
            await self._room.acquire()

    def leave(self) -> None:
        """Give the room back unused."""
        self._room.release()

    def put(self, store: Callable[[int], Awaitable[SaveResult]], *, waited_for: bool, auto: bool) -> QueuedSave:
        """Have `store` run as soon as all saves before it are done, whatever became of them."""
        self._numbers += 1
        pending = QueuedSave(self._numbers, waited_for, auto)
        before = self._line[-1] if self._line else None
        self._line.append(pending)
        self._all[pending.number] = pending
        self._changed()
        self._spawn(self._run, pending, before, store)
        return pending

    async def _run(
        self, pending: QueuedSave, before: QueuedSave | None, store: Callable[[int], Awaitable[SaveResult]]
    ) -> None:
        try:
            if before is not None:
                await before.done.wait()
            pending.result = await store(pending.number)
        except IjfsError as error:
            pending.error = error
        except Exception as error:
            _log.exception("save %d met an unknown error", pending.number)
            pending.error = IjfsError(f"the save failed: {type(error).__name__}: {error}")
        finally:
            self._line.remove(pending)
            self._room.release()
            pending.done.set()
        if pending.error is not None:
            _log.warning("save %d was not stored: %s", pending.number, pending.error)
            if not pending.waited_for:
                self._lost(pending.error)
        self._changed()
        for number in [n for n, old in self._all.items() if old.done.is_set()][:-REMEMBERED]:
            del self._all[number]

    async def settled(self) -> list[QueuedSave]:
        """Wait until all saves are done that have begun; those a person asked for, did not wait for, and lost."""
        failed: list[QueuedSave] = []
        while self._line:
            pending = self._line[0]
            await pending.done.wait()
            if pending.error is not None and not pending.waited_for and not pending.auto:
                failed.append(pending)
        return failed

    async def outcome(self, number: int) -> SaveResult:
        """What becomes of a save, by its number. UnknownNameError."""
        if number not in self._all:
            raise UnknownNameError(f"this keeper knows no save {number}", hint="`ijfs log` shows what is durable")
        return await self._all[number].outcome()
