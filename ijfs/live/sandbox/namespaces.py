"""Linux calls that Python 3.11 lacks: namespaces, mounts, prctl; and the network namespace of a sandbox.

A seam over libc: every call raises OSError with the path it was about. Used by sandbox, keeper, relay and enter.
setns and unshare act on the calling *thread*; what a keeper does with them is said at each function.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from ijfs.live.process import syscalls

# <linux/sched.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# <sys/mount.h>
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC = 4096, 16384
MS_PRIVATE, MS_SLAVE = 1 << 18, 1 << 19
MNT_DETACH = 2

# <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def syscall(number: int, *arguments: int) -> int:
    """syscall(2) with integer (or address) arguments."""
    result = int(_libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments)))
    _check(result, f"system call {number}")
    return result


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread (a new pid namespace is for its next child)."""
    _check(_libc.unshare(flags), f"unshare {flags:#x}")


def setns(fd: int, kind: int = 0) -> None:
    """setns(2) for the calling thread."""
    _check(_libc.setns(fd, kind), "setns")


def mount(source: str, target: os.PathLike[str] | str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(result, f"mount {kind or 'bind'} on {os.fspath(target)}")


def bind(source: os.PathLike[str] | str, target: os.PathLike[str] | str) -> None:
    """Show `source` at `target` too (the one mount, not those below it)."""
    mount(os.fspath(source), target, "", MS_BIND)


def umount(target: os.PathLike[str] | str, *, missing_ok: bool = True) -> None:
    """umount2(2), detached: gone from the tree at once, from memory when its last user is."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH) < 0:
        code = ctypes.get_errno()
        if not (missing_ok and code in (errno.EINVAL, errno.ENOENT)):
            raise OSError(code, f"umount {os.fspath(target)}: {os.strerror(code)}")


def syncfs(fd: int) -> None:
    """syncfs(2): everything that was written to the filesystem of `fd` is on its disk."""
    _check(_libc.syncfs(fd), "syncfs")


def pivot_root_here() -> None:
    """Make the current directory, a mount point, the root of this mount namespace and drop the old one."""
    _check(_libc.syscall(ctypes.c_long(syscalls.number("pivot_root")), b".", b"."), "pivot_root")
    umount(".", missing_ok=False)
    os.chdir("/")


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def sethostname(name: str) -> None:
    """Name this uts namespace."""
    _check(_libc.sethostname(name.encode(), len(name.encode())), "sethostname")


machine_mounts = -1
"""The mount namespace that this process left by `private_mounts`, a descriptor; -1 before."""


def private_mounts() -> None:
    """Give this (single-threaded) process a mount namespace: the host's later mounts reach it, its own stay inside."""
    global machine_mounts
    machine_mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    unshare(CLONE_NEWNS)
    mount("none", "/", "", MS_REC | MS_SLAVE)


@contextlib.contextmanager
def in_network(namespace_fd: int) -> Iterator[None]:
    """The calling thread makes its sockets in that network namespace; no other thread notices.

    Must not span an await. A thread that cannot come back must not go on: the process ends.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(namespace_fd, CLONE_NEWNET)
        try:
            yield
        finally:
            try:
                setns(home, CLONE_NEWNET)
            except OSError:  # every later socket would be made in the wrong network
                os.kill(os.getpid(), signal.SIGKILL)
    finally:
        os.close(home)


def new_network() -> int:
    """An fd of a new network namespace with its loopback up; it lives as long as the fd or a process in it."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNET)
        try:
            bring_up_loopback()
            _refuse_multipath()
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def bring_up_loopback() -> None:
    """`ip link set lo up`. CRIU needs it: its check of TCP repair (kerndat_tcp_repair) fails without a loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(sock, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | IFF_UP))


def _refuse_multipath() -> None:
    """Turn multipath TCP off, whose sockets CRIU cannot save. Servers in Go listen with it where they can, and else by
    TCP. Where the setting cannot be written, a save refuses such a socket by name."""
    with contextlib.suppress(OSError):
        Path("/proc/sys/net/mptcp/enabled").write_text("0")


def open_namespace(pid: int, kind: str) -> int:
    """An fd of a process's namespace (`net`, `mnt`, `pid`, `ipc`, `uts`)."""
    return os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def mounts_below(prefix: Path) -> list[Path]:
    """The mount points at or under a path in this mount namespace, deepest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(line.split()[4].encode().decode("unicode_escape"))
        if point == prefix or prefix in point.parents:
            found.append(point)
    return sorted(found, key=lambda path: len(path.parts), reverse=True)
