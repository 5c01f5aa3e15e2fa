"""What a keeper does for a save around the freeze: hooks, relay, guest port, and then the way into the repository.

Part of the keeper (server.py), apart from it because it has state of its own: the snapshot the instance stands on
(pinned, so that nobody removes it), and the line of saves that are being stored (save_queue.py).
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from ijfs.live.checkpoint import freeze as steps
from ijfs.live.checkpoint.arena_pool import KEPT_S, ArenaPool
from ijfs.live.checkpoint.snapshot_io import SaveContents, SaveOutcome, environment
from ijfs.live.checkpoint.workspace import StatCache, WritableLayer, layers_of
from ijfs.live.checks import blockers
from ijfs.live.criu import command as criu
from ijfs.live.keeper.autosave import Autosaver, thin
from ijfs.live.keeper.control_socket import Emit, in_thread
from ijfs.live.keeper.save_queue import QueuedSave, SaveQueue
from ijfs.live.model.records import InstanceSpec, SaveResult
from ijfs_engine import Arena, Snapshot
from ijfs_engine.errors import IjfsError

if TYPE_CHECKING:
    from ijfs.live.gpu.program import GpuProgram
    from ijfs.live.keeper.server import Keeper
    from ijfs.live.sandbox.sandbox import Sandbox

# Progress events a second; more are noise on a terminal and work for the loop.
PROGRESS_S = 0.1


class Saver:
    """The saves of one keeper."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._snapshot: Snapshot | None = None
        self._pin: Any = None
        self._aside = ArenaPool()
        self.line = SaveQueue(keeper.spawn, self._line_changed, self._lost)
        self.auto = Autosaver(keeper)

    def stands_on(self, snapshot: Snapshot) -> None:
        """The program continues that snapshot: it is the parent of the next save, and nobody may remove it."""
        pin = self._keeper.vault.repository.pin(snapshot.id, f"live instance {self._keeper.name}")
        if self._pin is not None:
            self._pin.close()
        self._snapshot, self._pin = snapshot, pin

    def close(self) -> None:
        """Let go of the snapshot."""
        if self._pin is not None:
            self._pin.close()
            self._pin = None

    def layers(self, box: Sandbox) -> list[WritableLayer]:
        """The writable layers of a sandbox."""
        volumes = [(volume, box.layers.volume(volume.key).upper) for volume in box.volumes]
        return layers_of(box.layers.upper, volumes, Path(f"/proc/{box.pid}/root/dev/shm"))

    async def save(self, args: dict[str, Any], emit: Emit) -> SaveResult:
        """The verb. Whatever fails, the program runs on and the repository is as before.

        Only until the thaw does it need the instance for itself; with `stop` until the commit. Without `wait` it
        returns at the thaw, and what is not known then is not in the result.
        """
        asked = time.monotonic()
        pending = None
        await self.line.make_room(emit)
        try:
            if self._keeper.busy.locked():
                emit({"kind": "notice", "text": "waiting for what is being done to this instance before"})
            async with self._keeper.busy:
                pending, early = await self._begin(args, emit, asked)
                if early.stopped:
                    return await self._stopped(pending)
        finally:
            if pending is None:
                self.line.leave()
        return await pending.outcome() if pending.waited_for else early

    async def _begin(self, args: dict[str, Any], emit: Emit, asked: float) -> tuple[QueuedSave, SaveResult]:
        """Freeze, thaw, and take a place in the line; what is known of the save at its thaw."""
        keeper = self._keeper
        box = keeper.live_box()
        await keeper.memory_in()
        await self.auto.before_freeze(box)
        began = time.monotonic()
        frozen = await self._freeze_with_hooks(box, args, emit)
        frozen.phases = {"wait": began - asked, **frozen.phases}
        self.auto.after_freeze(frozen.frozen_s, frozen.image_bytes)
        try:
            parts: SaveContents = await in_thread(self._parts, frozen, box, args)
        except BaseException:
            await self._let_go(frozen)
            if frozen.stopped:
                await self._wake(box)
            raise
        waited_for = frozen.stopped or bool(args.get("wait", True))
        # What happens after the answer is nobody's event any more.
        store = partial(self._store, frozen, parts, emit if waited_for else lambda event: None, asked)
        pending = self.line.put(store, waited_for=waited_for, auto=parts.meta.auto)
        return pending, self._early(frozen, parts, pending.number)

    async def _freeze_with_hooks(self, box: Sandbox, args: dict[str, Any], emit: Emit) -> steps.Frozen:
        keeper = self._keeper
        gpu = _gpu_part(keeper.gpu, args)
        stopped = False
        began = time.monotonic()
        try:
            await keeper.guest.tell(box.network_fd, {"event": "before_save"})
            hooks_s = time.monotonic() - began
            emit({"kind": "phase", "name": "prepare"})
            prepared = await in_thread(steps.prepare, box, self.layers(box), keeper.known, self._aside, gpu=gpu)
            try:
                frozen = await self._freeze(box, prepared, stop=bool(args.get("stop")), emit=emit, gpu=gpu)
            except BaseException:
                await self._give_back(prepared.arena)
                raise
            frozen.phases = {"hooks": hooks_s, "prepare": prepared.seconds, **frozen.phases}
            stopped = frozen.stopped
        finally:  # whatever came of it: hooks wait for this. Who is left stopped cannot hear it
            if not stopped:
                await self._tell_after(box)
        return frozen

    async def _tell_after(self, box: Sandbox) -> None:
        await self._keeper.guest.tell(box.network_fd, {"event": "after_save", "snapshot": None})

    async def _freeze(
        self, box: Sandbox, prepared: steps.Prepared, *, stop: bool, emit: Emit, gpu: steps.GpuPart | None
    ) -> steps.Frozen:
        keeper = self._keeper
        emit({"kind": "phase", "name": "hold"})
        began = time.monotonic()
        keeper.guest.close()
        keeper.relay.hold()
        hold_s = time.monotonic() - began
        try:
            frozen: steps.Frozen = await in_thread(
                steps.freeze, box, prepared, stop=stop, on_phase=_phase_events(emit), gpu=gpu
            )
        finally:
            keeper.relay.release()
            if box.is_alive():
                keeper.reopen_guest(box)
        frozen.phases = {"hold": hold_s, **frozen.phases}
        return frozen

    async def _stopped(self, pending: QueuedSave) -> SaveResult:
        """With `stop`: the program ends when its snapshot is durable, and is woken up when it cannot be."""
        keeper = self._keeper
        try:
            result = await pending.outcome()
        except BaseException:
            await self._wake(keeper.live_box())
            raise
        await keeper.kill(f"saved as {result.snapshot[:12]} and stopped")
        return result

    async def _wake(self, box: Sandbox) -> None:
        """Let a program that `stop` left stopped run on."""
        steps.make_sure_it_runs(box)
        if self._keeper.gpu is not None:
            await in_thread(self._keeper.gpu.resume)
        await self._tell_after(box)

    def _branch(self, args: dict[str, Any]) -> str:
        return str(args.get("branch") or self._keeper.record.branch or self._keeper.name)

    def _parts(self, frozen: steps.Frozen, box: Sandbox, args: dict[str, Any]) -> SaveContents:
        """In a thread, right after the thaw: what goes into the repository."""
        keeper = self._keeper
        return steps.parts(
            frozen,
            box,
            keeper.record.spec,
            message=str(args.get("message") or ""),
            branch=self._branch(args),
            notebook=_notebook(args, keeper.record.spec),
            guest={"nonce": args.get("nonce"), "hook_ports": list(keeper.guest.hook_ports)},
            environment=environment(criu.version(criu.find())),
            auto=bool(args.get("auto")),
            notes=[*_spilled(frozen), *self._notes(box)],
        )

    def _notes(self, box: Sandbox) -> list[str]:
        lost = self._keeper.record.save_error
        return [*_warnings(box), *([f"an earlier save was not stored: {lost}"] if lost else [])]

    async def _store(
        self, frozen: steps.Frozen, parts: SaveContents, emit: Emit, asked: float, number: int
    ) -> SaveResult:
        """What the line runs in its turn: into the repository, and then the instance stands on it."""
        keeper = self._keeper
        known: StatCache = frozen.workspace.known
        try:
            stored: SaveOutcome = await in_thread(self._into_repository, frozen, parts, emit)
        finally:
            await self._let_go(frozen)
        # Files are compared with the newest snapshot there is, never with one that may yet come to nothing.
        keeper.known = known
        self.stands_on(stored.snapshot)
        keeper.saved(stored.snapshot.id.hex())
        if parts.meta.auto:
            await in_thread(thin, keeper.vault.repository, keeper.name)
        return self._result(frozen, stored, parts, number, time.monotonic() - asked)

    async def _let_go(self, frozen: steps.Frozen) -> None:
        """Nobody reads any more what a freeze brought."""
        frozen.discard()
        await self._give_back(frozen.arena)

    async def _give_back(self, arena: Arena) -> None:
        await in_thread(self._aside.give_back, arena)
        self._keeper.spawn(self._forget_later, self._aside.uses)

    async def _forget_later(self, uses: int) -> None:
        """Keep memory for saves that follow one another, and none in a keeper that is idle."""
        await trio.sleep(KEPT_S)
        if self._aside.uses == uses:
            await in_thread(self._aside.forget)

    def _into_repository(self, frozen: steps.Frozen, parts: SaveContents, emit: Emit) -> SaveOutcome:
        """In a thread."""
        clock = steps.Clock(_phase_events(emit))
        parent = self._snapshot.id if self._snapshot is not None else None
        stored = self._keeper.vault.store(parts, parent, _progress_events(emit), clock.begin)
        clock.end()
        frozen.phases = {**frozen.phases, **clock.phases}
        return stored

    def _early(self, frozen: steps.Frozen, parts: SaveContents, number: int) -> SaveResult:
        return SaveResult(
            snapshot="",
            branch=parts.branch,
            parent=None,
            message=parts.message,
            image_bytes=parts.meta.image_bytes,
            workspace_bytes=parts.meta.workspace_bytes,
            spilled_bytes=frozen.spilled_bytes,
            frozen_s=frozen.frozen_s,
            number=number,
            phases=dict(frozen.phases),
            warnings=tuple(parts.notes),
            stopped=frozen.stopped,
        )

    @staticmethod
    def _result(
        frozen: steps.Frozen, stored: SaveOutcome, parts: SaveContents, number: int, durable_s: float
    ) -> SaveResult:
        snapshot = stored.snapshot
        return SaveResult(
            snapshot=snapshot.id.hex(),
            branch=parts.branch,
            parent=snapshot.parents[0].hex() if snapshot.parents else None,
            message=snapshot.message,
            image_bytes=parts.meta.image_bytes,
            workspace_bytes=parts.meta.workspace_bytes,
            stored_bytes=stored.stored_bytes,
            spilled_bytes=frozen.spilled_bytes,
            frozen_s=frozen.frozen_s,
            durable_s=durable_s,
            number=number,
            phases=frozen.phases,
            warnings=(*stored.notes, *parts.notes),
            stopped=frozen.stopped,
        )

    def _line_changed(self) -> None:
        self._keeper.note(saving=len(self.line))

    def _lost(self, error: IjfsError) -> None:
        """A save that nobody waits for has failed: it is said wherever the instance is shown."""
        self._keeper.note(save_error=str(error))


def _gpu_part(program: GpuProgram | None, args: dict[str, Any]) -> steps.GpuPart | None:
    if program is None:
        return None
    timeout_s = args.get("gpu_timeout_s")
    options = {} if timeout_s is None else {"timeout_s": float(timeout_s)}
    return steps.GpuPart(program, force=bool(args.get("force")), **options)


def _warnings(box: Sandbox) -> list[str]:
    """What will not be quite the same in a restored program."""
    if not box.is_alive():
        return []
    found = (verdict for verdict in blockers.of_program(box.pid) if verdict.outcome == "warn")
    return [f"{verdict.evidence}: {verdict.remedy}" for verdict in found]


def _spilled(frozen: steps.Frozen) -> list[str]:
    """What made the freeze longer than it need be."""
    if not frozen.spilled_bytes:
        return []
    there = f"the {frozen.arena.limit >> 20} MiB of memory for saves"
    text = f"{frozen.spilled_bytes >> 20} MiB of the image did not fit into {there}"
    return [f"{text} and went to disk while the program stood still; IJFS_SAVE_MEMORY sets how much it may be"]


def _notebook(args: dict[str, Any], spec: InstanceSpec) -> bytes | None:
    """The notebook document: as it came over the wire (base64), else the one the kernel belongs to, as it is now."""
    if args.get("notebook") is not None:
        return base64.b64decode(args["notebook"])
    if spec.notebook:
        with contextlib.suppress(OSError):  # renamed or not saved yet: no reason to fail
            return Path(spec.notebook).read_bytes()
    return None


def _phase_events(emit: Emit) -> Callable[[str], None]:
    return lambda name: emit({"kind": "phase", "name": name})


def _progress_events(emit: Emit) -> Callable[[str, int, int], None]:
    """Progress of the ingest, thinned out."""
    last = [0.0]

    def progress(name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] >= PROGRESS_S or done == total:
            last[0] = now
            emit({"kind": "progress", "name": name, "done": done, "total": total})

    return progress
