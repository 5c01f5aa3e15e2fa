"""From a claimed name to a keeper at work: the process spawned, its first request sent.

Called by api.py and instances.py, and by fork.py for several instances at once; claim.py claims names. Keepers are
forked off a process that has loaded everything (process/fork_request.py), because loading takes longer than restoring.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ijfs.live.client.claim import Claim
from ijfs.live.client.connection import KeeperClient, OnEvent
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.protocol import AdoptArguments, Arguments
from ijfs.live.model.records import InstanceInfo
from ijfs.live.process import fork_request
from ijfs.live.process.keeper_lock import KeeperLock, is_kept, keeper_ended
from ijfs.live.sandbox.cleanup import sweep
from ijfs_engine.errors import IjfsError

INTERRUPTED_S = 3.0
"""How long who is interrupted waits for a keeper to end what it was making: an ordinary restore takes 0.2 s."""

_ROOM_FOR_NAMES = " " * 160
"""A last word on the command line, for `child.name_process` to write over."""


def spawn_keepers(claims: Sequence[Claim], *, lazy: bool) -> list[socket.socket]:
    """Have a keeper forked for each claimed name, which gets its lock. Returns a connection to each, as its first
    client. `lazy`: the first request to each will be a lazy restore."""
    sockets: list[socket.socket] = []
    for at in range(0, len(claims), fork_request.MOST_INSTANCES):
        sockets += _spawn(claims[at : at + fork_request.MOST_INSTANCES], lazy=lazy)
    return sockets


def _spawn(claims: Sequence[Claim], *, lazy: bool) -> list[socket.socket]:
    """Fork them off the repository's forkserver, or start one, which then may stay."""
    for claim in claims:
        claim.make_room()
    request = fork_request.keepers_for([claim.paths.root for claim in claims], lazy=lazy)
    at = claims[0].paths.root.parent / fork_request.SOCKET_NAME
    ours = _handed_over(claims, lambda fds: fork_request.ask(at, request, fds)) if request.idle_s else None
    if ours is None:
        ours = _handed_over(claims, lambda fds: _start_forkserver(claims[0].paths.keeper_log, request, fds))
    assert ours is not None
    return ours


def _handed_over(claims: Sequence[Claim], send: Callable[[list[int]], bool]) -> list[socket.socket] | None:
    """Send the other ends of new connections, with the locks, and let go of those; None where nobody took them. (One
    who takes them too late finds its connection closed, and makes nothing.)"""
    ends = [socket.socketpair() for _ in claims]
    fds = [fd for (_, other), claim in zip(ends, claims, strict=True) for fd in (other.fileno(), claim.lock.fileno())]
    taken = False
    try:
        taken = send(fds)
    finally:
        for ours, theirs in ends:
            theirs.close()
            if not taken:
                ours.close()
    if not taken:
        return None
    for claim in claims:
        claim.lock.close()
    return [ours for ours, _ in ends]


def _start_forkserver(log: Path, request: fork_request.ForkKeepers, fds: Sequence[int]) -> bool:
    """Whether one was started, and got the request."""
    import subprocess  # most commands find one

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
    return True


def begin(
    paths: InstancePaths, sock: socket.socket, arguments: Arguments[InstanceInfo], on_event: OnEvent | None
) -> InstanceInfo:
    """Send a keeper its first request; its answer. A keeper that could not begin leaves nothing behind, however it
    ended. Where the caller is interrupted, the keeper ends what comes up: that is waited for, for a moment."""
    try:
        with KeeperClient(sock, paths, on_event) as keeper:
            return keeper.request(arguments)
    except IjfsError:
        if not isinstance(arguments, AdoptArguments):
            _sweep_failed(paths)
        raise
    except BaseException:
        _wait_while_kept(paths, INTERRUPTED_S)
        raise


def _sweep_failed(paths: InstancePaths) -> None:
    """Remove what a keeper left that was killed before there was an instance."""
    if paths.record.exists() or not keeper_ended(paths):
        return
    with KeeperLock.take_soon(paths) or contextlib.nullcontext() as lock:
        if lock is not None and not paths.record.exists():
            sweep(paths)


def _wait_while_kept(paths: InstancePaths, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while is_kept(paths) and time.monotonic() < deadline:
        time.sleep(0.02)
