"""One save, as the program sees it: frozen, read, running again (`freeze`); and then, at leisure, stored (`store`).

Nothing is compressed, hashed or allocated while the program stands still; what is more than the memory set aside for it
(arena_pool.py) is written to disk. The keeper calls both in a thread: it holds
the relay before, and releases it between them. A freeze that fails leaves the program running; a store that fails
leaves the repository as it was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ijfs.live.checkpoint.arena_pool import ArenaPool
from ijfs.live.checkpoint.snapshot_io import LiveMeta, SaveContents
from ijfs.live.checkpoint.workspace import Capture, LayerWalker, StatCache, WritableLayer, mapped_in
from ijfs.live.checks import blockers
from ijfs.live.criu import command as criu
from ijfs.live.criu.dump_stats import freezing_seconds
from ijfs.live.criu.image_stream import StreamCapture
from ijfs.live.errors import CriuError, InstanceExitedError
from ijfs.live.gpu.checkpoint import LOCK_TIMEOUT_MS
from ijfs.live.model.records import InstanceSpec
from ijfs.live.process import procfs
from ijfs.live.sandbox import rootfs
from ijfs.live.sandbox.sandbox import Sandbox
from ijfs_engine import Arena, Segments
from ijfs_engine.errors import IjfsError, StorageError

# What a dump holds beside the memory that was measured: page tables, registers, files; and what the program allocates
# between being measured and being frozen. Address space only; memory is taken when it is written.
SLACK = 256 << 20

# A program that is being killed is still there for a moment, with half of what /proc shows of it gone.
DEATH_S = 0.3

OnPhase = Callable[[str], None]

if TYPE_CHECKING:
    from ijfs.live.gpu.program import GpuProgram, GpuRecord


@dataclass(frozen=True, slots=True)
class GpuPart:
    """How a GPU program's device memory is taken: `force` in spite of preflight, `timeout_s` for running kernels."""

    program: GpuProgram
    force: bool = False
    timeout_s: float = LOCK_TIMEOUT_MS / 1000


@dataclass(slots=True)
class Frozen:
    """What a freeze brought: images and files in memory, and how long it took."""

    images: Mapping[str, Segments]
    workspace: Capture
    frozen_s: float
    arena: Arena
    spilled_bytes: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    stopped: bool = False
    gpu: GpuRecord | None = None

    @property
    def image_bytes(self) -> int:
        """Bytes of all images."""
        return sum(segments.nbytes for segments in self.images.values())

    def discard(self) -> None:
        """Let go of the memory and remove the staged files."""
        self.workspace.discard()
        self.images = {}
        self.workspace = Capture()


class Prepared(NamedTuple):
    """What a freeze works with: who reads the files, and memory that was faulted in."""

    walker: LayerWalker
    arena: Arena
    seconds: float


def prepare(
    box: Sandbox, layers: Sequence[WritableLayer], known: StatCache, aside: ArenaPool, *, gpu: GpuPart | None = None
) -> Prepared:
    """Measure the program and fault in memory for as much, while it runs and its clients reach it. StorageError when
    there is no memory for it, InstanceExitedError when it ended."""
    began = time.monotonic()
    try:
        # A directory of its own: the save before may still be reading what it staged.
        walker = LayerWalker(layers, known, box.layers.root / f"stage-{time.monotonic_ns()}")
        memory = memory_bytes(box.pid) + (gpu.program.held_bytes(box.pid) if gpu else 0)
        files = walker.measure()
        arena = aside.lend(memory + files, 2 * memory + files + SLACK, box.layers.root)
    except (OSError, IjfsError) as error:
        raise _explained(error, box) from None
    return Prepared(walker, arena, time.monotonic() - began)


def freeze(box: Sandbox, prepared: Prepared, *, stop: bool, on_phase: OnPhase, gpu: GpuPart | None = None) -> Frozen:
    """Freeze the program, take its memory and files, and let it run on (or leave it stopped, with `stop`).

    Raises InstanceExitedError when it ended meanwhile, CriuError when CRIU refuses, StorageError when there is no
    memory for it, PreflightError and the errors of ijfs.live.gpu where it uses a GPU: in each case the program, if
    there is one, runs on (GpuLostError says so where it does not).
    """
    clock = Clock(on_phase)

    def dump() -> Frozen:
        return _dumped(box, prepared.walker, prepared.arena, clock, stop=stop)

    if gpu is None:
        clock.begin("dump")
        return dump()
    return _frozen_with_gpu(box, gpu, clock, dump)


def _frozen_with_gpu(box: Sandbox, gpu: GpuPart, clock: Clock, dump: Callable[[], Frozen]) -> Frozen:
    """A dump with the GPU's state in host memory; the program stands still from the driver's lock to its unlock."""
    clock.begin("gpu")
    began = time.monotonic()
    record = gpu.program.suspend(box.pid, force=gpu.force, lock_timeout_ms=int(gpu.timeout_s * 1000))
    stopped = False
    try:
        clock.begin("dump")
        frozen = dump()
        stopped = frozen.stopped
    finally:
        if not stopped:
            clock.begin("gpu back")
            gpu.program.resume()
            clock.end()
    frozen.gpu = record
    if record is not None:
        frozen.frozen_s = time.monotonic() - began
        frozen.phases.update(gpu.program.phases)
    return frozen


def _dumped(box: Sandbox, walker: LayerWalker, arena: Arena, clock: Clock, *, stop: bool) -> Frozen:
    captured: list[Capture] = []
    box.layers.criu.mkdir(exist_ok=True)
    with _short(box.layers.criu) as directory, StreamCapture(directory, arena) as stream:

        def while_frozen() -> None:
            stream.drain()
            clock.begin("workspace")
            captured.append(walker.capture(arena, mapped_in(box.pid)))
            clock.begin("thaw")

        try:
            frozen_s = criu.dump(_request(box, directory, stop=stop), while_frozen)
            clock.end()
            clock.divide("dump", "freeze", freezing_seconds(box.layers.criu))
            images = stream.finish(left_running=not stop)
        except BaseException as error:
            for capture in captured:
                capture.discard()
            raise _explained(error, box) from None
    return Frozen(images, captured[0], frozen_s, arena, arena.spilled, clock.phases, stop)


def _request(box: Sandbox, directory: Path, *, stop: bool) -> criu.Dump:
    return criu.Dump(
        pid=box.pid,
        images=directory,
        work=box.layers.criu,
        network_fd=box.network_fd,
        external_mounts=rootfs.external_inside(box.volumes),
        leave="stopped" if stop else "running",
        options=("--stream",),
    )


def _explained(error: BaseException, box: Sandbox) -> BaseException:
    """The same error, or what it means: a program that ended is not CRIU's fault; known blockers are named."""
    if not isinstance(error, IjfsError | OSError):
        return error
    if box.wait(DEATH_S):
        return InstanceExitedError("the program ended while it was being saved; nothing was stored")
    make_sure_it_runs(box)
    if isinstance(error, OSError):
        return StorageError(f"the program's files cannot be read: {error}; it runs on")
    if isinstance(error, CriuError):
        found = [verdict for verdict in blockers.of_program(box.pid) if verdict.outcome == "refuse"]
        if found:
            text = "; ".join(verdict.evidence for verdict in found)
            return CriuError(f"{error}; the program runs on. Blocker: {text}", hint=found[0].remedy or error.hint)
        return CriuError(f"{error}; the program runs on", hint=error.hint)
    return error


def make_sure_it_runs(box: Sandbox) -> None:
    """Wake every process of the sandbox: a killed CRIU may leave some stopped."""
    with contextlib.suppress(OSError, InstanceExitedError):
        for pid in procfs.processes_in("pid", procfs.namespace_id(box.pid, "pid")):
            if procfs.state(pid) in ("T", "t"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def parts(
    frozen: Frozen,
    box: Sandbox,
    spec: InstanceSpec,
    *,
    message: str,
    branch: str,
    notebook: bytes | None,
    guest: dict[str, Any],
    environment: dict[str, str],
    auto: bool = False,
    notes: Sequence[str] = (),
) -> SaveContents:
    """What goes into the repository."""
    meta = LiveMeta(
        spec=spec,
        volumes=box.volumes,
        environment=environment,
        guest=guest,
        gpu=msgspec.to_builtins(frozen.gpu, str_keys=True),
        image_bytes=frozen.image_bytes,
        workspace_bytes=frozen.workspace.bytes_total,
        frozen_s=frozen.frozen_s,
        auto=auto,
    )
    return SaveContents(
        images=frozen.images,
        workspace=frozen.workspace,
        notebook=notebook,
        meta=meta,
        message=message,
        branch=branch,
        notes=tuple(notes),
    )


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


class Clock:
    """Seconds by phase; phases follow one another."""

    def __init__(self, on_phase: OnPhase) -> None:
        self.phases: dict[str, float] = {}
        self._on_phase = on_phase
        self._name: str | None = None
        self._began = 0.0

    def begin(self, name: str) -> None:
        """End the phase that runs, begin the next."""
        self.end()
        self._name, self._began = name, time.monotonic()
        self._on_phase(name)

    def divide(self, name: str, first: str, seconds: float) -> None:
        """Give the beginning of a phase that has ended a name of its own."""
        part = min(seconds, self.phases.get(name, 0.0))
        divided: dict[str, float] = {}
        for phase, whole in self.phases.items():
            divided |= {first: part, name: whole - part} if phase == name else {phase: whole}
        self.phases = divided

    def end(self) -> None:
        """End the phase that runs."""
        if self._name is not None:
            self.phases[self._name] = self.phases.get(self._name, 0.0) + time.monotonic() - self._began
            self._name = None
