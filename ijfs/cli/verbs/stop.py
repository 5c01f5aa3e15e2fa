"""`ijfs stop`."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import globs, unsaved
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import INSTANCE, Seconds, needless
from ijfs_engine.errors import IjfsError

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo


@verb("stop")
@click.argument("names", nargs=-1, type=INSTANCE)
@click.option("-a", "--all", "every", is_flag=True, help="All that is live.")
@click.option(
    "--rm", "forget", is_flag=True, help="Forget them too: their logs and unsaved files go. With --all: also --ended."
)
@click.option("--ended", is_flag=True, help="With --rm: all that has ended, and left nothing that is in no snapshot.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-t", "--timeout", type=Seconds(), default=5.0, metavar="S", help="SIGKILL after S seconds.")
@needless("-f", "--force")
def stop(app: App, names: tuple[str, ...], every: bool, forget: bool, ended: bool, yes: bool, timeout: float) -> Answer:
    """Stop live programs: SIGTERM, then SIGKILL. Their snapshots stay; saves that are being stored are waited for.

    What they did since they were saved is gone, and is named; at a terminal that is asked first. `ijfs save --stop`
    keeps it.

    A NAME may be a pattern: `ijfs stop --rm 'agent-*'`.
    """
    from ijfs.live.client import api as client
    from ijfs.live.client.forgetting import forget_ended
    from ijfs.live.process import fork_request

    app.live_programs()
    if ended:
        if names or every or not forget:
            raise click.UsageError("--ended goes with --rm alone: it forgets, and ends nothing")
        return _forget_ended(app)
    if bool(names) == every:
        raise click.UsageError("say which: NAMES or --all")
    damaged = client.damaged_instances(app.repository_path)
    if every:
        names = (*_stoppable(app, ended=False), *(damaged if forget else ()))
    chosen = globs.expanded(names, lambda: _stoppable(app, ended=forget))
    if not every:  # what ends by itself meanwhile is no slip of who said --all
        _check(app, chosen, damaged if forget else (), forget=forget)
    live = _live(app, [name for name in chosen if name not in damaged])
    wrote = _have_written(app, live) if forget else set()
    missed = _missed(app, set(chosen) - {info.name for info in live}) if forget and not every else {}
    if live and not yes:
        _ask(app, live, wrote)
    if missed and not yes:
        _ask_of_ended(app, missed)
    gone = {info.name: unsaved.by_ending(info, wrote=info.name in wrote) for info in live}
    done: list[dict[str, Any]] = []
    for name in chosen:
        if forget and name in damaged:
            client.remove(app.repository_path, name)
            status = None
        else:
            status = _stop(app, name, forget=forget, timeout=timeout)
        done.append({"name": name, "exit_status": status, "forgotten": forget})
    kept: dict[str, str] = {}
    if every:
        fork_request.dismiss(app.repository_path)
    if every and forget:
        ended_names, kept = forget_ended(app.repository_path)
        done += [{"name": name, "exit_status": None, "forgotten": True} for name in ended_names]

    def show(out: Printer) -> None:
        for item in done:
            out.line("forgot " if forget else "stopped ", (item["name"], "bold"))
            if item["name"] in missed:
                out.line((f"  gone with it: {missed[item['name']]}", "dim"))
            if item["name"] in gone:
                out.line((f"  gone: {gone[item['name']]}; `ijfs save --stop` would have kept it", "dim"))
        _show_kept(out, kept)
        if not done and not kept:
            out.line(("nothing is live", "dim"))

    return Answer({"stopped": done, "kept": kept}, show)


def _forget_ended(app: App) -> Answer:
    """Forget what has ended and would not be missed, and say what stays, and why."""
    from ijfs.live.client.forgetting import forget_ended

    names, kept = forget_ended(app.repository_path)

    def show(out: Printer) -> None:
        for name in names:
            out.line("forgot ", (name, "bold"))
        _show_kept(out, kept)
        if not names and not kept:
            out.line(("nothing has ended", "dim"))

    done = [{"name": name, "exit_status": None, "forgotten": True} for name in names]
    return Answer({"stopped": done, "kept": kept}, show)


def _show_kept(out: Printer, kept: dict[str, str]) -> None:
    for name, why in kept.items():
        out.line((f"{why}; it stays: `ijfs save {name}` keeps that, `ijfs stop --rm {name}` forgets it", "dim"))


def _live(app: App, names: list[str]) -> list[InstanceInfo]:
    """Those of the programs that run, and so lose something."""
    from ijfs.live.client import api as client

    running = [name for name in names if client.is_running(app.repository_path, name)]
    return [info for name in running if (info := client.describe(app.repository_path, name)).status == "running"]


def _have_written(app: App, live: list[InstanceInfo]) -> set[str]:
    """Those whose files would be gone with them."""
    from ijfs.cli.live_diff import has_written

    return {info.name for info in live if has_written(app, info.name)}


def _ask(app: App, live: list[InstanceInfo], wrote: Collection[str]) -> None:
    """At a terminal, whether they may end. Who says no has changed nothing."""
    if app.can_ask and not click.confirm(unsaved.question(live, wrote=wrote), err=True):
        raise IjfsError("nothing was changed", hint="`ijfs save --stop NAME` ends a program in the state that it saves")


def _missed(app: App, names: Collection[str]) -> dict[str, str]:
    """Of programs that have ended, what each wrote that is in no snapshot: a sentence by name."""
    from ijfs.live.client.forgetting import missed

    found = {name: missed(app.repository_path, name) for name in names}
    return {name: what for name, what in found.items() if what is not None}


def _ask_of_ended(app: App, missed: dict[str, str]) -> None:
    """At a terminal, whether those may be forgotten, with what is nowhere else."""
    if app.can_ask and not click.confirm(f"{'; '.join(missed.values())}. Forget all of it?", err=True):
        name = next(iter(missed))
        raise IjfsError("nothing was changed", hint=f"`ijfs save {name}` keeps what it wrote")


def _stoppable(app: App, *, ended: bool) -> list[str]:
    """What `--all` and patterns may mean: all that is live; to be forgotten, what has ended or is damaged, too."""
    from ijfs.live.client.api import damaged_instances, list_instances

    names = [i.name for i in list_instances(app.repository_path) if ended or i.status != "exited"]
    return [*names, *damaged_instances(app.repository_path)] if ended else names


def _check(app: App, names: list[str], damaged: Collection[str], *, forget: bool) -> None:
    """Refuse a name that is none, or ended already, before any program is ended; not one that is `damaged`."""
    from ijfs.live.client import api as client

    for name in names:
        if name in damaged or client.is_running(app.repository_path, name):
            continue
        client.describe(app.repository_path, name)
        if not forget:
            raise _ended(name)


def _stop(app: App, name: str, *, forget: bool, timeout: float) -> int | None:
    """End one program, and its keeper with it; its exit status, if that is known."""
    from ijfs.live.client import api as client
    from ijfs.live.errors import NoInstanceError

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
        with contextlib.suppress(NoInstanceError):  # an ephemeral one went with its program
            client.remove(app.repository_path, name)
    return info.exit_status


def _ended(name: str) -> Exception:
    from ijfs_engine.errors import TargetDiedError

    return TargetDiedError(f"'{name}' has ended already", hint=f"`ijfs stop --rm {name}` forgets it")


COMMANDS = {"stop": stop}
