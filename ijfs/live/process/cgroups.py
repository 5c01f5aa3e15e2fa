"""Control groups as this machine has them: which hierarchies are mounted where, and which group a process is in.

Version 2 has one hierarchy with all controllers, version 1 one for each, and a machine may have both (systemd calls
that hybrid). Read by sandbox/limits.py, which makes groups, and by sandbox/enter.py, which has commands join one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PROCS = "cgroup.procs"

OF_VERSION_1 = {"io": "blkio"}
"""What version 1 calls a controller, where it is another name."""


class Hierarchy(NamedTuple):
    """One mounted hierarchy. `top`: which of its groups `mount` shows; `controllers` of version 1, by version 2's
    names."""

    version: int
    mount: Path
    top: str
    controllers: frozenset[str] = frozenset()

    def path_of(self, group: str) -> Path:
        """Where a group is that /proc/PID/cgroup names; the mount itself where it does not show that."""
        below = group.removeprefix(self.top.rstrip("/")) if group.startswith(self.top.rstrip("/")) else ""
        path = self.mount / below.lstrip("/")
        return path if path.is_dir() else self.mount


def hierarchies(mountinfo: Path = Path("/proc/self/mountinfo")) -> list[Hierarchy]:
    """Those that are mounted here, version 2 first; of two mounts of one, the first."""
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.read_text().splitlines():
        about, _, kind = line.partition(" - ")
        words, fields = about.split(), kind.split()
        if fields[0] == "cgroup2":
            found.setdefault("", Hierarchy(2, Path(words[4]), words[3]))
        elif fields[0] == "cgroup":
            names = frozenset(_named(name) for name in fields[2].split(","))
            controllers = names & {"cpu", "cpuacct", "memory", "pids", "io"}
            if controllers:
                found.setdefault(",".join(sorted(controllers)), Hierarchy(1, Path(words[4]), words[3], controllers))
    return sorted(found.values(), key=lambda hierarchy: -hierarchy.version)


def _named(name: str) -> str:
    return next((own for own, old in OF_VERSION_1.items() if old == name), name)


def group_of(hierarchy: Hierarchy, pid: int | str = "self") -> Path:
    """The group of a process in that hierarchy. OSError where the process is gone."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, group = line.split(":", 2)
        controllers = frozenset(_named(name) for name in names.split(","))
        if (not names and hierarchy.version == 2) or (names and controllers & hierarchy.controllers):
            return hierarchy.path_of(group)
    return hierarchy.mount


def join(groups: Iterable[str | os.PathLike[str]]) -> None:
    """Put the calling process into each of these groups. OSError."""
    join_opened(opened(groups))


def opened(groups: Iterable[str | os.PathLike[str]]) -> list[int]:
    """Descriptors by which a process can join these groups where it does not see them any more. OSError."""
    return [os.open(Path(group) / PROCS, os.O_WRONLY | os.O_CLOEXEC) for group in groups]


def join_opened(descriptors: Iterable[int]) -> None:
    """Put the calling process into the groups of these descriptors, and close them. OSError."""
    for descriptor in descriptors:
        os.write(descriptor, b"0")
        os.close(descriptor)


def groups_below(pid: int, parent: str) -> list[Path]:
    """The groups of a process whose parent has that name, as those of a sandbox have."""
    with contextlib.suppress(OSError):
        found = [group_of(hierarchy, pid) for hierarchy in hierarchies()]
        return [group for group in found if group.parent.name == parent]
    return []
