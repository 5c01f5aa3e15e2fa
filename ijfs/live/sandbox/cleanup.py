"""Removes what a killed client or keeper left behind. Called by whoever comes next: client/claim.py, and the keeper
that adopts.

A CRIU at a restore ends together with its keeper (criu/command.py). Left may be: a directory; the first process of a
program that was being restored, which would wait for its CRIU for ever; a program that came up while its keeper died;
a directory of CRIU's in /tmp.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from ijfs.live.model.paths import InstancePaths, SandboxPaths
from ijfs.live.process import procfs
from ijfs.live.process.keeper_lock import KEEPER_END_S, KeeperLock
from ijfs.live.sandbox import limits

CRIU_PLACE, CRIU_PREFIX = Path("/tmp"), ".criu.mntns."
"""Where CRIU makes a directory at each restore, to mount a root on, and how its name begins (criu/mount.c)."""


def sweep(paths: InstancePaths) -> None:
    """Remove an instance's directory, and end what runs in it: for who holds its lock, and nobody wants it. In one with
    nothing but its lock nothing runs: to look for that takes so long on a busy machine that who is just making it, and
    waits for the lock, would give up."""
    with contextlib.suppress(FileNotFoundError):
        if any(path != paths.lock for path in paths.root.iterdir()):
            end_processes(paths.root)
    remove(paths)


def remove(paths: InstancePaths) -> None:
    """Remove an instance's directory: for who holds its lock, which goes last. Who was quick enough to lock another
    file in its place has the directory then."""
    clear(paths)
    with contextlib.suppress(OSError):
        paths.lock.unlink()
        paths.root.rmdir()


def clear(paths: InstancePaths, *, but: Path | None = None) -> None:
    """Remove all that is in an instance's directory but its lock, and `but`."""
    import shutil  # with its archivers; every command that asks for live programs loads this module

    limits.remove_all(paths.root)
    with contextlib.suppress(FileNotFoundError):
        for path in paths.root.iterdir():
            if path in (paths.lock, but):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def keep_log(paths: InstancePaths, generation: int) -> None:
    """Put away what the instance's program wrote, before its sandbox goes: people look for the last words of a program
    when they have started it again."""
    box = paths.sandbox(generation)
    with contextlib.suppress(OSError):
        os.replace(box.kept_log if box.image.exists() else box.program_log, paths.earlier_log)


def sweep_left(live: Path) -> None:
    """Remove all directories of a repository's instances that have no record, and that nobody is about to fill."""
    swept = False
    for directory in live.iterdir():
        paths = InstancePaths(directory)
        if directory.name.startswith("."):
            continue
        if paths.record.exists():
            _sweep_groups(paths)
        if paths.record.exists() or not is_remains(paths):
            continue
        with contextlib.suppress(OSError):
            directory.rmdir()  # an empty one; who has just made it makes it again
            continue
        with KeeperLock.take(paths) or contextlib.nullcontext() as lock:
            if lock is not None and not paths.record.exists():
                sweep(paths)
                swept = True
    if swept:
        sweep_criu()


def _sweep_groups(paths: InstancePaths) -> None:
    """Remove the control groups of a program that ended without a keeper."""
    if next(paths.root.glob("box-*/cgroups"), None) is not None:
        with KeeperLock.take(paths) or contextlib.nullcontext() as lock:
            if lock is not None:
                limits.remove_all(paths.root, 0)


def is_remains(paths: InstancePaths) -> bool:
    """Whether a directory without a record is what a client or keeper left, and not somebody's own."""
    with contextlib.suppress(FileNotFoundError):
        if paths.root.is_symlink() or not paths.root.is_dir():
            return False
        return paths.lock.exists() or paths.keeper_log.exists() or not any(paths.root.iterdir())
    return False


def sweep_sandboxes(paths: InstancePaths, generation: int) -> None:
    """Remove all sandboxes of an instance but that one: its keeper was killed while it went back in place."""
    kept = paths.sandbox(generation).root
    for sandbox in paths.root.glob("box-*"):
        if sandbox != kept:
            sweep_directory(sandbox)


def sweep_directory(directory: Path) -> None:
    """Remove a directory that sandboxes are in, and end what runs in them."""
    end_processes(directory)
    remove_box(SandboxPaths(directory))


def remove_box(box: SandboxPaths) -> None:
    """Remove the directory of a sandbox in which nothing runs any more."""
    import shutil

    limits.remove(box)
    shutil.rmtree(box.root, ignore_errors=True)


def sweep_criu(place: Path = CRIU_PLACE) -> None:
    """Remove the empty directories that CRIUs left, as those do that are killed. While any CRIU runs, one of them may
    be its: then another time."""
    left = [path for path in place.glob(f"{CRIU_PREFIX}*") if path.is_dir() and not path.is_symlink()]
    if left and not procfs.runs("criu"):
        for path in left:
            with contextlib.suppress(OSError):
                path.rmdir()


def end_processes(directory: Path) -> None:
    """Kill every process that belongs to an instance's directory, and see it go."""
    deadline = time.monotonic() + KEEPER_END_S
    while (found := procfs.processes_on(directory)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
