"""A program that works and answers nobody (`ijfs run --priority`), among deployments: it gives way and comes back.

It takes its share of the budgets while it runs. Where something more important finds no room it is parked, and goes on
by itself as soon as there is room again. It is never begun twice: when its program ends, for whatever reason but that
it gave way, the job is over, and an ended program is left, as of any `ijfs run`.
"""

from __future__ import annotations

from functools import partial

import trio

from ijfs.deployments import records
from ijfs.deployments.backend import Backend, untag
from ijfs.deployments.deployment import Deployment, in_thread
from ijfs.deployments.records import NoDeploymentError, Resting, Stage
from ijfs.deployments.room import NoRoomError
from ijfs_engine.errors import IjfsError, PreflightError

LOOK_S = 0.5
"""How often it is looked whether the job is over, or may come back."""

RETRY_S = 30.0
"""After it could not be brought back for another reason than want of room."""

ROOM_S = 2.0
"""How long who begins it, or wakes it, waits with it for room; after that it waits alone."""


class Job(Deployment):
    """A deployment without a port, of one program."""

    _over = False

    @property
    def is_idle(self) -> bool:
        """It works for as long as it runs: one of the same priority does not send it to rest."""
        return False

    @property
    def is_over(self) -> bool:
        """Whether its program ended by itself; there is no record of it any more."""
        return self._over

    @property
    def _backend(self) -> Backend:
        return self._backends[0]

    async def run(self, listener: trio.SocketListener | None = None) -> None:
        """Bring it back whenever there is room, until it is over."""
        with self._life:
            while not await self._has_ended():
                waits = self.record.resting != "asked" and not self._is_up()
                await trio.sleep(await self._tried_again() if waits else LOOK_S)
            await self._let_go()
            records.forget(self._repo, self.spec.name)
            self._over = True
            self._room.changed()

    async def _tried_again(self) -> float:
        """Bring it up; the seconds until that may be looked at again. What cannot even begin waits to be woken."""
        try:
            await self._come_up()
        except (NoRoomError, PreflightError):
            return LOOK_S
        except IjfsError:
            if not self.record.last_used_ns:
                self._note(resting="asked")
            return RETRY_S
        return LOOK_S

    async def wake(self) -> None:
        """Bring it up, if there is room soon; else it comes up when there is."""
        if self.record.resting == "asked":
            self._note(resting="room")
        with trio.move_on_after(ROOM_S):
            await super().wake()

    async def _has_ended(self) -> bool:
        """Whether its program has ended, and not to come back."""
        async with self._changing:
            if not self.record.last_used_ns or self._is_stored() or await in_thread(self._backend.depth) != "gone":
                return False
            self.stage = "gone"
            return True

    # -- down -----------------------------------------------------------------------------------------------------

    async def park(self, depth: Stage, *, drain_s: float | None = None, cut: bool = False) -> bool:
        """As somebody asks: it rests until somebody wakes it."""
        return await self._rested(depth, "asked")

    async def give_way(self, depth: Stage, *, drain_s: float | None = None, cut: bool = False) -> bool:
        """It rests until there is room, or still until somebody wakes it."""
        return await self._rested(depth, "asked" if self.record.resting == "asked" else "room")

    async def _rested(self, depth: Stage, why: Resting) -> bool:
        before = self.record.resting
        if not before and self.stage != "running":
            return False
        # Written down first: when this supervisor is killed in the middle, the next one knows that it comes back.
        self._note(resting=why)
        try:
            done = await super().park(depth, cut=True)
        except BaseException:
            self._note(resting=before)
            raise
        if not done:
            self._note(resting=before)
        return done

    def _needs_save(self, backend: Backend) -> bool:
        return True

    async def take_over(self) -> None:
        """Find out where it is; one that was to give way, and runs, runs on."""
        await super().take_over()
        if self.stage == "running" and self.record.resting:
            self._note(resting="")

    def _is_stored(self) -> bool:
        return bool(self.record.resting) and self._backend.name in self.record.snapshots

    async def _learn_of_saves(self) -> None:
        if self.record.resting:
            await self._learn_of_save(self._backend)

    # -- up -------------------------------------------------------------------------------------------------------

    async def _bring_up(self) -> None:
        self.stage = "starting"
        depth = await in_thread(self._backend.depth)
        if depth == "memory":
            await in_thread(self._backend.wake)
        elif depth == "gone":
            await in_thread(self._way_from_nothing())
        # What it rested in is its past now: where it dies from here on it is not to come back from that.
        self._note(resting="", snapshots={})
        await in_thread(untag, self._repo, self._backend.name)

    def _way_from_nothing(self) -> partial[None]:
        """From the snapshot that it rests in, or, the first time, from its command."""
        snapshot = self.record.snapshots.get(self._backend.name)
        if self.record.resting and snapshot:
            return partial(self._backend.restore, snapshot)
        if self.record.last_used_ns:
            raise NoDeploymentError(f"`{self.spec.name}` has ended")
        return partial(self._backend.begin)

    async def _let_go(self) -> None:
        """What it is kept by as a job: its program's branch, files and end stay."""
        await in_thread(untag, self._repo, self._backend.name)

    async def undeploy(self) -> None:
        """End it, and forget that it was a job."""
        await self.end()
        async with self._changing:
            await in_thread(self._backend.stop)
            await self._let_go()
            records.forget(self._repo, self.spec.name)
            self.stage = "gone"
            self._room.changed()
