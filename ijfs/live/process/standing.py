"""What a process cannot take over from another: who it is, where it is, what it may do.

A keeper that is forked off a forkserver has the forkserver's user, namespaces, limits and so on, and must be what a
keeper that its client had started would be. So the client sends a digest of its own *standing*, and the forkserver
(keeper/forkserver.py) serves only clients whose digest is that of the client which started it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import ijfs

_AT_START = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "LANG")
"""Variables that an interpreter and the C library look at only when they start."""

_FIELDS = (
    *("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    *("NoNewPrivs", "Seccomp", "Cpus_allowed", "Mems_allowed"),
)
_NAMESPACES = ("mnt", "net", "pid", "pid_for_children", "user", "uts", "ipc", "cgroup", "time")


def standing(status: Mapping[str, str]) -> str:
    """A digest of what the calling process is and cannot hand over. `status`: its `process_status()`."""
    import hashlib  # loads OpenSSL

    parts = [f"{name} {status.get(name)}" for name in _FIELDS]
    parts += [_link(f"ns/{kind}") for kind in _NAMESPACES]
    parts += [_text(name) for name in ("limits", "cgroup", "oom_score_adj", "personality", "attr/current")]
    parts += [_link("root"), str(os.getpriority(os.PRIO_PROCESS, 0)), str(os.sched_getscheduler(0))]
    parts += [sys.executable, sys.prefix, str(ijfs.__file__)]
    parts += sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(_AT_START))
    return hashlib.blake2b("\0".join(parts).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def process_status() -> dict[str, str]:
    """/proc/self/status by field (`Uid`, `Umask`, …; proc(5))."""
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
