"""One restore: a snapshot's program running again in a sandbox of its own.

`restore_snapshot` is the one way, for a restore that begins before its keeper is loaded (keeper/early_restore.py) as
for any other (keeper/lifecycle.py); it blocks, and they call it in a thread. Its steps are in `_Restore.run`.

What takes long runs at the same time: the pager's process starts while files and images come out of the repository, and
memory comes in while the program already runs. A restore that fails leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ijfs.live.checkpoint import inodes, python_packages, room, shared_folders
from ijfs.live.checkpoint.layers import upper_directories
from ijfs.live.checkpoint.machine_files import REMEDY, differences
from ijfs.live.checkpoint.phases import Clock, OnPhase
from ijfs.live.checkpoint.snapshot_io import LiveMeta, SnapshotStore, gpu_record
from ijfs.live.checkpoint.workspace import put_back
from ijfs.live.criu import command as criu_command
from ijfs.live.criu import eager_pages, kernel_features, stage_images
from ijfs.live.criu.image_format import parse_unsent_bytes
from ijfs.live.criu.mending import Noted
from ijfs.live.errors import CriuError, ProgramRefusedError, SandboxError
from ijfs.live.model.paths import SandboxPaths
from ijfs.live.model.protocol import RestoreArguments
from ijfs.live.model.records import NO_LIMITS, Limits, Volume
from ijfs.live.pager import present
from ijfs.live.pager.api import Pager, PagerProcess
from ijfs.live.pager.messages import Source
from ijfs.live.process import scheduling
from ijfs.live.sandbox import disk, limits, network_state, rootfs
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox.lower import HOST, Lower
from ijfs.live.sandbox.sandbox import Sandbox
from ijfs.live.sandbox.silence import Silence
from ijfs_engine import InodeNumbers, Snapshot
from ijfs_engine.errors import IjfsError, StorageError, TargetDiedError, is_of_a_disk

if TYPE_CHECKING:
    from ijfs.live.gpu.program import GpuProgram, GpuRecord

# How long CRIU gets, after all is mapped, until it says to the pager that the program runs.
RESUME_LIMIT_S = 60.0

# Of siblings that come up at once, the memory that nobody waits for leaves the processors to those that start: on 2
# cores 8 kernels of 300 MB had answered a cell after 1.5 s and not 1.85 (4 rounds).
CROWD_S = 1.5

# Of files that a refusal names.
MOST_NAMES = 10

# In a repository's live/: what CRIU wrote about the last restore that failed.
KEPT_LOG = ".restore.log"

_log = logging.getLogger("ijfs.restore")

# How long a GPU program's memory may take to come in: 140 GB from a slow disk. Any other's as well.
GPU_MEMORY_LIMIT_S = MEMORY_LIMIT_S = 1800.0


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What is to run again, where, and how."""

    snapshot: Snapshot
    meta: LiveMeta
    paths: SandboxPaths
    """New directories, for the new sandbox."""
    eager: bool = False
    """All memory is read before the program runs, without a pager."""
    on_demand: bool = False
    """Memory that it does not touch stays in the repository until it is wanted for a save."""
    siblings: int = 1
    """How many restores were asked for together."""
    beside: bool = False
    """It is a copy that draws random numbers of its own: memory that is to be empty in one is empty."""
    files: str = ""
    """What was asked for of folders that it shared (RestoreArguments.files)."""
    gpus: tuple[str, ...] = ()
    """GPUs (index or UUID) for a program that held some; by default those that it held."""
    gpu: GpuProgram | None = None
    """The keeper's GPU side, where the program was started with one."""
    volumes: tuple[Volume, ...] = ()
    """What it sees beside its root: as it was saved, or folders of the host as files of its own."""
    notes: tuple[str, ...] = ()
    """What a person should know of that."""
    pages: Path | None = None
    """For an eager restore: a directory with the memory, from which CRIU reads it. None: it is staged first."""
    limits: Limits = NO_LIMITS
    """What it may take of the machine once it runs."""

    @classmethod
    def of(
        cls, arguments: RestoreArguments, store: SnapshotStore, paths: SandboxPaths, *, beside: bool
    ) -> RestoreRequest:
        """What the arguments of the verb `restore` ask for. `beside`: not in the place of what was saved.
        UnknownNameError; NotLiveError for an imported snapshot."""
        snapshot, meta = store.load(arguments.snapshot)
        decided = shared_folders.decide(meta, paths.name, arguments.files)
        return cls(
            snapshot,
            meta,
            paths,
            eager=arguments.eager,
            on_demand=arguments.on_demand,
            siblings=arguments.siblings,
            beside=beside and not arguments.same_random,
            gpus=arguments.gpus,
            files=arguments.files,
            volumes=decided.volumes,
            notes=decided.notes,
            limits=arguments.limits.over(meta.spec.limits),
        )


@dataclass(slots=True)
class Restored:
    """A program that runs again. `pager` brings its memory in; None when all of it is in. `read_ahead`: bytes that were
    read before it ran, by why. `began_ns`: when its files were back and it did not run yet (wall clock). `notes`: what
    a person should know."""

    sandbox: Sandbox
    pager: Pager | None
    began_ns: int
    read_ahead: dict[str, int] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def abandon(self) -> None:
        """End the program again, where nobody is going to keep it."""
        self.sandbox.kill()
        if self.pager is not None:
            self.pager.close()
        self.sandbox.dispose()


def restore_snapshot(
    request: RestoreRequest,
    store: SnapshotStore,
    *,
    on_phase: OnPhase,
    on_running: Callable[[], None] = lambda: None,
    pager: PagerProcess | None = None,
) -> Restored:
    """Restore a snapshot. `on_running` is called once CRIU is at work. `pager` is a pager's process that was started
    before there was work for it; it belongs to this restore from now on.

    CriuError, SandboxError, CorruptError, StorageError; PreflightError when its GPU memory cannot fit, GpuLostError.
    """
    return _Restore(request, store, Clock(on_phase), pager).run(on_running)


def try_restore(request: RestoreRequest, store: SnapshotStore) -> IjfsError | None:
    """Restore a snapshot up to the moment at which its program would run, and take all of it away again; None, or why
    it could not be restored here. Not one instruction of the program is executed, and no GPU is touched."""
    return _Restore(request, store, Clock(lambda name: None), None).attempt()


class _TrialOverError(Exception):
    """Everything of the program was there: CRIU is told to give up."""


class _Restore:
    """One restore on its way, and what it has made so far."""

    def __init__(
        self, request: RestoreRequest, store: SnapshotStore, clock: Clock, pager_process: PagerProcess | None
    ) -> None:
        self._request = request
        self._store = store
        self._clock = clock
        self._pager_process = pager_process
        self._gpu_record: GpuRecord | None = None
        self._sandbox: Sandbox | None = None
        self._pager: Pager | None = None
        self._read_ahead: dict[str, int] = {}
        self._notes = request.notes

    def run(self, on_running: Callable[[], None]) -> Restored:
        """The steps, in order."""
        try:
            self._clock.begin("files")
            self._store.read_ahead(self._request.snapshot)
            self._require_gpu_room()
            waits = self._require_room()
            sandbox = self._make_sandbox()
            sandbox.group = limits.make(sandbox.paths, self._request.limits)
            self._start_pager()
            self._put_files_back(sandbox)
            self._clock.begin("images")
            with self._staged_images() as (directory, small_images):
                self._clock.begin("restore")
                began_ns = time.time_ns()
                self._run_criu(sandbox, directory, small_images, on_running)
            self._wait_until_resumed()
            self._give_gpu(sandbox)
            if waits:
                self._wait_for_memory()
            sandbox.group.apply()
            sandbox.group.limit_io(sandbox.paths.root)
            self._clock.end()
        except CriuError as error:
            kept = self._explained(self._keep_log(error))
            self._undo()
            raise kept from None
        except BaseException:
            self._undo()
            raise
        return Restored(sandbox, self._pager, began_ns, self._read_ahead, self._clock.phases, self._notes)

    def attempt(self) -> IjfsError | None:
        """The steps up to the moment at which the program would run, and the way back."""

        def over() -> None:
            raise _TrialOverError

        try:
            sandbox = self._make_sandbox()
            self._start_pager()
            self._put_files_back(sandbox)
            with self._staged_images() as (directory, small_images):
                self._run_criu(sandbox, directory, small_images, lambda: None, over)
        except _TrialOverError:
            return None
        except IjfsError as error:
            return error
        except OSError as error:
            if not is_of_a_disk(error):
                raise
            return StorageError.of("there is no room to try it", error)
        finally:
            self._undo()
        return None

    def _require_gpu_room(self) -> None:
        """PreflightError, before anything is made."""
        self._gpu_record = gpu_record(self._request.meta.gpu)
        if self._request.gpu is not None and self._gpu_record is not None:
            self._request.gpu.require_room(self._gpu_record, self._request.gpus)

    def _require_room(self) -> bool:
        """LimitError, before anything is made. Whether its memory has to be in before it is known to fit."""
        request = self._request
        # A GPU's memory is among the pages, and leaves when the device has it.
        memory = not request.on_demand and self._gpu_record is None
        return room.require(self._store, request.snapshot, request.meta, request.limits, memory=memory)

    def _wait_for_memory(self) -> None:
        """All of its memory, or as much as comes of a program that ends meanwhile."""
        if self._pager is not None:
            self._clock.begin("memory")
            with contextlib.suppress(TargetDiedError):
                self._pager.wait(MEMORY_LIMIT_S)

    def _make_sandbox(self) -> Sandbox:
        """The directories and the network namespace; no mounts and no process yet."""
        request = self._request
        for volume in request.volumes:
            if volume.kind == "bind":
                rootfs.require_folder(volume)
        self._notes += shared_folders.check_open_files(self._store, request.snapshot, request.meta, request.volumes)
        self._sandbox = Sandbox(request.paths, ns.new_network(), request.volumes, lower=self._lower())
        try:
            self._sandbox.make_layers(self._request.meta.spec.disk)
        except SandboxError as error:  # it runs all the same, and its open databases are read-only
            _log.warning("no disk of its own for a restored program: %s", error)
            self._sandbox.make_layers(0)
        return self._sandbox

    def _lower(self) -> Lower:
        """What it stands on: the base that the program ran on, laid out where it is not."""
        base = self._request.meta.base
        if base is None:
            return HOST
        from ijfs.live.bases import hold

        self._clock.begin("base")
        lower = hold.for_restore(self._store.repository, base)
        self._clock.begin("files")
        return lower

    def _start_pager(self) -> None:
        """Tell the pager what there is, and have it listen for CRIU."""
        if self._request.eager:
            return
        source = Source(
            repo=str(self._store.path),
            snapshot=self._request.snapshot.id.hex(),
            bulk=self._gpu_record is not None,
            rest_after_s=self._rest_after_s(),
            on_demand=self._request.on_demand and self._gpu_record is None,
            present=os.fspath(present.place(self._request.paths.criu)),
        )
        process, self._pager_process = self._pager_process, None
        with (self._request.paths.criu / "pager.log").open("ab") as log:
            self._pager = Pager(self._request.paths.criu, source, log=log.fileno(), process=process)

    def _rest_after_s(self) -> float:
        """How long memory waits that was not touched. A GPU program's does not: the driver reads all of it."""
        crowded = self._request.siblings > len(os.sched_getaffinity(0))
        return CROWD_S if crowded and self._gpu_record is None else 0.0

    def _put_files_back(self, sandbox: Sandbox) -> None:
        """The writable layers as they were, mounted; the way out, where the program had one; the network as it was."""
        snapshot, spec, paths = self._request.snapshot, self._request.meta.spec, sandbox.paths
        with self._numbers(paths) as numbers:
            put_back(
                self._exporter(numbers),
                paths.upper,
                upper_directories(paths, sandbox.volumes),
                same_lower=self._request.meta.base == sandbox.lower.base,
            )
        sandbox.mount(gpu=spec.gpu, fill_dev=lambda dev: self._store.export(snapshot, "dev", dev))
        self._store.export(snapshot, "shm", paths.shm)
        self._compare_packages(sandbox)
        if spec.network == "slirp4netns":
            missing = sandbox.connect_outwards(spec.egress)
            self._notes += tuple(f"{name} has no IPv4 address now: it cannot be connected to" for name in missing)
        if self._request.meta.network is not None:
            network_state.put_back(sandbox.network_fd, self._request.meta.network)

    def _compare_packages(self, sandbox: Sandbox) -> None:
        """Say which Python packages are others than it was saved with."""
        noted = self._store.packages(self._request.snapshot)
        if noted:
            self._notes += tuple(python_packages.differences(noted, sandbox.outside))

    def _exporter(self, numbers: InodeNumbers | None) -> Callable[[str, Path], None]:
        """What writes a tree of the snapshot into a directory; nothing of folders that the host has itself."""

        def export(path: str, target: Path) -> None:
            below = os.fsencode(path.removeprefix("files").lstrip("/"))
            of_host = [os.fsencode(path.lstrip("/")) for path in self._shared()]
            leave_out = frozenset(os.path.relpath(one, below or b".") for one in of_host)
            inner = _below(numbers, below) if numbers is not None else None
            self._store.export(self._request.snapshot, path, target, numbers=inner, leave_out=leave_out)

        return export

    @contextlib.contextmanager
    def _numbers(self, paths: SandboxPaths) -> Iterator[InodeNumbers | None]:
        """What gives each file that is put back the inode number that it had."""
        if not disk.keeps_numbers(paths):
            yield None
            return
        numbers = self._store.inodes(self._request.snapshot)
        volumes = self._request.volumes
        overlays = [paths.volume(volume.key) for volume in volumes if volume.kind == "overlay"]
        for layer in (paths.volume(volume.key) for volume in volumes if volume.is_layer):
            layer.upper.rmdir()  # its number is that of the directory which takes its place
        with disk.inode_goal(paths) as goal:
            yield InodeNumbers(goal, lambda path: numbers.get(b"files/" + path, 0))
        for overlay in (paths, *overlays):
            inodes.link_index(overlay)

    @contextlib.contextmanager
    def _staged_images(self) -> Iterator[tuple[Path, dict[str, bytes]]]:
        """The snapshot's images in a tmpfs of the keeper, for as long as CRIU reads them; and the small ones in memory,
        which say what of the program's memory CRIU reads itself. The pager is told what of it that is."""
        snapshot = self._request.snapshot
        target = self._request.paths.criu / "images"
        target.mkdir(exist_ok=True)
        try:
            ns.mount("ijfs-images", target, "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=700")
        except OSError as error:
            raise SandboxError(f"no memory for the images: {error.strerror}") from error
        try:
            tree = self._store.tree_at(snapshot, "images")
            if tree is None:
                raise SandboxError(f"the snapshot {snapshot.id.hex()[:12]} holds no images")
            lazy = not self._request.eager
            meta = self._request.meta
            stored_ns = int(time.time()) * 1_000_000_000 - (meta.frozen_at_ns or snapshot.created_ns)
            staged = stage_images.stage(
                self._store.reader,
                tree,
                target,
                lazy=lazy,
                pages=self._request.pages,
                noted=Noted(stored_ns, meta.timers, self._shared()),
                wipe=self._request.beside,
                far=not self._store.repository.is_here(snapshot.id),
            )
            if staged.present:
                present.write(self._request.paths.criu, staged.present)
            yield target, staged.images
        finally:
            ns.umount(target)

    def _shared(self) -> list[str]:
        """Folders of the host that it goes on in."""
        return [volume.path for volume in self._request.volumes if volume.kind == "shared"]

    def _run_criu(
        self,
        sandbox: Sandbox,
        directory: Path,
        small_images: Mapping[str, bytes],
        on_running: Callable[[], None],
        when_there: Callable[[], None] | None = None,
    ) -> None:
        """The program comes up. What was read ahead is added up while CRIU works; `when_there` is called when
        everything is there and nothing runs yet."""
        kernel_features.mount_cache()
        request = criu_command.Restore(
            images=directory,
            work=sandbox.paths.criu,
            root=sandbox.paths.mountpoint,
            network_fd=sandbox.network_fd,
            external_mounts=rootfs.external_outside(sandbox.paths, sandbox.volumes),
            lazy=not self._request.eager,
            groups=sandbox.group.directories,
        )

        def at_work() -> None:
            on_running()
            self._read_ahead.update(eager_pages.reasons(small_images))

        silence = Silence(sandbox.network_fd) if self._unsent_bytes(directory) else None
        try:
            sandbox.own(
                criu_command.restore(request, at_work, when_there or (silence.end if silence is not None else None))
            )
            self._notes += tuple(request.notes)
            with contextlib.suppress(OSError):  # it may have ended at once
                scheduling.put_back(sandbox.pid, self._request.meta.scheduling)
        finally:
            if silence is not None:
                silence.end()

    @staticmethod
    def _unsent_bytes(directory: Path) -> int:
        """What the program's TCP connections have to send and never sent."""
        return sum(parse_unsent_bytes(path.name, path.read_bytes()) for path in directory.glob("tcp-stream-*.img"))

    def _wait_until_resumed(self) -> None:
        if self._pager is not None:
            self._pager.wait_resumed(RESUME_LIMIT_S)

    def _give_gpu(self, sandbox: Sandbox) -> None:
        """All memory first, in large blocks on all cores: the driver is about to read the whole of it, and would fault
        page by page. Then the device."""
        gpu = self._request.gpu
        if gpu is None or self._gpu_record is None:
            return
        if self._pager is not None:
            self._clock.begin("memory")
            self._pager.wait(GPU_MEMORY_LIMIT_S)
        self._clock.begin("gpu")
        gpu.restore(sandbox.pid, self._gpu_record, self._request.gpus)
        self._clock.end()
        self._clock.split("gpu", gpu.phases, ("gpu_restore", "gpu_unlock"))

    def _keep_log(self, error: CriuError) -> CriuError:
        """The error, with a hint at CRIU's log that outlives this restore's directory: one a repository, the last."""
        log, kept = self._request.paths.criu / "restore.log", self._store.path / "live" / KEPT_LOG
        with contextlib.suppress(OSError):
            shutil.copyfile(log, kept)
            hint = (error.hint or f"its log is {kept}").replace(os.fspath(log), os.fspath(kept))
            return type(error)(str(error), hint=hint)
        return error

    def _explained(self, error: CriuError) -> CriuError:
        """The error; where files of the machine are not as they were, with each of them and what to do. What was
        refused before CRIU began says it all."""
        if isinstance(error, ProgramRefusedError):
            return error
        with contextlib.suppress(IjfsError, OSError):
            found = differences(self._store, self._request.snapshot, self._request.meta)
            if found:
                more = f" and {len(found) - MOST_NAMES} more" if found[MOST_NAMES:] else ""
                names = "; ".join(found[:MOST_NAMES])
                return type(error)(f"{error}. Not as it was when it was saved: {names}{more}", hint=REMEDY)
        return error

    def _undo(self) -> None:
        """End and remove whatever was made."""
        if self._sandbox is not None and self._sandbox.program is not None:
            self._sandbox.kill()
        if self._pager is not None:
            self._pager.close()
        if self._pager_process is not None:
            self._pager_process.close()
        if self._sandbox is not None:
            self._sandbox.dispose()


def _below(numbers: InodeNumbers, directory: bytes) -> InodeNumbers:
    """The same numbers for what is exported of a directory."""
    return InodeNumbers(numbers.goal, lambda path: numbers.of(os.path.join(directory, path)))
