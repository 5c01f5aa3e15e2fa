"""`ijfs save`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ijfs.cli import instances, text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import INSTANCE, MESSAGE, REF, Seconds, needless

if TYPE_CHECKING:
    from ijfs.live.client.api import SaveResult


# Its files are saved, and the program has ended: exit code of whatever meets one.
ENDED = 13

# What was asked for is there, and of no use here: as for anything that preflight refuses.
UNRESTORABLE = 12


@verb("save")
@click.argument("name", required=False, type=INSTANCE)
@click.option("-m", "--message", type=MESSAGE, default="", help="What this moment is.")
@click.option("--stop", is_flag=True, help="End it in the saved state: nothing it does later is lost.")
@click.option("--branch", type=REF, help="The branch that moves to it (default: the program's own).")
@click.option(
    "--notebook",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep this notebook document in the snapshot.",
)
@click.option("--verify", is_flag=True, help="Try whether it can be restored: into a sandbox that never runs.")
@click.option("--push", is_flag=True, help="Return when it is at its remote, too (default of a remote: origin).")
@click.option("--no-wait", is_flag=True, help="Return when the program runs again; storing goes on.")
@click.option("--force", is_flag=True, help="Save a GPU program in spite of what preflight refuses: it may be lost.")
@click.option("--gpu-timeout", type=Seconds(), metavar="S", help="How long running GPU kernels get to end.")
@needless("-a", "--all")
def save(
    app: App,
    name: str | None,
    message: str,
    stop: bool,
    branch: str | None,
    notebook: Path | None,
    verify: bool,
    push: bool,
    no_wait: bool,
    force: bool,
    gpu_timeout: float | None,
) -> Answer:
    """Save the live program NAME (default: the only one): its memory, GPU memory and files. It stands still for a
    moment and runs on.

    Of a program that has ended, the files that it left are saved, without memory to go on from, on the branch
    NAME.ended; the exit code is 13 all the same.
    Returns when the snapshot is safe on disk. With --no-wait it returns when the program runs again: `ijfs ps` shows
    when the snapshot is safe. A save that fails leaves the program running.
    """
    import msgspec

    from ijfs.live.client import api as client

    if no_wait and stop:
        raise click.UsageError("--stop ends the program when its snapshot is safe: it cannot go with --no-wait")
    if no_wait and push:
        raise click.UsageError("--push waits for the snapshot: it cannot go with --no-wait")
    if no_wait and verify:
        raise click.UsageError("--verify waits for the snapshot: it cannot go with --no-wait")
    app.repository()
    name = name or instances.the_only(app)
    document = notebook.read_bytes() if notebook else None
    with app.interruptible(lambda: f"a save that has begun goes on: `ijfs log {name}` shows it"):
        if not client.is_running(app.repository_path, name):
            result = client.save_ended(app.repository_path, name, message=message, branch=branch)
        else:
            progress = app.progress(f"save {name}")
            with client.connect(app.repository_path, name, on_event=progress.event) as keeper:
                result = keeper.save(
                    message,
                    branch=branch,
                    stop=stop,
                    notebook=document,
                    force=force,
                    gpu_timeout_s=gpu_timeout,
                    wait=not no_wait,
                    verify=verify,
                )
    for warning in result.warnings:
        app.warn(warning)
    remote = _pushed(app, name, result) if push else None

    data = {"name": name, **msgspec.to_builtins(result), "snapshot": result.snapshot or None, "remote": remote}
    exit_code = UNRESTORABLE if result.verified is False else ENDED if result.image_bytes == 0 else 0
    return Answer(data, lambda out: _report(out, name, result, remote, phases=app.verbose > 0), exit_code)


def _pushed(app: App, name: str, result: SaveResult) -> str:
    """Have it at its remote, too; which that is. RemoteError, which says that it is saved."""
    from ijfs.live.client.api import describe
    from ijfs.live.uploads.followed import ANY, remote_of
    from ijfs.live.uploads.reach import to_push
    from ijfs_engine.errors import IjfsError

    repository = app.repository()
    try:
        remote = remote_of(repository, describe(app.repository_path, name).storage or ANY)
        refs, also = to_push(repository, [result.branch])
        repository.remotes.push(remote, refs, also=also, progress=app.progress(f"push to {name}"))
    except IjfsError as error:
        short = result.snapshot[: text.SHORT_ID]
        error.hint = f"{short} is saved on this machine; `ijfs push` tries again" + (
            f"; {error.hint}" if error.hint else ""
        )
        raise
    return remote


def _report(out: Printer, name: str, result: SaveResult, remote: str | None, *, phases: bool) -> None:
    out.line(
        (result.snapshot[: text.SHORT_ID] or "saving", "yellow"),
        "  ",
        text.first_line(result.message) or ("(no message)", "dim"),
        "  ",
        (f"[{result.branch}]", "bold green"),
    )
    parts = [f"frozen {text.seconds(result.frozen_s)}"]
    if result.stopped:
        parts.append("stopped")
    if result.durable_s is not None:
        parts.append(f"saved in {text.seconds(result.durable_s)}")
    parts.append(f"{text.size(result.image_bytes)} of memory, {text.size(result.workspace_bytes)} of files")
    if result.verified is not None:
        parts.append("can be restored" if result.verified else "cannot be restored")
    if result.stored_bytes is not None:
        parts.append(f"{text.size(result.stored_bytes)} stored")
    if remote is not None:
        parts.append(f"at {remote}")
    out.facts(parts)
    if out.terminal and result.snapshot and result.image_bytes and not result.stopped:
        out.line((f"  back to it: `ijfs restore {result.snapshot[: text.SHORT_ID]} --name {name} --replace`", "dim"))
    if phases:
        out.line(("  " + "  ".join(f"{k} {text.seconds(v)}" for k, v in result.phases.items()), "dim"))


COMMANDS = {"save": save}
