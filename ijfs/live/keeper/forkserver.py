"""The process that keepers are forked off: `python -m ijfs.live.keeper.forkserver FD`. Started by client/spawn.py.

FD is a socket with the first request (process/fork_request.py). The forkserver loads what keepers need,
forks one for each instance of the request, and stays for the repository's later requests: until nobody has asked for a
while, another forkserver took its place, the repository went, or a file that it was loaded from changed. It never has a
second thread or an open repository, because it could not be forked safely then. It holds nothing of a client's but the
environment it was started with. (multiprocessing has its word from the same idea; Android calls such a process zygote.
Users of ijfs know it as the *spare*.)
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ijfs.live.criu import kernel_features
from ijfs.live.model.environment import unpacked
from ijfs.live.process import fork_request, unix_socket
from ijfs.live.process.child import name_process
from ijfs.live.process.fork_request import EndForkServer, ForkKeepers, ForkPager, Inheritance
from ijfs.live.process.procfs import parent_of

if TYPE_CHECKING:
    from ijfs.live.pager.shared import SharedBlocks

Become = Callable[[], None]
"""What a forked child is to do; returned up to `main`, so that what the forkserver had open is closed before."""

WATCH_S = 2.0
"""How often a forkserver looks whether it should end."""

SETTLE_S = 1.0
"""What was just forked has the processors to itself for so long, before the forkserver loads the rest."""

_NEW_OBJECTS = 50_000
"""After so many the interpreter looks for circles among them. With its own 700 a save of 50,000 files spent a quarter
of its time on that: a look through all that it has taken down takes 70 ms."""

_FileStates = dict[str, tuple[int, int, int]]
"""By path: modification time, size, inode."""


def main() -> None:
    """Be a forkserver, and in its children what they are to be."""
    if os.fork():
        os._exit(0)  # the client reaps this one; what stays is nobody's child
    gc.disable()  # while loading and forking: it would only look through modules
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers that end are reaped by the kernel
    become = _serve_all(socket.socket(fileno=int(sys.argv[1])))
    if become is not None:
        gc.enable()
        gc.set_threshold(_NEW_OBJECTS)
        become()


def _serve_all(first: socket.socket) -> Become | None:
    """Serve the first request, then those that come over the repository's socket. Returns in a forked child with what
    it is to do, in the forkserver when that ends (None)."""
    first.set_inheritable(False)
    with first:
        request, fds = fork_request.receive(first)
        if not isinstance(request, ForkKeepers):
            raise OSError("a forkserver's first request is for keepers")
        load(for_restore=request.lazy and len(request.instances) == 1)
        become = _fork_keepers(request, fds)
    if become is not None:
        return become
    _forget_client()
    _cache_kernel_features()
    if request.idle_s == 0:
        return None
    return ForkServer(request).serve()


def load(*, for_restore: bool = False) -> None:
    """All that a keeper and a pager need; `for_restore` only what a lazy restore begins with: CRIU can be at work
    while the rest is loaded."""
    from ijfs.live.checkpoint import restore  # noqa: F401
    from ijfs.live.keeper import early_restore, main  # noqa: F401
    from ijfs.live.pager import __main__, api  # noqa: F401
    from ijfs_engine import Repository, export_tree  # noqa: F401

    if not for_restore:
        from ijfs.live.keeper import server  # noqa: F401


def _fork_keepers(request: ForkKeepers, fds: list[int]) -> Become | None:
    """Fork a keeper for each instance; None in the parent, what to do in a child. `fds`: of each instance a socket and
    its lock, which the parent closes."""
    shared = None
    try:
        shared = _shared_blocks() if request.lazy and len(request.instances) > 1 else None
        gc.freeze()  # children share these pages for as long as nobody writes to them
        for directory, first, lock in zip(request.instances, fds[::2], fds[1::2], strict=True):
            if os.fork() == 0:
                _close_all(fd for fd in fds if fd not in (first, lock))
                fds = []
                return partial(_become_keeper, request, Path(directory), first, lock, shared)
    except OSError as error:
        _tell(request.instances, f"no process could be made for it: {error.strerror}")
        raise
    finally:
        _close_all(fds)
    if shared is not None:
        shared.close()
    return None


def _tell(instances: Iterable[str], why: str) -> None:
    """Where the client of a keeper looks that broke off."""
    for directory in instances:
        with suppress(OSError), Path(directory, "keeper.log").open("a") as log:
            log.write(f"{why}\n")


def _fork_pager(request: ForkPager, channel: int) -> Become | None:
    """Fork a pager; None in the parent, what to do in the child."""
    gc.freeze()
    if os.fork() == 0:
        return partial(_become_pager, request, channel)
    os.close(channel)
    return None


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _become_keeper(request: ForkKeepers, directory: Path, first: int, lock: int, shared: SharedBlocks | None) -> None:
    """Become a keeper, as one that the client itself had started."""
    from ijfs.live.keeper.main import keep

    name_process(f"ijfs-keeper {directory}")
    _inherit(request.inheritance)
    keep(directory, first, lock, lazy=request.lazy, shared=shared)


def _become_pager(request: ForkPager, channel: int) -> None:
    """Become a pager, as one that the keeper had forked before it had threads."""
    from ijfs.live.pager.api import serve_stranger

    name_process("ijfs-pager")
    _inherit(request.inheritance)
    os.setsid()
    log = os.open(Path(request.instance, "keeper.log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    os._exit(serve_stranger(channel))


def _inherit(inheritance: Inheritance) -> None:
    """Have what a child of the client would have inherited."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(unpacked(inheritance.environment))
    time.tzset()
    os.umask(inheritance.umask)


def _shared_blocks() -> SharedBlocks:
    from ijfs.live.pager.scheduler import BLOCK_PAGES
    from ijfs.live.pager.shared import SharedBlocks

    return SharedBlocks(BLOCK_PAGES)


def _cache_kernel_features() -> None:
    """Have CRIU probe this machine once, in a child, after what was just started has had the processors."""
    if kernel_features.needs_cache() and os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with suppress(OSError, subprocess.SubprocessError):
            time.sleep(SETTLE_S)
            kernel_features.build_cache()
        os._exit(0)


def _forget_client() -> None:
    """Let go of the log of the instance that the forkserver was started for."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)


class ForkServer:
    """Waits for a repository's further requests, after the first one was served."""

    def __init__(self, request: ForkKeepers) -> None:
        self._path = Path(request.instances[0]).parent / fork_request.SOCKET_NAME
        self._standing = request.inheritance.standing
        self._idle_s = request.idle_s
        self._asked_at = time.monotonic()
        self._loaded = False
        self._loaded_from: _FileStates = _loaded_files()

    def serve(self) -> Become | None:
        """Until it is time to end (None); returns early in a forked child, with what that is to do."""
        name_process(f"ijfs-spare {self._path.parent.parent}")
        try:
            listener, inode = self._listen()
        except OSError:  # the repository went
            return None
        with listener:
            while self._is_wanted(inode):
                if select.select([listener], [], [], WATCH_S if self._loaded else SETTLE_S)[0]:
                    become = self._serve_one(listener)
                    if become is not None:
                        return become
                elif not self._loaded:
                    load()
                    gc.collect()
                    self._loaded_from = _loaded_files() | self._loaded_from
                    self._loaded = True
        if _inode(self._path) == inode:
            self._path.unlink(missing_ok=True)
        return None

    def _listen(self) -> tuple[socket.socket, int]:
        """Take the place of an older forkserver, which notices. Returns the listener and its socket's inode."""
        mine = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        listener = unix_socket.bound(mine)
        listener.listen(16)
        inode = mine.stat().st_ino
        mine.rename(self._path)
        return listener, inode

    def _is_wanted(self, inode: int) -> bool:
        idle = time.monotonic() - self._asked_at
        return idle < self._idle_s and _inode(self._path) == inode and not self._is_outdated()

    def _is_outdated(self) -> bool:
        return any(_file_state(path) != state for path, state in self._loaded_from.items())

    def _serve_one(self, listener: socket.socket) -> Become | None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.settimeout(1.0)
            pid, user = fork_request.peer(connection)
            if user != os.geteuid():
                return None
            request, fds = fork_request.receive(connection)
            if isinstance(request, EndForkServer):
                self._idle_s = 0.0
                fork_request.accept(connection)
            elif self._takes_over(request, pid, connection):
                self._asked_at, self._idle_s = time.monotonic(), request.idle_s
                return _fork_keepers(request, fds) if isinstance(request, ForkKeepers) else _fork_pager(request, *fds)
            _close_all(fds)
        return None

    def _takes_over(self, request: ForkKeepers | ForkPager, pid: int, connection: socket.socket) -> bool:
        """Whether the request is served, which its client knows then. One that has waited too long has left, and has
        what it wanted of another forkserver."""
        if not self._may_ask(request, pid) or self._is_outdated():
            return False
        try:
            fork_request.accept(connection)
        except OSError:
            return False
        return True

    def _may_ask(self, request: ForkKeepers | ForkPager, pid: int) -> bool:
        """A client of the same standing; for a pager a keeper forked here, which has a mount namespace of its own."""
        if isinstance(request, ForkPager):
            return parent_of(pid) == os.getpid()
        return request.inheritance.standing == self._standing


def _loaded_files() -> _FileStates:
    """The files that modules were loaded from, as they are now."""
    paths = {str(path) for module in list(sys.modules.values()) if (path := getattr(module, "__file__", None))}
    return {path: state for path in paths if (state := _file_state(path)) is not None}


def _file_state(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


if __name__ == "__main__":
    main()
