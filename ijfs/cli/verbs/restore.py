"""`ijfs restore`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ijfs.cli import first_moment, instances, lost, starting, text, unsaved
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import INSTANCE, SNAPSHOT, elsewhere
from ijfs.history.snapshots import program_of
from ijfs_engine.errors import ConflictError, IjfsError

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo
    from ijfs.live.model.records import Idle, Limits
    from ijfs_engine import Repository, Snapshot


@verb("restore")
@click.argument("snapshot", metavar="SNAPSHOT", required=False, type=SNAPSHOT)
@click.option(
    "--lost", "after_boot", is_flag=True, help="All that ended with the machine, each from its last snapshot."
)
@click.option("--name", metavar="N", type=INSTANCE, help="Its name (default: the one it was saved under).")
@click.option("--eager", is_flag=True, help="Read all memory first (default: it runs at once, memory follows).")
@starting.on_demand_option
@click.option("--replace", is_flag=True, help="Go back in place: the live program of that name ends.")
@click.option("--save-first", is_flag=True, help="With --replace: save what is there first, to go forward to again.")
@click.option("-y", "--yes", is_flag=True, help="With --replace: do not ask.")
@click.option("--force", is_flag=True, help="With --replace: leave a cell that runs behind instead of interrupting it.")
@click.option("--wait", is_flag=True, help="Return when all its memory is in.")
@click.option("--gpu", "gpus", multiple=True, metavar="G", help="Put its GPU memory on this GPU (index or UUID).")
@starting.port_option
@starting.env_options
@starting.secret_options
@starting.limit_options(anew=False)
@starting.idle_options
@starting.files_option
@elsewhere("--hard", "--soft", said="`--replace` takes a live program back in place, with its memory and its files")
@click.option("--same-random", is_flag=True, help="Let it draw the same random numbers as other copies.")
@click.option("--moves-to", "place", hidden=True)
def restore(
    app: App,
    snapshot: str | None,
    after_boot: bool,
    name: str | None,
    eager: bool,
    on_demand: bool,
    replace: bool,
    save_first: bool,
    yes: bool,
    force: bool,
    wait: bool,
    gpus: tuple[str, ...],
    ports: tuple[starting.GivenPort, ...],
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    files: str | None,
    same_random: bool,
    limits: Limits,
    idle: Idle | None,
    secrets: dict[str, str],
    place: str | None,
) -> Answer:
    """Bring SNAPSHOT back to life, beside everything that is live.

    With --replace the live program of that name goes back in place, and what it did since its last save is gone,
    unless --save-first saves it. At a terminal that is asked first.

    Its environment is that of when it was saved. What --env adds a program gets that can be told: a Python kernel, or
    one that uses `ijfs.after_restore`; every command that is run inside has it.
    """
    import msgspec

    from ijfs.live.client import api as client
    from ijfs.live.errors import InstanceExistsError

    if after_boot:
        _refuse_more_than_lost()
        return lost.bring_back(app)
    if snapshot is None:
        ctx = click.get_current_context()
        raise click.MissingParameter(ctx=ctx, param=ctx.command.params[0])
    starting.require_one_way(eager or wait, on_demand)
    repository = app.repository()
    record = repository.snapshot(repository.resolve(snapshot))
    instances.require_program(record)
    wish = program_of(record) or snapshot
    given = starting.variables(env, env_files)
    if save_first and not replace:
        raise click.UsageError("--save-first saves what --replace replaces: it needs that")
    old = _replaced(app, name or wish) if replace else None
    gone = old if not save_first else None
    if gone is not None and not yes:
        _ask(app, gone)

    def restored(chosen: str) -> tuple[InstanceInfo, InstanceInfo | None]:
        if name is not None and not replace and client.is_running(app.repository_path, name):
            raise InstanceExistsError(
                f"`{name}` runs already", hint="`--replace` puts the snapshot in its place; or choose another name"
            )
        of_shared = _files(app, repository, record, chosen, "" if files is None and yes else files)
        progress = app.progress(f"restore {chosen}")
        info = client.restore(
            app.repository_path,
            record.id.hex(),
            chosen,
            eager=eager,
            on_demand=on_demand,
            replace=replace,
            save_first=save_first,
            busy="force" if force else "interrupt",
            gpus=gpus,
            same_random=same_random,
            env=given,
            ports=starting.all_chosen(ports),
            files=of_shared,
            limits=limits,
            idle=idle,
            secrets=secrets,
            may_begin=_claimed(repository, snapshot, record, place) if place else None,
            on_event=progress.event,
        )
        ended = first_moment.ended(app, info, first_moment.RESTORE)
        if given and not ended:
            starting.tell_kernel(app, info, given)
        if wait and info.memory < 1 and not ended:
            with client.connect(app.repository_path, chosen, on_event=progress.event) as keeper:
                # How long it took to run is said, not how long the rest of its memory took.
                info = msgspec.structs.replace(keeper.wait_memory(), phases=info.phases, left=info.left)
        return info, ended

    info, ended = instances.named(app, name or (wish if replace else None), wish, restored, replace=old is not None)

    def show(out: Printer) -> None:
        instances.started(out, info, f"{'ran' if ended else 'runs'} from {text.short(record.id)}")
        if info.memory < 1 and not ended:
            rest = "what it does not touch comes when it is saved" if on_demand else "the rest follows while it runs"
            out.line((f"  {info.memory:.0%} of its memory is in, {rest}", "dim"))
        starting.show_ports(out, info)
        if old is None and not ended:  # who had joined one that went back in place still has
            starting.show_console(out, info)
        if info.left is not None:
            forward = f"ijfs restore {info.left[: text.SHORT_ID]} --name {info.name} --replace"
            out.line((f"  what it was before is saved: `{forward}` goes forward again", "dim"))
        elif gone is not None:
            out.line((f"  gone: {unsaved.of(gone)}; `--save-first` would have kept it", "dim"))

    data = {"snapshot": record.id.hex(), "instance": instances.instance_json(ended or info)}
    return Answer(data, show, first_moment.exit_code(ended))


def _claimed(repository: Repository, spec: str, record: Snapshot, place: str) -> Callable[[], None]:
    """What has a program that moves go on at `place`, this machine, and nowhere else (`ijfs migrate`)."""

    def claim() -> None:
        where = repository.remotes.claim(spec.partition("/")[0], record.id, place)
        if where != place:
            raise ConflictError(f"{text.short(record.id)} goes on elsewhere ({where})")

    return claim


def _refuse_more_than_lost() -> None:
    """A usage error where --lost is given with anything that says which, or how."""
    ctx = click.get_current_context()
    typed = click.core.ParameterSource.COMMANDLINE
    for param in ctx.command.params:
        common = param.name in ("after_boot", "repo", "as_json", "quiet", "verbose")
        if not common and ctx.get_parameter_source(param.name or "") is typed:
            raise click.UsageError(f"--lost takes every program as it was, and no {param.opts[0]}")


def _replaced(app: App, name: str) -> InstanceInfo | None:
    """The live program that is to be replaced, where one is."""
    from ijfs.live.client import api as client

    return client.describe(app.repository_path, name) if client.is_running(app.repository_path, name) else None


def _ask(app: App, info: InstanceInfo) -> None:
    """At a terminal, whether that may go. Who says no has changed nothing."""
    if not app.can_ask:
        return
    saved = "" if info.snapshot else ", which was never saved,"
    if not click.confirm(f"`{info.name}` is live{saved} and loses {unsaved.of(info)}. Go back?", err=True):
        raise IjfsError("nothing was changed", hint="`--save-first` saves what is there before it goes back")


def _files(
    app: App, repository: Repository, record: Snapshot, name: str, said: str | None
) -> Literal["", "keep", "restore", "private"]:
    """What becomes of folders that it shared: as said, or as somebody at a terminal says; else the default."""
    if said is not None or not app.can_ask:
        return said or ""  # type: ignore[return-value]  # click.Choice's
    from ijfs.live.client import folders

    found = folders.changed_since(repository, record, name)
    if not found.files:
        return ""
    files = "1 file" if found.files == 1 else f"{found.files:,} files"
    app.note(f"{files} in {text.listing(found.folders)}, which `{name}` shares with this machine, changed since")
    question = "keep them as they are now, or restore them as they were (what is there now is kept in a snapshot)?"
    answer: str = click.prompt(question, type=click.Choice(["keep", "restore"]), default="keep", err=True)
    return "restore" if answer == "restore" else "keep"


COMMANDS = {"restore": restore}
