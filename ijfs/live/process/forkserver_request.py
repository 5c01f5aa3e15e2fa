"""A process that has loaded all of ijfs and waits to be forked into keepers: its address, its rules, how it is asked.

Loading takes longer than restoring (0.25 s against 0.1), so the launcher (keeper/forkserver.py) that a client had to
start stays for a while as the repository's *spare*, and the next client asks it instead of starting an interpreter. A
keeper forked off it must be what a started one would be. What can be handed over (environment, umask) comes with the
request. What cannot (who and where a process is, what it may do) is its *standing*: a spare serves only clients of the
standing that its own starter had. Any refusal, and any silence, costs a client nothing but the start of another
launcher.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import os
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

import ijfs
from ijfs.live.model.environment import packed
from ijfs.live.model.paths import live_directory, short_path
from ijfs.live.process import procfs

SETTING = "IJFS_SPARE_S"
IDLE_S = 600.0
"""How long a spare waits for its next request, unless $IJFS_SPARE_S says otherwise (0: there is none)."""

SOCKET_NAME = ".spare.sock"
"""Beside the instances; no name of one begins with a dot."""

MOST_INSTANCES = 200
"""Of one request: the kernel passes 253 descriptors in one message (SCM_MAX_FD)."""

_PATIENCE_S = 1.0
"""A spare answers in a millisecond, or in 0.1 s when it is still loading; a stopped one never."""

_MAX_REQUEST = 16 << 20
_ACCEPTED = b"ok\n"

# What an interpreter and the C library look at only when they start.
_AT_START = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "LANG")
_STATUS = (
    *("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    *("NoNewPrivs", "Seccomp", "Cpus_allowed", "Mems_allowed"),
)
_NAMESPACES = ("mnt", "net", "pid", "pid_for_children", "user", "uts", "ipc", "cgroup", "time")


class Request(msgspec.Struct, frozen=True):
    """Make keepers: one for each directory, and as many sockets, their first clients, come along.

    `lazy`: their first requests will be lazy restores. `environment`: as model/environment.py packs it. `idle_s`: how
    long to wait afterwards as a spare. Without instances it asks a spare to end. `pager`: not keepers but a pager is
    wanted, by a keeper of that instance, which has threads by now and cannot fork; the socket is its end of their
    channel.
    """

    instances: tuple[str, ...] = ()
    lazy: bool = False
    pager: bool = False
    environment: str = ""
    umask: int = 0o022
    standing: str = ""
    idle_s: float = 0.0


class Waiting(msgspec.Struct, frozen=True):
    """A spare, as people are shown it. `since_ns`: of the epoch. `memory`: bytes that are its own, or its share of what
    keepers have too (PSS); None where the system does not say."""

    pid: int
    since_ns: int
    memory: int | None


def address(repo: str | os.PathLike[str]) -> Path:
    """Where the spare of a repository listens."""
    return live_directory(repo) / SOCKET_NAME


def idle_s() -> float:
    """The caller's setting. A value that is no number means the usual one."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(os.environ.get(SETTING, IDLE_S)))
    return IDLE_S


def request_for(instances: Sequence[Path], *, lazy: bool) -> Request:
    """A request that hands over what the calling process is."""
    status = _status()
    return Request(
        instances=tuple(map(str, instances)),
        lazy=lazy,
        environment=packed(os.environ),
        umask=int(status["Umask"], 8),
        standing=_standing(status),
        idle_s=idle_s(),
    )


def _standing(status: Mapping[str, str]) -> str:
    """A digest of what a process cannot take over from another."""
    parts = [f"{name} {status.get(name)}" for name in _STATUS]
    parts += [_link(f"ns/{kind}") for kind in _NAMESPACES]
    parts += [_text(name) for name in ("limits", "cgroup", "oom_score_adj", "personality", "attr/current")]
    parts += [_link("root"), str(os.getpriority(os.PRIO_PROCESS, 0)), str(os.sched_getscheduler(0))]
    parts += [sys.executable, sys.prefix, str(ijfs.__file__)]
    parts += sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(_AT_START))
    return hashlib.blake2b("\0".join(parts).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def ask(path: Path, request: Request, fds: Sequence[int] = ()) -> bool:
    """Whether a spare listens there, is this user's own, and took the request over."""
    try:
        with contextlib.closing(_connected(path)) as sock:
            if peer(sock)[1] != os.geteuid():  # whoever put it there may not have our environment
                return False
            send(sock, request, fds)
            return sock.recv(len(_ACCEPTED)) == _ACCEPTED
    except OSError:
        return False


def waiting(repo: str | os.PathLike[str]) -> int | None:
    """The pid of a repository's spare; None where none waits (for this user)."""
    try:
        with contextlib.closing(_connected(address(repo))) as sock:
            pid, uid = peer(sock)
            return pid if uid == os.geteuid() else None
    except OSError:
        return None


def describe(repo: str | os.PathLike[str]) -> Waiting | None:
    """What is known of a repository's spare; None where none waits (for this user)."""
    pid = waiting(repo)
    ticks = procfs.start_ticks(pid) if pid is not None else None
    if pid is None or ticks is None:
        return None
    began = ticks / os.sysconf("SC_CLK_TCK") - time.clock_gettime(time.CLOCK_BOOTTIME)
    return Waiting(pid, time.time_ns() + int(began * 1e9), procfs.memory_in_smaps(pid).get("Pss"))


def dismiss(repo: str | os.PathLike[str]) -> bool:
    """End the spare of a repository; whether there was one. It is gone, or about to be, on return; so is its socket,
    also that of one which was killed."""
    found = ask(address(repo), Request())
    with contextlib.suppress(OSError):
        address(repo).unlink()
    return found


def send(sock: socket.socket, request: Request, fds: Sequence[int]) -> None:
    """One request, one line."""
    line = msgspec.json.encode(request) + b"\n"
    sent = socket.send_fds(sock, [line], fds)
    sock.sendall(line[sent:])


def receive(sock: socket.socket) -> tuple[Request, list[int]]:
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
        request = msgspec.json.decode(bytes(line), type=Request)
        if len(request.instances) != len(fds):
            raise OSError("as many sockets as instances are wanted")
    except (OSError, msgspec.DecodeError) as error:
        for fd in fds:
            os.close(fd)
        raise OSError(str(error)) from error
    return request, list(fds)


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
        sock.settimeout(_PATIENCE_S)
        with short_path(path) as name:
            sock.connect(name)
    except BaseException:
        sock.close()
        raise
    return sock


def _status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text(errors="surrogateescape").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _link(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/{name}")
    except OSError:  # no such thing here
        return ""


def _text(name: str) -> str:
    try:
        return Path(f"/proc/self/{name}").read_text(errors="surrogateescape")
    except OSError:  # no such thing here
        return ""
