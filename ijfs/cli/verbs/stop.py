"""`ijfs stop`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import globs
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import INSTANCE, Seconds

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo


@verb("stop")
@click.argument("names", nargs=-1, type=INSTANCE)
@click.option("-a", "--all", "every", is_flag=True, help="All that is live.")
@click.option("--rm", "forget", is_flag=True, help="Forget them too: their logs and unsaved files go.")
@click.option("--timeout", type=Seconds(), default=5.0, metavar="S", help="SIGKILL after S seconds.")
def stop(app: App, names: tuple[str, ...], every: bool, forget: bool, timeout: float) -> Answer:
    """Stop live programs: SIGTERM, then SIGKILL. Their snapshots stay; saves that are being stored are waited for.

    A NAME may be a pattern: `ijfs stop --rm 'agent-*'`.
    """
    from ijfs.live.process import fork_request

    app.repository()
    if bool(names) == every:
        raise click.UsageError("say which: NAMES or --all")
    if every:
        names = tuple(_stoppable(app, ended=forget))
    chosen = globs.expanded(names, lambda: _stoppable(app, ended=forget))
    if not every:  # what ends by itself meanwhile is no slip of who said --all
        _check(app, chosen, forget=forget)
    done: list[dict[str, Any]] = []
    for name in chosen:
        info = _stop(app, name, forget=forget, timeout=timeout)
        done.append({"name": name, "exit_status": info.exit_status, "forgotten": forget})
    if every:
        fork_request.dismiss(app.repository_path)

    def show(out: Printer) -> None:
        for item in done:
            out.line("forgot " if forget else "stopped ", (item["name"], "bold"))
        if not done:
            out.line(("nothing is live", "dim"))

    return Answer({"stopped": done}, show)


def _stoppable(app: App, *, ended: bool) -> list[str]:
    """What `--all` and patterns may mean: all that is live; to be forgotten, what has ended, too."""
    from ijfs.live.client.api import list_instances

    return [i.name for i in list_instances(app.repository_path) if ended or i.status != "exited"]


def _check(app: App, names: list[str], *, forget: bool) -> None:
    """Refuse a name that is none, or ended already, before any program is ended."""
    from ijfs.live.client import api as client

    for name in names:
        if client.is_running(app.repository_path, name):
            continue
        client.describe(app.repository_path, name)
        if not forget:
            raise _ended(name)


def _stop(app: App, name: str, *, forget: bool, timeout: float) -> InstanceInfo:
    """End one program, and its keeper with it."""
    from ijfs.live.client import api as client

    if client.is_running(app.repository_path, name):
        with client.connect(app.repository_path, name, on_event=app.progress(f"stop {name}").event) as keeper:
            info = keeper.stop(timeout_s=timeout)
        if info.save_error:
            app.warn(f"the last save of {name} was not stored: {info.save_error}")
    else:
        info = client.describe(app.repository_path, name)
        if not forget:
            raise _ended(name)
    if forget:
        client.remove(app.repository_path, name)
    return info


def _ended(name: str) -> Exception:
    from ijfs_engine.errors import TargetDiedError

    return TargetDiedError(f"'{name}' has ended already", hint=f"`ijfs stop --rm {name}` forgets it")


COMMANDS = {"stop": stop}
