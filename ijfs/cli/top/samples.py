"""Live programs with what they take, looked at again and again: shares of a processor are of the time between two."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ijfs.cli import instances, text
from ijfs.cli.output import Column, Span
from ijfs.live.client.api import InstanceInfo, list_instances
from ijfs.live.process import usage
from ijfs.live.process.usage import Usage

COLUMNS = [
    Column("NAME", style="bold green"),
    Column("CPU %", right=True),
    Column("MEMORY", right=True),
    Column("PROCESSES", right=True, drop=2),
    Column("UP", right=True, drop=1),
    Column("SNAPSHOT", style="yellow", drop=3),
    Column("STATUS", optional=True),
    Column("PROGRAM", flex=True),
]


@dataclass(frozen=True)
class Program:
    """A live program at a moment. `processor`: of one processor, 1.0 for all of it, since the moment before; None where
    nobody looked before. `memory` in bytes."""

    info: InstanceInfo
    processor: float | None
    memory: int
    processes: int

    def row(self) -> list[Span]:
        """As it is shown, by COLUMNS."""
        return [
            self.info.name,
            "" if self.processor is None else f"{100 * self.processor:.0f}",
            text.size(self.memory),
            str(self.processes),
            (text.age(self.info.created_ns), "dim"),
            (self.info.snapshot or "")[: text.SHORT_ID],
            instances.status(self.info),
            instances.program(self.info),
        ]


class Sampler:
    """Looks at the live programs of a repository."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._before: dict[tuple[str, int], Usage] = {}
        self._at = 0.0

    def look(self) -> list[Program]:
        """All that is live, by name. One that was started again counts as another."""
        live = [info for info in list_instances(self._repository) if info.status != "exited" and info.pid]
        taken = usage.of_programs({info.name: info.pid for info in live if info.pid})
        now = time.monotonic()
        found = [
            self._program(info, taken[info.name], now - self._at)
            for info in instances.by_name(live)
            if info.name in taken
        ]
        self._before = {(info.name, info.pid or 0): taken[info.name] for info in live if info.name in taken}
        self._at = now
        return found

    def _program(self, info: InstanceInfo, now: Usage, passed: float) -> Program:
        before = self._before.get((info.name, info.pid or 0))
        share = None if before is None else max(0.0, now.processor_s - before.processor_s) / passed
        return Program(info, share, now.memory, now.processes)
