"""The process that keeps one live instance: it owns sandbox, relay and control socket. Forked off by forkserver.py.

Its first client is the other end of a socket that it is given; the first request (start, restore or adopt) makes the
instance, and when that fails the keeper ends. A lazy restore is begun before anything else is loaded, with a pager that
is forked off the keeper while it still has a single thread.

Everything that blocks runs in threads; the trio loop only moves bytes and decides. A keeper that is killed takes
nothing of the program with it: its relay and mounts go, the program runs on, and the next client has a keeper made
that adopts it.
"""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from ijfs.live.model.paths import InstancePaths
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox import proc_sys

if TYPE_CHECKING:
    from ijfs.live.keeper.early_restore import EarlyRestore
    from ijfs.live.pager.api import PagerProcess
    from ijfs.live.pager.shared import SharedBlocks


def keep(directory: Path, first: int, lock: int, *, lazy: bool, shared: SharedBlocks | None = None) -> None:
    """Become the keeper of one instance: a daemon with a log and a mount namespace of its own. `first` is the first
    client's socket, `lock` the instance's lock, which that client took and which stays open for as long as this process
    lives; `lazy` says that its request will be a lazy restore. Returns when the instance has ended."""
    os.setsid()
    log = os.open(directory / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pager = _fork_pager(shared) if lazy else None
    if shared is not None:
        shared.close()
    client = socket.socket(fileno=first)
    ns.private_mounts()
    proc_sys.make_writable()
    ns.prctl(ns.PR_SET_CHILD_SUBREAPER, 1)
    early = _begin_restore(directory, client, pager) if pager is not None else None

    import trio

    from ijfs.live.keeper.server import Keeper
    from ijfs.live.model import protocol
    from ijfs.live.sandbox import cleanup

    line = early.line() if early is not None else protocol.first_line(client)
    keeper = Keeper(directory, early)
    trio.run(keeper.run, client, line)
    if keeper.came_to_nothing:
        cleanup.remove(InstancePaths(directory))
    os.close(lock)


def _fork_pager(shared: SharedBlocks | None) -> PagerProcess:
    from ijfs.live.pager.api import PagerProcess

    return PagerProcess.forked(shared)


def _begin_restore(directory: Path, first: socket.socket, pager: PagerProcess) -> EarlyRestore:
    """The restore runs in a thread at once; what the keeper itself needs is loaded (where it is not yet) while CRIU
    works."""
    from ijfs.live.keeper.early_restore import EarlyRestore

    early = EarlyRestore(directory, first, pager)
    early.wait_until_criu_works()
    return early
