"""`ijfs top`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from ijfs.cli import instances
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs_engine.errors import IjfsError

if TYPE_CHECKING:
    from ijfs.cli.top.samples import Program

LOOK_S = 0.5
"""Between the two looks of one answer."""


@verb("top")
@click.option("--once", is_flag=True, help="Print it once, and end (as in a pipe, and with --json).")
@click.option(
    "--every", type=click.FloatRange(min=0.2), default=2.0, metavar="SECONDS", help="Look so often (default: 2)."
)
def top(app: App, once: bool, every: float) -> Answer | None:
    """Watch live programs: processor, memory, processes; the tree below them.

    MEMORY divides what several processes share among them. On a terminal the screen stays until `q`; its last line has
    the keys: save, undo, fork, stop, and on the tree go back, fork, tag.
    """
    path = app.live_programs()
    if not (once or app.json or app.quiet) and sys.stdin.isatty() and sys.stdout.isatty():
        _screen(app, every)
        return None
    from ijfs.cli.top.samples import COLUMNS, Sampler

    sampler = Sampler(path)
    if sampler.look():
        time.sleep(LOOK_S)
    found = sampler.look()

    def show(out: Printer) -> None:
        if found:
            out.table(COLUMNS, [program.row() for program in found])
        else:
            out.line(("nothing is live: `ijfs run` or `ijfs kernel start` begins", "dim"))

    return Answer({"programs": [_json(program) for program in found]}, show, names=[one.info.name for one in found])


def _json(program: Program) -> dict[str, object]:
    return {
        "instance": instances.instance_json(program.info),
        "processor": program.processor,
        "memory": program.memory,
        "processes": program.processes,
    }


def _screen(app: App, every: float) -> None:
    try:
        from ijfs.cli.top.screen import TopScreen
    except ModuleNotFoundError as missing:
        if missing.name != "textual":
            raise
        raise IjfsError(
            "the screen of `ijfs top` needs textual",
            hint="`pip install 'ijfs[top]'`; `ijfs top --once` does without",
        ) from None
    TopScreen(app.repository_path, every).run()


COMMANDS = {"top": top}
