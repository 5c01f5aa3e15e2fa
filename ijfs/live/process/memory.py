"""How much memory is there to take: of the machine, and of the cgroups that a container or a unit confines this to.

Called by checkpoint/arena_pool.py before each save, and by gpu/preflight.py.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

# By the controllers that /proc/self/cgroup names: version 2, version 1. Where they are mounted, their files, and what
# memory.stat calls page cache that can go.
_CGROUPS = {
    "": (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    "memory": (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


def available() -> int:
    """Bytes this process could take without anything being written out: of the machine, and of its memory cgroups.

    psutil knows of no cgroups, and its import (5 ms) would come before a keeper's first freeze."""
    machine = next((line for line in _lines(Path("/proc/meminfo")) if line.startswith("MemAvailable:")), "")
    found = [int(machine.split()[1]) << 10] if machine else []
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers in _CGROUPS:
            mount, limit, usage, cache = _CGROUPS[controllers]
            here = Path(path.lstrip("/"))
            found += [left for part in (here, *here.parents) for left in _left(mount / part, limit, usage, cache)]
    return min(found, default=0)


def _left(cgroup: Path, limit: str, usage: str, cache: str) -> list[int]:
    """What a cgroup may still take, its clean page cache included; nothing where it sets no limit."""
    with contextlib.suppress(OSError, ValueError):
        most, now = (int((cgroup / name).read_text()) for name in (limit, usage))
        clean = [int(line.split()[1]) for line in _lines(cgroup / "memory.stat") if line.startswith(f"{cache} ")]
        return [max(0, most - now + sum(clean))]
    return []


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text().splitlines()
    return []
