"""One keeper at work: its state, its verbs, and how it ends. Run by keeper.py; the wire is control.py's.

One verb that changes the program (save, restore, stop) runs at a time; others wait in line for `_busy`. The state is
the loop's own: threads get what they need as arguments.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from ijfs.live import control, instance, namespaces, network, procfs, protocol
from ijfs.live.control import Emit, in_thread
from ijfs.live.errors import InstanceExitedError, KeeperError, ProtocolError
from ijfs.live.guest import GuestPort
from ijfs.live.instance import Sandbox
from ijfs.live.paths import InstancePaths
from ijfs.live.record_file import info_of, kernel_connection, read_record, write_connection_files, write_record
from ijfs.live.records import InstanceInfo, InstanceRecord, InstanceSpec, SaveResult
from ijfs.live.relay import Relay
from ijfs.live.saving import Saver
from ijfs.live.snapshots import Vault
from ijfs.live.workspace import Known, known_files
from ijfs_engine.errors import IjfsError, StorageError

if TYPE_CHECKING:
    from ijfs.live.gpu.program import GpuProgram
    from ijfs.live.pager.api import Pager, PagerProcess
    from ijfs.live.restore import Restored
    from ijfs_engine import Snapshot

# Inside every sandbox a kernel's ports are these, so that a restored one finds its own; the range is one that neither
# the system gives out for outgoing connections (32768 and up) nor well-known servers use.
KERNEL_PORTS = {"shell": 9601, "iopub": 9602, "stdin": 9603, "control": 9604, "hb": 9605}

# After going back in place, how long the other ports wait for a client's iopub to be back: ZMQ tries again after
# 100 ms, and what is published before the subscription stands is lost.
RESUBSCRIBE_S = 2.0
# From the connection to the subscription: ZMTP's greeting, handshake and the SUBSCRIBE message, a few round trips.
SUBSCRIBING_S = 0.05

# How long a save waits for the memory of a lazy restore: a day, because where it comes from may be slow or far.
MEMORY_LIMIT_S = 86400.0

# How long a keeper whose program has ended stays for the answers it still owes.
FAREWELL_S = 2.0

_log = logging.getLogger("ijfs.keeper")


class Keeper:
    """The state of one instance, and the verbs on it."""

    def __init__(self, directory: Path, pager_ahead: PagerProcess | None = None) -> None:
        self.name = directory.name
        self.repo = directory.parent.parent
        self.paths = InstancePaths(directory)
        self.vault = Vault(self.repo)
        self.relay = Relay()
        self.guest = GuestPort(self._guest_request)
        self.record = InstanceRecord(spec=InstanceSpec(name=self.name, argv=()))
        self.box: Sandbox | None = None
        self.pager: Pager | None = None
        self._pager_ahead = pager_ahead
        self.gpu: GpuProgram | None = None
        self.known: Known = {}
        self.saver = Saver(self)
        self._busy = trio.Lock()
        self._requests = 0
        self._ended = trio.Event()
        self._nursery: trio.Nursery | None = None

    # -- life ---------------------------------------------------------------------------------------------------

    async def run(self, first: socket.socket) -> None:
        """Serve the first client's request; when it made the instance, serve everyone until the program ends."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(first))
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._obey_signals)
            # Listening first: who connects as soon as the first answer is out waits in line instead of being refused.
            listener = control.listen(self.paths.socket)
            line = await _first_line(stream)
            if line is not None and await control.serve_request(stream, line, self._first_dispatch):
                nursery.start_soon(control.serve, listener, self._dispatch)
                nursery.start_soon(control.serve_connection, stream, self._dispatch)
                await self._ended.wait()
                await self._answered()
            nursery.cancel_scope.cancel()
        self.relay.close()
        self.vault.close()
        if self._pager_ahead is not None:
            self._pager_ahead.close()
        if self.gpu is not None:
            self.gpu.close()

    async def _answered(self) -> None:
        """Give answers that are being made or sent a moment."""
        with trio.move_on_after(FAREWELL_S):
            while self._requests:
                await trio.sleep(0.005)
            await trio.sleep(0.01)

    async def _obey_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                _log.info("SIGTERM")
                with contextlib.suppress(IjfsError):
                    await self._stop({}, lambda event: None)
                self._ended.set()

    async def _watch(self, box: Sandbox) -> None:
        """The end of the program is the end of the instance, unless another program took its place."""
        assert box.pidfd is not None
        watched = os.dup(box.pidfd)
        try:
            await trio.lowlevel.wait_readable(watched)
        finally:
            os.close(watched)
        async with self._busy:
            if self.box is box:
                await self._finish()

    async def _finish(self, note: str = "") -> None:
        """The program has ended: clean up, write down how it ended."""
        box, self.box = self.box, None
        if box is None:
            return
        self.guest.close()
        self.relay.bar()
        self.relay.drop()
        status = box.reap()
        if self.pager is not None:
            await in_thread(self.pager.close)
        await in_thread(box.dispose, keep_files=True)
        self._write(status="exited", exit_status=status, keeper=None, pager=None, note=note or self.record.note)
        self._ended.set()

    def _take(self, box: Sandbox) -> None:
        """Make this sandbox the instance's: watched and relayed."""
        assert self._nursery is not None
        self.box = box
        self.relay.attach(box.network_fd)
        self._nursery.start_soon(self._watch, box)

    def _write(self, **changes: Any) -> None:
        self.record = msgspec.structs.replace(self.record, **changes)
        write_record(self.paths, self.record)

    def reopen_guest(self, box: Sandbox) -> None:
        """Listen for the program's own requests: from its start, and again after a freeze."""
        assert self._nursery is not None
        self.guest.open(box.network_fd, self._nursery)

    def saved(self, snapshot: str) -> None:
        """The instance stands on a new snapshot."""
        self._write(snapshot=snapshot)

    def live_box(self) -> Sandbox:
        """The sandbox; InstanceExitedError when its program has ended."""
        if self.box is None or not self.box.is_alive():
            raise InstanceExitedError(f"the program of `{self.name}` has ended")
        return self.box

    # -- verbs --------------------------------------------------------------------------------------------------

    async def _first_dispatch(self, verb: str, args: dict[str, Any], emit: Emit) -> dict[str, Any]:
        verbs = {"start": self._start, "restore": self._restore, "adopt": self._adopt}
        return await self._run(verbs, verb, args, emit)

    async def _dispatch(self, verb: str, args: dict[str, Any], emit: Emit) -> dict[str, Any]:
        verbs = {
            "status": self._status,
            "save": self._save,
            "restore": self._go_back,
            "wait_memory": self._wait_memory,
            "signal": self._signal,
            "stop": self._stop,
        }
        return await self._run(verbs, verb, args, emit)

    async def _run(self, verbs: dict[str, Any], verb: str, args: dict[str, Any], emit: Emit) -> dict[str, Any]:
        if verb not in verbs:
            raise ProtocolError(f"a keeper knows no verb `{verb}` here")
        began = time.monotonic()
        self._requests += 1
        try:
            result = await verbs[verb](args, emit)
        finally:
            self._requests -= 1
        if isinstance(result, InstanceInfo | SaveResult):
            phases = {**result.phases, "total": time.monotonic() - began}
            result = msgspec.structs.replace(result, phases=_rounded(phases))
        answer: dict[str, Any] = msgspec.to_builtins(result) if result is not None else {}
        return answer

    async def _start(self, args: dict[str, Any], emit: Emit) -> InstanceInfo:
        spec = msgspec.convert(args["spec"], InstanceSpec)
        before = self._record_before(args)
        self._prepare_record(spec, before)
        connection = json.dumps(kernel_connection(self.record, inside=True)).encode() if spec.kind == "kernel" else None
        emit({"kind": "phase", "name": "start"})
        layers = self.paths.layers(self.record.generation)
        kept = before.volumes if before else None
        box = await in_thread(instance.launch, layers, self.record.spec, self.repo, connection, kept=kept)
        if before and before.snapshot is not None:
            self._stand_again_on(before.snapshot)
        info = self._running(box, again=before is not None, snapshot=before.snapshot if before else None)
        self.reopen_guest(box)
        return info

    def _record_before(self, args: dict[str, Any]) -> InstanceRecord | None:
        """The record of the ended instance that begins again, where that was asked for and there is one."""
        return read_record(self.paths) if args.get("again") and self.paths.record.exists() else None

    def _prepare_record(self, spec: InstanceSpec, before: InstanceRecord | None = None) -> None:
        """The record of an instance about to run, its relay ports listening (those it had `before`, if it had any)."""
        if spec.kind == "kernel" and not spec.kernel_key:
            spec = msgspec.structs.replace(spec, kernel_key=secrets.token_hex(32))
        self._start_gpu(spec)
        ports = self.relay.open(_wanted_ports(spec), before.relay if before else ())
        self.record = InstanceRecord(
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

            self.gpu = GpuProgram()

    def _running(self, box: Sandbox, *, again: bool = False, **changes: Any) -> InstanceInfo:
        """The program runs: write it down, let clients in."""
        assert self._nursery is not None
        self._write(status="running", program=box.program, volumes=box.volumes, **changes)
        write_connection_files(self.paths, self.record)
        self._take(box)
        self._nursery.start_soon(self.relay.serve)
        self._nursery.start_soon(self._let_in, again)
        return self._info()

    async def _let_in(self, again: bool) -> None:
        """Let clients in. Those of a kernel that were connected before get their iopub first: what is published before
        their subscription stands again is lost, and the answer to their first cell would be among it."""
        if again and self.record.spec.kind == "kernel":
            self.relay.admit(["iopub"])
            with trio.move_on_after(RESUBSCRIBE_S):
                await self.relay.connected("iopub")
                await trio.sleep(SUBSCRIBING_S)
        self.relay.admit()

    async def _restore(self, args: dict[str, Any], emit: Emit) -> InstanceInfo:
        """Bring a snapshot back as this (new) instance."""
        snapshot, meta = await in_thread(self.vault.load, str(args["snapshot"]))
        before = self._record_before(args)
        self._prepare_record(msgspec.structs.replace(meta.spec, name=self.name), before)
        if before:
            self.record = msgspec.structs.replace(self.record, generation=before.generation + 1)
        restored = await self._bring_back(snapshot, meta, args, emit)
        if before:
            await in_thread(shutil.rmtree, self.paths.layers(before.generation).root, ignore_errors=True)
        info = self._running(
            restored.box, again=before is not None, snapshot=snapshot.id.hex(), pager=self._pager_process()
        )
        await self._resume_guest(restored, snapshot.id.hex(), meta.guest)
        return msgspec.structs.replace(info, phases=restored.phases, memory=self._memory())

    async def _bring_back(self, snapshot: Any, meta: Any, args: dict[str, Any], emit: Emit) -> Restored:
        from ijfs.live import restore

        layers = self.paths.layers(self.record.generation)
        eager = bool(args.get("eager"))
        ahead, self._pager_ahead = self._pager_ahead, None
        async with self._mounted_pages(snapshot, eager=eager) as pages:
            restored: Restored = await in_thread(
                restore.bring_back,
                layers,
                self.vault,
                snapshot,
                meta,
                eager=eager,
                on_phase=_phases(emit),
                gpu=self.gpu,
                gpus=tuple(args.get("gpus") or ()),
                pager_ahead=ahead,
                pages=pages,
            )
        self.pager = restored.pager
        self.saver.resumes(snapshot)
        return restored

    @contextlib.asynccontextmanager
    async def _mounted_pages(self, snapshot: Snapshot, *, eager: bool) -> AsyncIterator[Path | None]:
        """For an eager restore: the snapshot's images in a mount of the keeper's own, from which CRIU reads the memory
        once, without a second copy of it. None where this machine has no FUSE: it is then staged in memory."""
        if not eager:
            yield None
            return
        from ijfs.fs.sink import image_mount
        from ijfs.fs.stored import image_directory

        self.paths.fuse.mkdir(exist_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            try:
                mount = await stack.enter_async_context(image_mount(self.paths.fuse))
            except StorageError as error:
                _log.warning("no mount for an eager restore: %s", error)
                yield None
                return
            yield mount.serve_images(image_directory(self.vault.repository, self.vault.reader, snapshot))

    async def _resume_guest(self, restored: Restored, snapshot: str, guest: dict[str, Any]) -> None:
        assert self._nursery is not None
        self.guest.hook_ports = [int(port) for port in guest.get("hook_ports", ())]
        self.known = await in_thread(known_files, self.saver.layers(restored.box), restored.began_ns)
        self._nursery.start_soon(self._greet, restored.box, {"event": "after_restore", "snapshot": snapshot})

    async def _greet(self, box: Sandbox, event: dict[str, Any]) -> None:
        """Have a restored program's hooks run, then answer its requests: `ijfs.save()` returns in it after them."""
        async with self._busy:  # a save waits: it would find the hooks half done
            if self.box is box:
                await self.guest.tell(box.network_fd, event)
                self.reopen_guest(box)

    async def _go_back(self, args: dict[str, Any], emit: Emit) -> InstanceInfo:
        """Restore in place: the new program is up before the old one ends, so that a failure costs nothing."""
        async with self._busy:
            old = self.live_box()
            snapshot, meta = await in_thread(self.vault.load, str(args["snapshot"]))
            before = self.record, self.pager
            self.record = msgspec.structs.replace(self.record, generation=self.record.generation + 1)
            try:
                restored = await self._bring_back(snapshot, meta, args, emit)
            except BaseException:
                self.record, self.pager = before
                raise
            emit({"kind": "phase", "name": "switch"})
            await self._switch(old, restored, snapshot.id.hex(), before[1])
            await self._resume_guest(restored, snapshot.id.hex(), meta.guest)
            return msgspec.structs.replace(self._info(), phases=restored.phases, memory=self._memory())

    async def _switch(self, old: Sandbox, restored: Restored, snapshot: str, old_pager: Pager | None) -> None:
        self.relay.bar()
        connected = self.relay.drop()
        self.guest.close()
        self._take(restored.box)
        self._write(
            program=restored.box.program,
            volumes=restored.box.volumes,
            snapshot=snapshot,
            pager=self._pager_process(),
        )
        if old_pager is not None:
            await in_thread(old_pager.close)
        await in_thread(old.kill)
        old.reap()
        await in_thread(old.dispose)
        await self._let_in(connected > 0)

    async def _adopt(self, args: dict[str, Any], emit: Emit) -> InstanceInfo:
        """Take over the program of a keeper that was killed."""
        record = read_record(self.paths)
        if record.boot_id != procfs.boot_id() or record.program is None or not procfs.is_alive(record.program):
            raise InstanceExitedError(f"the program of `{self.name}` has ended")
        self.record = record
        self._start_gpu(record.spec)
        box = self._found_box(record)
        ports, moved = self.relay.open_again(record.relay)
        info = self._running(box, again=True, keeper=procfs.identify(os.getpid()), relay=ports)
        self.reopen_guest(box)
        text = f"the keeper of `{self.name}` had been killed; a new one took the running program over"
        if moved:
            text += f"; ports taken by others meanwhile were replaced: {', '.join(moved)}"
        emit({"kind": "notice", "text": text})
        return info

    def _found_box(self, record: InstanceRecord) -> Sandbox:
        assert record.program is not None
        try:
            network_fd = namespaces.open_namespace(record.program.pid, "net")
        except OSError as error:
            raise KeeperError(f"the sandbox of `{self.name}` cannot be reached: {error.strerror}") from error
        box = Sandbox(self.paths.layers(record.generation), network_fd, record.volumes)
        box.own(record.program.pid)
        if record.spec.network == "slirp4netns":
            box.slirp = network.Slirp(network_fd)
        if record.snapshot is not None:
            self._stand_again_on(record.snapshot)
        return box

    def _stand_again_on(self, snapshot: str) -> None:
        """Go on from the snapshot that an earlier keeper of this instance stood on, where it was not removed since."""
        with contextlib.suppress(IjfsError):
            found, meta = self.vault.load(snapshot)
            # One that another instance made was restored here: if it was the program that asked for it, it still asks.
            (self.saver.stands_on if meta.spec.name == self.name else self.saver.resumes)(found)

    async def _save(self, args: dict[str, Any], emit: Emit) -> SaveResult:
        if self._busy.locked():
            emit({"kind": "notice", "text": "waiting for what is being done to this instance before"})
        async with self._busy:
            result = await self.saver.save(args, emit)
            if result.stopped:
                await self._kill(f"saved as {result.snapshot[:12]} and stopped")
            return result

    async def _stop(self, args: dict[str, Any], emit: Emit) -> InstanceInfo:
        async with self._busy:
            box = self.live_box()
            timeout_s = float(args.get("timeout_s", 5.0))
            if timeout_s > 0:
                with contextlib.suppress(InstanceExitedError):
                    box.signal(signal.SIGTERM)
                await in_thread(box.wait, timeout_s)
            await self._kill("stopped")
            return self._info()

    async def _kill(self, note: str) -> None:
        if self.box is not None:
            if self.gpu is not None and self.box.is_alive():
                await in_thread(self.gpu.prepare_to_kill, self.box.pid)
            await in_thread(self.box.kill)
            await self._finish(note)

    async def _signal(self, args: dict[str, Any], emit: Emit) -> None:
        self.live_box().signal(int(args["number"]))

    async def _status(self, args: dict[str, Any], emit: Emit) -> InstanceInfo:
        return self._info()

    async def _wait_memory(self, args: dict[str, Any], emit: Emit) -> InstanceInfo:
        await self.memory_in()
        return self._info()

    async def memory_in(self) -> None:
        """Wait until a lazy restore is complete: what is not in yet cannot be saved."""
        if self.pager is not None:
            await in_thread(self.pager.wait, MEMORY_LIMIT_S)
            await in_thread(self.pager.close)
            self.pager = None
            self._write(pager=None)
        while self.record.pager is not None:  # a pager that an earlier keeper started
            if not procfs.is_alive(self.record.pager):
                self._write(pager=None)
                return
            await trio.sleep(0.05)

    def _info(self) -> InstanceInfo:
        return info_of(self.paths, self.record, memory=self._memory())

    def _memory(self) -> float:
        return self.pager.status.share if self.pager is not None else 1.0

    def _pager_process(self) -> Any:
        return procfs.identify(self.pager.pid) if self.pager is not None else None

    # -- the program itself asks ----------------------------------------------------------------------------------

    async def _guest_request(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._nursery is not None
        return self.saver.guest_request(request, self._nursery, self._save)


async def _first_line(stream: trio.SocketStream) -> bytes | None:
    lines = protocol.LineBuffer()
    while data := await stream.receive_some(1 << 16):
        found = lines.feed(data)
        if found:
            return found[0]
    return None


def _wanted_ports(spec: InstanceSpec) -> dict[str, int]:
    kernel = KERNEL_PORTS if spec.kind == "kernel" else {}
    return {**kernel, **{f"tcp{port}": port for port in spec.ports}}


def _phases(emit: Emit) -> Any:
    return lambda name: emit({"kind": "phase", "name": name})


def _rounded(phases: dict[str, float]) -> dict[str, float]:
    return {name: round(seconds, 6) for name, seconds in phases.items()}
