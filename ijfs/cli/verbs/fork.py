"""`ijfs fork`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ijfs.cli import instances, starting, text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import ANY, MESSAGE

if TYPE_CHECKING:
    from ijfs.live.model.records import Idle, Limits


@verb("fork")
@click.argument("source", metavar="NAME|SNAPSHOT", type=ANY)
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="K", help="How many (default: 1).")
@click.option("--names", metavar="A,B", help="Their names, with commas.")
@click.option(
    "-m", "--message", type=MESSAGE, default="", help="The message of the snapshot that a live program's fork makes."
)
@click.option("--eager", is_flag=True, help="Read all memory first.")
@starting.on_demand_option
@click.option("--gpu", "gpus", multiple=True, metavar="G", help="Put its GPU memory on this GPU (index or UUID).")
@starting.env_options
@starting.secret_options
@starting.limit_options(anew=False)
@starting.idle_options
@click.option("--ephemeral", is_flag=True, help="At their ends they leave nothing behind: no files, log or branch.")
@click.option("--same-random", is_flag=True, help="Let it draw the same random numbers as other copies.")
def fork(
    app: App,
    source: str,
    count: int | None,
    names: str | None,
    message: str,
    eager: bool,
    on_demand: bool,
    gpus: tuple[str, ...],
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    same_random: bool,
    limits: Limits,
    idle: Idle | None,
    secrets: dict[str, str],
    ephemeral: bool,
) -> Answer:
    """Make live siblings: of a live program (saved first; it runs on) or of a snapshot.

    Each has its own memory, files, process ids and ports, all as they were; none sees another.
    """
    from ijfs.live.client import api as client

    starting.require_one_way(eager, on_demand)
    repository = app.repository()
    chosen = _split(names, count) if names is not None else []
    many = len(chosen) or count or 1
    if not client.is_running(app.repository_path, source):
        # What is no name of anything, or has no program, is said before names are claimed.
        instances.require_program(repository.snapshot(repository.resolve(source)))
    given = starting.variables(env, env_files)
    progress = app.progress(f"fork {source}")
    with instances.coming_up(app, *chosen):
        found = client.fork(
            app.repository_path,
            source,
            chosen,
            count=many,
            eager=eager,
            on_demand=on_demand,
            message=message,
            gpus=gpus,
            same_random=same_random,
            env=[given] * many if given else (),
            limits=limits,
            idle=idle,
            ephemeral=ephemeral,
            secrets=secrets,
            on_event=progress.event,
        )

    for info in found if given else ():
        starting.tell_kernel(app, info, given)

    def show(out: Printer) -> None:
        for info in found:
            instances.started(out, info, f"runs from {(info.snapshot or '')[: text.SHORT_ID]}")
            starting.show_ports(out, info)
        starting.show_console(out, found[0])  # the others are joined likewise

    return Answer({"source": source, "instances": [instances.instance_json(info) for info in found]}, show)


def _split(names: str, count: int | None) -> list[str]:
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if not chosen or (count is not None and count != len(chosen)):
        given = text.count(len(chosen), "name")
        raise click.UsageError(f"--names gives {given}, -n asks for {count or 'at least 1'}")
    twice = sorted({name for name in chosen if chosen.count(name) > 1}, key=text.natural)
    if twice:
        raise click.UsageError(f"--names gives {text.listing(twice)} twice")
    return chosen


COMMANDS = {"fork": fork}
