"""Start a program in new namespaces; a small program of its own, run by the keeper (`start` is the keeper's side).

    python -m ijfs.live.sandbox.init < REQUEST        (a LaunchRequest in JSON; fds it names are inherited)

It is a program because unshare and fork want a process with one thread. It makes the namespaces, forks what becomes
pid 1 inside (tini), says that one's host pid on its standard output and ends; the keeper, a subreaper, inherits it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ijfs.live.errors import SandboxError
from ijfs.live.model.environment import packed, unpacked
from ijfs.live.model.paths import LOG_INSIDE, SandboxPaths
from ijfs.live.model.records import Volume
from ijfs.live.process import cgroups, syscalls
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox import rights, rootfs, seccomp, users

_SIGACTION_BYTES = 32  # struct sigaction of the kernel: handler, flags, restorer, mask (arm64 has no restorer)
_SIGSET_BYTES = 8  # _NSIG / 8


class LaunchRequest(msgspec.Struct, frozen=True):
    """What to start: the mounted root, the network namespace's fd, and the program."""

    root: str
    mounts: list[tuple[str, str]]  # (where it is mounted, where it goes inside), parents first
    network_fd: int
    argv: list[str]
    env: str  # environment.packed
    cwd: str
    io_uring: bool
    user: str = ""
    groups: list[str] = []
    privileged: bool = False
    filtered: bool = False


def start(
    paths: SandboxPaths,
    volumes: Sequence[Volume],
    network_fd: int,
    argv: list[str],
    env: dict[str, str],
    cwd: str,
    *,
    io_uring: bool,
    user: str = "",
    inherited: Sequence[int] = (),
    groups: Sequence[Path] = (),
    privileged: bool = False,
    filtered: bool = False,
) -> int:
    """Start `argv` in a sandbox whose root is mounted (rootfs.mount_root); the host pid of its first process.
    `user`: as one of its users; `inherited`: descriptors that it has open; `groups`: its control groups; `privileged`:
    with all rights (rights.py); `filtered`: without those over its network."""
    inside, outside = rootfs.external_inside(volumes), rootfs.external_outside(paths, volumes)
    mounts = sorted((str(outside[key]), inside[key]) for key in inside)
    mounts.sort(key=lambda pair: len(Path(pair[1]).parts))
    names = [str(group) for group in groups]
    request = LaunchRequest(
        str(paths.mountpoint), mounts, network_fd, argv, packed(env), cwd, io_uring, user, names, privileged, filtered
    )
    helper = subprocess.run(
        [sys.executable, "-P", "-m", "ijfs.live.sandbox.init"],
        input=msgspec.json.encode(request),
        capture_output=True,
        pass_fds=[network_fd, *inherited],
        check=False,
    )
    if helper.returncode != 0:
        reason = helper.stderr.decode(errors="replace").strip().splitlines() or ["it gave no reason"]
        raise SandboxError(f"the sandbox could not start: {reason[-1]}")
    return int(helper.stdout)


def main() -> int:
    """The helper program."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=LaunchRequest)
    ns.setns(request.network_fd, ns.CLONE_NEWNET)
    os.close(request.network_fd)  # it came by exec, and would go on to the program
    ns.unshare(ns.CLONE_NEWPID | ns.CLONE_NEWNS | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become(request, writer)
    os.close(writer)
    complaint = os.read(reader, 4096)  # nothing: exec closed it
    if complaint:
        os.waitpid(pid, 0)
        print(complaint.decode(errors="replace"), file=sys.stderr)
        return 1
    print(pid)
    return 0


def _become(request: LaunchRequest, complaints: int) -> None:
    """Become pid 1 of the sandbox; what goes wrong is written to `complaints`."""
    try:
        os.setsid()
        cgroups.join(request.groups)
        enter_root(Path(request.root), request.mounts, privileged=request.privileged)
        _redirect()
        seccomp.restrict(io_uring=request.io_uring, privileged=request.privileged)
        if not request.privileged:
            rights.restrict(rights.of_a_sandbox(filtered=request.filtered))
        environment = unpacked(request.env)
        if request.user:
            environment |= {name: value for name, value in users.become(request.user).items() if name != "SHELL"}
        _change_directory(request.cwd)
        heed_signals()
        os.execvpe(request.argv[0], request.argv, environment)
    except BaseException as error:
        text = f"{error.strerror or error}" if isinstance(error, OSError) else f"{error}"
        name = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        os.write(complaints, f"{text}{name}".encode())
    finally:
        os._exit(127)


def heed_signals() -> None:
    """What the keeper, Python, or whoever started them ignores is not ignored by a program for that reason.

    It would not be interrupted. The C library keeps two numbers to itself (signal(7): NPTL) and refuses them to
    `sigaction`, and Python with it; who starts us may have them ignored all the same, so the kernel is asked itself.
    """
    action = ctypes.create_string_buffer(_SIGACTION_BYTES)  # all zero is SIG_DFL
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            ns.syscall(syscalls.number("rt_sigaction"), number, ctypes.addressof(action), 0, _SIGSET_BYTES)


def enter_root(root: Path, mounts: Sequence[tuple[str, str]], *, privileged: bool = False) -> None:
    """Make the mounted overlay this mount namespace's root, with the others in it, /dev/pts, /proc and /sys."""
    ns.mount("none", "/", "", ns.MS_REC | ns.MS_PRIVATE)
    os.chdir(root)
    here = Path("/proc/self/cwd")
    for outside, inside in mounts:
        target = here / inside.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        ns.bind(outside, target)
    ns.mount("devpts", here / "dev/pts", "devpts", ns.MS_NOSUID | ns.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    ns.mount("proc", here / "proc", "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
    ns.mount("sysfs", here / "sys", "sysfs", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
    if not privileged:
        rights.protect_machine(here)
    ns.pivot_root_here()


def _redirect() -> None:
    """stdin from nothing, stdout and stderr into the log, which is a file of the sandbox and rides in its snapshots."""
    null = os.open("/dev/null", os.O_RDONLY)
    log = os.open(LOG_INSIDE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)


def _change_directory(cwd: str) -> None:
    os.chdir(cwd)


if __name__ == "__main__":
    sys.exit(main())
