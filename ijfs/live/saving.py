"""What a keeper does for a save around the freeze: hooks, relay, guest port, storing, the program's own requests.

Part of the keeper (keeper_loop.py), apart from it because it has state of its own: the snapshot the instance stands on
(pinned, so that nobody removes it), and the nonces of saves that the program asked for.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from ijfs.live import blockers, criu
from ijfs.live import save as steps
from ijfs.live.control import Emit, in_thread
from ijfs.live.errors import describe, rebuild
from ijfs.live.records import InstanceSpec, SaveResult
from ijfs.live.snapshots import Stored, environment
from ijfs.live.workspace import Layer, layers_of
from ijfs_engine.errors import IjfsError
from ijfs_engine.records import Snapshot

if TYPE_CHECKING:
    from ijfs.live.gpu.program import GpuProgram
    from ijfs.live.instance import Sandbox
    from ijfs.live.keeper_loop import Keeper

# Progress events a second; more are noise on a terminal and work for the loop.
PROGRESS_S = 0.1

_log = logging.getLogger("ijfs.keeper")


class Saver:
    """The saves of one keeper."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._snapshot: Snapshot | None = None
        self._pin: Any = None
        self._nonces: dict[str, dict[str, Any]] = {}

    def stands_on(self, snapshot: Snapshot) -> None:
        """The program continues that snapshot: it is the parent of the next save, and nobody may remove it."""
        pin = self._keeper.vault.repository.pin(snapshot.id, f"live instance {self._keeper.name}")
        if self._pin is not None:
            self._pin.close()
        self._snapshot, self._pin = snapshot, pin

    def resumes(self, snapshot: Snapshot) -> None:
        """The program was restored from that snapshot. If it had asked for it, it learns so, also where this very
        keeper (going back in place) said before that it was saved."""
        self.stands_on(snapshot)
        nonce = (snapshot.meta.get("guest") or {}).get("nonce")
        if nonce:
            self._nonces[nonce] = {"ok": self._settled("resumed", snapshot.id.hex())}

    def layers(self, box: Sandbox) -> list[Layer]:
        """The writable layers of a sandbox."""
        volumes = [(volume, box.layers.volume(volume.key).upper) for volume in box.volumes]
        return layers_of(box.layers.upper, volumes, Path(f"/proc/{box.pid}/root/dev/shm"))

    async def save(self, args: dict[str, Any], emit: Emit) -> SaveResult:
        """The verb. Whatever fails, the program runs on and the repository is as before."""
        keeper = self._keeper
        box = keeper.live_box()
        await keeper.memory_in()
        emit({"kind": "phase", "name": "hold"})
        began = time.monotonic()
        stop = bool(args.get("stop"))
        try:
            await keeper.guest.tell(box.network_fd, {"event": "before_save"})
            frozen = await self._freeze(box, stop=stop, emit=emit, began=began, gpu=_gpu_part(keeper.gpu, args))
        finally:  # whatever came of it: hooks wait for this
            await keeper.guest.tell(box.network_fd, {"event": "after_save", "snapshot": None})
        try:
            stored = await in_thread(self._store, frozen, box, args, emit)
            keeper.known = frozen.workspace.known
        except BaseException:
            if stop:
                steps.make_sure_it_runs(box)
                if keeper.gpu is not None:
                    await in_thread(keeper.gpu.resume)
            raise
        finally:
            frozen.discard()
        self.stands_on(stored.snapshot)
        keeper.saved(stored.snapshot.id.hex())
        return self._result(frozen, stored, self._branch(args))

    def _branch(self, args: dict[str, Any]) -> str:
        return str(args.get("branch") or self._keeper.record.branch or self._keeper.name)

    async def _freeze(
        self, box: Sandbox, *, stop: bool, emit: Emit, began: float, gpu: steps.GpuPart | None
    ) -> steps.Frozen:
        keeper = self._keeper
        keeper.guest.close()
        keeper.relay.hold()
        hold_s = time.monotonic() - began
        try:
            frozen: steps.Frozen = await in_thread(
                steps.freeze, box, self.layers(box), keeper.known, stop=stop, on_phase=_phase_events(emit), gpu=gpu
            )
        finally:
            keeper.relay.release()
            if box.is_alive():
                keeper.reopen_guest(box)
        frozen.phases = {"hold": hold_s, **frozen.phases}
        return frozen

    def _store(self, frozen: steps.Frozen, box: Sandbox, args: dict[str, Any], emit: Emit) -> Stored:
        """In a thread: everything into the repository, with the phase's time."""
        clock = steps.Clock(_phase_events(emit))
        clock.begin("ingest")
        keeper = self._keeper
        parts = steps.parts(
            frozen,
            box,
            keeper.record.spec,
            message=str(args.get("message") or ""),
            branch=self._branch(args),
            notebook=_notebook(args, keeper.record.spec),
            guest={"nonce": args.get("nonce"), "hook_ports": list(keeper.guest.hook_ports)},
            environment=environment(criu.version(criu.find())),
        )
        parent = self._snapshot.id if self._snapshot is not None else None
        stored = keeper.vault.store(parts, parent, _progress_events(emit))
        stored.notes.extend(_warnings(box))
        clock.end()
        frozen.phases.update(clock.phases)
        return stored

    @staticmethod
    def _result(frozen: steps.Frozen, stored: Stored, branch: str) -> SaveResult:
        snapshot = stored.snapshot
        return SaveResult(
            snapshot=snapshot.id.hex(),
            branch=branch,
            parent=snapshot.parents[0].hex() if snapshot.parents else None,
            message=snapshot.message,
            image_bytes=int(snapshot.meta["image_bytes"]),
            workspace_bytes=int(snapshot.meta["workspace_bytes"]),
            stored_bytes=stored.stored_bytes,
            frozen_s=frozen.frozen_s,
            phases=frozen.phases,
            warnings=tuple(stored.notes),
            stopped=frozen.stopped,
        )

    # -- the program itself asks ----------------------------------------------------------------------------------

    def guest_request(
        self, request: dict[str, Any], nursery: trio.Nursery, save_verb: Callable[..., Awaitable[SaveResult]]
    ) -> dict[str, Any]:
        """Answer one request of the guest protocol at once."""
        verb = request.get("verb")
        if verb == "save":
            return self._guest_save(request, nursery, save_verb)
        if verb == "status":
            return {
                "instance": self._keeper.name,
                "repository": str(self._keeper.repo),
                "snapshot": self._keeper.record.snapshot,
            }
        if verb == "log":
            return self._guest_log()
        raise IjfsError(f"the guest port knows no verb `{verb}`")

    def _guest_save(
        self, request: dict[str, Any], nursery: trio.Nursery, save_verb: Callable[..., Awaitable[SaveResult]]
    ) -> dict[str, Any]:
        nonce = str(request.get("nonce") or "")
        if not nonce:
            raise IjfsError("a save needs a nonce")
        if nonce not in self._nonces:
            self._nonces[nonce] = {"ok": {"state": "pending"}}
            nursery.start_soon(self._save_for_guest, nonce, str(request.get("message") or ""), save_verb)
        answer = self._nonces[nonce]
        if "error" in answer:
            raise rebuild(answer["error"])
        return dict(answer["ok"])

    async def _save_for_guest(self, nonce: str, message: str, save_verb: Callable[..., Awaitable[SaveResult]]) -> None:
        try:
            result = await save_verb({"message": message, "nonce": nonce}, lambda event: None)
        except IjfsError as error:
            self._nonces[nonce] = {"error": describe(error)}
        except Exception as error:
            _log.exception("save for the program failed")
            self._nonces[nonce] = {"error": describe(IjfsError(f"the save failed: {error}"))}
        else:
            self._nonces[nonce] = {"ok": self._settled("saved", result.snapshot)}

    def _settled(self, state: str, snapshot: str) -> dict[str, Any]:
        return {"state": state, "snapshot": snapshot, "instance": self._keeper.name}

    def _guest_log(self) -> dict[str, Any]:
        repository = self._keeper.vault.repository
        snapshots = [
            {
                "id": snapshot.id.hex(),
                "parents": [parent.hex() for parent in snapshot.parents],
                "created_ns": snapshot.created_ns,
                "message": snapshot.message,
            }
            for snapshot in repository.snapshots()
        ]
        return {
            "snapshots": snapshots,
            "branches": {name: ident.hex() for name, ident in repository.refs.branches().items()},
            "tags": {name: ident.hex() for name, ident in repository.refs.tags().items()},
            "here": self._keeper.record.snapshot,
        }


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
