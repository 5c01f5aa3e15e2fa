"""From a name to a keeper at work: the instance's directory claimed, the process spawned, its first request sent.

Called by client.py, and by siblings.py for several at once: their keepers are forked off one process that has loaded
everything, because loading takes longer than restoring.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from ijfs.live import procfs
from ijfs.live.errors import InstanceExistsError
from ijfs.live.keeper_client import KEEPER_END_S, KeeperClient, OnEvent, keeper_ended
from ijfs.live.paths import InstancePaths, check_name
from ijfs.live.record_file import read_record
from ijfs.live.records import InstanceInfo
from ijfs_engine.errors import IjfsError


def claim(repo: str | os.PathLike[str], name: str, *, again: bool = False) -> InstancePaths:
    """Make the instance's directory; the remains of an ended one of that name go first, unless it is to begin again."""
    paths = InstancePaths.of(repo, check_name(name))
    paths.root.parent.mkdir(mode=0o700, exist_ok=True)
    if paths.record.exists():
        if procfs.is_alive(read_record(paths).program) or not keeper_ended(paths):
            raise InstanceExistsError(f"there is an instance `{name}` already")
        if again:
            return paths
        shutil.rmtree(paths.root)
    elif paths.root.is_dir() and keeper_ended(paths):
        sweep(paths)
    try:
        paths.root.mkdir(mode=0o700)
    except FileExistsError:
        raise InstanceExistsError(f"there is an instance `{name}` already") from None
    return paths


def spawn_keepers(instances: Sequence[InstancePaths], *, lazy: bool) -> list[socket.socket]:
    """Start a keeper process for each claimed directory; the returned sockets are their first clients. `lazy`: the
    first request of each will be a lazy restore."""
    with contextlib.ExitStack() as theirs:
        sockets: list[socket.socket] = []
        arguments: list[str] = []
        passed: list[int] = []
        for paths in instances:
            ours, other = socket.socketpair()
            theirs.enter_context(other)
            sockets.append(ours)
            passed.append(other.fileno())
            arguments += [str(paths.root), str(other.fileno())]
        log = theirs.enter_context(instances[0].keeper_log.open("ab"))
        launcher = subprocess.Popen(
            [sys.executable, "-P", "-m", "ijfs.live.keeper", *["lazy"] * lazy, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=passed,
            cwd="/",
            start_new_session=True,
        )
    launcher.wait()  # it forks: a keeper is nobody's child, so that no client keeps a zombie of it
    return sockets


def begin(
    paths: InstancePaths, sock: socket.socket, verb: str, args: dict[str, Any], on_event: OnEvent | None
) -> InstanceInfo:
    """Send a keeper its first request; its answer. A keeper that could not begin leaves nothing behind, however it
    ended. (A caller that is interrupted leaves the keeper at work: the instance comes up without it.)"""
    try:
        with KeeperClient(sock, paths, on_event) as keeper:
            return msgspec.convert(keeper.request(verb, args), InstanceInfo)
    except IjfsError:
        if verb != "adopt" and not paths.record.exists() and keeper_ended(paths):
            sweep(paths)
        raise


def sweep(paths: InstancePaths) -> None:
    """Remove the directory of an instance that never came to have a record, and what may run in it: a keeper that is
    killed in the middle of a restore leaves a CRIU that goes on to restore."""
    deadline = time.monotonic() + KEEPER_END_S
    while (found := procfs.processes_on(paths.root)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    shutil.rmtree(paths.root, ignore_errors=True)
