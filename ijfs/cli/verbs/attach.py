"""`ijfs attach`."""

from __future__ import annotations

import click

from ijfs.cli import instances, starting
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer
from ijfs.cli.params import INSTANCE


@verb("attach")
@click.argument("name", required=False, type=INSTANCE)
@starting.detach_keys_option
def attach(app: App, name: str | None, keys: bytes) -> Answer | None:
    """Sit down at the terminal of the live program NAME (default: the only live one), started by `ijfs run -it`.

    What was on its screen is shown again, also of one that was restored or forked. The exit code is the program's when
    it ends; 0 when you leave it, which ctrl-p ctrl-q does.
    """
    from ijfs.cli import attached
    from ijfs.live.client import terminal

    app.live_programs()
    if app.json:
        raise click.UsageError("a terminal is no JSON")
    name = name or instances.the_only(app)
    terminal.require(app.repository_path, name)
    attached.require_terminal("`ijfs attach` sits down at a terminal, and standard input and output are none")
    return Answer({}, None, sat_at(app, name, keys) or 0)


def sat_at(app: App, name: str, keys: bytes) -> int | None:
    """At its terminal; its exit status, None where it was left. InstanceExitedError, CommandError."""
    from ijfs.cli import attached

    app.end_progress()
    status = attached.attach(app, name, keys)
    if status is attached.LEFT:
        app.note(f"`{name}` runs on: `ijfs attach {name}` comes back to it")
    else:
        attached.tell_why(app, name)
    return status


COMMANDS = {"attach": attach}
