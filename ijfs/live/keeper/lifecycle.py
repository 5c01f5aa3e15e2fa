"""How a keeper's program comes to run: started, restored, taken back in place, or found running by a new keeper.

Made by server.py. What blocks runs in threads: sandbox/sandbox.py (`launch`), checkpoint/restore.py
(`restore_snapshot`), or a restore that keeper/early_restore.py has begun already.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from ijfs.live.checkpoint import room
from ijfs.live.checkpoint.layers import writable_layers
from ijfs.live.checkpoint.restore import Restored, RestoreRequest, restore_snapshot
from ijfs.live.checkpoint.workspace import StatCache, stat_cache_of
from ijfs.live.errors import InstanceExitedError, KeeperError, KernelBusyError
from ijfs.live.keeper import outside_hooks, shared_files
from ijfs.live.keeper.guest_requests import GuestRequests
from ijfs.live.keeper.parking import Parking
from ijfs.live.keeper.save_queue import SaveQueue
from ijfs.live.keeper.state import InstanceState, RecordChanges
from ijfs.live.keeper.threads import in_thread, phase_events
from ijfs.live.model.environment import INSTANCE_VARIABLE
from ijfs.live.model.guest_protocol import HookEvent
from ijfs.live.model.paths import SandboxPaths
from ijfs.live.model.protocol import (
    AdoptArguments,
    Busy,
    Emit,
    Happened,
    Notice,
    PhaseBegan,
    RestoreArguments,
    StartArguments,
)
from ijfs.live.model.record_file import ends_ns, kernel_connection, read_record, write_connection_files
from ijfs.live.model.records import (
    LOST_WITH_KEEPER,
    NO_LIMITS,
    FilesOrigin,
    HostPort,
    InstanceInfo,
    InstanceRecord,
    InstanceSpec,
    Process,
    RelayPort,
)
from ijfs.live.pager.api import PagerProcess
from ijfs.live.process import procfs
from ijfs.live.sandbox import disk, limits, namespaces
from ijfs.live.sandbox.cleanup import keep_log, remove_box, sweep_sandboxes
from ijfs.live.sandbox.lower import HOST, Lower
from ijfs.live.sandbox.sandbox import Sandbox, launch
from ijfs_engine.errors import IjfsError, StorageError, UnknownNameError

if TYPE_CHECKING:
    from ijfs.live.keeper.early_restore import EarlyRestore

# Inside every sandbox a kernel's ports are these, so that a restored one finds its own; the range is one that neither
# the system gives out for outgoing connections (32768 and up) nor well-known servers use.
KERNEL_PORTS = {"shell": 9601, "iopub": 9602, "stdin": 9603, "control": 9604, "hb": 9605}

# After going back in place, how long the other ports wait for a client's iopub to be back: ZMQ tries again after
# 100 ms, and what is published before the subscription stands is lost.
RESUBSCRIBE_S = 2.0
# From the connection to the subscription: ZMTP's greeting, handshake and the SUBSCRIBE message, a few round trips.
SUBSCRIBING_S = 0.05

NOT_TOLD = (
    "the program keeps the environment that it was saved with: nothing in it takes new variables (a Python program "
    "that uses `ijfs.after_restore` does); commands run inside have them"
)

# How long a cell that is interrupted has to end: a library in the middle of a long call into C takes a while.
INTERRUPT_S = 10.0

# How often it is interrupted: one that is only about to begin does not notice.
AGAIN_S = 1.0

# How often the end of a program's time is looked at again: somebody may have put the clock right.
CLOCK_S = 60.0

_log = logging.getLogger("ijfs.keeper")


class Lifecycle:
    """The verbs that make a program run, of one keeper. `early`: a restore that is under way already."""

    def __init__(
        self,
        state: InstanceState,
        queue: SaveQueue,
        requests: GuestRequests,
        early: EarlyRestore | None,
        parking: Parking,
    ) -> None:
        self._state = state
        self._queue = queue
        self._requests = requests
        self._early = early
        self._parking = parking
        self.began_again = False
        """There was an ended instance of this name, which this one goes on from."""

    # -- the verbs ------------------------------------------------------------------------------------------------

    async def start(self, arguments: StartArguments, emit: Emit) -> InstanceInfo:
        """Start the spec's program; one that has ended before begins anew, with its files and ports (`again`)."""
        before = self._record_before(again=arguments.again)
        spec = arguments.spec
        if before is None:
            self._begin_record(spec, emit=emit, origin=FilesOrigin.here())
        else:
            snapshot, origin = before.snapshot, before.origin
            self._begin_record(spec, before, generation=before.generation, snapshot=snapshot, emit=emit, origin=origin)
        self._state.secrets = arguments.secrets
        emit(PhaseBegan("start"))
        sandbox = await self._launch(arguments, before)
        try:
            if before and before.snapshot is not None:
                self._stand_again_on(before.snapshot)
            self._state.move_into(sandbox)
        except BaseException:
            await in_thread(_end, sandbox, keep_files=before is not None)
            raise
        info = self._serve_ports()
        self._state.open_guest_port(sandbox)
        await self._made_ready(sandbox)
        self._state.spawn(self._admit_clients, before is not None)
        return info

    async def restore(self, arguments: RestoreArguments, emit: Emit) -> InstanceInfo:
        """Bring a snapshot back as this (new) instance."""
        before = self._record_before(again=arguments.again)
        generation = before.generation + 1 if before else 1
        request = await self._requested(arguments, generation, beside=not arguments.again)
        try:
            spec = _with(request.meta.spec, arguments, before)
            self._begin_record(
                spec,
                before,
                generation=generation,
                origin=request.meta.origin,
                strict=bool(arguments.ports),
                emit=emit,
            )
        except BaseException:
            if self._early is not None:
                await in_thread(self._early.abandon)
            raise
        self._state.secrets = arguments.secrets
        async with shared_files.put_back(request, self._state.snapshots, None, emit):
            restored = await self._restored(request, emit)
        await self._move_into(restored, request)
        self._state.relay.traffic.goes_on_as(request.meta.kernel)
        info = self._serve_ports()
        if before:
            keep_log(self._state.paths, before.generation)
            await in_thread(remove_box, self._state.paths.sandbox(before.generation))
        await self._resume_guest(restored, request, arguments, beside=request.beside, emit=emit)
        await self._made_ready(restored.sandbox, restored=True)
        self._state.spawn(self._admit_clients, before is not None)
        return self._with_restore(info, restored, emit)

    async def go_back(self, arguments: RestoreArguments, emit: Emit) -> InstanceInfo:
        """Restore in place: the new program is up before the old one ends, so that a failure costs nothing."""
        state = self._state
        async with state.busy:
            old = state.live_sandbox()
            await in_thread(self._require_room, arguments)
            await self._end_cell(old, arguments.busy, emit)
            await self._queue.settled()
            generation = state.record.generation + 1
            request = await self._requested(arguments, generation, beside=False)
            # It is the instance that has limits, whatever the snapshot's had.
            request = replace(request, limits=arguments.limits.over(state.record.spec.limits))
            async with shared_files.put_back(request, state.snapshots, old, emit):
                restored = await self._restored(request, emit)
            emit(PhaseBegan("switch"))
            state.secrets = {**state.secrets, **arguments.secrets}
            await self._switch(old, restored, request, generation, arguments.env)
            if arguments.idle is not None:
                state.note(spec=msgspec.structs.replace(state.record.spec, idle=arguments.idle))
            state.watchers.tell(Happened("restored", request.snapshot.id.hex(), request.snapshot.message))
            await self._resume_guest(restored, request, arguments, beside=False, emit=emit)
            return self._with_restore(state.info(), restored, emit)

    def _require_room(self, arguments: RestoreArguments) -> None:
        """Before a cell is interrupted for it: LimitError where the snapshot's program does not fit into the limits
        that are asked for."""
        if arguments.limits == NO_LIMITS:
            return
        with contextlib.suppress(UnknownNameError):  # perhaps a save that is being stored; it is looked for again
            snapshot, meta = self._state.snapshots.load(arguments.snapshot)
            memory = not arguments.on_demand and meta.gpu is None
            room.require(self._state.snapshots, snapshot, meta, arguments.limits, memory=memory)

    async def _end_cell(self, sandbox: Sandbox, busy: Busy, emit: Emit) -> None:
        """Before a kernel goes back: what becomes of a cell that it runs. LockedError where it goes on."""
        traffic, name = self._state.relay.traffic, self._state.name
        if not traffic.busy or busy == "force":
            return
        if busy == "refuse":
            raise KernelBusyError(f"`{name}` is running a cell")
        emit(PhaseBegan("interrupt"))
        with trio.move_on_after(INTERRUPT_S):
            while traffic.busy:
                sandbox.signal(signal.SIGINT)
                with trio.move_on_after(AGAIN_S):
                    await traffic.no_cell()
        if traffic.busy:
            raise KernelBusyError(f"the cell that `{name}` is running goes on in spite of an interrupt")
        emit(Notice(f"`{name}` was running a cell, which was interrupted"))

    async def adopt(self, arguments: AdoptArguments, emit: Emit) -> InstanceInfo:
        """Take over the program of a keeper that was killed."""
        state = self._state
        record = read_record(state.paths)
        program = record.program
        if record.boot_id != procfs.boot_id() or program is None or not procfs.is_alive(program):
            raise InstanceExitedError(f"the program of `{state.name}` has ended")
        state.begin_as(record)
        state.start_gpu(record.spec)
        await in_thread(sweep_sandboxes, state.paths, record.generation)
        sandbox = self._found_sandbox(record, program)
        if record.snapshot is not None:
            self._stand_again_on(record.snapshot)
        ports, moved = state.relay.open_again(record.relay)
        state.guest.set_hooks(record.hook_ports)
        keeper = procfs.identify(os.getpid())
        state.move_into(
            sandbox,
            earlier_pager=record.pager,
            changes={
                "damage": record.damage,
                "parked": record.parked,
                "keeper": keeper,
                "relay": ports,
                **_lost_saves(record),
            },
        )
        self._parking.take_over()
        info = self._serve_ports()
        state.spawn(self._admit_clients, True)
        if not self._parking.is_parked:
            state.open_guest_port(sandbox)
        text = f"the keeper of `{state.name}` had been killed; a new one took the running program over"
        if moved:
            text += f"; ports taken by others meanwhile were replaced: {', '.join(moved)}"
        emit(Notice(text))
        return info

    # -- the record and the sandbox of a new program --------------------------------------------------------------

    def _record_before(self, *, again: bool) -> InstanceRecord | None:
        """The record of the ended instance that begins again, where that was asked for and there is one."""
        self.began_again = again and self._state.paths.record.exists()
        return read_record(self._state.paths) if self.began_again else None

    def _begin_record(
        self,
        spec: InstanceSpec,
        before: InstanceRecord | None = None,
        *,
        generation: int = 1,
        snapshot: str | None = None,
        strict: bool = True,
        emit: Emit = lambda event: None,
        origin: FilesOrigin | None = None,
    ) -> None:
        """The record of an instance about to run, its relay ports listening: those it had `before`, if it had any, else
        those that were chosen for it. Where the latter are another's (the original's, of a copy), others are found; if
        `strict`, only for those that may be any."""
        state = self._state
        spec = msgspec.structs.replace(spec, name=state.name)
        if spec.kind == "kernel" and not spec.kernel_key:
            spec = msgspec.structs.replace(spec, kernel_key=secrets.token_hex(32))
        state.start_gpu(spec)
        ports = self._listen(spec, before, strict=strict, emit=emit)
        state.begin_as(
            InstanceRecord(
                spec=spec,
                boot_id=procfs.boot_id(),
                keeper=procfs.identify(os.getpid()),
                snapshot=snapshot,
                branch=spec.name,
                relay=ports,
                created_ns=time.time_ns(),
                generation=generation,
                origin=origin,
            )
        )

    def _listen(
        self, spec: InstanceSpec, before: InstanceRecord | None, *, strict: bool, emit: Emit
    ) -> tuple[RelayPort, ...]:
        relay, wanted = self._state.relay, _wanted_ports(spec)
        chosen = {f"tcp{port.inside}": port for port in spec.published}
        asked = {name: RelayPort(name, *_at(port)) for name, port in chosen.items()}
        asked |= {port.name: port for port in (before.relay if before else ())}
        for name, inside in wanted.items():
            at = asked.get(name, RelayPort(name, inside, 0))
            if (chosen and not strict) or (name in chosen and chosen[name].or_any):
                relay.open_again([at])
            else:
                relay.open({name: inside}, [at])
        for port in relay.ports:
            wish = asked[port.name].host if port.name in chosen else 0
            if wish not in (0, port.host) and (strict or not chosen[port.name].or_any):
                emit(Notice(f"port {wish} here is another program's: {port.inside} is reached at {port.host}"))
        return relay.ports

    async def _launch(self, arguments: StartArguments, before: InstanceRecord | None) -> Sandbox:
        state = self._state
        spec = state.record.spec
        inside = json.dumps(kernel_connection(state.record, inside=True)).encode() if spec.kind == "kernel" else None
        paths = state.paths.sandbox(state.record.generation)
        kept = before.volumes if before else None
        lower = await in_thread(self._lower, arguments, paths, before)
        listen = state.guest.listen  # before it begins: its first line may ask for something
        return await in_thread(launch, paths, spec, state.repo, inside, kept=kept, lower=lower, before=listen)

    def _lower(self, arguments: StartArguments, paths: SandboxPaths, before: InstanceRecord | None) -> Lower:
        """In a thread: what the program's files come from. One that begins anew may stand on a newer version of its
        base than what it wrote was copied up from."""
        base = arguments.base
        if base is None and (before is None or before.base is None):
            return HOST
        from ijfs.live.bases import hold
        from ijfs.live.checkpoint.workspace import forget_origins

        if before is not None and before.base != base:
            with disk.opened(paths) as layers:
                forget_origins(layers / paths.upper.name)
        return hold.for_start(self._state.repo, base, arguments.delta)

    def _found_sandbox(self, record: InstanceRecord, program: Process) -> Sandbox:
        """The sandbox of a program that runs, as far as a new keeper needs it."""
        try:
            network_fd = namespaces.open_namespace(program.pid, "net")
        except OSError as error:
            raise KeeperError(f"the sandbox of `{self._state.name}` cannot be reached: {error.strerror}") from error
        sandbox = Sandbox(self._state.paths.sandbox(record.generation), network_fd, record.volumes)
        sandbox.own(program.pid)
        sandbox.group = limits.found(sandbox.paths, record.spec.limits)
        if record.parked is None:
            sandbox.group.restrict()  # the killed keeper may have lifted them for a save
        sandbox.mount_layers()
        if record.base is not None:
            from ijfs.live.bases import hold

            sandbox.lower = hold.adopted(self._state.repo, record.base)
        if record.spec.network == "slirp4netns":
            sandbox.connect_outwards(record.spec.egress, has_rules=True)
        return sandbox

    def _stand_again_on(self, snapshot: str) -> None:
        """Go on from the snapshot that an earlier keeper of this instance stood on, where it was not removed since."""
        with contextlib.suppress(IjfsError):
            found, meta = self._state.snapshots.load(snapshot)
            self._state.stand_on(found)
            # If another instance made the snapshot, the program was restored from it and may still be waiting in
            # `ijfs.save()`.
            if meta.spec.name != self._state.name:
                self._requests.resumes(found)

    # -- restoring ------------------------------------------------------------------------------------------------

    async def _requested(self, arguments: RestoreArguments, generation: int, *, beside: bool) -> RestoreRequest:
        """What is to be restored: as the restore that is under way has it, or as the arguments say."""
        state = self._state
        begun = await in_thread(self._early.request) if self._early is not None else None
        if begun is not None:
            return begun
        paths = state.paths.sandbox(generation)
        return await in_thread(partial(RestoreRequest.of, arguments, state.snapshots, paths, beside=beside))

    async def _restored(self, request: RestoreRequest, emit: Emit) -> Restored:
        """The snapshot's program, running again."""
        restored: Restored
        early, self._early = self._early, None
        if early is not None and early.begun:
            restored = await in_thread(early.result, phase_events(emit))
            return restored
        pager = await self._pager_process(early) if not request.eager else None
        async with self._mounted_pages(request) as pages:
            restored = await in_thread(
                restore_snapshot,
                replace(request, gpu=self._state.gpu, pages=pages),
                self._state.snapshots,
                on_phase=phase_events(emit),
                pager=pager,
            )
        return restored

    async def _pager_process(self, early: EarlyRestore | None) -> PagerProcess | None:
        """A pager's process that is there already, or that the spare forks; None: one has to be started."""
        ready = early.take_pager() if early is not None else None
        return ready or await in_thread(PagerProcess.asked, self._state.paths.root)

    @contextlib.asynccontextmanager
    async def _mounted_pages(self, request: RestoreRequest) -> AsyncIterator[Path | None]:
        """For an eager restore: the snapshot's images in a mount of the keeper's own, from which CRIU reads the memory
        once, without a second copy of it. None where this machine has no FUSE: it is then staged in memory."""
        state = self._state
        if not request.eager:
            yield None
            return
        from ijfs.fs.image_mount import image_mount
        from ijfs.fs.stored import image_directory

        state.paths.fuse.mkdir(exist_ok=True)
        images = image_directory(state.snapshots.repository, state.snapshots.reader, request.snapshot)
        async with contextlib.AsyncExitStack() as stack:
            try:
                pages = await stack.enter_async_context(image_mount(state.paths.fuse, images))
            except StorageError as error:
                _log.warning("no mount for an eager restore: %s", error)
                yield None
                return
            yield pages

    async def _move_into(
        self, restored: Restored, request: RestoreRequest, changes: RecordChanges | None = None
    ) -> None:
        """The restored program is the instance's; where that cannot be, it ends."""
        try:
            self._state.move_into(restored.sandbox, snapshot=request.snapshot, pager=restored.pager, changes=changes)
        except BaseException:
            await in_thread(restored.abandon)
            raise
        self._requests.resumes(request.snapshot)

    async def _switch(
        self, old: Sandbox, restored: Restored, request: RestoreRequest, generation: int, env: dict[str, str]
    ) -> None:
        """The restored program takes the place of the old one, which ends; clients have to connect again."""
        state = self._state
        old_pager, old_key = state.pager, state.record.spec.kernel_key
        # Another kernel's snapshot brings its own key: who connects anew finds it in the connection file.
        key = request.meta.spec.kernel_key
        spec = msgspec.structs.replace(_with_env(state.record.spec, env), kernel_key=key, limits=request.limits)
        await self._move_into(
            restored, request, {"generation": generation, "spec": spec, "origin": request.meta.origin}
        )
        write_connection_files(state.paths, state.record)
        state.relay.bar()
        connected = state.relay.drop(key=old_key)
        state.relay.traffic.goes_on_as(request.meta.kernel)
        state.guest.close()
        if old_pager is not None:
            await in_thread(old_pager.close)
        await in_thread(old.kill)
        old.reap()
        await in_thread(old.dispose)
        state.relay.release()  # the old one may have been parked
        try:
            await self._get_ready(restored.sandbox, restored=True)
        except IjfsError as error:
            await state.kill(str(error))
            raise
        await self._admit_clients(connected > 0)

    def _with_restore(self, info: InstanceInfo, restored: Restored, emit: Emit) -> InstanceInfo:
        """What callers are shown of the instance, and of this restore."""
        for note in restored.notes:
            emit(Notice(note))
        memory = self._state.memory()
        return msgspec.structs.replace(info, phases=restored.phases, memory=memory, read_ahead=restored.read_ahead)

    # -- once it runs ---------------------------------------------------------------------------------------------

    def _serve_ports(self) -> InstanceInfo:
        """Serve the relay's ports, which have to be known outside first; who connects waits until he is let in."""
        state = self._state
        write_connection_files(state.paths, state.record)
        spec = state.record.spec
        state.relay.traffic.ends_by_message = spec.front_end
        state.relay.traffic.owner = spec.front_end_session
        state.spawn(state.relay.serve)
        state.spawn(self._end_in_time)
        return state.info()

    async def _made_ready(self, sandbox: Sandbox, *, restored: bool = False) -> None:
        """Return when it is ready; what does not get ready is ended. NotReadyError, HookError."""
        try:
            await self._get_ready(sandbox, restored=restored)
        except IjfsError as error:
            async with self._state.busy:
                await self._state.kill(str(error))
            raise

    async def _get_ready(self, sandbox: Sandbox, *, restored: bool) -> None:
        """Run the hooks that were given for it, if any."""
        hooks = self._state.record.spec.hooks
        if restored:
            await outside_hooks.run(hooks.after_restore, sandbox, self._state.name)
        await outside_hooks.wait_ready(hooks, sandbox, self._state.name)

    async def _end_in_time(self) -> None:
        """End the program when its time to live is over. What was saved is stored first; saves under way go on."""
        state = self._state
        ends = ends_ns(state.record)
        if ends is None:
            return
        while (left_ns := ends - time.time_ns()) > 0:
            await trio.sleep(min(left_ns / 1e9, CLOCK_S))
        async with state.busy:
            await self._queue.settled()
            await state.kill(f"its time to live, {state.record.spec.ttl_s:g} s, was over")

    async def _admit_clients(self, again: bool) -> None:
        """Let clients in. Those of a kernel that were connected before (`again`) get their iopub first: what is
        published before their subscription stands again is lost, and the answer to their first cell would be among
        it."""
        relay = self._state.relay
        if again and self._state.record.spec.kind == "kernel":
            relay.admit(["iopub"])
            with trio.move_on_after(RESUBSCRIBE_S):
                await relay.connected("iopub")
                await trio.sleep(SUBSCRIBING_S)
        relay.admit()

    async def _resume_guest(
        self, restored: Restored, request: RestoreRequest, arguments: RestoreArguments, *, beside: bool, emit: Emit
    ) -> None:
        """The program's hooks are where they were, and its files are as in the snapshot. `beside`: others like it may
        run, so that it draws random numbers of its own; going back in place stays exact, as an undo should be."""
        state = self._state
        state.set_hooks(request.meta.guest.hook_ports)
        state.set_files({})
        told = {**arguments.env, INSTANCE_VARIABLE: state.name}
        event = HookEvent("after_restore", request.snapshot.id.hex(), True if beside else msgspec.UNSET, told)
        if arguments.env and not state.guest.hook_ports and state.record.spec.kind != "kernel":
            emit(Notice(NOT_TOLD))
        state.spawn(self._greet, restored, request.snapshot.id, event, bool(arguments.env))

    async def _greet(self, restored: Restored, snapshot: bytes, event: HookEvent, given: bool) -> None:
        """Have a restored program's hooks run, then answer its requests: `ijfs.save()` returns in it after them. Then
        look at its files, so that the next save need not read them.
        `given`: somebody gave variables, and is to hear where nobody took them."""
        state, sandbox = self._state, restored.sandbox
        async with state.busy:  # a save waits: it would find the hooks half done
            if state.sandbox is sandbox:
                hooks = bool(state.guest.hook_ports)
                taken = await state.guest.tell(sandbox.network_fd, event)
                if given and hooks and not taken:
                    state.note(note=NOT_TOLD)
                state.open_guest_port(sandbox)
                # A save stores here all that it needs, and so all files of a program whose snapshot is a remote's.
                if await in_thread(state.snapshots.repository.is_here, snapshot):
                    state.set_files(await in_thread(_files_put_back, restored))


def _with_env(spec: InstanceSpec, env: dict[str, str]) -> InstanceSpec:
    """The spec with variables given at this restore."""
    return msgspec.structs.replace(spec, late_env={**spec.late_env, **env}) if env else spec


def _files_put_back(restored: Restored) -> StatCache:
    """What a save need not read again. Of a program that ended at once there is nothing to look at."""
    try:
        return stat_cache_of(writable_layers(restored.sandbox), restored.began_ns)
    except OSError:
        return {}


def _end(sandbox: Sandbox, *, keep_files: bool) -> None:
    """End a program that nobody is going to keep."""
    sandbox.kill()
    sandbox.dispose(keep_files=keep_files)


def _lost_saves(record: InstanceRecord) -> RecordChanges:
    """What a new keeper writes of saves that the killed one had not stored."""
    if not record.saving:
        return {}
    return {"saving": 0, "save_error": LOST_WITH_KEEPER}


def _with(spec: InstanceSpec, arguments: RestoreArguments, before: InstanceRecord | None) -> InstanceSpec:
    """The spec of a snapshot with what its restore asks for. Nobody has the notebook of what was saved open beside a
    copy of it."""
    own = before.spec.notebook if before is not None else ""
    chosen = {port.inside: port for port in (*spec.published, *arguments.ports)}
    return msgspec.structs.replace(
        spec,
        ports=tuple(dict.fromkeys((*spec.ports, *(port.inside for port in arguments.ports)))),
        published=tuple(chosen.values()),
        late_env={**spec.late_env, **arguments.env},
        limits=arguments.limits.over(spec.limits),
        idle=spec.idle if arguments.idle is None else arguments.idle,
        ephemeral=arguments.ephemeral,
        notebook=own if arguments.notebook is None else arguments.notebook,
        front_end=arguments.front_end,
        front_end_session=arguments.front_end_session,
    )


def _at(port: HostPort) -> tuple[int, int, str]:
    return port.inside, port.host, port.address


def _wanted_ports(spec: InstanceSpec) -> dict[str, int]:
    kernel = KERNEL_PORTS if spec.kind == "kernel" else {}
    return {**kernel, **{f"tcp{port}": port for port in spec.ports}}
