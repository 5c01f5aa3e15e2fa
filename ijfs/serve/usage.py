"""What a sandbox takes of the machine, seen from outside: its processes, and what it wrote. Called by control.py."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from ijfs.live.model.records import InstanceInfo
from ijfs.serve.control_types import Metrics


class Usage:
    """The measurements of one server. Processor time is that since a sandbox was last measured."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float]] = {}

    def of(self, info: InstanceInfo) -> Metrics:
        """A running sandbox. Blocks: what it wrote is added up."""
        processes = list(_processes(info.pid))
        now = datetime.datetime.now(datetime.UTC)
        files = os.statvfs(Path(info.log).parent)
        return Metrics(
            timestamp=now,
            timestamp_unix=int(now.timestamp()),
            cpu_count=math.ceil(info.limits.cpus or os.cpu_count() or 1),
            cpu_used_pct=self._percent(info.name, sum(_seconds(process) for process in processes), info.created_ns),
            mem_used=sum(_memory(process) for process in processes),
            mem_total=info.limits.memory or psutil.virtual_memory().total,
            disk_used=_written(Path(info.log).parents[2]),
            disk_total=files.f_blocks * files.f_frsize,
        )

    def forget(self, name: str) -> None:
        """It is gone."""
        self._before.pop(name, None)

    def _percent(self, name: str, seconds: float, created_ns: int) -> float:
        """Of one processor. Since its beginning, the first time."""
        now = time.time()
        then, had = self._before.get(name, (created_ns / 1e9, 0.0))
        self._before[name] = (now, seconds)
        return round(100 * max(0.0, seconds - had) / max(now - then, 1e-3), 2)


def _processes(pid: int | None) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        yield first
        yield from first.children(recursive=True)


def _seconds(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _memory(process: psutil.Process) -> int:
    """Its share of what it shares with others."""
    with contextlib.suppress(psutil.Error):
        return int(process.memory_full_info().pss)
    return 0


def _written(directory: Path) -> int:
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total
