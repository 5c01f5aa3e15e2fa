"""The process that keeps one live instance: it owns sandbox, relay and control socket. Spawned by client.py.

    python -m ijfs.live.keeper [lazy] INSTANCE_DIRECTORY FD [INSTANCE_DIRECTORY FD …]

FD is a socket whose other end is the first client; its first request (start, restore or adopt) makes the instance, and
when that fails the keeper ends. `lazy`: that request is a lazy restore, so it is begun before anything else is loaded.
Several are forked off one process that has loaded everything: siblings come up together.

Everything that blocks runs in threads; the trio loop only moves bytes and decides. A keeper that is killed takes
nothing of the program with it: its relay and mounts go, the program runs on, and the next client spawns a keeper that
adopts it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ijfs.live import namespaces as ns

if TYPE_CHECKING:
    from ijfs.live.headstart import HeadStart


def main() -> None:
    """Fork off a keeper for each instance named; the launcher ends, so that they are nobody's children."""
    words = sys.argv[1:]
    lazy = words[:1] == ["lazy"]
    named = words[1:] if lazy else words
    instances = [(Path(directory), int(fd)) for directory, fd in zip(named[::2], named[1::2], strict=True)]
    if len(instances) > 1:
        _load()  # once for all: it takes longer than a restore
    for directory, fd in instances:
        if os.fork() == 0:
            for _, other in instances:
                if other != fd:
                    os.close(other)
            _keep(directory, socket.socket(fileno=fd), lazy=lazy)
            return


def _load() -> None:
    """What a keeper needs for a restore. Nothing here may start a thread: the process is about to fork."""
    from ijfs.live import keeper_loop, restore  # noqa: F401
    from ijfs.live.pager import api  # noqa: F401
    from ijfs_engine import Repository, export_tree  # noqa: F401


def _keep(directory: Path, first: socket.socket, *, lazy: bool) -> None:
    """Become the keeper of one instance: a daemon with a log and a mount namespace of its own."""
    os.setsid()
    first.set_inheritable(False)
    log = os.open(directory / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lock = os.open(directory / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _refuse(first, directory.name)
        return
    ns.private_mounts()
    ns.prctl(ns.PR_SET_CHILD_SUBREAPER, 1)
    head = _head_start(directory, first) if lazy else None

    import trio

    from ijfs.live.keeper_loop import Keeper

    trio.run(Keeper(directory, head).run, first)


def _head_start(directory: Path, first: socket.socket) -> HeadStart:
    """The pager's interpreter loads on another core while the restore is prepared here; what the keeper itself needs
    is loaded while CRIU works. Together 0.2 s less until the program runs."""
    from ijfs.live.headstart import HeadStart
    from ijfs.live.pager.api import PagerProcess

    head = HeadStart(directory, first, PagerProcess(log=sys.stderr.fileno()))
    head.wait_until_others_work()
    return head


def _refuse(first: socket.socket, name: str) -> None:
    """Another keeper was quicker."""
    from ijfs.live import protocol
    from ijfs.live.errors import describe
    from ijfs_engine.errors import LockedError

    request = protocol.decode(first.makefile("rb").readline())
    error = LockedError(f"`{name}` has a keeper already")
    first.sendall(protocol.encode({"id": request.get("id"), "error": describe(error)}))


if __name__ == "__main__":
    main()
