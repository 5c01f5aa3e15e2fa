"""`ijfs logs`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from ijfs.cli import instances
from ijfs.cli.app import App, verb
from ijfs.cli.failure import INTERRUPTED
from ijfs.cli.output import Answer, writing_out
from ijfs.cli.params import INSTANCE

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo

POLL_S = 0.2
"""How often a followed log is looked at: a person does not notice, and a CPU does not either."""
BLOCK = 1 << 20


@verb("logs")
@click.argument("name", required=False, type=INSTANCE)
@click.option("-f", "--follow", is_flag=True, help="Go on as it writes, until it ends.")
@click.option(
    "-n", "--lines", "--tail", "lines", type=click.IntRange(min=0), metavar="K", help="Only the last K lines."
)
@click.option("--earlier", is_flag=True, help="Of the program that had the name before.")
def logs(app: App, name: str | None, follow: bool, lines: int | None, earlier: bool) -> Answer | None:
    """Print what the program NAME (default: the only live one) wrote to its standard output and error."""
    from ijfs.live.client.api import describe

    app.live_programs()
    if follow and app.json:
        raise click.UsageError("--follow has no end, --json is one object")
    if follow and earlier:
        raise click.UsageError("an earlier program writes no more: there is nothing to --follow")
    name = name or instances.the_only(app)
    info = describe(app.repository_path, name)
    if earlier:
        info = _earlier(app, info)
    start, end = _part(Path(info.log), lines)
    if app.json:
        with Path(info.log).open("rb") as file:
            file.seek(start)
            return Answer({"name": name, "log": info.log, "content": file.read(end - start).decode(errors="replace")})
    try:
        for data in _followed(app, info, start) if follow else _rest(Path(info.log), start, end):
            with writing_out():
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
    except KeyboardInterrupt:  # the way to end it: nothing to say
        raise SystemExit(INTERRUPTED) from None
    return None


def _earlier(app: App, info: InstanceInfo) -> InstanceInfo:
    """With the log of the program that had its name before."""
    import msgspec

    from ijfs.live.errors import NoInstanceError
    from ijfs.live.model.paths import InstancePaths

    log = InstancePaths.of(app.repository_path, info.name).earlier_log
    if not log.exists():
        raise NoInstanceError(f"no program was called `{info.name}` before this one", hint="`ijfs ps -a` lists all")
    return msgspec.structs.replace(info, log=str(log))


def _part(path: Path, lines: int | None) -> tuple[int, int]:
    """The offset at which the last `lines` lines begin, and the log's size now: what it gets meanwhile is not asked
    for, and a program that writes as fast as it is read would have no end."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        return (0 if lines is None else _start(file, size, lines)), size


def _start(file: BinaryIO, size: int, lines: int) -> int:
    """The offset at which the last `lines` lines of so many bytes begin."""
    position = size
    found = 0
    while position > 0:
        step = min(BLOCK, position)
        position -= step
        file.seek(position)
        block = file.read(step)
        for at in range(len(block) - 1, -1, -1) if lines else ():
            if block[at : at + 1] == b"\n":
                found += 1
                if found > lines:
                    return position + at + 1
    return 0 if lines else size


def _rest(path: Path, offset: int, end: int | None = None) -> Iterator[bytes]:
    """What is in a log from there on, up to `end` where there is one."""
    with path.open("rb") as file:
        file.seek(offset)
        while data := file.read(BLOCK if end is None else min(BLOCK, end - offset)):
            offset += len(data)
            yield data


def _followed(app: App, info: InstanceInfo, offset: int) -> Iterator[bytes]:
    """What the log holds and what comes, until the program ends. Going back in place begins another log."""
    from ijfs.live.client.api import describe, is_running

    path = Path(info.log)
    while True:
        running = is_running(app.repository_path, info.name)
        for data in _rest(path, offset):
            offset += len(data)
            yield data
        if not running:
            return
        time.sleep(POLL_S)
        if not path.exists():
            path, offset = Path(describe(app.repository_path, info.name).log), 0


COMMANDS = {"logs": logs}
