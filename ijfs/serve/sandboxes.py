"""The sandboxes of one server: made, found, paused, resumed, forked, ended. Called by control.py, data.py, upkeep.py.

A sandbox is an instance of the same name and a record beside it. The record is written before the instance is there and
removed after it is gone: what a server that was killed has begun, the next one finds and ends (`settle`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from ijfs.live.client import api as client
from ijfs.live.model.records import NO_LIMITS, Limits
from ijfs.sdk import aio
from ijfs.sdk.box import Box
from ijfs.sdk.forks import is_python_kernel, tell
from ijfs.sdk.repository import Repository
from ijfs.sdk.snapshots import Snapshot
from ijfs.serve import limits
from ijfs.serve.envd.daemon import Envd
from ijfs.serve.errors import ApiError
from ijfs.serve.interpreter import endpoints
from ijfs.serve.interpreter.kernel import Interpreter
from ijfs.serve.keys import KeyRecord
from ijfs.serve.records import AtTheEnd, Leftover, Records, SandboxRecord, SnapshotRecord
from ijfs.serve.telemetry import Telemetry
from ijfs.serve.templates import Template, Templates, limits_of
from ijfs_engine.errors import IjfsError, LockedError, UnknownNameError

MOST_FORKS = 20
"""Of one call, as E2B has it."""


class Sandbox:
    """One sandbox while this server runs. `life` is held by who changes whether it runs (`Sandboxes.held`); `gone`: it
    was ended, and is nobody's any more."""

    def __init__(self, record: SandboxRecord, sandboxes: Sandboxes) -> None:
        self.record = record
        self.box = Box(sandboxes.repo.path, record.id)
        self.life, self.gone = asyncio.Lock(), False
        self.envd = Envd(sandboxes.repo.path, record.id)
        self.code = endpoints.router(Interpreter(self.box, record.contexts, partial(self.change, sandboxes.records)))

    def change(self, records: Records, **fields: Any) -> None:
        """Something else is so of it, and written down, unless it is gone."""
        self.record = msgspec.structs.replace(self.record, **fields)
        if not self.gone:
            records.sandboxes.put(self.record)


class Sandboxes:
    """All of one repository."""

    def __init__(
        self,
        repo: Repository,
        records: Records,
        templates: Templates,
        telemetry: Telemetry,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self.repo, self.records, self._limits = repo, records, limits
        self._templates, self._telemetry = templates, telemetry
        self._known = {record.id: Sandbox(record, self) for record in records.sandboxes.all()}

    # -- which there are --------------------------------------------------------------------------------------------

    def all(self, owner: str | None = None) -> list[Sandbox]:
        """All, or those of one key."""
        return [box for box in self._known.values() if owner in (None, box.record.owner)]

    def find(self, ident: str, owner: str | None = None) -> Sandbox:
        """By its id; ApiError 404, also where it is another key's."""
        sandbox = self._known.get(ident)
        if sandbox is None or owner not in (None, sandbox.record.owner):
            raise ApiError(404, f"sandbox {ident} was not found")
        return sandbox

    # -- their life -------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def held(self, sandbox: Sandbox) -> AsyncIterator[None]:
        """While nobody else changes whether it runs. ApiError 404 where it was ended while this waited: what a paused
        one goes on from is no more then, and one that was brought back would be found by nobody."""
        async with sandbox.life:
            if sandbox.gone:
                raise ApiError(404, f"sandbox {sandbox.record.id} was not found")
            yield

    async def create(
        self,
        key: KeyRecord,
        template: str,
        *,
        timeout_s: float,
        env: Mapping[str, str],
        metadata: Mapping[str, str],
        at_the_end: AtTheEnd,
        resumes: bool,
    ) -> Sandbox:
        """A new one, running. ApiError 404, and 429 where the key has as many as it may have."""
        found = await self._templates.find(template, key.name)
        limits.require_room(key, len(self.all(key.name)), 1)
        sandbox = self._begun(key.name, found, timeout_s, metadata=metadata, at_the_end=at_the_end, resumes=resumes)
        async with self.held(sandbox):
            try:
                await self._restored(sandbox, found.snapshot.id, env)
            except BaseException:
                await self._gone(sandbox)
                raise
        return sandbox

    def _begun(self, owner: str, template: Template, timeout_s: float, **fields: Any) -> Sandbox:
        now = time.time_ns()
        record = SandboxRecord(
            id=f"s{secrets.token_hex(10)}",
            owner=owner,
            template=template.name,
            token=secrets.token_urlsafe(24),
            traffic_token=secrets.token_urlsafe(24),
            started_ns=now,
            ends_ns=now + round(timeout_s * 1e9),
            contexts=template.contexts,
            **fields,
        )
        sandbox = Sandbox(self.records.sandboxes.put(record), self)
        self._known[record.id] = sandbox
        return sandbox

    async def _restored(
        self, sandbox: Sandbox, snapshot: str, env: Mapping[str, str], *, replace: bool = False
    ) -> None:
        """Bring a sandbox's program to life; it is running then."""
        given = partial(client.restore, self.repo.path, snapshot, sandbox.record.id, env=env, replace=replace)
        restore = partial(given, limits=await aio.in_thread(self._limits_for, snapshot))
        with self._telemetry.work("restore") as work:
            info = await aio.in_thread(restore)
            work.phases(info.phases)
        if env and is_python_kernel(info):
            await aio.in_thread(tell, sandbox.box, env)
        sandbox.change(self.records, state="running", paused_at="", limits=info.limits)

    async def kill(self, sandbox: Sandbox) -> None:
        """End it and forget it, with what was saved for itself alone. ApiError 404."""
        async with self.held(sandbox):
            await self._gone(sandbox)

    async def end_if_over(self, sandbox: Sandbox) -> None:
        """End or pause one whose time is over, end one whose program has ended: if that is so still once others are
        done with it. A program that a pause has just saved and ended has not ended by itself. IjfsError."""
        async with sandbox.life:
            if sandbox.gone or sandbox.record.state != "running":
                return
            if not await aio.in_thread(_runs, sandbox):
                await self._gone(sandbox)
            elif sandbox.record.ends_ns < time.time_ns():
                await (self._paused if sandbox.record.at_the_end == "pause" else self._gone)(sandbox)

    async def _gone(self, sandbox: Sandbox) -> None:
        await sandbox.envd.close()
        await aio.in_thread(sandbox.box.discard)
        await aio.in_thread(self._forget_branch, sandbox.record.id)
        sandbox.gone = True
        self.records.sandboxes.remove(sandbox.record.id)
        self._known.pop(sandbox.record.id, None)

    def _forget_branch(self, name: str) -> None:
        with self.repo.engine() as repository, contextlib.suppress(UnknownNameError):
            repository.refs.delete_branch(name)

    async def pause(self, sandbox: Sandbox) -> None:
        """Save it, memory and files, and end it until it is resumed. ApiError 409 where it is paused."""
        async with self.held(sandbox):
            if sandbox.record.state == "paused":
                raise ApiError(409, f"sandbox {sandbox.record.id} is paused already")
            await self._paused(sandbox)

    async def _paused(self, sandbox: Sandbox) -> None:
        sandbox.change(self.records, state="pausing")
        try:
            snapshot = await self._saved(sandbox, "paused", stop=True)
        except IjfsError:  # a call that was cancelled goes on: `settle` says what became of it
            sandbox.change(self.records, state="running")
            raise
        # Before it is said to be droppable: `sweep` keeps what a record names.
        sandbox.change(self.records, state="paused", paused_at=snapshot)
        self.records.leftovers.put(Leftover(snapshot))
        await sandbox.envd.close()

    async def _saved(self, sandbox: Sandbox, message: str, *, stop: bool = False) -> str:
        """Save it for the server's own ends; the snapshot's id."""
        with self._telemetry.work("save") as work:
            saved = await aio.in_thread(sandbox.box.save, message, stop=stop)
            work.phases(saved.saved.phases if saved.saved is not None else {})
        return saved.id

    async def resume(self, sandbox: Sandbox) -> bool:
        """Go on from where it was paused; whether it was. ApiError 404."""
        async with self.held(sandbox):
            if sandbox.record.state != "paused":
                return False
            await self._restored(sandbox, sandbox.record.paused_at, {}, replace=True)
            return True

    def set_end(self, sandbox: Sandbox, timeout_s: float, *, only_later: bool = False) -> None:
        """Its time is over so many seconds from now; `only_later`: unless that would be sooner than before."""
        ends_ns = time.time_ns() + round(timeout_s * 1e9)
        if not only_later or ends_ns > sandbox.record.ends_ns:
            sandbox.change(self.records, ends_ns=ends_ns)

    async def fork(self, sandbox: Sandbox, key: KeyRecord, count: int, timeout_s: float) -> list[Sandbox | IjfsError]:
        """So many live copies, each with a token of its own; in the place of one that did not come up, why. ApiError
        409 where it is paused, 404, 429."""
        async with self.held(sandbox):
            if sandbox.record.state != "running":
                raise ApiError(409, f"sandbox {sandbox.record.id} is paused: resume it first")
            limits.require_room(key, len(self.all(key.name)), count)
            snapshot = await self._saved(sandbox, "forked")
            self.records.leftovers.put(Leftover(snapshot))
            limits.require_room(key, len(self.all(key.name)), count)  # others came meanwhile
            template = Template(sandbox.record.template, Snapshot(self.repo.path, snapshot), sandbox.record.contexts)
            like = {key: getattr(sandbox.record, key) for key in ("metadata", "at_the_end", "resumes", "limits")}
            copies = [self._begun(key.name, template, timeout_s, **like) for _ in range(count)]
        failed = await self._forked(snapshot, [copy.record.id for copy in copies])
        results: list[Sandbox | IjfsError] = []
        for copy in copies:
            if not copy.gone and await aio.in_thread(_runs, copy):
                copy.change(self.records, state="running")
                results.append(copy)
            else:
                await self._gone(copy)
                results.append(failed or IjfsError("it did not come up"))
        return results

    async def _forked(self, snapshot: str, names: Sequence[str]) -> IjfsError | None:
        """Why not all came up; None where they did."""
        try:
            with self._telemetry.work("fork"):
                wanted = await aio.in_thread(self._limits_for, snapshot)
                await aio.in_thread(partial(client.fork, limits=wanted), self.repo.path, snapshot, names)
        except IjfsError as error:
            return error
        return None

    def _limits_for(self, snapshot: str) -> Limits:
        """What a copy of a snapshot may take: as that says, and else as the server does."""
        return limits_of(Snapshot(self.repo.path, snapshot)).over(self._limits)

    # -- snapshots that clients ask for -----------------------------------------------------------------------------

    async def snapshot(self, sandbox: Sandbox, name: str | None) -> SnapshotRecord:
        """Save it under a name, and let it run on. ApiError 409 where the name is taken, 404."""
        async with self.held(sandbox):
            if sandbox.record.state == "paused":
                ident = sandbox.record.paused_at
            else:
                with self._telemetry.work("save") as work:
                    saved = await aio.in_thread(sandbox.box.save, name or "asked for")
                    work.phases(saved.saved.phases if saved.saved is not None else {})
                ident = saved.id
            record = SnapshotRecord(
                id=ident,
                owner=sandbox.record.owner,
                sandbox=sandbox.record.id,
                made_ns=time.time_ns(),
                names=(name,) if name else (),
                contexts=sandbox.record.contexts,
            )
            if name:
                await aio.in_thread(Snapshot(self.repo.path, ident).tag, name)
            return self.records.snapshots.put(record)

    def snapshots(self, owner: str) -> list[SnapshotRecord]:
        """Those of one key, newest first."""
        found = [record for record in self.records.snapshots.all() if record.owner == owner]
        return sorted(found, key=lambda record: -record.made_ns)

    async def delete_snapshot(self, name: str, owner: str) -> None:
        """Let go of one by its id or name; its bytes go once nothing stands on it. ApiError 404."""
        record = next((r for r in self.snapshots(owner) if name == r.id or name in r.names), None)
        if record is None:
            raise ApiError(404, f"there is no snapshot {name}")
        await aio.in_thread(self._untag, record.names)
        self.records.leftovers.put(Leftover(record.id))
        self.records.snapshots.remove(record.id)
        await aio.in_thread(self.sweep)

    def _untag(self, names: Sequence[str]) -> None:
        with self.repo.engine() as repository:
            for name in names:
                with contextlib.suppress(UnknownNameError):
                    repository.refs.delete_tag(name)

    # -- what is left behind ----------------------------------------------------------------------------------------

    def sweep(self) -> int:
        """Remove the server's own snapshots that nothing needs any more; how many. Blocks."""
        needed = {box.record.paused_at for box in self.all()} | {r.id for r in self.records.snapshots.all()}
        removed = 0
        with self.repo.engine() as repository:
            for leftover in self.records.leftovers.all():
                if leftover.id not in needed:
                    removed += self._removed(repository, leftover.id)
        return removed

    def _removed(self, repository: Any, ident: str) -> bool:
        try:
            repository.remove(bytes.fromhex(ident))
        except LockedError:  # a live one stands on it
            return False
        except UnknownNameError:
            pass
        except IjfsError:  # somebody has tagged it: it is theirs
            pass
        self.records.leftovers.remove(ident)
        return True

    async def settle(self) -> None:
        """After a start: end what another server has begun and not finished, forget what is gone."""
        for sandbox in self.all():
            alive = await aio.in_thread(_runs, sandbox)
            if sandbox.record.state == "pausing":
                await self._settle_pause(sandbox, alive=alive)
            elif sandbox.record.state == "starting" or (sandbox.record.state == "running" and not alive):
                await self.kill(sandbox)
            elif sandbox.record.state == "paused":
                self.records.leftovers.put(Leftover(sandbox.record.paused_at))
        await aio.in_thread(self.sweep)

    async def _settle_pause(self, sandbox: Sandbox, *, alive: bool) -> None:
        """After a server that was killed while it paused one: it runs, or it is saved."""
        with self.repo.engine() as repository:
            head = repository.refs.branches().get(sandbox.record.id)
        if alive:
            sandbox.change(self.records, state="running")
        elif head is None:
            await self.kill(sandbox)
        else:
            sandbox.change(self.records, state="paused", paused_at=head.hex())
            self.records.leftovers.put(Leftover(head.hex()))


def _runs(sandbox: Sandbox) -> bool:
    return sandbox.box.running
