"""The client's side of a repository's forkserver: where it listens, and how it is asked, found and ended.

The forkserver (keeper/forkserver.py) is a process that has loaded all of ijfs and forks keepers: loading takes longer
than restoring (0.25 s against 0.1). The client that needs the first keeper starts it, and it stays for a while, so that
the next client asks it instead of starting an interpreter; people are shown it as the repository's *spare*. A keeper
forked off it must be what a started one would be. What can be handed over (environment, umask) comes with the request;
what cannot is compared (standing.py). A refusal, or silence, costs the client only the start of another forkserver.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ijfs.live.model.environment import packed
from ijfs.live.model.paths import live_directory, short_path
from ijfs.live.process import procfs
from ijfs.live.process.standing import process_status, standing

SETTING = "IJFS_SPARE_S"
IDLE_S = 600.0
"""How long a forkserver waits for its next request, unless $IJFS_SPARE_S says otherwise (0: there is none)."""

SOCKET_NAME = ".spare.sock"
"""Beside the instances; no name of one begins with a dot."""

MOST_INSTANCES = 120
"""Of one request, two descriptors each: the kernel passes 253 in one message (SCM_MAX_FD)."""

_ANSWER_LIMIT_S = 1.0
"""A forkserver answers in a millisecond, or in 0.1 s when it is still loading; a stopped one never."""

_MAX_REQUEST = 16 << 20
_ACCEPTED = b"ok\n"


class Inheritance(msgspec.Struct, frozen=True):
    """What a forked process has of the one that asked, as its child would have it.

    `environment`: as model/environment.py packs it. `standing`: what cannot be handed over and has to be the same
    (standing.py)."""

    environment: str
    umask: int
    standing: str


class ForkKeepers(msgspec.Struct, frozen=True, tag="keepers"):
    """Fork a keeper for each instance's directory. Two descriptors for each come along: a socket, whose other end is
    its keeper's first client, and the instance's locked lock (keeper_lock.py).

    `lazy`: the keepers' first requests will be lazy restores. `idle_s`: how long to stay afterwards, unasked.
    """

    instances: tuple[str, ...]
    inheritance: Inheritance
    lazy: bool
    idle_s: float


class ForkPager(msgspec.Struct, frozen=True, tag="pager"):
    """Fork a pager for the keeper of this instance, which has threads by now and cannot fork one itself. One socket
    comes along: the pager's end of their channel."""

    instance: str
    inheritance: Inheritance
    idle_s: float


class EndForkServer(msgspec.Struct, frozen=True, tag="end"):
    """Serve nobody any more."""


ForkRequest = ForkKeepers | ForkPager | EndForkServer
"""What a forkserver is asked. Both ends are of one version: a forkserver refuses when the files it was loaded from have
changed, and refuses what it cannot read; the client then starts another."""


class ForkServerInfo(msgspec.Struct, frozen=True):
    """A forkserver as people are shown it, by the name of a spare (`ijfs ps`). `since_ns`: when it began, of the epoch.
    `memory`: its proportional share (PSS) in bytes, pages that keepers have too counted in part; None where the system
    does not say."""

    pid: int
    since_ns: int
    memory: int | None


def address(repo: str | os.PathLike[str]) -> Path:
    """Where the forkserver of a repository listens."""
    return live_directory(repo) / SOCKET_NAME


def idle_s() -> float:
    """$IJFS_SPARE_S, seconds, as the caller has it set. A value that is no number means the usual one."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(os.environ.get(SETTING, IDLE_S)))
    return IDLE_S


def inheritance() -> Inheritance:
    """That of the calling process."""
    status = process_status()
    return Inheritance(packed(os.environ), int(status["Umask"], 8), standing(status))


def keepers_for(instances: Sequence[Path], *, lazy: bool) -> ForkKeepers:
    """A request for keepers that hands over what the calling process is."""
    return ForkKeepers(tuple(map(str, instances)), inheritance(), lazy, idle_s())


def pager_for(instance: Path) -> ForkPager:
    """A request of this process, the instance's keeper, for a pager."""
    return ForkPager(str(instance), inheritance(), idle_s())


def ask(path: Path, request: ForkRequest, fds: Sequence[int] = ()) -> bool:
    """Whether a forkserver listens there, is this user's own, and took the request over."""
    try:
        with contextlib.closing(_connected(path)) as sock:
            if peer(sock)[1] != os.geteuid():  # whoever put it there may not have our environment
                return False
            send(sock, request, fds)
            return is_taken_over(sock)
    except OSError:
        return False


def is_taken_over(sock: socket.socket) -> bool:
    """Whether the answer comes in time. Where it does not, nobody can answer any more before it is looked for once
    more: a forkserver that answered just then would fork keepers beside those of the next one, on the same lock, and
    such a keeper, without a client, would remove the directory of the other."""
    with contextlib.suppress(TimeoutError):
        return sock.recv(len(_ACCEPTED)) == _ACCEPTED
    sock.shutdown(socket.SHUT_RD)
    return sock.recv(len(_ACCEPTED)) == _ACCEPTED


def forkserver_pid(repo: str | os.PathLike[str]) -> int | None:
    """The pid of a repository's forkserver; None where none listens (for this user)."""
    try:
        with contextlib.closing(_connected(address(repo))) as sock:
            pid, uid = peer(sock)
            return pid if uid == os.geteuid() else None
    except OSError:
        return None


def forkserver_info(repo: str | os.PathLike[str]) -> ForkServerInfo | None:
    """What is known of a repository's forkserver; None where none listens (for this user)."""
    pid = forkserver_pid(repo)
    ticks = procfs.start_ticks(pid) if pid is not None else None
    if pid is None or ticks is None:
        return None
    began = ticks / os.sysconf("SC_CLK_TCK") - time.clock_gettime(time.CLOCK_BOOTTIME)
    return ForkServerInfo(pid, time.time_ns() + int(began * 1e9), procfs.memory_in_smaps(pid).get("Pss"))


def dismiss(repo: str | os.PathLike[str]) -> bool:
    """End the forkserver of a repository; whether there was one. On return it is gone, or about to be, and so is its
    socket; the socket of one that was killed goes too."""
    found = ask(address(repo), EndForkServer())
    with contextlib.suppress(OSError):
        address(repo).unlink()
    return found


def send(sock: socket.socket, request: ForkRequest, fds: Sequence[int]) -> None:
    """One request, one line. Nothing is sent after its last byte: a forkserver that has it answers and closes, and the
    system call for an empty rest would fail, of a request that was taken over."""
    line = msgspec.json.encode(request) + b"\n"
    sent = socket.send_fds(sock, [line], fds)
    if rest := line[sent:]:
        sock.sendall(rest)


def receive(sock: socket.socket) -> tuple[ForkRequest, list[int]]:
    """A request and its descriptors (close-on-exec). OSError where it breaks off, is too long or makes no sense."""
    line = bytearray()
    fds = array.array("i")
    try:
        while not line.endswith(b"\n"):
            data, ancillary, _, _ = sock.recvmsg(1 << 16, socket.CMSG_SPACE(253 * 4), socket.MSG_CMSG_CLOEXEC)
            for _, _, rights in ancillary:
                fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
            line += data
            if not data or len(line) > _MAX_REQUEST:
                raise OSError("a request broke off")
        request = msgspec.json.decode(bytes(line), type=ForkRequest)
        if len(fds) != _descriptors_with(request):
            raise OSError("another number of descriptors was to come")
    except (OSError, msgspec.DecodeError) as error:
        for fd in fds:
            os.close(fd)
        raise OSError(str(error)) from error
    return request, list(fds)


def _descriptors_with(request: ForkRequest) -> int:
    match request:
        case ForkKeepers(instances):
            return 2 * len(instances)
        case ForkPager():
            return 1
        case EndForkServer():
            return 0


def accept(sock: socket.socket) -> None:
    """Tell a client that its request is taken over."""
    sock.sendall(_ACCEPTED)


def peer(sock: socket.socket) -> tuple[int, int]:
    """(pid, user id) of who is at the other end."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid


def _connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_ANSWER_LIMIT_S)
        with short_path(path) as name:
            sock.connect(name)
    except BaseException:
        sock.close()
        raise
    return sock
