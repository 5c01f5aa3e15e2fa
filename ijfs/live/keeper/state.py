"""The state of one live instance: the one owner of each of its parts. Made by server.py.

The verbs (lifecycle.py, save.py, autosave.py, guest_requests.py) read it, and change it only by its methods. It belongs
to the keeper's loop: threads get what they need as arguments.

One verb that changes the program (a save until it is in the queue, a restore, a stop) runs at a time; others wait for
`busy`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import msgspec
import trio

from ijfs.live.checkpoint.snapshot_io import SnapshotStore
from ijfs.live.checkpoint.workspace import StatCache
from ijfs.live.errors import InstanceExitedError
from ijfs.live.keeper.documents import Documents
from ijfs.live.keeper.guest_port import AnswerGuest, GuestPort
from ijfs.live.keeper.threads import in_thread
from ijfs.live.keeper.watchers import Watchers
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.protocol import Happened, What
from ijfs.live.model.record_file import info_of, read_record, write_record
from ijfs.live.model.records import (
    STOPPED,
    Base,
    FilesOrigin,
    InstanceInfo,
    InstanceRecord,
    InstanceSpec,
    KernelState,
    Parked,
    Process,
    RelayPort,
    Status,
    Volume,
    ran_out_of,
)
from ijfs.live.pager import account
from ijfs.live.process import procfs
from ijfs.live.relay.relay import Relay
from ijfs.live.sandbox.sandbox import Sandbox
from ijfs_engine import Snapshot
from ijfs_engine.errors import ConflictError, CorruptError, IjfsError, PreflightError, UnknownNameError

if TYPE_CHECKING:
    from ijfs.live.gpu.program import GpuProgram
    from ijfs.live.pager.api import Pager
    from ijfs_engine import Pin

# How long a save waits for the memory of a lazy restore: a day, because where it comes from may be slow or far.
SAVE_WAIT_S = 86400.0

# An end that soon after a save is noted: it may have to do with it.
AFTER_SAVE_S = 1.0

KILLED = 128 + signal.SIGKILL
"""How a program has ended that was killed, as a shell has it."""

_log = logging.getLogger("ijfs.keeper")


class RecordChanges(TypedDict, total=False):
    """Fields of an InstanceRecord that change while it lives."""

    spec: InstanceSpec
    status: Status
    program: Process | None
    keeper: Process | None
    pager: Process | None
    snapshot: str | None
    relay: tuple[RelayPort, ...]
    volumes: tuple[Volume, ...]
    generation: int
    exit_status: int | None
    note: str
    hook_ports: tuple[int, ...]
    saving: int
    save_error: str
    base: Base | None
    damage: str
    origin: FilesOrigin | None
    parked: Parked | None
    parked_on_disk: bool
    oom_kills: int


class InstanceState:
    """One instance as its keeper has it. `answer` answers what the program asks at the guest port."""

    def __init__(self, directory: Path, snapshots: SnapshotStore | None, answer: AnswerGuest) -> None:
        self.name = directory.name
        self.repo = directory.parent.parent
        self.paths = InstancePaths(directory)
        self.snapshots = snapshots or SnapshotStore(self.repo)
        self.relay = Relay()
        self.relay.traffic.tell = self._tell_of_kernel
        self.guest = GuestPort(answer, lambda ports: self.note(hook_ports=ports))
        self.busy = trio.Lock()
        self.watchers = Watchers()
        self.documents = Documents(self.watchers)
        self.ended = trio.Event()
        """Set when the program has ended for good, and the keeper is to end too."""
        self.record = InstanceRecord(spec=InstanceSpec(name=self.name, argv=()))
        self.sandbox: Sandbox | None = None
        self.pager: Pager | None = None
        self.gpu: GpuProgram | None = None
        self.snapshot: Snapshot | None = None
        """The one that the program continues: the parent of the next save."""
        self.stat_cache: StatCache = {}
        """The program's files as they are in `snapshot`."""
        self._thawed_at = -math.inf
        """When it last ran on after a save, by the monotonic clock."""
        self.secrets: dict[str, str] = {}
        """What its caller gave for it, which is written down nowhere."""
        self._pin: Pin | None = None
        self._nursery: trio.Nursery | None = None

    # -- background tasks -----------------------------------------------------------------------------------------

    def run_tasks_in(self, nursery: trio.Nursery) -> None:
        """Background tasks live in this nursery, that is as long as the keeper."""
        self._nursery = nursery

    def spawn(self, task: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run something in the background for as long as the keeper lives."""
        assert self._nursery is not None
        self._nursery.start_soon(task, *args)

    def close(self) -> None:
        """Let go of everything but the program."""
        self.relay.close()
        if self._pin is not None:
            self._pin.close()
        self.snapshots.close()
        if self.gpu is not None:
            self.gpu.close()

    # -- the record -----------------------------------------------------------------------------------------------

    def begin_as(self, record: InstanceRecord) -> None:
        """The record of an instance whose program is about to run; it goes to disk when the program runs."""
        self.record = record

    def write(self, **changes: Unpack[RecordChanges]) -> None:
        """Change the record, on disk too. StorageError; nothing is changed then."""
        record = msgspec.structs.replace(self.record, **changes)
        write_record(self.paths, record)
        self.record = record

    def note(self, **changes: Unpack[RecordChanges]) -> None:
        """Change the record where a directory that is gone or full must stop nothing."""
        try:
            self.write(**changes)
        except IjfsError as error:
            self.record = msgspec.structs.replace(self.record, **changes)
            _log.warning("not written down: %s", error)

    def mend_record(self) -> None:
        """Write the record anew where it is damaged on disk."""
        try:
            read_record(self.paths)
        except CorruptError as error:
            _log.warning("%s: written anew", error)
            self.note()
        except (IjfsError, OSError):
            return

    def info(self) -> InstanceInfo:
        """The instance as callers are shown it."""
        memory, damage = self._memory()
        info = info_of(self.paths, self.record, memory=memory, damage=damage)
        if self.sandbox is not None and (usage := self.sandbox.group.usage()) is not None:
            info = msgspec.structs.replace(info, usage=usage, oom_kills=usage.oom_kills)
        if info.kind != "kernel" or info.status != "running":
            return info
        traffic = self.relay.traffic
        return msgspec.structs.replace(info, kernel=traffic.state, unsaved=traffic.unsaved)

    def _tell_of_kernel(self, what: What, text: str) -> None:
        self.watchers.tell(Happened(what, text=text))

    # -- the program and its sandbox ------------------------------------------------------------------------------

    def start_gpu(self, spec: InstanceSpec) -> None:
        """Where the program uses a GPU: begin to load the driver, so that the first save does not wait for it."""
        if spec.gpu:
            from ijfs.live.gpu.program import GpuProgram

            self.gpu = GpuProgram()

    def move_into(
        self,
        sandbox: Sandbox,
        *,
        snapshot: Snapshot | None = None,
        pager: Pager | None = None,
        earlier_pager: Process | None = None,
        changes: RecordChanges | None = None,
    ) -> None:
        """From now on the program is the one in this sandbox, instead of any earlier one. Watch it, and relay to it.

        `snapshot`: it was restored from that one. `pager` brings its memory in; `earlier_pager`, one that an earlier
        keeper started. `changes`: what else the record says from now on. What fails leaves everything as it was:
        StorageError, UnknownNameError when the snapshot was removed meanwhile.
        """
        pin = self._pin_of(snapshot) if snapshot is not None else None
        bringing = _identified(pager.pid) if pager is not None else earlier_pager
        changed: RecordChanges = {
            "status": "running",
            "program": sandbox.program,
            "volumes": sandbox.volumes,
            "base": sandbox.lower.base,
            "pager": bringing,
            "damage": "",
            "parked": None,
            "parked_on_disk": False,
            "oom_kills": 0,
            **(changes or RecordChanges()),
        }
        if snapshot is not None:
            changed["snapshot"] = snapshot.id.hex()
        try:
            self.write(**changed)
        except BaseException:
            if pin is not None:
                pin.close()
            raise
        if snapshot is not None and pin is not None:
            self._continue(snapshot, pin)
        self.sandbox, self.pager = sandbox, pager
        self.relay.attach(sandbox.network_fd)
        self.spawn(self._watch, sandbox)

    def live_sandbox(self) -> Sandbox:
        """The sandbox; InstanceExitedError when its program has ended."""
        if self.sandbox is None or not self.sandbox.is_alive():
            raise InstanceExitedError(f"the program of `{self.name}` has ended")
        return self.sandbox

    async def kill(self, note: str, *, parked: bool = False) -> None:
        """End the program and clean up; for who holds `busy`. `parked`: the snapshot it stands on is to be woken."""
        if self.sandbox is not None:
            if self.gpu is not None and self.sandbox.is_alive():
                await in_thread(self.gpu.prepare_to_kill, self.sandbox.pid)
            await in_thread(self.sandbox.kill)
            await self._finish(note, parked=parked)

    def ended_by(self, number: int) -> bool:
        """Whether the program was ended by that signal, and nothing is noted of why."""
        record = self.record
        return record.status == "exited" and record.exit_status == 128 + number and not record.note.endswith(STOPPED)

    async def _watch(self, sandbox: Sandbox) -> None:
        """The end of the program is the end of the instance, unless another program took its place."""
        assert sandbox.pidfd is not None
        watched = os.dup(sandbox.pidfd)
        try:
            await trio.lowlevel.wait_readable(watched)
        finally:
            os.close(watched)
        async with self.busy:
            if self.sandbox is sandbox:
                await self._finish()

    def kernel_saved(self) -> KernelState | None:
        """A kernel was frozen just now: what it was doing, None of other programs. What it runs from now on is not
        saved."""
        if self.record.spec.kind != "kernel":
            return None
        self.relay.traffic.unsaved = self.relay.traffic.busy
        return self.relay.traffic.state

    def note_thaw(self) -> None:
        """A save has let the program go on: an end soon after it is told with its reason."""
        self._thawed_at = time.monotonic()

    async def _finish(self, note: str = "", *, parked: bool = False) -> None:
        """The program has ended: clean up, write down how it ended."""
        sandbox, self.sandbox = self.sandbox, None
        if sandbox is None:
            return
        since = time.monotonic() - self._thawed_at
        after_save = f"ended {since:.1f} s after a save" if since < AFTER_SAVE_S else ""
        self.guest.close()
        self.relay.bar()
        self.relay.drop()
        status, oom_kills = sandbox.reap(), sandbox.group.oom_kills()
        if self.pager is not None:
            await in_thread(self.pager.close)
        # A program that met memory that could not be brought has a signal for its end: this is the reason.
        damage = self._memory()[1]
        await in_thread(sandbox.dispose, keep_files=True)
        # The record keeps its keeper for as long as saves are on their way into the repository.
        out_of_memory = ran_out_of(self.record.spec.limits) if oom_kills and status == KILLED else ""
        note = note or out_of_memory or after_save or self.record.note
        self.note(
            status="exited",
            exit_status=status,
            pager=None,
            note=note,
            damage=damage,
            parked=None,
            parked_on_disk=parked,
            oom_kills=oom_kills,
        )
        self.watchers.tell(Happened("exited", text=note or (f"exit status {status}" if status is not None else "")))
        self.ended.set()

    # -- what the program asks ------------------------------------------------------------------------------------

    def open_guest_port(self, sandbox: Sandbox) -> None:
        """Listen for the program's own requests: from its start, and again after a freeze."""
        assert self._nursery is not None
        self.guest.open(sandbox.network_fd, self._nursery)

    def set_hooks(self, ports: Sequence[int]) -> None:
        """The program has its hooks at these ports, as a snapshot or a record has it."""
        self.guest.set_hooks(ports)
        self.note(hook_ports=tuple(ports))

    # -- the snapshot it stands on --------------------------------------------------------------------------------

    def stand_on(self, snapshot: Snapshot) -> None:
        """Go on from that snapshot: it is the parent of the next save, and nobody may remove it.
        UnknownNameError when somebody has."""
        self._continue(snapshot, self._pin_of(snapshot))

    def record_save(self, snapshot: Snapshot, stat_cache: StatCache) -> None:
        """Stand on a new snapshot, which is durable whether or not this can be written down."""
        self.stand_on(snapshot)
        # Files are compared with the parent of the next save, never with another snapshot.
        self.stat_cache = stat_cache
        self.note(snapshot=snapshot.id.hex(), save_error="")

    def forget_branch(self) -> None:
        """Delete the branch that its saves made. One that was there before, or that somebody has moved, stays."""
        refs, name = self.snapshots.repository.refs, self.record.spec.name
        made = [change for change in refs.log(f"branch/{name}") if change.old is None]
        if self.snapshot is not None and made and made[0].time_ns >= self.record.created_ns:
            with contextlib.suppress(UnknownNameError, ConflictError):
                refs.delete_branch(name, expect=self.snapshot.id)

    def set_files(self, stat_cache: StatCache) -> None:
        """Set which of the program's files are as in the snapshot it stands on."""
        self.stat_cache = stat_cache

    def _pin_of(self, snapshot: Snapshot) -> Pin:
        return self.snapshots.repository.pin(snapshot.id, f"live program {self.name}")

    def _continue(self, snapshot: Snapshot, pin: Pin) -> None:
        before, self._pin = self._pin, pin
        self.snapshot = snapshot
        if before is not None:
            before.close()

    # -- the memory of a lazy restore -----------------------------------------------------------------------------

    async def wait_for_memory(self) -> None:
        """Wait until a lazy restore is complete: what is not in yet cannot be saved.

        PreflightError where the memory is not, and will not be, what was saved: a save would keep zeros for it.
        TargetDiedError where the program waits for memory that nobody brings.
        """
        while self.pager is not None or self.record.pager is not None:
            if self.pager is not None:
                await self._follow(self.pager)
            elif self.record.pager is not None:
                await self._follow_earlier(self.record.pager)
        if self.record.damage:
            raise self._not_whole(self.record.damage)

    def memory(self) -> float:
        """The share of the memory that is in."""
        return self._memory()[0]

    async def _follow(self, pager: Pager) -> None:
        pager.hurry()
        try:
            status = await in_thread(pager.wait, SAVE_WAIT_S)
        except IjfsError:
            if self.pager is pager:
                raise
            return  # the instance went back meanwhile
        if self.pager is pager:
            self.pager = None
            self.note(pager=None, damage=status.damage)
            self.watchers.tell(Happened("memory", text=status.damage))
            await in_thread(pager.close)

    async def _follow_earlier(self, pager: Process) -> None:
        """A look at a pager that an earlier keeper started, and a moment's wait where it is still at work."""
        progress = await in_thread(account.progress_of, self._criu_directory, pager)
        if self.record.pager is not pager:
            return  # the instance went back meanwhile
        if progress.complete:
            self.note(pager=None, damage=progress.damage)
            self.watchers.tell(Happened("memory", text=progress.damage))
        elif progress.damage:
            raise self._not_whole(progress.damage)
        else:
            await trio.sleep(0.05)

    def _memory(self) -> tuple[float, str]:
        """The share of the memory that is in, and why it is not what was saved."""
        if self.pager is not None:
            status = self.pager.status
            return status.share, status.damage
        if self.record.pager is not None:
            progress = account.progress_of(self._criu_directory, self.record.pager)
            return progress.share, progress.damage
        return 1.0, self.record.damage

    @property
    def _criu_directory(self) -> Path:
        return self.paths.sandbox(self.record.generation).criu

    def _not_whole(self, damage: str) -> PreflightError:
        back = f"ijfs restore {(self.record.snapshot or '')[:12]} --replace --name {self.name}"
        return PreflightError(
            f"the memory of `{self.name}` is not whole and would not be saved as it was: {damage}",
            hint=f"the snapshot it came from is unharmed: `{back}`",
        )


def _identified(pid: int) -> Process:
    """The process; one that is gone already counts as dead, not as none."""
    return procfs.identify(pid) or Process(pid, 0)
