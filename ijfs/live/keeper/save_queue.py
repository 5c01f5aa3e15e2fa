"""The saves whose programs run again and which are not yet in the repository. Made by server.py, filled by save.py.

Only a freeze needs the program for itself. What it brought is in memory, and goes into the repository one save after
the other, in the order of the freezes: each save's parent is the one before it, if that one succeeded.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from ijfs.live.model.protocol import Emit, Notice
from ijfs.live.model.records import SaveResult
from ijfs_engine.errors import IjfsError, StorageError, UnknownNameError, is_of_a_disk

# Each one holds a whole image in memory: one that is being stored, one that waits for it.
MOST = 2

# What became of a save is known so long for those who come later to ask.
REMEMBERED = 64

_log = logging.getLogger("ijfs.keeper")


@dataclass(slots=True, eq=False)
class QueuedSave:
    """One save after its freeze. `waited_for`: somebody waits and will be told how it ended. `auto`: it was made after
    a cell by itself."""

    number: int
    waited_for: bool
    auto: bool
    done: trio.Event = field(default_factory=trio.Event)
    result: SaveResult | None = None
    error: IjfsError | None = None

    def reason_not_to_stop(self) -> IjfsError:
        """For a save that failed: the program is not ended, because its state would be gone with it."""
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


def _explained(error: Exception) -> IjfsError:
    if isinstance(error, OSError) and is_of_a_disk(error):
        return StorageError.of("the save failed", error)
    return IjfsError(f"the save failed: {type(error).__name__}: {error}")


class SaveQueue:
    """The saves of one keeper that are being stored, oldest first.

    `changed` is told how many there are when one is put in or leaves; `failed` what a save failed with, and whether
    somebody waits for it.
    """

    def __init__(
        self, spawn: Callable[..., None], changed: Callable[[int], None], failed: Callable[[IjfsError, bool], None]
    ) -> None:
        self._spawn = spawn
        self._changed = changed
        self._failed = failed
        self._room = trio.Semaphore(MOST)
        self._waiting: list[QueuedSave] = []
        self._by_number: dict[int, QueuedSave] = {}
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._waiting)

    async def reserve(self, emit: Emit) -> None:
        """Wait until there is room for one more; then call `put`, or `cancel` when nothing came of it."""
        try:
            self._room.acquire_nowait()
        except trio.WouldBlock:
            emit(Notice(f"waiting until one of the {MOST} saves before is durable"))
            await self._room.acquire()

    def cancel(self) -> None:
        """Give the reserved room back unused."""
        self._room.release()

    def put(self, store: Callable[[int], Awaitable[SaveResult]], *, waited_for: bool, auto: bool) -> QueuedSave:
        """Have `store` run as soon as all saves before it are done, whatever became of them."""
        self._numbers += 1
        save = QueuedSave(self._numbers, waited_for, auto)
        before = self._waiting[-1] if self._waiting else None
        self._waiting.append(save)
        self._by_number[save.number] = save
        self._changed(len(self._waiting))
        self._spawn(self._run, save, before, store)
        return save

    async def _run(
        self, save: QueuedSave, before: QueuedSave | None, store: Callable[[int], Awaitable[SaveResult]]
    ) -> None:
        try:
            if before is not None:
                await before.done.wait()
            save.result = await store(save.number)
        except IjfsError as error:
            save.error = error
        except Exception as error:
            _log.exception("save %d met an unknown error", save.number)
            save.error = _explained(error)
        finally:
            self._waiting.remove(save)
            self._room.release()
            save.done.set()
        if save.error is not None:
            _log.warning("save %d was not stored: %s", save.number, save.error)
            self._failed(save.error, save.waited_for)
        self._changed(len(self._waiting))
        for number in [n for n, old in self._by_number.items() if old.done.is_set()][:-REMEMBERED]:
            del self._by_number[number]

    async def settled(self) -> list[QueuedSave]:
        """Wait for all saves under way. Returns those that failed, that a person asked for, and that nobody waited
        for."""
        failed: list[QueuedSave] = []
        while self._waiting:
            save = self._waiting[0]
            await save.done.wait()
            if save.error is not None and not save.waited_for and not save.auto:
                failed.append(save)
        return failed

    async def outcome(self, number: int) -> SaveResult:
        """What becomes of a save, by its number. UnknownNameError."""
        if number not in self._by_number:
            raise UnknownNameError(f"this keeper knows no save {number}", hint="`ijfs log` shows what is durable")
        return await self._by_number[number].outcome()
