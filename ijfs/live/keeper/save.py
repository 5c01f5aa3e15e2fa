"""One save from its request to its commit. Made by server.py; the steps in their order:

    wait        for room in the queue, for what is being done to the instance, for the memory of a lazy restore
    hooks       those given for it and its own, before_save                                         `_freeze`
    prepare     measure, fault in memory (checkpoint/freeze.py)
    hold        the guest port closed, the relay held                                               `_held`
    freeze      GPU, freeze, dump, capture the files, thaw, GPU back (checkpoint/freeze.py)
    release     the relay goes on, the guest port is open again; the hooks, after_save
    queue       what was taken is put together and waits for its turn (save_queue.py)               `_queued`
    ingest      into the repository, in the order of the freezes                                    `_store`
    commit      the snapshot exists, and the instance stands on it; it goes to a remote from here (uploads/)
    verify      where that was asked for: restored as far as to the program's first instruction (checkpoint/restore.py)

The program stands still from freeze to thaw, a GPU program from the GPU's lock to its return; clients wait from hold to
release. A save has the instance for itself from its wait for memory until it is in the queue. With `stop` the program
stays stopped until the commit and ends then.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from ijfs.live.checkpoint import proof
from ijfs.live.checkpoint.arena_pool import KEPT_S, ArenaPool
from ijfs.live.checkpoint.freeze import Frozen, GpuPart, freeze, prepare, wake_stopped
from ijfs.live.checkpoint.phases import Clock
from ijfs.live.checkpoint.python_packages import of_processes
from ijfs.live.checkpoint.restore import RestoreRequest, try_restore
from ijfs.live.checkpoint.snapshot_io import GuestMeta, LiveMeta, SaveContents, SaveOutcome, machine_versions
from ijfs.live.checks import blockers
from ijfs.live.criu import command as criu_command
from ijfs.live.errors import PassingError
from ijfs.live.keeper import outside_hooks
from ijfs.live.keeper.autosave import Autosaver, thin
from ijfs.live.keeper.save_queue import QueuedSave, SaveQueue
from ijfs.live.keeper.state import InstanceState
from ijfs.live.keeper.threads import in_thread, phase_events
from ijfs.live.model.guest_protocol import HookEvent
from ijfs.live.model.paths import SandboxPaths
from ijfs.live.model.protocol import BytesDone, Emit, Event, Happened, Notice, RestoreArguments, SaveArguments
from ijfs.live.model.records import InstanceRecord, InstanceSpec, KernelState, SaveResult
from ijfs.live.process import procfs, scheduling
from ijfs.live.sandbox import network_state
from ijfs.live.uploads import followed, pusher
from ijfs_engine import Arena, is_pages
from ijfs_engine.errors import CorruptError, IjfsError

if TYPE_CHECKING:
    from ijfs.live.gpu.program import GpuProgram
    from ijfs.live.sandbox.sandbox import Sandbox

# The directory of a sandbox in which a snapshot is tried; swept with others of the instance (sandbox/cleanup.py).
TRIAL = "box-trial"

# Progress events a second; more are noise on a terminal and work for the loop.
PROGRESS_S = 0.1


# How long a program runs on between tries of a freeze. A server accepts within some ms; a busy one had 0.8 s in all.
PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.4)

# How long the end of a program may take to be written down.
ENDING_S = 2.0

# Of threads that a warning names.
MOST_NAMES = 5


class _Save:
    """One save under way: what was asked, who is told, and how long each step takes."""

    def __init__(self, arguments: SaveArguments, emit: Emit) -> None:
        self.arguments = arguments
        self.asked = time.monotonic()
        self.clock = Clock(phase_events(self.emit))
        self.stop = arguments.stop
        self.document: bytes | None = None
        """The notebook as an editor has it."""
        self.waited_for = arguments.stop or arguments.wait
        self.stopped_before: frozenset[int] = frozenset()
        """Processes that the user had stopped."""
        self._emit = emit
        self._answered = False

    def emit(self, event: Event) -> None:
        """Tell who asked, for as long as there was no answer yet."""
        if not self._answered:
            self._emit(event)

    def mark_answered(self) -> None:
        """The client has its answer: send it no more events."""
        self._answered = True


class Saver:
    """The saves of one keeper."""

    def __init__(self, state: InstanceState, queue: SaveQueue, autosaver: Autosaver) -> None:
        self._state = state
        self._queue = queue
        self._autosaver = autosaver
        self._arenas = ArenaPool()

    async def save(self, arguments: SaveArguments, emit: Emit) -> SaveResult:
        """The verb. Whatever fails, the program runs on and the repository is as before.

        It has the instance for itself until it is in the queue; with `stop` until the commit. Without `wait` it
        returns at the thaw, and what is not known then is not in the result.
        """
        save = _Save(arguments, emit)
        save.clock.begin("wait", silent=True)
        queued = None
        await self._queue.reserve(emit)
        try:
            if self._state.busy.locked():
                emit(Notice("waiting for what is being done to this program before"))
            async with self._state.busy:
                queued, at_thaw = await self._queued(save)
                if save.stop:
                    return await self._end_when_durable(save, queued)
        finally:
            if queued is None:
                self._queue.cancel()
        return await queued.outcome() if queued.waited_for else at_thaw

    # -- the program is frozen, and runs again ---------------------------------------------------------------------

    async def _queued(self, save: _Save) -> tuple[QueuedSave, SaveResult]:
        """Freeze and thaw the program, and queue what that brought; returns the queued save, and its result as far as
        it is known by then."""
        sandbox = self._state.live_sandbox()
        await self._state.wait_for_memory()
        await self._autosaver.before_freeze(sandbox)
        ticket = self._state.documents.ask() if save.arguments.notebook is None else ""
        frozen = await self._freeze(save, sandbox)
        kernel = self._state.kernel_saved()
        self._autosaver.after_freeze(frozen.frozen_s, frozen.image_bytes)
        try:
            hooks = list(self._state.guest.hook_ports)
            save.document = save.arguments.notebook or await self._state.documents.collect(ticket)
            contents = await in_thread(_contents, save, frozen, sandbox, self._state.record, hooks, kernel)
        except BaseException:
            await self._let_go(frozen)
            if frozen.stopped:
                await self._wake(save, sandbox)
            raise
        store = partial(self._store, save, sandbox, frozen, contents)
        queued = self._queue.put(store, waited_for=save.waited_for, auto=contents.meta.auto)
        self._state.watchers.tell(Happened("saving", text=contents.message))
        if not save.waited_for:
            save.mark_answered()
        return queued, _result(save, frozen, contents, queued.number)

    async def _freeze(self, save: _Save, sandbox: Sandbox) -> Frozen:
        """From the hooks to the release; the hooks hear of the end too, unless the program is left stopped."""
        gpu = _gpu_part(self._state.gpu, save.arguments)
        stopped = False
        given = self._state.record.spec.hooks
        if given.before_save or given.after_save:
            self._state.relay.hold()  # a server that was told to sleep is to get no request
        try:
            save.clock.begin("hooks", silent=True)
            await outside_hooks.run(given.before_save, sandbox, self._state.name)
            await self._state.guest.tell(sandbox.network_fd, HookEvent("before_save"))
            frozen = await self._frozen(save, sandbox, gpu)
            stopped = frozen.stopped
        finally:  # whatever came of it: hooks wait for this. Who is left stopped cannot hear it
            if not stopped:
                await self._tell_after(save, sandbox)
        return frozen

    async def _frozen(self, save: _Save, sandbox: Sandbox, gpu: GpuPart | None) -> Frozen:
        """The freeze; once more, after a moment in which the program runs, where what stood in its way may be over.
        (Not of a GPU program, whose device memory would be moved each time.)"""
        for pause_s in PAUSES_S if gpu is None else ():
            with contextlib.suppress(PassingError):
                return await self._frozen_once(save, sandbox, gpu)
            await trio.sleep(pause_s)
        return await self._frozen_once(save, sandbox, gpu)

    async def _frozen_once(self, save: _Save, sandbox: Sandbox, gpu: GpuPart | None) -> Frozen:
        save.clock.begin("prepare")
        prepared = await in_thread(prepare, sandbox, self._state.stat_cache, self._arenas, gpu=gpu)
        save.stopped_before = prepared.stopped
        try:
            with self._held(save, sandbox):
                frozen: Frozen = await in_thread(freeze, sandbox, prepared, save.clock, stop=save.stop, gpu=gpu)
                self._state.note_thaw()
        except BaseException:
            await self._release_arena(prepared.arena)
            raise
        return frozen

    @contextlib.contextmanager
    def _held(self, save: _Save, sandbox: Sandbox) -> Iterator[None]:
        """Nothing reaches the program: a connection that moved would be half in the image."""
        save.clock.begin("hold")
        self._state.guest.close()
        self._state.relay.hold()
        save.clock.end()
        try:
            yield
        finally:
            if not self._state.record.spec.hooks.after_save:
                self._state.relay.release()
            if sandbox.is_alive():
                self._state.open_guest_port(sandbox)

    async def _tell_after(self, save: _Save, sandbox: Sandbox) -> None:
        """The program runs again: its hooks hear so, those given for it are run, and clients reach it."""
        try:
            await self._state.guest.tell(sandbox.network_fd, HookEvent("after_save", None))
            lines = self._state.record.spec.hooks.after_save
            for said in await outside_hooks.run_all(lines, sandbox, self._state.name):
                save.emit(Notice(said))
        finally:
            self._state.relay.release()

    # -- with `stop` ----------------------------------------------------------------------------------------------

    async def _end_when_durable(self, save: _Save, queued: QueuedSave) -> SaveResult:
        """The program ends when its snapshot is durable, and is woken up when it cannot be."""
        try:
            result = await queued.outcome()
        except BaseException:
            await self._wake(save, self._state.live_sandbox())
            raise
        if result.verified is False:  # ending it would leave nothing that can go on
            await self._wake(save, self._state.live_sandbox())
            warnings = (*result.warnings, "so the program was not ended: it runs on")
            return msgspec.structs.replace(result, stopped=False, warnings=warnings)
        how, parked = ("parked" if save.arguments.park else "stopped"), save.arguments.park
        await self._state.kill(f"saved as {result.snapshot[:12]} and {how}", parked=parked)
        return result

    async def _wake(self, save: _Save, sandbox: Sandbox) -> None:
        """Let a program that `stop` left stopped run on."""
        wake_stopped(sandbox, but=save.stopped_before)
        if self._state.gpu is not None:
            await in_thread(self._state.gpu.resume)
        await self._tell_after(save, sandbox)

    # -- into the repository --------------------------------------------------------------------------------------

    async def _store(
        self, save: _Save, sandbox: Sandbox, frozen: Frozen, contents: SaveContents, number: int
    ) -> SaveResult:
        """What the queue runs in its turn: into the repository, and then the instance stands on it."""
        state = self._state
        stat_cache = frozen.workspace.stat_cache
        parent = state.snapshot.id if state.snapshot is not None else None
        progress = _progress_events(save.emit)
        storage = state.record.spec.storage
        stays = await in_thread(followed.stays, state.snapshots.repository, contents.branch, storage) if storage else ""
        try:
            outcome = await in_thread(state.snapshots.store, contents, parent, progress, save.clock.begin)
            save.clock.end()
        except CorruptError:
            state.set_files({})  # the next save reads all files, and needs none of the snapshot before
            raise
        finally:
            await self._let_go(frozen)
        state.record_save(outcome.snapshot, stat_cache)
        state.watchers.tell(Happened("saved", outcome.snapshot.id.hex(), contents.message))
        if contents.meta.auto:
            await in_thread(thin, state.snapshots.repository, state.name)
        if storage and not stays:
            await in_thread(pusher.wake, state.repo)
        result = _result(save, frozen, contents, number, outcome)
        if stays:
            result = msgspec.structs.replace(result, warnings=(*result.warnings, stays))
        if not frozen.stopped:
            result = msgspec.structs.replace(result, warnings=(*result.warnings, *await self._ended_since(sandbox)))
        return await self._verified(save, result) if save.arguments.verify and result.verified is None else result

    async def _ended_since(self, sandbox: Sandbox) -> list[str]:
        """A warning where the program has ended by the time at which its snapshot is safe."""
        if sandbox.is_alive():
            return []
        with trio.move_on_after(ENDING_S):
            await self._state.ended.wait()
        if not self._state.ended.is_set():  # it went back, and another program is in its place
            return []
        name, status = self._state.name, self._state.record.exit_status
        how = f"with exit status {status}" if status is not None else "and nobody saw how"
        return [f"`{name}` has ended since it was saved, {how}; `ijfs logs {name}` shows its last words"]

    async def _verified(self, save: _Save, result: SaveResult) -> SaveResult:
        """What came of trying to restore the snapshot, in a sandbox beside the program's."""
        save.clock.begin("verify")
        store, paths = self._state.snapshots, SandboxPaths(self._state.paths.root / TRIAL)

        def tried() -> IjfsError | None:
            return try_restore(
                RestoreRequest.of(
                    RestoreArguments(snapshot=result.snapshot, files="private"), store, paths, beside=True
                ),
                store,
            )

        refusal = await in_thread(tried)
        save.clock.end()
        why = [f"this snapshot cannot be restored here: {_with_hint(refusal)}"] if refusal is not None else []
        return msgspec.structs.replace(
            result,
            verified=refusal is None,
            warnings=(*result.warnings, *why),
            phases=dict(save.clock.phases),
        )

    async def _let_go(self, frozen: Frozen) -> None:
        """Nobody reads any more what a freeze brought."""
        frozen.discard()
        await self._release_arena(frozen.arena)

    async def _release_arena(self, arena: Arena) -> None:
        await in_thread(self._arenas.release, arena)
        self._state.spawn(self._forget_later, self._arenas.uses)

    async def _forget_later(self, uses: int) -> None:
        """Keep memory for saves that follow one another, and none in a keeper that is idle."""
        await trio.sleep(KEPT_S)
        if self._arenas.uses == uses:
            await in_thread(self._arenas.forget)


def _with_hint(error: IjfsError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)


def _contents(
    save: _Save,
    frozen: Frozen,
    sandbox: Sandbox,
    record: InstanceRecord,
    hook_ports: Sequence[int],
    kernel: KernelState | None,
) -> SaveContents:
    """What goes into the repository. In a thread, right after the thaw."""
    arguments = save.arguments
    network, lost_devices = network_state.capture(sandbox.network_fd)
    unrestorable = proof.objections(proof.Taken(_small_images(frozen), lost_devices))
    meta = LiveMeta(
        spec=record.spec,
        volumes=sandbox.volumes,
        versions=machine_versions(criu_command.version(criu_command.find())),
        guest=GuestMeta(arguments.nonce, tuple(hook_ports)),
        gpu=msgspec.to_builtins(frozen.gpu, str_keys=True),
        image_bytes=frozen.image_bytes,
        workspace_bytes=frozen.workspace.bytes_total,
        frozen_s=frozen.frozen_s,
        frozen_at_ns=frozen.at_ns,
        timers=frozen.timers,
        auto=arguments.auto,
        base=sandbox.lower.base,
        network=network,
        scheduling=scheduling.capture(sandbox.pid) if sandbox.is_alive() else (),
        origin=record.origin,
        kernel=kernel,
    )
    lost = [f"an earlier save was not stored: {record.save_error}"] if record.save_error else []
    return SaveContents(
        images=frozen.images,
        workspace=frozen.workspace,
        notebook=_notebook(save.document, record.spec),
        meta=meta,
        message=arguments.message,
        branch=arguments.branch or record.branch or record.spec.name,
        notes=(
            *_lost(frozen, record.spec.name),
            *_spilled(frozen),
            *_cut_short(frozen),
            *frozen.unread,
            *_warnings(sandbox),
            *_not_saved(list(lost_devices)),
            *lost,
        ),
        packages=of_processes(procfs.processes_in("pid", procfs.namespace_id(sandbox.pid, "pid")))
        if sandbox.is_alive()
        else {},
        unrestorable=tuple(f"this snapshot cannot be restored: {text}" for text in unrestorable),
    )


def _small_images(frozen: Frozen) -> dict[str, bytes]:
    """All but the memory; some 10 kB a process."""
    return {name: b"".join(segments) for name, segments in frozen.images.items() if not is_pages(name)}


def _result(
    save: _Save, frozen: Frozen, contents: SaveContents, number: int, outcome: SaveOutcome | None = None
) -> SaveResult:
    """What a save did; without `outcome`, at its thaw."""
    known_at_thaw = SaveResult(
        snapshot="",
        branch=contents.branch,
        parent=None,
        message=contents.message,
        image_bytes=contents.meta.image_bytes,
        workspace_bytes=contents.meta.workspace_bytes,
        spilled_bytes=frozen.spilled_bytes,
        frozen_s=frozen.frozen_s,
        number=number,
        phases=dict(save.clock.phases),
        warnings=(*contents.notes, *contents.unrestorable),
        verified=False if contents.unrestorable else None,
        stopped=frozen.stopped,
    )
    if outcome is None:
        return known_at_thaw
    parents = outcome.snapshot.parents
    return msgspec.structs.replace(
        known_at_thaw,
        snapshot=outcome.snapshot.id.hex(),
        parent=parents[0].hex() if parents else None,
        stored_bytes=outcome.stored_bytes,
        durable_s=time.monotonic() - save.asked,
        warnings=(*outcome.notes, *contents.notes, *contents.unrestorable),
    )


def _gpu_part(program: GpuProgram | None, arguments: SaveArguments) -> GpuPart | None:
    if program is None:
        return None
    options = {} if arguments.gpu_timeout_s is None else {"timeout_s": arguments.gpu_timeout_s}
    return GpuPart(program, force=arguments.force, **options)


def _warnings(sandbox: Sandbox) -> list[str]:
    """What will not be quite the same in a restored program."""
    if not sandbox.is_alive():
        return []
    found = (verdict for verdict in blockers.of_program(sandbox.pid) if verdict.outcome == "warn")
    return [f"{verdict.evidence}: {verdict.remedy}" for verdict in found]


def _not_saved(devices: Sequence[str]) -> list[str]:
    """What of the network a restored program will lack."""
    if not devices:
        return []
    names = ", ".join(devices[:5]) + (", …" if len(devices) > 5 else "")
    return [
        f"network devices that the program made are not saved ({names}): "
        "without them it cannot be restored if it uses their addresses"
    ]


def _lost(frozen: Frozen, name: str) -> list[str]:
    """What became of a program whose CRIU was killed when all of it had been taken."""
    if not frozen.lost:
        return []
    return [
        f"{frozen.lost}, and the program ended with it; all of it is saved: `ijfs restore {name} --replace` goes on"
    ]


def _spilled(frozen: Frozen) -> list[str]:
    """What made the freeze longer than it need be."""
    if not frozen.spilled_bytes:
        return []
    there = f"the {frozen.arena.limit >> 20} MiB of memory for saves"
    text = f"{frozen.spilled_bytes >> 20} MiB of the image did not fit into {there}"
    return [f"{text} and went to disk while the program stood still; IJFS_SAVE_MEMORY sets how much it may be"]


def _cut_short(frozen: Frozen) -> list[str]:
    """What the program noticed of the save."""
    if not frozen.cut_short:
        return []
    text = "a system call with a time-out ended early, with EINTR, here and in every copy"
    return [f"{text}: {', '.join(frozen.cut_short[:MOST_NAMES])}{' …' if frozen.cut_short[MOST_NAMES:] else ''}"]


def _notebook(document: bytes | None, spec: InstanceSpec) -> bytes | None:
    """The notebook document: as an editor has it, else the file that the kernel belongs to, as it is now."""
    if document is not None:
        return document
    if spec.notebook:
        with contextlib.suppress(OSError):  # renamed or not saved yet: no reason to fail
            return Path(spec.notebook).read_bytes()
    return None


def _progress_events(emit: Emit) -> Callable[[str, int, int], None]:
    """Progress of the ingest, thinned out."""
    last = [0.0]

    def progress(name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] >= PROGRESS_S or done == total:
            last[0] = now
            emit(BytesDone(name, done, total))

    return progress
