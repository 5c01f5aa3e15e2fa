"""Folders shared with the machine, around a restore: put back as they were where `--files restore` asks for it.

Called by lifecycle.py. What was there before is kept in a snapshot of its own; where the restore fails it is put back,
and the program that was to be replaced goes on in it. That one stands still meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import trio

from ijfs.live.adopt import folders
from ijfs.live.adopt.plan import Step
from ijfs.live.checkpoint.freeze import wake_stopped
from ijfs.live.checkpoint.restore import RestoreRequest
from ijfs.live.checkpoint.shared_folders import OF_THE_HOST
from ijfs.live.checkpoint.snapshot_io import SnapshotStore
from ijfs.live.errors import ProgramRefusedError
from ijfs.live.keeper.threads import in_thread
from ijfs.live.model.protocol import Emit, Notice
from ijfs.live.process import procfs
from ijfs.live.process.descriptors import locked_files
from ijfs.live.sandbox.sandbox import Sandbox
from ijfs.live.sandbox.volumes import is_below
from ijfs_engine import Snapshot
from ijfs_engine.errors import IjfsError

STOPPING_S = 2.0
"""How long processes get to stand still; one that waits for a disk does so later."""

PAUSE_S = 0.005

MOST_LEFT = 3
"""Files that a note names."""

# Stopped, traced, ended.
_STILL = frozenset("TtZX")

# CRIU's image without a record: two magic numbers.
_EMPTY_IMAGE = 8


@contextlib.asynccontextmanager
async def put_back(
    request: RestoreRequest, store: SnapshotStore, old: Sandbox | None, emit: Emit
) -> AsyncIterator[None]:
    """While inside, the folders that the snapshot's program shared are as the snapshot has them, where the request
    says so. ProgramRefusedError where the program `old` holds locks that its successor could not get."""
    if old is not None:
        await in_thread(_require_no_locks, request, store, old)
    if request.files != "restore":
        yield
        return
    stopped = await in_thread(_stop, old) if old is not None else frozenset()
    kept: Snapshot | None = None
    try:
        kept, notes = await in_thread(_put_back, request, store)
        for note in notes:
            emit(Notice(note))
        yield
    except BaseException:
        with trio.CancelScope(shield=True):
            if kept is not None:
                await in_thread(_undo, request, store, kept)
            if old is not None:
                wake_stopped(old, but=stopped)
        raise


def _put_back(request: RestoreRequest, store: SnapshotStore) -> tuple[Snapshot | None, list[str]]:
    meta, root, name = request.meta, request.snapshot.root, request.paths.name
    steps = list(folders.steps_back(store.reader, root, meta, store.path))
    if not steps:
        return None, []
    kept = folders.keep(
        store, meta, name, f"before `{name}` went back to {request.snapshot.id.hex()[:12]}", _staging(request)
    )
    try:
        left = folders.put_back(store.reader, root, meta, steps)
    except BaseException:
        _undo(request, store, kept)
        raise
    return kept, [_said(steps, kept, name), *_said_of(left)]


def _undo(request: RestoreRequest, store: SnapshotStore, kept: Snapshot) -> None:
    steps: list[Step] = []
    with contextlib.suppress(IjfsError):  # what it was is in a snapshot all the same
        steps = list(folders.steps_back(store.reader, kept.root, request.meta, store.path))
        folders.put_back(store.reader, kept.root, request.meta, steps)


def _staging(request: RestoreRequest) -> Path:
    return request.paths.root.parent / f"stage-{time.monotonic_ns()}"


def _said(steps: Sequence[Step], kept: Snapshot, name: str) -> str:
    files = "1 path is" if len(steps) == 1 else f"{len(steps):,} paths are"
    return f"{files} as then; what was there before is in the snapshot {kept.id.hex()[:12]}, on the branch {name}.files"


def _said_of(left: Sequence[str]) -> list[str]:
    if not left:
        return []
    more = f" and {len(left) - MOST_LEFT} more" if left[MOST_LEFT:] else ""
    return [f"left as it is: {'; '.join(left[:MOST_LEFT])}{more}"]


def _require_no_locks(request: RestoreRequest, store: SnapshotStore, old: Sandbox) -> None:
    """Two programs cannot hold one lock, and the restored one is up before the old one ends."""
    of_host = [volume.path for volume in request.volumes if volume.kind in OF_THE_HOST]
    if not of_host or not old.is_alive() or len(store.image(request.snapshot, "filelocks.img")) <= _EMPTY_IMAGE:
        return
    locked = locked_files(_processes(old))
    held = next((path for path in locked if is_below(Path(path), of_host)), None)
    if held is not None:
        name = request.paths.name
        raise ProgramRefusedError(
            f"`{name}` holds a lock on {held}, which its successor would wait for",
            hint=f"`ijfs stop {name}`, then `ijfs restore {request.snapshot.id.hex()[:12]} --replace`",
        )


def _stop(old: Sandbox) -> frozenset[int]:
    """Have every process of the sandbox stand still; returns those that the user had stopped before."""
    before = frozenset(pid for pid in _processes(old) if procfs.state(pid) == "T")
    deadline = time.monotonic() + STOPPING_S
    while time.monotonic() < deadline:
        running = [pid for pid in _processes(old) if procfs.state(pid) not in _STILL]
        if not running:
            break
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        time.sleep(PAUSE_S)
    return before


def _processes(sandbox: Sandbox) -> list[int]:
    return procfs.processes_in("pid", procfs.namespace_id(sandbox.pid, "pid"))
