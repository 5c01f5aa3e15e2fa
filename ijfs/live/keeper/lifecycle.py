"""How a keeper's program comes to run: started, restored, taken back in place, or found running by a new keeper.

Part of the keeper (server.py), apart from it as save.py is. What blocks is in sandbox/init.py and
checkpoint/restore.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from ijfs.live.checkpoint.workspace import known_files
from ijfs.live.errors import InstanceExitedError, KeeperError
from ijfs.live.keeper.control_socket import Emit, in_thread
from ijfs.live.model.record_file import kernel_connection, read_record, write_connection_files
from ijfs.live.model.records import LOST_WITH_KEEPER, InstanceInfo, InstanceRecord, InstanceSpec
from ijfs.live.process import procfs
from ijfs.live.sandbox import namespaces, sandbox, slirp
from ijfs.live.sandbox.cleanup import sweep_boxes
from ijfs.live.sandbox.sandbox import Sandbox
from ijfs_engine.errors import IjfsError, StorageError

if TYPE_CHECKING:
    from ijfs.live.checkpoint.restore import Restored
    from ijfs.live.checkpoint.snapshot_io import LiveMeta
    from ijfs.live.keeper.server import Keeper
    from ijfs.live.pager.api import Pager, PagerProcess
    from ijfs_engine import Snapshot

# Inside every sandbox a kernel's ports are these, so that a restored one finds its own; the range is one that neither
# the system gives out for outgoing connections (32768 and up) nor well-known servers use.
KERNEL_PORTS = {"shell": 9601, "iopub": 9602, "stdin": 9603, "control": 9604, "hb": 9605}

# After going back in place, how long the other ports wait for a client's iopub to be back: ZMQ tries again after
# 100 ms, and what is published before the subscription stands is lost.
RESUBSCRIBE_S = 2.0
# From the connection to the subscription: ZMTP's greeting, handshake and the SUBSCRIBE message, a few round trips.
SUBSCRIBING_S = 0.05

_log = logging.getLogger("ijfs.keeper")


class Lifecycle:
    """The verbs that make a program run, of one keeper."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    async def start(self, args: dict[str, Any], emit: Emit) -> InstanceInfo:
        """Start the spec's program; one that has ended before begins anew, with its files and ports (`again`)."""
        keeper = self._keeper
        spec = msgspec.convert(args["spec"], InstanceSpec)
        before = self._record_before(args)
        self._prepare_record(spec, before)
        connection = (
            json.dumps(kernel_connection(keeper.record, inside=True)).encode() if spec.kind == "kernel" else None
        )
        emit({"kind": "phase", "name": "start"})
        layers = keeper.paths.layers(keeper.record.generation)
        kept = before.volumes if before else None
        box = await in_thread(sandbox.launch, layers, keeper.record.spec, keeper.repo, connection, kept=kept)
        if before and before.snapshot is not None:
            self._stand_again_on(before.snapshot)
        info = self._running(box, again=before is not None, snapshot=before.snapshot if before else None)
        keeper.reopen_guest(box)
        return info

    def _record_before(self, args: dict[str, Any]) -> InstanceRecord | None:
        """The record of the ended instance that begins again, where that was asked for and there is one."""
        return read_record(self._keeper.paths) if args.get("again") and self._keeper.paths.record.exists() else None

    def _prepare_record(self, spec: InstanceSpec, before: InstanceRecord | None = None) -> None:
        """The record of an instance about to run, its relay ports listening (those it had `before`, if it had any)."""
        if spec.kind == "kernel" and not spec.kernel_key:
            spec = msgspec.structs.replace(spec, kernel_key=secrets.token_hex(32))
        self._start_gpu(spec)
        ports = self._keeper.relay.open(_wanted_ports(spec), before.relay if before else ())
        self._keeper.record = InstanceRecord(
            spec=spec,
            boot_id=procfs.boot_id(),
            keeper=procfs.identify(os.getpid()),
            branch=spec.name,
            relay=ports,
            created_ns=time.time_ns(),
            generation=before.generation if before else 1,
        )

    def _start_gpu(self, spec: InstanceSpec) -> None:
        """Where the program uses a GPU: begin to load the driver, so that the first save does not wait for it."""
        if spec.gpu:
            from ijfs.live.gpu.program import GpuProgram

            self._keeper.gpu = GpuProgram()

    def _running(self, box: Sandbox, *, again: bool = False, **changes: Any) -> InstanceInfo:
        """The program runs: write it down, let clients in."""
        keeper = self._keeper
        keeper.write(status="running", program=box.program, volumes=box.volumes, **changes)
        write_connection_files(keeper.paths, keeper.record)
        keeper.take(box)
        keeper.spawn(keeper.relay.serve)
        keeper.spawn(self._let_in, again)
        return keeper.info()

    async def _let_in(self, again: bool) -> None:
        """Let clients in. Those of a kernel that were connected before get their iopub first: what is published before
        their subscription stands again is lost, and the answer to their first cell would be among it."""
        keeper = self._keeper
        if again and keeper.record.spec.kind == "kernel":
            keeper.relay.admit(["iopub"])
            with trio.move_on_after(RESUBSCRIBE_S):
                await keeper.relay.connected("iopub")
                await trio.sleep(SUBSCRIBING_S)
        keeper.relay.admit()

    async def restore(self, args: dict[str, Any], emit: Emit) -> InstanceInfo:
        """Bring a snapshot back as this (new) instance."""
        keeper = self._keeper
        begun = await in_thread(keeper.head.load) if keeper.head is not None else None
        snapshot, meta = begun or await in_thread(keeper.vault.load, str(args["snapshot"]))
        before = self._record_before(args)
        try:
            self._prepare_record(msgspec.structs.replace(meta.spec, name=keeper.name), before)
        except BaseException:
            if begun and keeper.head is not None:
                await in_thread(keeper.head.abandon)
            raise
        if before:
            keeper.record = msgspec.structs.replace(keeper.record, generation=before.generation + 1)
        restored = await self._bring_back(snapshot, meta, args, emit)
        if before:
            await in_thread(shutil.rmtree, keeper.paths.layers(before.generation).root, ignore_errors=True)
        info = self._running(
            restored.box, again=before is not None, snapshot=snapshot.id.hex(), pager=keeper.pager_process()
        )
        await self._resume_guest(restored, snapshot.id.hex(), meta.guest)
        return msgspec.structs.replace(info, phases=restored.phases, memory=keeper.memory(), read_ahead=restored.ahead)

    async def _bring_back(self, snapshot: Snapshot, meta: LiveMeta, args: dict[str, Any], emit: Emit) -> Restored:
        keeper = self._keeper
        head, keeper.head = keeper.head, None
        if head is not None and head.begun:
            restored: Restored = await in_thread(head.result, _phases(emit))
        else:
            restored = await self._restore_now(snapshot, meta, args, emit, head.pager if head is not None else None)
        keeper.pager = restored.pager
        keeper.saver.stands_on(snapshot)
        keeper.asked.resumes(snapshot)
        return restored

    async def _restore_now(
        self, snapshot: Snapshot, meta: LiveMeta, args: dict[str, Any], emit: Emit, ahead: PagerProcess | None
    ) -> Restored:
        from ijfs.live.checkpoint import restore
        from ijfs.live.pager.api import PagerProcess

        keeper = self._keeper
        layers = keeper.paths.layers(keeper.record.generation)
        eager = bool(args.get("eager"))
        if ahead is None and not eager:
            ahead = await in_thread(PagerProcess.asked, keeper.paths.root)
        async with self._mounted_pages(snapshot, eager=eager) as pages:
            restored: Restored = await in_thread(
                restore.restore_snapshot,
                layers,
                keeper.vault,
                snapshot,
                meta,
                eager=eager,
                on_phase=_phases(emit),
                gpu=keeper.gpu,
                gpus=tuple(args.get("gpus") or ()),
                pager_ahead=ahead,
                pages=pages,
            )
        return restored

    @contextlib.asynccontextmanager
    async def _mounted_pages(self, snapshot: Snapshot, *, eager: bool) -> AsyncIterator[Path | None]:
        """For an eager restore: the snapshot's images in a mount of the keeper's own, from which CRIU reads the memory
        once, without a second copy of it. None where this machine has no FUSE: it is then staged in memory."""
        keeper = self._keeper
        if not eager:
            yield None
            return
        from ijfs.fs.image_mount import image_mount
        from ijfs.fs.stored import image_directory

        keeper.paths.fuse.mkdir(exist_ok=True)
        images = image_directory(keeper.vault.repository, keeper.vault.reader, snapshot)
        async with contextlib.AsyncExitStack() as stack:
            try:
                pages = await stack.enter_async_context(image_mount(keeper.paths.fuse, images))
            except StorageError as error:
                _log.warning("no mount for an eager restore: %s", error)
                yield None
                return
            yield pages

    async def _resume_guest(self, restored: Restored, snapshot: str, guest: dict[str, Any]) -> None:
        keeper = self._keeper
        keeper.guest.hook_ports = [int(port) for port in guest.get("hook_ports", ())]
        keeper.note(hook_ports=tuple(keeper.guest.hook_ports))
        keeper.known = await in_thread(known_files, keeper.saver.layers(restored.box), restored.began_ns)
        keeper.spawn(self._greet, restored.box, {"event": "after_restore", "snapshot": snapshot})

    async def _greet(self, box: Sandbox, event: dict[str, Any]) -> None:
        """Have a restored program's hooks run, then answer its requests: `ijfs.save()` returns in it after them."""
        keeper = self._keeper
        async with keeper.busy:  # a save waits: it would find the hooks half done
            if keeper.box is box:
                await keeper.guest.tell(box.network_fd, event)
                keeper.reopen_guest(box)

    async def go_back(self, args: dict[str, Any], emit: Emit) -> InstanceInfo:
        """Restore in place: the new program is up before the old one ends, so that a failure costs nothing."""
        keeper = self._keeper
        async with keeper.busy:
            old = keeper.live_box()
            await keeper.saver.line.settled()
            snapshot, meta = await in_thread(keeper.vault.load, str(args["snapshot"]))
            before = keeper.record, keeper.pager
            keeper.record = msgspec.structs.replace(keeper.record, generation=keeper.record.generation + 1)
            try:
                restored = await self._bring_back(snapshot, meta, args, emit)
            except BaseException:
                keeper.record, keeper.pager = before
                raise
            emit({"kind": "phase", "name": "switch"})
            await self._switch(old, restored, snapshot.id.hex(), before[1])
            await self._resume_guest(restored, snapshot.id.hex(), meta.guest)
            return msgspec.structs.replace(
                keeper.info(), phases=restored.phases, memory=keeper.memory(), read_ahead=restored.ahead
            )

    async def _switch(self, old: Sandbox, restored: Restored, snapshot: str, old_pager: Pager | None) -> None:
        keeper = self._keeper
        keeper.relay.bar()
        connected = keeper.relay.drop()
        keeper.guest.close()
        keeper.take(restored.box)
        keeper.write(
            program=restored.box.program,
            volumes=restored.box.volumes,
            snapshot=snapshot,
            pager=keeper.pager_process(),
        )
        if old_pager is not None:
            await in_thread(old_pager.close)
        await in_thread(old.kill)
        old.reap()
        await in_thread(old.dispose)
        await self._let_in(connected > 0)

    async def adopt(self, args: dict[str, Any], emit: Emit) -> InstanceInfo:
        """Take over the program of a keeper that was killed."""
        keeper = self._keeper
        record = read_record(keeper.paths)
        if record.boot_id != procfs.boot_id() or record.program is None or not procfs.is_alive(record.program):
            raise InstanceExitedError(f"the program of `{keeper.name}` has ended")
        keeper.record = record
        self._start_gpu(record.spec)
        await in_thread(sweep_boxes, keeper.paths, record.generation)
        box = self._found_box(record)
        ports, moved = keeper.relay.open_again(record.relay)
        keeper.guest.hook_ports = list(record.hook_ports)
        lost = _lost_saves(record)
        info = self._running(box, again=True, keeper=procfs.identify(os.getpid()), relay=ports, **lost)
        keeper.reopen_guest(box)
        text = f"the keeper of `{keeper.name}` had been killed; a new one took the running program over"
        if moved:
            text += f"; ports taken by others meanwhile were replaced: {', '.join(moved)}"
        emit({"kind": "notice", "text": text})
        return info

    def _found_box(self, record: InstanceRecord) -> Sandbox:
        assert record.program is not None
        try:
            network_fd = namespaces.open_namespace(record.program.pid, "net")
        except OSError as error:
            raise KeeperError(f"the sandbox of `{self._keeper.name}` cannot be reached: {error.strerror}") from error
        box = Sandbox(self._keeper.paths.layers(record.generation), network_fd, record.volumes)
        box.own(record.program.pid)
        if record.spec.network == "slirp4netns":
            box.slirp = slirp.Slirp(network_fd)
        if record.snapshot is not None:
            self._stand_again_on(record.snapshot)
        return box

    def _stand_again_on(self, snapshot: str) -> None:
        """Go on from the snapshot that an earlier keeper of this instance stood on, where it was not removed since."""
        keeper = self._keeper
        with contextlib.suppress(IjfsError):
            found, meta = keeper.vault.load(snapshot)
            # One that another instance made was restored here: if it was the program that asked for it, it still asks.
            keeper.saver.stands_on(found)
            if meta.spec.name != keeper.name:
                keeper.asked.resumes(found)


def _lost_saves(record: InstanceRecord) -> dict[str, Any]:
    """What a new keeper writes of saves that the killed one had not stored."""
    if not record.saving:
        return {}
    return {"saving": 0, "save_error": LOST_WITH_KEEPER}


def _wanted_ports(spec: InstanceSpec) -> dict[str, int]:
    kernel = KERNEL_PORTS if spec.kind == "kernel" else {}
    return {**kernel, **{f"tcp{port}": port for port in spec.ports}}


def _phases(emit: Emit) -> Callable[[str], None]:
    return lambda name: emit({"kind": "phase", "name": name})
