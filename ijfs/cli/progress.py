"""Progress of long work on a terminal, from both kinds of source: the engine's callback and a keeper's events.

A `Reporter` that is not visible takes the same calls and does nothing, except that notices always reach the user.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ijfs.cli.output import Printer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Reporter:
    """One bar per phase, gone when the work is done; a context manager."""

    def __init__(self, title: str, *, visible: bool, notices: bool = True) -> None:
        self.title = title
        self.visible = visible
        self.notices = notices
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Reporter:
        if self.visible:
            self._bars = _bars()
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars away; later calls do nothing. Before anything else is printed."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        """The engine's `Progress`: bytes done of bytes in all, 0 where not known; from any thread."""
        if self._bars is None:
            return
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(f"{self.title}: {phase}", total=total or None)
        self._bars.update(self._tasks[phase], completed=done, total=total or None)

    def event(self, event: dict[str, Any]) -> None:
        """A keeper's event: a phase that begins, bytes of one, or a notice a person should read."""
        match event.get("kind"):
            case "phase":
                self(str(event.get("name")), 0, 0)
            case "progress":
                self(str(event.get("name")), int(event.get("done", 0)), int(event.get("total", 0)))
            case "notice" if self.notices:
                Printer(sys.stderr).line(("note: ", "cyan"), str(event.get("text", "")))


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )
