"""What live programs take of the machine: processor time, memory, processes; by /proc alone, whoever looks."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ijfs.live.process import procfs


class Usage(NamedTuple):
    """Of all processes of a program. `processor_s`: seconds of one processor so far, those of ended children included.
    `memory`: bytes; a page that several processes have is divided among them (proportional set size), and that of all
    programs together is what they take."""

    processor_s: float
    memory: int
    processes: int


def of_programs(first: Mapping[str, int]) -> dict[str, Usage]:
    """By name, of programs by the pid of a process each; one that has ended meanwhile is left out."""
    found = {}
    groups = _groups()
    for name, pid in first.items():
        with contextlib.suppress(OSError):
            members = groups.get(procfs.namespace_id(pid, "pid"), set())
            below = {child for member in members for child in procfs.descendants(member)}  # in namespaces of their own
            found[name] = _together(members | below)
    return found


def _groups() -> dict[int, set[int]]:
    """All processes by their pid namespace."""
    groups: dict[int, set[int]] = defaultdict(set)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                groups[procfs.namespace_id(entry, "pid")].add(int(entry))
    return groups


def _together(pids: Iterable[int]) -> Usage:
    each = [(procfs.processor_seconds(pid), procfs.memory_in_smaps(pid).get("Pss", 0)) for pid in pids]
    return Usage(sum(time for time, _ in each), sum(memory for _, memory in each), len(each))
