"""`ijfs run`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import first_moment, instances, starting
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import elsewhere, needless

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo

IN_BACKGROUND = "a program runs in the background, without a terminal; `ijfs exec NAME -- bash` opens a shell inside"
NO_VOLUMES = (
    "a program sees this machine's files at their places; what it writes stays its own, but for folders given by "
    "`--share` or `--bind`"
)


@verb("run", context_settings={"allow_interspersed_args": False})
@click.option("--name", metavar="N", help="Its name (default: the program's).")
@starting.network_option
@starting.port_option
@starting.env_options
@starting.gpu_option
@click.option("--nccl-safe", is_flag=True, help="With --gpu: settings under which NCCL ranks can be restored.")
@starting.base_option
@starting.ttl_option
@starting.disk_option
@starting.share_option
@starting.bind_option
@starting.hook_options
@starting.replace_option
@needless("-d", "--detach")
@elsewhere("-i", "--interactive", said=IN_BACKGROUND)
@elsewhere("-t", "--tty", said=IN_BACKGROUND)
@elsewhere("--rm", said="`ijfs stop --rm NAME` forgets a program with its files")
@elsewhere("--volume", "--mount", said=NO_VOLUMES)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    app: App,
    name: str | None,
    network: str,
    ports: tuple[starting.GivenPort, ...],
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    gpu: bool,
    nccl_safe: bool,
    base: str,
    ttl: float | None,
    replace: bool,
    disk: int,
    share: tuple[str, ...],
    bind: tuple[str, ...],
    before_save: tuple[str, ...],
    after_save: tuple[str, ...],
    after_restore: tuple[str, ...],
    ready: tuple[str, ...],
    command: tuple[str, ...],
) -> Answer:
    """Start COMMAND in a sandbox of its own and return; `ijfs logs -f` shows what it prints. Exit code 13 when it has
    failed by then.

    Its files are an overlay over this machine's: what it writes belongs to it, rides in its snapshots, and is
    not seen outside, but for folders given by --share and --bind. Write `--` before COMMAND if it has options that
    look like these.
    """
    import msgspec

    from ijfs.live.client import api as client

    app.repository()
    if app.verbose and command[0].startswith("/") and ":" in command[0]:
        raise click.UsageError(f"there is no -v for volumes: {NO_VOLUMES}")
    spec = client.InstanceSpec(
        name="",
        argv=command,
        network="slirp4netns" if network == "slirp4netns" else "none",
        ports=tuple(dict.fromkeys(port.inside for port in ports)),
        published=starting.published(ports),
        gpu=gpu or nccl_safe,
        nccl_safe=nccl_safe,
        base=base,
        ttl_s=ttl,
        disk=disk,
        share=starting.folders(share),
        bind=starting.folders(bind),
        hooks=starting.hooks(before_save, after_save, after_restore, ready),
        **_whose(app, env, env_files),
    )
    starting.warn_of_what_cannot_be_saved(app, gpu=spec.gpu)

    def start(chosen: str) -> tuple[InstanceInfo, InstanceInfo | None]:
        progress = app.progress(f"run {chosen}")
        info = client.start(
            app.repository_path, msgspec.structs.replace(spec, name=chosen), forget=replace, on_event=progress.event
        )
        return info, first_moment.ended(app, info, first_moment.RUN)

    info, ended = instances.named(app, name, command[0], start)

    def show(out: Printer) -> None:
        instances.started(out, info, "ran" if ended else "runs")
        starting.show_ports(out, info)
        if not ended:
            starting.show_network(out, info)

    return Answer({"instance": instances.instance_json(ended or info)}, show, first_moment.exit_code(ended))


def _whose(app: App, env: tuple[str, ...], env_files: tuple[Path, ...]) -> dict[str, Any]:
    """Where it begins, with which variables, as which user: those of who typed this."""
    if app.caller is not None:
        return app.caller.fields(starting.variables(env, env_files, here=app.caller.env))
    return {"cwd": os.getcwd(), "env": starting.variables(env, env_files)}


COMMANDS = {"run": run}
