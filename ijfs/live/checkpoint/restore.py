"""One restore: a snapshot's program running again in a sandbox of its own. The keeper calls `restore_snapshot` in a
thread.

What takes long runs at the same time: the pager's process starts while files and images come out of the repository, and
memory comes in while the program already runs. A restore that fails leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ijfs.live.checkpoint.freeze import Clock
from ijfs.live.checkpoint.snapshot_io import LiveMeta, SnapshotStore, gpu_record
from ijfs.live.checkpoint.workspace import put_back
from ijfs.live.criu import command as criu
from ijfs.live.criu import eager_pages, kernel_features, stage_images
from ijfs.live.errors import SandboxError
from ijfs.live.model.paths import SandboxPaths
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox import rootfs, slirp
from ijfs.live.sandbox.sandbox import Sandbox
from ijfs_engine import Snapshot

if TYPE_CHECKING:
    from ijfs.live.gpu.program import GpuProgram, GpuRecord
    from ijfs.live.pager.api import Pager, PagerProcess

# How long CRIU gets, after all is mapped, until it says to the pager that the program runs.
RESUME_LIMIT_S = 60.0

# Of siblings that come up at once, the memory that nobody waits for leaves the processors to those that start: on 2
# cores 8 kernels of 300 MB had answered a cell after 1.5 s and not 1.85 (4 rounds).
CROWD_S = 1.5

# How long a GPU program's memory may take to come in: 140 GB from a slow disk.
MEMORY_LIMIT_S = 1800.0


@dataclass(slots=True)
class Restored:
    """A program that runs again; `pager` brings its memory in (None: all is in), `ahead` was read before it ran."""

    box: Sandbox
    pager: Pager | None
    began_ns: int
    ahead: dict[str, int] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)

    def abandon(self) -> None:
        """End the program again."""
        self.box.kill()
        if self.pager is not None:
            self.pager.close()
        self.box.dispose()


def restore_snapshot(
    layers: SandboxPaths,
    vault: SnapshotStore,
    snapshot: Snapshot,
    meta: LiveMeta,
    *,
    eager: bool,
    siblings: int = 1,
    on_phase: Callable[[str], None],
    while_running: Callable[[], None] = lambda: None,
    gpu: GpuProgram | None = None,
    gpus: Sequence[str] = (),
    pager_ahead: PagerProcess | None = None,
    pages: Path | None = None,
) -> Restored:
    """Restore a snapshot into new directories; `gpus` chooses GPUs (index or UUID) for a program that held some.
    `pager_ahead` is a pager's process that was started before there was work for it, and is this restore's from now on.
    `siblings`: how many restores were asked for together. `pages` is a directory with the memory, for an eager restore.
    `while_running` is called once CRIU is at work.

    CriuError, SandboxError, CorruptError, StorageError; PreflightError when its GPU memory cannot fit, GpuLostError.
    """
    clock = Clock(on_phase)
    clock.begin("files")
    record = gpu_record(meta)
    if gpu is not None and record is not None:
        gpu.require_room(record, gpus)
    kernel_features.mount_cache()
    ahead: dict[str, int] = {}
    pager: Pager | None = None
    box = Sandbox(layers, ns.new_network(), meta.volumes)
    try:
        rootfs.make_directories(layers, meta.volumes)
        if not eager:
            source = {"repo": str(vault.path), "snapshot": snapshot.id.hex(), "bulk": record is not None}
            pager = _start_pager(layers, {**source, "rest_after_s": _rest_after(siblings)}, pager_ahead)
            pager_ahead = None
        _prepare_files(box, vault, snapshot, meta)
        clock.begin("images")
        with _staged(layers, vault, snapshot, lazy=pager is not None, pages=pages) as (staged, told):
            clock.begin("restore")
            began_ns = time.time_ns()

            def running() -> None:
                while_running()
                ahead.update(eager_pages.reasons(told))

            box.own(criu.restore(_request(box, staged, lazy=pager is not None), running))
        if pager is not None:
            pager.wait_resumed(RESUME_LIMIT_S)
        if gpu is not None and record is not None:
            _give_gpu(box, pager, gpu, record, gpus, clock)
        clock.end()
        return Restored(box, pager, began_ns, ahead, clock.phases)
    except BaseException:
        if box.program is not None:
            box.kill()
        if pager is not None:
            pager.close()
        if pager_ahead is not None:
            pager_ahead.close()
        box.dispose()
        raise


def _give_gpu(
    box: Sandbox, pager: Pager | None, gpu: GpuProgram, record: GpuRecord, gpus: Sequence[str], clock: Clock
) -> None:
    """All memory first, in large blocks on all cores: the driver is about to read the whole of it, and would fault
    page by page. Then the device."""
    if pager is not None:
        clock.begin("memory")
        pager.wait(MEMORY_LIMIT_S)
    clock.begin("gpu")
    gpu.restore(box.pid, record, gpus)
    clock.phases.update(gpu.phases)


def _request(box: Sandbox, staged: Path, *, lazy: bool) -> criu.Restore:
    return criu.Restore(
        images=staged,
        work=box.layers.criu,
        root=box.layers.mountpoint,
        network_fd=box.network_fd,
        external_mounts=rootfs.external_outside(box.layers, box.volumes),
        lazy=lazy,
    )


def _rest_after(siblings: int) -> float:
    return CROWD_S if siblings > len(os.sched_getaffinity(0)) else 0.0


def _start_pager(layers: SandboxPaths, source: dict[str, Any], ahead: PagerProcess | None) -> Pager:
    from ijfs.live.pager.api import Pager

    log = (layers.criu / "pager.log").open("ab")
    with log:
        return Pager(layers.criu, source, log=log.fileno(), process=ahead)


def _prepare_files(box: Sandbox, vault: SnapshotStore, snapshot: Snapshot, meta: LiveMeta) -> None:
    """The writable layers as they were, mounted; the way out, where the program had one."""
    layers = box.layers
    volumes = [(volume, layers.volume(volume.key).upper) for volume in box.volumes]
    put_back(lambda path, target: vault.export(snapshot, path, target), layers.upper, volumes)
    box.mounted = True
    rootfs.mount_root(layers, box.volumes, gpu=meta.spec.gpu)
    vault.export(snapshot, "shm", layers.shm)
    if meta.spec.network == "slirp4netns":
        box.slirp = slirp.Slirp(box.network_fd)


@contextlib.contextmanager
def _staged(
    layers: SandboxPaths, vault: SnapshotStore, snapshot: Snapshot, *, lazy: bool, pages: Path | None
) -> Iterator[tuple[Path, dict[str, bytes]]]:
    """The snapshot's images in a tmpfs of the keeper, for as long as CRIU reads them, and what says why memory was."""
    target = layers.criu / "images"
    target.mkdir(exist_ok=True)
    try:
        ns.mount("ijfs-images", target, "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=700")
    except OSError as error:
        raise SandboxError(f"no memory for the images: {error.strerror}") from error
    try:
        tree = vault.tree_at(snapshot, "images")
        if tree is None:
            raise SandboxError(f"the snapshot {snapshot.id.hex()[:12]} holds no images")
        yield target, stage_images.stage(vault.reader, tree, target, lazy=lazy, pages=pages)
    finally:
        ns.umount(target)
