"""Progress of long work on a terminal, from both kinds of source: the engine's callback and a keeper's events.

One line: what is being done now and, where its size is known, a bar with bytes, speed and time left. A `Reporter`
that is not visible takes the same calls and does nothing, except that notices always reach the user.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ijfs.cli.output import Printer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ijfs.live.client.api import Event


WORDS = {
    "wait": "waiting for another save",
    "hooks": "its before_save hooks run",
    "prepare": "making room for its memory",
    "hold": "its connections are held",
    "gpu": "GPU memory",
    "dump": "stands still; its memory is copied",
    "workspace": "stands still; its files are copied",
    "gpu back": "stands still; its GPU memory goes back",
    "thaw": "runs again",
    "ingest": "runs again; storing",
    "commit": "runs again; making it durable",
    "verify": "trying whether it can be restored",
    "start": "starting",
    "base": "laying its files out",
    "files": "putting its files back",
    "images": "reading what is needed first",
    "restore": "bringing its processes back",
    "memory": "bringing its memory in",
    "switch": "taking its place",
    "export": "writing",
    "gc: repack": "copying what is still needed",
    "gc: flatten": "storing whole what stood on what is gone",
    "fsck: packs": "reading every byte",
    "push": "sending",
    "pull": "copying",
}
"""What a person is told of a phase, by the name that the engine or a keeper gives it."""

STORING = {"import": "reading and storing", "base import": "reading and storing"}
"""Of work that stores without any program: by the title."""


class Reporter:
    """The line of one verb, gone when the work is done; a context manager. Calls come from any thread."""

    def __init__(self, title: str, *, visible: bool) -> None:
        self.title = title
        self.visible = visible
        self._line: Progress | None = None
        self._task: TaskID | None = None
        self._phase = ""

    def __enter__(self) -> Reporter:
        if self.visible:
            self._line = _line()
            self._line.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the line away; later calls do nothing. Before anything else is printed."""
        line, self._line = self._line, None
        if line is not None:
            line.stop()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """The engine's `Progress`: bytes done of bytes in all, 0 where not known."""
        line = self._line
        if line is None:
            return
        if self._task is None or phase != self._phase:
            if self._task is not None:
                line.remove_task(self._task)
            self._phase = phase
            self._task = line.add_task(f"{self.title}: {self.words(phase)}", total=total or None)
        line.update(self._task, completed=done, total=total or None)

    def words(self, phase: str) -> str:
        """What a person is told of a phase."""
        return STORING.get(self.title, WORDS.get(phase, phase)) if phase == "ingest" else WORDS.get(phase, phase)

    def event(self, event: Event) -> None:
        """A keeper's event: a phase that begins, bytes of one, or a notice a person should read."""
        from ijfs.live.client.api import BytesDone, Notice, PhaseBegan

        match event:
            case PhaseBegan():
                self(event.name, 0, 0)
            case BytesDone():
                self(event.name, event.done, event.total)
            case Notice():
                self._notice(event.text)

    def _notice(self, sentence: str) -> None:
        if self._line is None:
            Printer(sys.stderr).line(("note: ", "cyan"), sentence)
        else:
            self._line.console.print(f"note: {sentence}", markup=False)


def _line() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Measured(ProgressColumn):
        """Another column, only for work whose size is known."""

        def __init__(self, column: ProgressColumn) -> None:
            super().__init__()
            self.column = column

        def render(self, task: Task) -> Any:
            return self.column.render(task) if task.total else Text("")

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        Measured(BarColumn(bar_width=24)),
        Measured(DownloadColumn()),
        Measured(TransferSpeedColumn()),
        Measured(TimeRemainingColumn(compact=True)),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )
