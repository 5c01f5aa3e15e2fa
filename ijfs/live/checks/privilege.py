"""Whether this process may make sandboxes at all: one sentence before anything starts. Called by client/api.py, doctor.

Light, as it is on the way of every start and restore. What else may be missing doctor finds out by trying.
"""

from __future__ import annotations

import os
from pathlib import Path

from ijfs_engine.errors import PreflightError

# <linux/capability.h>. With these and nothing else a program was started, saved, restored and forked, and without any
# one of them it was not: the first four are needed by every sandbox, the next four by CRIU, most of them only to
# restore; without the last four, files cannot be put back with their owners, modes and capabilities.
CAPABILITIES = {
    "SYS_ADMIN": 21,
    "NET_ADMIN": 12,
    "MKNOD": 27,
    "DAC_OVERRIDE": 1,
    "SYS_PTRACE": 19,
    "SETPCAP": 8,
    "SYS_CHROOT": 18,
    "SYS_TIME": 25,
    "CHOWN": 0,
    "FOWNER": 3,
    "FSETID": 4,
    "SETFCAP": 31,
}

# The whole range of user ids, as the first namespace maps it to itself (user_namespaces(7)).
_ALL_IDS = ["0", "0", "4294967295"]


# CRIU asks for the limits of processes of another user with this one (prlimit(2)).
_SYS_RESOURCE = 24


def all_there_are() -> int:
    """Every capability that the kernel knows."""
    return (2 << int(Path("/proc/sys/kernel/cap_last_cap").read_text())) - 1


def missing() -> list[str]:
    """The capabilities that this process would need and has not."""
    return [name for name, bit in CAPABILITIES.items() if not _has(bit)]


def may_save_other_users() -> bool:
    """Whether a program of whose processes some belong to another user than root can be saved."""
    return _has(_SYS_RESOURCE)


def _has(bit: int) -> bool:
    return bool(effective() >> bit & 1)


def effective() -> int:
    """The capabilities that this process has, a bit each."""
    return int(_status("CapEff"), 16)


def is_filtered() -> bool:
    """Whether a seccomp filter is on this process: a tracer under one may not look behind another (ptrace(2),
    PTRACE_O_SUSPEND_SECCOMP), and a program is lost as it is saved."""
    return _status("Seccomp") == "2"


def _status(name: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((line.split()[1] for line in lines if line.startswith(f"{name}:")), "0")


def in_user_namespace() -> bool:
    """Whether root here is somebody else outside."""
    try:
        return Path("/proc/self/uid_map").read_text().split() != _ALL_IDS
    except OSError:  # a kernel without user namespaces
        return False


def objection() -> tuple[str, str] | None:
    """What stands in the way of any sandbox, and what to do about it; None where nothing does."""
    if in_user_namespace():
        return (
            "this is a user namespace (rootless podman or docker, `unshare -r`): its root may not restore programs",
            "run it as the machine's root, or in a container that root started; `ijfs log`, `export` and the like work",
        )
    lacking = missing()
    if lacking and os.geteuid() != 0:
        return (
            f"user {os.geteuid()} is not root: sandboxes, CRIU and mounts need it",
            "`sudo -E ijfs …`, or a root shell; `ijfs log`, `export` and the like work as it is",
        )
    if lacking:
        return f"root here lacks {', '.join(f'CAP_{name}' for name in lacking)}", how_to_give(lacking)
    if is_filtered():
        return "a seccomp filter is on this container: programs in it are lost as they are saved", SECCOMP_REMEDY
    return None


SECCOMP_REMEDY = (
    "docker, podman: --security-opt seccomp=unconfined; Kubernetes: securityContext.seccompProfile.type: Unconfined"
)


def how_to_give(capabilities: list[str]) -> str:
    """The options of docker, podman and Kubernetes that give a container capabilities."""
    options = " ".join(f"--cap-add={name}" for name in capabilities)
    return (
        f"docker, podman: {options} (or --privileged); "
        f"Kubernetes: securityContext.capabilities.add: [{', '.join(capabilities)}]"
    )


def require() -> None:
    """PreflightError (exit code 12) where no sandbox can be made."""
    found = objection()
    if found is not None:
        raise PreflightError(f"refused before anything was touched: {found[0]}", hint=found[1])
