"""`ijfs watch`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.failure import INTERRUPTED
from ijfs.cli.output import Answer, write_json, writing_out
from ijfs.cli.params import INSTANCE

if TYPE_CHECKING:
    from ijfs.live.client.watch import RepositoryEvent


@verb("watch")
@click.argument("names", nargs=-1, type=INSTANCE)
@click.option(
    "--exec", "command", metavar="CMD", help="Run CMD by a shell for each event, with it as JSON on its stdin."
)
def watch(app: App, names: tuple[str, ...], command: str | None) -> Answer | None:
    """Print what happens, as it happens: saves, programs that go back, start and end, names that move.

    With NAMES, of these programs only. --json prints one object a line. CMD has the event in its environment, too:
    IJFS_EVENT, IJFS_EVENT_PROGRAM, IJFS_EVENT_SNAPSHOT, IJFS_EVENT_TEXT; the next event waits for its end.
    """
    from ijfs.live.client.watch import RepositoryWatch

    app.repository()
    try:
        with RepositoryWatch(app.repository_path) as events:
            app.note("watching; Ctrl-C ends it")
            for event in events:
                if not names or event.instance in names:
                    _show(app, event)
                    if command is not None:
                        _run(app, command, event)
    except KeyboardInterrupt:  # the way to end it: nothing to say
        raise SystemExit(INTERRUPTED) from None
    return None


def event_json(event: RepositoryEvent) -> dict[str, Any]:
    """An event as scripts and hooks get it."""
    return {
        "event": event.kind,
        "instance": event.instance,
        "snapshot": event.snapshot,
        "text": event.text,
        "at": text.iso(event.at_ns),
        "at_ns": event.at_ns,
    }


def _show(app: App, event: RepositoryEvent) -> None:
    with writing_out():
        if app.json:
            write_json({"verb": "watch", **event_json(event)}, a_line=True)
        else:
            print(_sentence(event))
        sys.stdout.flush()


def _sentence(event: RepositoryEvent) -> str:
    parts = [text.moment(event.at_ns)[11:19], f"{event.kind:8}", event.instance, event.snapshot[: text.SHORT_ID]]
    return "  ".join(part for part in [*parts, text.first_line(event.text)] if part)


def _run(app: App, command: str, event: RepositoryEvent) -> None:
    given = {
        "IJFS_EVENT": event.kind,
        "IJFS_EVENT_PROGRAM": event.instance,
        "IJFS_EVENT_SNAPSHOT": event.snapshot,
        "IJFS_EVENT_TEXT": event.text.replace("\0", ""),
    }
    done = subprocess.run(
        command, shell=True, check=False, input=json.dumps(event_json(event)).encode(), env={**os.environ, **given}
    )
    if done.returncode:
        app.warn(f"`{command}` ended with exit status {done.returncode}")


COMMANDS = {"watch": watch}
