"""One deployment: when its instances start, rest and come back, and what becomes of requests meanwhile.

    gone ── first request ──▶ starting ──▶ running ── idle ──▶ memory ── more ──▶ disk ── ttl ──▶ gone
                                  ▲            ▲__ a request wakes it __│             │
                                  └──────────── a request restores it ───────────────┘

A request that finds it anywhere else than running waits, and brings it up; of several one does. Before it is parked no
request is under way any more, and new ones wait. What fails on the way up is written down (`note`), and the next way
is tried: memory, then the snapshot, then its command. All in the supervisor's trio loop; what blocks is in backend.py.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

import msgspec
import trio

from ijfs.deployments import front_http, front_tcp, records
from ijfs.deployments.backend import Backend, keep, let_go, require_free
from ijfs.deployments.golden import answer_of
from ijfs.deployments.identity import key_of
from ijfs.deployments.records import DeploymentInfo, DeploymentRecord, DeploymentSpec, Resting, Stage
from ijfs.deployments.room import Room
from ijfs.live.model.records import InstanceSpec
from ijfs_engine.errors import IjfsError, PreflightError

AFTER_FAILURE_S = 1.0
"""How long after a failed start requests hear of it without another one being tried."""

_LOOK_S = 1.0
"""The longest time between two looks at whether it is idle."""

_log = logging.getLogger("ijfs.supervisor")

Spawn = Callable[..., None]
MakeBackend = Callable[[Path, str, InstanceSpec, int], Backend]


class WrongAnswerError(IjfsError):
    """A restored server answers otherwise than when its snapshot was made."""


class _Changes(TypedDict, total=False):
    spec: DeploymentSpec
    generation: int
    key: str
    snapshots: dict[str, str]
    answer: str
    last_used_ns: int
    note: str
    leaving: tuple[str, ...]
    resting: Resting


class Deployment:
    """One deployment of a supervisor. `room`: the budgets; `spawn` starts a task of the supervisor's; `make_backend`
    makes what stands for one of its instances."""

    def __init__(
        self,
        repo: Path,
        record: DeploymentRecord,
        room: Room,
        spawn: Spawn,
        make_backend: MakeBackend = Backend,
        *,
        serves: bool = True,
    ) -> None:
        """`serves`: what it comes to is written down. Another version's is when it serves."""
        self.record = record
        self.stage: Stage = "gone"
        self.last_used = time.monotonic() - max(0.0, (time.time_ns() - record.last_used_ns) / 1e9)
        self._repo = repo
        self._serves = serves
        self._room = room
        self._spawn = spawn
        self._make_backend = make_backend
        self._backends = self._made_backends()
        self._changing = trio.Lock()
        self._leaving = trio.Lock()
        self._settled = trio.Event()
        self._requests = 0
        self._streams = 0
        self._served = 0
        self._turn = 0
        self._wakes = 0
        self._wake_s: float | None = None
        self._start_s: float | None = None
        self._failure: tuple[float, IjfsError] | None = None
        self._listener: trio.SocketListener | None = None
        self._life = trio.CancelScope()

    # -- what it is -----------------------------------------------------------------------------------------------

    @property
    def spec(self) -> DeploymentSpec:
        """How it is to be kept."""
        return self.record.spec

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self._requests

    def info(self) -> DeploymentInfo:
        """As callers are shown it."""
        spec = self.spec
        scheme = "http" if spec.protocol == "http" else "tcp"
        return DeploymentInfo(
            name=spec.name,
            state=self.stage,
            url=f"{scheme}://{spec.address}:{spec.port}" if spec.start_mode != "job" else "",
            address=spec.address,
            port=spec.port,
            start_mode=spec.start_mode,
            priority=spec.priority,
            instances=tuple(backend.name for backend in self._backends),
            snapshot=self.record.snapshots.get(self._backends[0].name),
            requests=self._requests + self._streams,
            served=self._served,
            wakes=self._wakes,
            wake_s=self._wake_s,
            start_s=self._start_s,
            phases=self._backends[0].phases,
            used_s=time.monotonic() - self.last_used if self.record.last_used_ns else None,
            note=self.record.note,
        )

    def _made_backends(self) -> list[Backend]:
        return [
            self._make_backend(self._repo, name, self.spec.program, self.spec.inside)
            for name in self.record.instances()
        ]

    def _note(self, **changes: Unpack[_Changes]) -> None:
        """Change the record, on disk too; a disk that is full stops no request."""
        self.record = msgspec.structs.replace(self.record, **changes)
        if not self._serves:
            return
        try:
            records.write(self._repo, self.record)
        except IjfsError as error:
            _log.warning("%s: not written down: %s", self.spec.name, error)

    def say(self, text: str) -> None:
        """Something a person should know of it: shown wherever it is listed."""
        _log.warning("%s: %s", self.spec.name, text)
        self._note(note=text)

    # -- life -----------------------------------------------------------------------------------------------------

    async def run(self, listener: trio.SocketListener | None = None) -> None:
        """Serve its port until `end`."""
        assert listener is not None
        self._listener = listener
        with self._life:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._accept, listener, nursery)
                nursery.start_soon(self._rest)
                if self.spec.start_mode == "warm":
                    nursery.start_soon(self._stay_up)

    async def take_over(self) -> None:
        """Find out where it is: a supervisor before this one may have left it running, or parked."""
        await self._learn_of_saves()
        depths = [await in_thread(backend.depth) for backend in self._backends]
        found = set(depths)
        if found == {"running"}:
            self.stage = "running"
        elif found == {"memory"}:
            self.stage = "memory"
        else:
            self.stage = "disk" if self._is_stored() else "gone"

    async def _learn_of_saves(self) -> None:
        """A supervisor that is killed as it parks on disk does not hear of the snapshots."""
        if self.spec.start_mode != "checkpoint" or self.spec.stateless:
            return
        for backend in self._backends:
            await self._learn_of_save(backend)

    async def _learn_of_save(self, backend: Backend) -> None:
        saved = await in_thread(backend.saved_at_its_end)
        if saved is not None and saved != self.record.snapshots.get(backend.name):
            await self._stored(backend, saved)

    def _is_stored(self) -> bool:
        return self.spec.start_mode == "checkpoint" and self._backends[0].name in self.record.snapshots

    async def _accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        while True:
            try:
                stream = await listener.accept()
            except OSError:
                await trio.sleep(0.1)  # out of descriptors: it waits in the backlog
                continue
            nursery.start_soon(self._connection, stream)

    async def _connection(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                if self.spec.protocol == "http":
                    await front_http.serve(self, stream)
                else:
                    await self._serve_tcp(stream)
            except Exception:  # one connection may break, never the supervisor
                _log.exception("%s: a connection broke in an unknown way", self.spec.name)

    async def _serve_tcp(self, client: trio.SocketStream) -> None:
        with contextlib.suppress(*front_tcp.BROKEN, IjfsError):
            async with self.stream() as backend, await front_tcp.connected(backend.port) as inside:
                await front_tcp.pump_both(client, inside, self.awake, self.used)

    async def _stay_up(self) -> None:
        """A warm deployment is up without a request; what ended comes back."""
        while True:
            if not self._is_up():
                with contextlib.suppress(IjfsError):
                    await self._come_up()
            await trio.sleep(_LOOK_S)

    async def end(self) -> None:
        """Stop serving: connections that are open are cut."""
        self._life.cancel()
        if self._listener is not None:
            await self._listener.aclose()

    # -- requests -------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def request(self) -> AsyncIterator[Backend]:
        """The instance that a request goes to, not parked before the request is done. IjfsError: there is none."""
        backend = await self._admitted()
        self._requests += 1
        self._served += 1
        backend.requests += 1
        try:
            yield backend
        finally:
            backend.requests -= 1
            self._requests -= 1
            self._request_ended()

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[Backend]:
        """The instance of a connection that stays: it may be parked in memory under it, never on disk."""
        backend = await self._admitted()
        self._streams += 1
        self._served += 1
        backend.requests += 1
        try:
            yield backend
        finally:
            backend.requests -= 1
            self._streams -= 1
            self.note_use()

    @contextlib.contextmanager
    def switched(self) -> Iterator[None]:
        """Within `request`: it has become such a connection."""
        self._requests -= 1
        self._streams += 1
        self._request_ended()
        try:
            yield
        finally:
            self._streams -= 1
            self._requests += 1

    def _request_ended(self) -> None:
        self.note_use()
        if not self._requests:
            self._settled.set()
            self._room.changed()

    async def awake(self) -> None:
        """Before bytes of a client go in."""
        self.note_use()
        if self.stage != "running":
            await self._come_up()

    async def used(self) -> None:
        """Before bytes of the program go out."""
        self.note_use()

    def note_use(self) -> None:
        """It is in use now."""
        self.last_used = time.monotonic()

    def _is_up(self) -> bool:
        return self.stage == "running" and all(backend.is_alive for backend in self._backends)

    async def _admitted(self) -> Backend:
        """The least busy instance, once it is up; of several that are, each in its turn."""
        while not self._is_up():
            await self._come_up()
        self._turn += 1
        first = self._turn % len(self._backends)
        return min(self._backends[first:] + self._backends[:first], key=lambda backend: backend.requests)

    # -- up -------------------------------------------------------------------------------------------------------

    async def wake(self) -> None:
        """Bring it up without a request."""
        await self._come_up()
        self.note_use()

    async def _come_up(self) -> None:
        async with self._changing:
            if self._is_up():
                return
            if self._failure is not None and time.monotonic() - self._failure[0] < AFTER_FAILURE_S:
                raise self._failure[1]
            began = time.monotonic()
            try:
                await self._room.make(self)
                await self._bring_up()
            except IjfsError as error:
                self._failure = (time.monotonic(), error)
                await self.take_over()
                self.say(str(error))
                raise
            self._failure = None
            self._wakes += 1
            self._wake_s = time.monotonic() - began
            self.stage = "running"
            self.note_use()
            self._note(last_used_ns=time.time_ns())
            _log.info("%s is up after %.3f s", self.spec.name, self._wake_s)

    async def _bring_up(self) -> None:
        self.stage = "starting"
        key = await in_thread(key_of, self.spec)
        if key != self.record.key and self.record.snapshots:
            self.say("its program, files, settings or driver changed: its snapshot is made anew")
            self._note(snapshots={}, answer="")
        self._note(key=key)
        for backend in self._backends:
            await self._up(backend)

    async def _up(self, backend: Backend) -> None:
        """One instance: where it stands still, from its snapshot, or from its command."""
        depth = await in_thread(backend.depth)
        if depth == "running":
            return
        if depth == "memory" and await self._tried("woken", partial(backend.wake), backend):
            return
        snapshot = self.record.snapshots.get(backend.name) or self.record.snapshots.get(self._backends[0].name)
        lost = not self.spec.stateless and await in_thread(backend.ended_with_files)
        usable = snapshot if not lost and self.spec.start_mode == "checkpoint" else None
        if usable and await self._tried("restored", partial(backend.restore, usable), backend, verify=True):
            return
        await self._start(backend)

    async def _tried(self, what: str, way: Callable[[], None], backend: Backend, *, verify: bool = False) -> bool:
        """Whether one way up led there. What a GPU without room refuses is not tried in another way: PreflightError."""
        try:
            await in_thread(way)
            if verify:
                await self._verify(backend)
        except PreflightError:
            raise
        except IjfsError as error:
            self.say(f"`{backend.name}` could not be {what}, and is started anew: {error}")
            await in_thread(backend.stop)
            return False
        return True

    async def _verify(self, backend: Backend) -> None:
        """WrongAnswerError where it does not say what it said when its snapshot was made."""
        if not self.spec.verify or not self.record.answer:
            return
        said = await in_thread(answer_of, self.spec.verify, backend.port)
        if said != self.record.answer:
            raise WrongAnswerError(f"its answer is not the one that was recorded: {said[:200]}")

    async def _start(self, backend: Backend) -> None:
        """From its command; the first time of a deployment that is checkpointed, a snapshot is made at once."""
        began = time.monotonic()
        try:
            await in_thread(backend.start, keep_files=not self.spec.stateless)
            self._start_s = time.monotonic() - began
        except IjfsError as error:
            words = await in_thread(backend.last_words)
            raise type(error)(f"{error}: {words}" if words else str(error), hint=error.hint) from error
        if self.spec.start_mode != "checkpoint":
            return
        try:
            if self.spec.verify:
                self._note(answer=await in_thread(answer_of, self.spec.verify, backend.port))
            saved = await in_thread(backend.save, "ready")
            await self._stored(backend, saved.snapshot)
        except IjfsError as error:
            self.say(f"it runs, but no snapshot could be made of it: {error}")

    async def _stored(self, backend: Backend, snapshot: str) -> None:
        await in_thread(keep, self._repo, backend.name, snapshot)
        self._note(snapshots={**self.record.snapshots, backend.name: snapshot})

    # -- down -----------------------------------------------------------------------------------------------------

    async def _rest(self) -> None:
        """Park it when nobody asks for it, deeper by and by."""
        while True:
            due = self._due_in()
            if due > 0:
                await trio.sleep(min(due, _LOOK_S))
                continue
            try:
                await self._rest_deeper()
            except IjfsError as error:
                self.say(f"it could not be parked: {error}")
                self.note_use()

    def _due_in(self) -> float:
        """Seconds until it is to rest more deeply than now."""
        spec = self.spec
        limit = {"running": spec.idle_s, "memory": spec.disk_s, "disk": spec.ttl_s}.get(self.stage)
        cuts_streams = self.stage != "running" or spec.start_mode == "cold"
        if limit is None or spec.start_mode == "warm" or self._requests or (self._streams and cuts_streams):
            return _LOOK_S
        return limit - (time.monotonic() - self.last_used)

    async def _rest_deeper(self) -> None:
        if self.stage == "disk":
            await self._expire()
        elif self.stage == "memory" or self.spec.start_mode == "cold":
            await self.park("disk")
        else:
            await self.park("memory")

    async def park(self, depth: Stage, *, drain_s: float | None = None, cut: bool = False) -> bool:
        """Park it, in `memory` or on `disk`; whether that was done: not where requests last longer than they get,
        unless they are to be `cut`."""
        async with self._changing:
            if self.record.last_used_ns:
                self._note(last_used_ns=time.time_ns() - round((time.monotonic() - self.last_used) * 1e9))
            if not await self._drained(self.spec.drain_s if drain_s is None else drain_s) and not cut:
                return False
            before, self.stage = self.stage, "parking"
            try:
                if before in ("running", "memory"):
                    await self._parked(before, depth)
            finally:
                await self.take_over()
            self._room.changed()
            return self.stage in (depth, "disk", "gone")

    async def _drained(self, limit_s: float) -> bool:
        """Whether no request is under way (any more). New ones wait for `_changing`."""
        stage, self.stage = self.stage, "parking" if self.stage == "running" else self.stage
        try:
            with trio.move_on_after(limit_s):
                while self._requests:
                    self._settled = trio.Event()
                    await self._settled.wait()
        finally:
            self.stage = stage
        return not self._requests

    async def _parked(self, before: Stage, depth: Stage) -> None:
        for backend in self._backends:
            if depth == "memory":
                await in_thread(backend.park)
            elif self._needs_save(backend):
                saved = await in_thread(partial(backend.save, "parked", stop=True, thinned=True))
                await self._stored(backend, saved.snapshot)
            else:
                await in_thread(backend.stop)

    def _needs_save(self, backend: Backend) -> bool:
        """Whether its state of now is to come back."""
        if self.spec.start_mode != "checkpoint":
            return False
        return not (self.spec.stateless and backend.name in self.record.snapshots)

    async def give_way(self, depth: Stage, *, drain_s: float | None = None, cut: bool = False) -> bool:
        """Park it for something else, as `park` does: for another that needs the room, or because the machine goes."""
        return await self.park(depth, drain_s=drain_s, cut=cut)

    async def make_room(self, budget: str) -> bool:
        """Park so that this budget gets its share back."""
        deep = not budget.startswith("gpu:")
        try:
            return await self.give_way("disk" if deep else "memory")
        except IjfsError as error:
            self.say(f"it could not be parked: {error}")
            return False

    async def _expire(self) -> None:
        """Its time to live is over: its snapshots and instances go."""
        async with self._changing:
            if self.stage == "disk" and self._due_in() <= 0:
                await self._let_go()
                self.say("its snapshot was removed: nobody has asked for it for so long")
                await self.take_over()

    async def _let_go(self) -> None:
        self._note(snapshots={}, key="", answer="")
        for backend in self._backends:
            await in_thread(backend.forget)
            await in_thread(let_go, self._repo, backend.name)

    async def undeploy(self) -> None:
        """End it and forget it, with its snapshots."""
        await self.end()
        await self.end_leaving()
        async with self._changing:
            await self._let_go()
            records.forget(self._repo, self.spec.name)
            self.stage = "gone"
            self._room.changed()

    # -- another version ------------------------------------------------------------------------------------------

    async def replace(self, spec: DeploymentSpec) -> None:
        """Serve another version: it comes up beside this one, gets all new requests, and this one ends when those that
        it has are done. What fails leaves this one as it is."""
        await self.end_leaving()
        old = Deployment(self._repo, self.record, self._room, self._spawn, self._make_backend, serves=False)
        old.stage, old._backends = self.stage, self._backends
        fresh = msgspec.structs.replace(
            self.record, spec=spec, generation=self.record.generation + 1, snapshots={}, key="", answer="", note=""
        )
        for instance in fresh.instances():
            await in_thread(require_free, self._repo, instance)
        new = Deployment(self._repo, fresh, self._room, self._spawn, self._make_backend, serves=False)
        # Before anything of it is there: a supervisor that is killed now leaves the next one to end it.
        self._note(leaving=tuple(fresh.instances()))
        try:
            async with self._changing:
                await new._come_up()
                self.record = msgspec.structs.replace(new.record, leaving=tuple(old.record.instances()))
                self._backends, self.stage = new._backends, "running"
                self._note()
        except IjfsError:
            await self.end_leaving()
            raise
        self._spawn(self._retire, old)

    async def _retire(self, old: Deployment) -> None:
        """End an older version once its requests are done, or have had their time."""
        with trio.move_on_after(old.spec.drain_s):
            while any(backend.requests for backend in old._backends):
                await trio.sleep(0.02)
        await self.end_leaving()

    async def end_leaving(self) -> None:
        """End what belongs to another version and has not ended: of an earlier supervisor, perhaps."""
        async with self._leaving:
            for name in self.record.leaving:
                with contextlib.suppress(IjfsError):
                    backend = self._make_backend(self._repo, name, self.spec.program, self.spec.inside)
                    await in_thread(backend.forget)
                    await in_thread(let_go, self._repo, name)
                    self._note(leaving=tuple(left for left in self.record.leaving if left != name))


async def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What blocks, beside the supervisor's loop."""
    return await trio.to_thread.run_sync(partial(function, *args, **kwargs))
