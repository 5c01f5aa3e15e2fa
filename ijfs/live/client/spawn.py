"""From a name to a keeper at work: the instance's directory claimed, the process spawned, its first request sent.

Called by api.py and instances.py, and by fork.py for several instances at once. Keepers are forked off a process that
has loaded everything (process/fork_request.py), because loading takes longer than restoring.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ijfs.live.checks import privilege
from ijfs.live.client.connection import KeeperClient, OnEvent
from ijfs.live.errors import InstanceExistsError
from ijfs.live.model.paths import InstancePaths, check_name
from ijfs.live.model.protocol import AdoptArguments, Arguments
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import InstanceInfo
from ijfs.live.process import fork_request, procfs
from ijfs.live.process.keeper_lock import keeper_ended
from ijfs.live.sandbox.cleanup import is_remains, sweep, sweep_old
from ijfs_engine.errors import IjfsError

_ROOM_FOR_NAMES = " " * 160
"""A last word on the command line, for `child.name_process` to write over."""


def claim(repo: str | os.PathLike[str], name: str, *, again: bool = False) -> InstancePaths:
    """Make the instance's directory; the remains of an ended one of that name go first, unless it is to begin again."""
    privilege.require()
    paths = InstancePaths.of(repo, check_name(name))
    paths.root.parent.mkdir(mode=0o700, exist_ok=True)
    sweep_old(paths.root.parent)
    if paths.record.exists():
        if procfs.is_alive(read_record(paths).program) or not keeper_ended(paths):
            raise InstanceExistsError(f"there is an instance `{name}` already")
        if again:
            return paths
        shutil.rmtree(paths.root)
    elif is_remains(paths) and keeper_ended(paths):
        sweep(paths)
    try:
        paths.root.mkdir(mode=0o700)
    except FileExistsError:
        if not paths.root.is_dir() or not (paths.lock.exists() or paths.record.exists()):
            raise InstanceExistsError(
                f"{paths.root} is in the way, and ijfs did not make it", hint="move it away, or choose another name"
            ) from None
        raise InstanceExistsError(f"there is an instance `{name}` already") from None
    return paths


def spawn_keepers(instances: Sequence[InstancePaths], *, lazy: bool) -> list[socket.socket]:
    """Have a keeper forked for each claimed directory. Returns a connection to each, as its first client. `lazy`: the
    first request to each will be a lazy restore."""
    sockets: list[socket.socket] = []
    for at in range(0, len(instances), fork_request.MOST_INSTANCES):
        sockets += _spawn(instances[at : at + fork_request.MOST_INSTANCES], lazy=lazy)
    return sockets


def _spawn(instances: Sequence[InstancePaths], *, lazy: bool) -> list[socket.socket]:
    """Fork them off the repository's forkserver, or start one, which then may stay."""
    request = fork_request.keepers_for([paths.root for paths in instances], lazy=lazy)
    with contextlib.ExitStack() as theirs:
        ends = [socket.socketpair() for _ in instances]
        fds = [theirs.enter_context(other).fileno() for _, other in ends]
        at = instances[0].root.parent / fork_request.SOCKET_NAME
        if request.idle_s == 0 or not fork_request.ask(at, request, fds):
            _start_forkserver(instances[0].keeper_log, request, fds)
    return [ours for ours, _ in ends]


def _start_forkserver(log: Path, request: fork_request.ForkKeepers, fds: Sequence[int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, log.open("ab") as complaints:
        starting = subprocess.Popen(
            [sys.executable, "-P", "-m", "ijfs.live.keeper.forkserver", str(theirs.fileno()), _ROOM_FOR_NAMES],
            stdin=subprocess.DEVNULL,
            stdout=complaints,
            stderr=complaints,
            pass_fds=[theirs.fileno()],
            cwd="/",
            start_new_session=True,
        )
        theirs.close()
        with contextlib.suppress(BrokenPipeError):  # it ended already: the first request to the keeper will say so
            fork_request.send(ours, request, fds)
        starting.wait()  # it forks: a forkserver is nobody's child, so that no client keeps a zombie of it


def begin(
    paths: InstancePaths, sock: socket.socket, arguments: Arguments[InstanceInfo], on_event: OnEvent | None
) -> InstanceInfo:
    """Send a keeper its first request; its answer. A keeper that could not begin leaves nothing behind, however it
    ended. (A caller that is interrupted leaves the keeper at work: the instance comes up without it.)"""
    try:
        with KeeperClient(sock, paths, on_event) as keeper:
            return keeper.request(arguments)
    except IjfsError:
        if not isinstance(arguments, AdoptArguments) and not paths.record.exists() and keeper_ended(paths):
            sweep(paths)
        raise
