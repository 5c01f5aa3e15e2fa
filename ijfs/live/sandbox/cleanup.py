"""Removes what a killed keeper left behind. Called by whoever comes next: client/spawn.py, and the keeper that adopts.

A CRIU at a restore ends together with its keeper (criu/command.py). Three things may be left: a directory; the first
process of a program that was being restored, which would wait for its CRIU for ever; a program that came up while its
keeper died.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

from ijfs.live.model.paths import InstancePaths
from ijfs.live.process import procfs
from ijfs.live.process.keeper_lock import KEEPER_END_S, is_kept

# A client who has just claimed a directory has no keeper in it yet.
OLD_S = 60.0


def sweep(paths: InstancePaths) -> None:
    """Remove the directory of an instance that has no record, and end what runs in it."""
    _sweep(paths.root)


def sweep_old(live: Path) -> None:
    """Do that for all such directories of a repository that are old and have no keeper."""
    for directory in live.iterdir():
        paths = InstancePaths(directory)
        if not paths.record.exists() and is_remains(paths) and _is_old(directory) and not is_kept(paths):
            sweep(paths)


def is_remains(paths: InstancePaths) -> bool:
    """Whether a directory without a record is what a client or keeper left, and not somebody's own."""
    if paths.root.is_symlink() or not paths.root.is_dir():
        return False
    return paths.lock.exists() or paths.keeper_log.exists() or not any(paths.root.iterdir())


def _is_old(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        return directory.is_dir() and directory.stat().st_mtime < time.time() - OLD_S
    return False


def sweep_sandboxes(paths: InstancePaths, generation: int) -> None:
    """Remove all sandboxes of an instance but that one: its keeper was killed while it went back in place."""
    kept = paths.sandbox(generation).root
    for sandbox in paths.root.glob("box-*"):
        if sandbox != kept:
            _sweep(sandbox)


def _sweep(directory: Path) -> None:
    deadline = time.monotonic() + KEEPER_END_S
    while (found := procfs.processes_on(directory)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    shutil.rmtree(directory, ignore_errors=True)
