"""`ijfs ps`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from ijfs.cli import instances, text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer

if TYPE_CHECKING:
    from pathlib import Path

    from ijfs.live.client.api import InstanceInfo
    from ijfs.live.uploads.followed import Waiting


@verb("ps")
@click.option("-a", "--all", "every", is_flag=True, help="Ended ones too, whose files are still there.")
def ps(app: App, every: bool) -> Answer:
    """List live programs, and those that are parked. `--json` has the ended ones always.

    PORTS: the port on this machine, and the one inside that it leads to. STATUS is shown where there is something to
    say: how much of a restored program's memory is in, a save that is being stored, how a program ended. -v adds the
    process that waits for the next start.
    """
    import msgspec

    from ijfs.live.client.api import damaged_instances, list_instances
    from ijfs.live.process import fork_request
    from ijfs.live.uploads.followed import followed

    repo = app.live_programs()
    found = instances.by_name(list_instances(app.repository_path))
    damaged = damaged_instances(app.repository_path)
    waiting = fork_request.forkserver_info(app.repository_path)
    ended = [info for info in found if info.status == "exited" and not info.parked_on_disk]
    unsent = _unsent(app) if followed(repo) else []
    sending = bool(unsent) and _is_sending(repo)

    listed = found if every else [info for info in found if info not in ended]

    def show(out: Printer) -> None:
        if listed or damaged:
            instances.table(out, listed, damaged)
        else:
            out.line(("nothing is live: `ijfs run` or `ijfs kernel start` begins", "dim"))
        for info in listed:
            _remarks(out, info)
        never = [info.name for info in listed if info.status == "running" and not info.snapshot]
        if out.terminal and never:
            out.line((f"in no snapshot: {text.listing(never)}; `ijfs save NAME` saves one", "dim"))
        for one in unsent:
            why = f": {one.why}" if one.why else ", it is being sent" if sending else ": `ijfs push` sends it"
            out.line((f"{one.branch}: {one.snapshot[: text.SHORT_ID]} is not at {one.remote} yet{why}", "yellow"))
        for error in damaged.values():
            out.line((f"{error}; {error.hint}", "red"))
        if out.terminal and any(info.snapshot for info in listed):
            out.line(("no snapshot has what they did since SNAPSHOT: `ijfs save NAME` keeps it,", "dim"))
            out.line(("`ijfs restore NAME --replace` goes back to it, `--save-first` keeps what it is now", "dim"))
        if ended and not every:
            names = (
                text.listing(info.name for info in ended[:3]) if len(ended) <= 3 else text.count(len(ended), "program")
            )
            out.line((f"ended: {names}; `ijfs ps -a` shows ended ones, `ijfs stop --rm --ended` forgets them", "dim"))
        if app.verbose:
            instances.spare(out, waiting)

    data = {
        "instances": [instances.instance_json(info) for info in found],
        "damaged": [{"name": name, "message": str(error), "hint": error.hint} for name, error in damaged.items()],
        "unsent": [one._asdict() for one in unsent],
        "spare": msgspec.to_builtins(waiting),
    }
    return Answer(data, show, names=[info.name for info in listed])


def _unsent(app: App) -> list[Waiting]:
    """What is to be at a remote and is not. Nothing where the repository cannot be opened: that was said."""
    from ijfs.live.uploads.followed import waiting
    from ijfs_engine.errors import IjfsError

    with contextlib.suppress(IjfsError):
        return waiting(app.repository())
    return []


def _is_sending(repo: Path) -> bool:
    from ijfs.live.uploads.pusher import is_at_work

    with contextlib.suppress(OSError):
        return is_at_work(repo)
    return False


def _remarks(out: Printer, info: InstanceInfo) -> None:
    """What a person has to know about a program."""
    from ijfs.live.model.records import STOPPED

    if info.damage:
        out.line((f"{info.name}: its memory is not what was saved: {info.damage}", "red"))
    if info.save_error:
        out.line((f"{info.name}: the last save was not stored: {info.save_error}", "red"))
    if info.note and not (info.status == "exited" and info.note == STOPPED):
        out.line((f"{info.name}: {info.note}", "dim"))


COMMANDS = {"ps": ps}
