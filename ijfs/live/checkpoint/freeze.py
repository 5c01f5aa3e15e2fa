"""The freeze of one save, in two steps that keeper/save.py runs in a thread, one after the other.

`prepare`, while the program runs and its clients reach it: measure it, read the files that changed ahead, fault in
memory for as much.
`freeze`, while the keeper holds the relay: suspend its GPU, freeze it, dump its memory, capture its files, thaw it,
resume its GPU.

Nothing is compressed, hashed or allocated while the program stands still; what is more than the memory set aside for it
(arena_pool.py) is written to disk. A freeze that fails leaves the program running. Storing what a freeze brought is
in keeper/save.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ijfs.live.checkpoint.arena_pool import ArenaPool
from ijfs.live.checkpoint.early_look import EarlyLook
from ijfs.live.checkpoint.layers import writable_layers
from ijfs.live.checkpoint.phases import Clock
from ijfs.live.checkpoint.workspace import Capture, LayerWalker, StatCache, leased_in, mapped_in
from ijfs.live.checks import blockers, nested
from ijfs.live.checks.result import refused
from ijfs.live.criu import command as criu_command
from ijfs.live.criu import injected_calls, kernel_features
from ijfs.live.criu.dump_stats import freezing_seconds
from ijfs.live.criu.image_stream import StreamCapture
from ijfs.live.criu.injected_calls import Code
from ijfs.live.criu.log import cut_short
from ijfs.live.errors import CriuError, CriuKilledError, InstanceExitedError, ProgramRefusedError
from ijfs.live.gpu.checkpoint import LOCK_TIMEOUT_MS
from ijfs.live.process import procfs, tcp_repair
from ijfs.live.process.datagrams import unread_datagrams
from ijfs.live.process.timers import NotifiedThread, notified_threads
from ijfs.live.sandbox import rootfs
from ijfs.live.sandbox.sandbox import Sandbox
from ijfs_engine import Arena, Segments
from ijfs_engine.errors import IjfsError, StorageError

if TYPE_CHECKING:
    from ijfs.live.gpu.program import GpuProgram, GpuRecord

# What a dump holds beside the memory that was measured: page tables, registers, files; and what the program allocates
# between being measured and being frozen. Address space only; memory is taken when it is written.
SLACK = 256 << 20

# A program that is being killed is still there for a moment, with half of what /proc shows of it gone.
DEATH_S = 0.3


@dataclass(frozen=True, slots=True)
class GpuPart:
    """How a GPU program's device memory is taken: `force` in spite of preflight, `timeout_s` for running kernels."""

    program: GpuProgram
    force: bool = False
    timeout_s: float = LOCK_TIMEOUT_MS / 1000


class Prepared(NamedTuple):
    """What a freeze works with: the reader of the program's files, memory that was faulted in, and which processes
    the user has stopped."""

    walker: LayerWalker
    arena: Arena
    stopped: frozenset[int]


@dataclass(slots=True)
class Frozen:
    """What a freeze brought: images and files in memory, and how long the program stood still."""

    images: Mapping[str, Segments]
    workspace: Capture
    frozen_s: float
    arena: Arena
    spilled_bytes: int = 0
    stopped: bool = False
    gpu: GpuRecord | None = None
    cut_short: tuple[str, ...] = ()
    """Threads ("NAME (process N)") whose system call ended with EINTR because of the save."""
    unread: tuple[str, ...] = ()
    """What of its network is not in the images, a sentence each."""
    at_ns: int = 0
    """When it stood still, by the wall clock."""
    lost: str = ""
    """Why the program did not go on, where it should have: the images are whole."""
    timers: tuple[NotifiedThread, ...] = ()

    @property
    def image_bytes(self) -> int:
        """Bytes of all images."""
        return sum(segments.nbytes for segments in self.images.values())

    def discard(self) -> None:
        """Let go of the memory and remove the staged files."""
        self.workspace.discard()
        self.images = {}
        self.workspace = Capture()


def prepare(sandbox: Sandbox, stat_cache: StatCache, arenas: ArenaPool, *, gpu: GpuPart | None = None) -> Prepared:
    """Measure the program, read its changed files and fault in memory, while it runs and its clients reach it.

    StorageError when there is no memory for it, InstanceExitedError when it ended, ProgramRefusedError where it is
    known that what CRIU would save could not be restored.
    """
    _require_restorable(sandbox)
    kernel_features.mount_cache()
    stopped = frozenset(stopped_processes(sandbox))
    try:
        # A directory of its own: the save before may still be reading what it staged.
        staging = sandbox.paths.root / f"stage-{time.monotonic_ns()}"
        walker = LayerWalker(writable_layers(sandbox), stat_cache, staging)
        memory = memory_bytes(sandbox.pid) + (gpu.program.held_bytes(sandbox.pid) if gpu else 0)
        files = walker.measure(mapped_in(sandbox.pid))
        # What changes between being read and being frozen is read twice.
        arena = arenas.acquire(memory + files, 2 * (memory + files) + SLACK, sandbox.paths.root)
        walker.read_ahead(arena, leased_in(sandbox.pid))
    except (OSError, IjfsError) as error:
        raise _explained(error, sandbox, stopped) from None
    return Prepared(walker, arena, stopped)


def _require_restorable(sandbox: Sandbox) -> None:
    """CRIU saves a process in a network namespace of its own and never restores it; other namespaces it refuses. What
    is traced it cannot stop, and what it had stopped before would have stood still for nothing."""
    found = [*nested.of_program(sandbox.pid), *blockers.traced(sandbox.pid)]
    if found:
        text = "; ".join(verdict.evidence for verdict in found)
        raise ProgramRefusedError(f"the program cannot be saved: {text}; it runs on", hint=found[0].remedy)


def freeze(sandbox: Sandbox, prepared: Prepared, clock: Clock, *, stop: bool, gpu: GpuPart | None = None) -> Frozen:
    """Freeze the program, take its memory and files, and let it run on (or leave it stopped, with `stop`).

    Raises InstanceExitedError when it ended meanwhile, CriuError when CRIU refuses, StorageError when there is no
    memory for it, PreflightError and the errors of ijfs.live.gpu where it uses a GPU: in each case the program, if
    there is one, runs on (GpuLostError says so where it does not).
    """
    with sandbox.group.lifted():
        if gpu is None:
            return _dump(sandbox, prepared, clock, stop=stop)
        return _dump_with_gpu(sandbox, prepared, clock, gpu, stop=stop)


def _dump_with_gpu(sandbox: Sandbox, prepared: Prepared, clock: Clock, gpu: GpuPart, *, stop: bool) -> Frozen:
    """A dump with the GPU's state in host memory; the program stands still from the driver's lock to its unlock."""
    clock.begin("gpu")
    began = time.monotonic()
    record = gpu.program.suspend(sandbox.pid, force=gpu.force, lock_timeout_ms=int(gpu.timeout_s * 1000))
    stopped = False
    try:
        frozen = _dump(sandbox, prepared, clock, stop=stop)
        stopped = frozen.stopped
    finally:
        if not stopped:
            clock.begin("gpu back")
            gpu.program.resume()
            clock.end()
    frozen.gpu = record
    if record is not None:
        frozen.frozen_s = time.monotonic() - began
        clock.split("gpu", gpu.program.phases, ("gpu_lock", "gpu_checkpoint"))
        clock.split("gpu back", gpu.program.phases, ("gpu_restore", "gpu_unlock"))
    return frozen


def _dump(sandbox: Sandbox, prepared: Prepared, clock: Clock, *, stop: bool) -> Frozen:
    """CRIU freezes the program and streams its memory; before CRIU thaws it, its files are captured."""
    clock.begin("dump")
    captured: list[Capture] = []
    unread: list[str] = []
    timers: list[NotifiedThread] = []
    at_ns: list[int] = []
    code: list[Code] = []
    sandbox.paths.criu.mkdir(exist_ok=True)
    with _short(sandbox.paths.criu) as directory, StreamCapture(directory, prepared.arena) as stream:
        early = EarlyLook(stream, prepared.walker, sandbox.pid)

        def while_frozen() -> None:
            stream.drain()
            at_ns.append(time.time_ns())
            unread.extend(unread_datagrams(sandbox.pid))
            members = procfs.processes_in("pid", procfs.namespace_id(sandbox.pid, "pid"))
            timers.extend(notified_threads(members))
            code.extend(injected_calls.first_code(members))
            clock.begin("workspace")
            early.end()
            captured.append(prepared.walker.capture(prepared.arena, mapped_in(sandbox.pid), early.leases))
            clock.begin("thaw")

        lost = ""
        began = time.monotonic()
        try:
            frozen_s = criu_command.dump(_dump_request(sandbox, directory, stop=stop), while_frozen)
            clock.end()
            clock.divide("dump", "freeze", freezing_seconds(sandbox.paths.criu))
            images = _received(stream, code, left_running=not stop)
            cut_short = _cut_short(sandbox)
        except BaseException as error:
            taken = _taken(error, stream, code, sandbox)
            if taken is None:
                for capture in captured:
                    capture.discard()
                prepared.walker.discard()
                raise _explained(stream.error or error, sandbox, prepared.stopped) from None
            images, frozen_s, cut_short, lost = taken, time.monotonic() - began, (), str(error)
    spilled = prepared.arena.spilled
    return Frozen(
        images,
        captured[0],
        frozen_s,
        prepared.arena,
        spilled,
        stop,
        cut_short=cut_short,
        unread=tuple(unread),
        at_ns=at_ns[0],
        timers=tuple(timers),
        lost=lost,
    )


def _received(stream: StreamCapture, code: Sequence[Code], *, left_running: bool = True) -> Mapping[str, Segments]:
    """The images, with the programs' own code in them. StreamError, CorruptError."""
    stream.finish(left_running=left_running)
    injected_calls.put_back(stream.files, code)
    return stream.finish(left_running=left_running)


def _taken(
    error: BaseException, stream: StreamCapture, code: Sequence[Code], sandbox: Sandbox
) -> Mapping[str, Segments] | None:
    """The images, where CRIU was killed when all of the program had been taken, and the program ended with it: it is
    saved, and that is all there is of it now. None for every other error, and where the program runs on."""
    if isinstance(error, CriuKilledError) and error.taken and sandbox.wait(DEATH_S):
        with contextlib.suppress(IjfsError):
            return _received(stream, code)
    return None


def _cut_short(sandbox: Sandbox) -> tuple[str, ...]:
    threads = cut_short(sandbox.paths.criu / "dump.log")
    return tuple(f"{procfs.name_of(thread)} (process {thread})" for thread in threads)


def _dump_request(sandbox: Sandbox, directory: Path, *, stop: bool) -> criu_command.Dump:
    return criu_command.Dump(
        pid=sandbox.pid,
        images=directory,
        work=sandbox.paths.criu,
        network_fd=sandbox.network_fd,
        external_mounts=rootfs.external_inside(sandbox.volumes),
        leave="stopped" if stop else "running",
        options=("--stream",),
    )


def _explained(error: BaseException, sandbox: Sandbox, stopped: frozenset[int]) -> BaseException:
    """The same error, or what it means: a program that ended is not CRIU's fault; known blockers are named."""
    if not isinstance(error, IjfsError | OSError):
        return error
    if sandbox.wait(DEATH_S):
        why = f", because {error}" if isinstance(error, CriuKilledError) else ""
        return InstanceExitedError(f"the program ended while it was being saved{why}; nothing was stored")
    wake_stopped(sandbox, but=stopped)
    if isinstance(error, CriuKilledError):
        tcp_repair.end(_members(sandbox))
    if isinstance(error, OSError):
        return StorageError.of("the program runs on, but cannot be saved", error)
    if isinstance(error, CriuError):
        found = refused(blockers.of_program(sandbox.pid))
        if found:
            text = "; ".join(verdict.evidence for verdict in found)
            return ProgramRefusedError(
                f"{error}; the program runs on. Blocker: {text}", hint=found[0].remedy or error.hint
            )
        return type(error)(f"{error}; the program runs on", hint=error.hint)
    return error


def wake_stopped(sandbox: Sandbox, *, but: frozenset[int]) -> None:
    """Let every process of the sandbox run on that a save has stopped: one with `stop`, or a CRIU that was killed. Not
    those that were stopped before (`but`), and not those that somebody traces."""
    for pid in stopped_processes(sandbox):
        if pid not in but:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def stopped_processes(sandbox: Sandbox) -> list[int]:
    """The processes of the sandbox that a signal has stopped."""
    return [pid for pid in _members(sandbox) if procfs.state(pid) == "T"]


def _members(sandbox: Sandbox) -> list[int]:
    """The processes of the sandbox; none where it has ended."""
    with contextlib.suppress(OSError, InstanceExitedError):
        return procfs.processes_in("pid", procfs.namespace_id(sandbox.pid, "pid"))
    return []


def memory_bytes(pid: int) -> int:
    """Memory a dump of the pid namespace of `pid` will hold, from above: resident private and shared pages."""
    total = 0
    for member in procfs.processes_in("pid", procfs.namespace_id(pid, "pid")):
        total += procfs.dumpable_bytes(member)
    return total


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[Path]:
    """A path of the directory that is short enough for CRIU's socket name, wherever the repository is."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield directory if len(os.fsencode(directory)) < 80 else Path(f"/proc/{os.getpid()}/fd/{fd}")
    finally:
        os.close(fd)
