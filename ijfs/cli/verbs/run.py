"""`ijfs run`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from ijfs.cli import first_moment, instances
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import elsewhere, needless

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo

NETWORKS = click.Choice(["none", "slirp4netns"])
port_option = click.option(
    "--port", "ports", type=click.IntRange(1, 65535), multiple=True, help="A port inside to relay to the host."
)
NETWORK_HELP = "`none` (the default): a loopback of its own and no way out; `slirp4netns`: outgoing connections."

IN_BACKGROUND = "a program runs in the background, without a terminal; `ijfs exec NAME -- bash` opens a shell inside"
NO_VOLUMES = (
    "a program sees this machine's files at their places; what it writes stays its own, and `ijfs cp NAME:PATH .` "
    "brings it out"
)
BASE_HELP = (
    "The base its files come from (default: this machine's files; in a container their base; `none`: its files)."
)


@verb("run", context_settings={"allow_interspersed_args": False})
@click.option("--name", metavar="N", help="Its name (default: the program's).")
@click.option("--network", type=NETWORKS, default="none", help=NETWORK_HELP)
@port_option
@click.option("--gpu", is_flag=True, help="Give it the machine's GPUs.")
@click.option("--nccl-safe", is_flag=True, help="With --gpu: settings under which NCCL ranks can be restored.")
@click.option("--base", default="", metavar="NAME", help=BASE_HELP)
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
    ports: tuple[int, ...],
    gpu: bool,
    nccl_safe: bool,
    base: str,
    command: tuple[str, ...],
) -> Answer:
    """Start COMMAND in a sandbox of its own and return; `ijfs logs -f` shows what it prints. Exit code 13 when it has
    failed by then.

    Its files are an overlay over this machine's: what it writes belongs to it, rides in its snapshots, and is
    not seen outside. Write `--` before COMMAND if it has options that look like these.
    """
    from ijfs.live.client import api as client

    app.repository()
    if app.verbose and command[0].startswith("/") and ":" in command[0]:
        raise click.UsageError(f"there is no -v for volumes: {NO_VOLUMES}")
    spec = client.InstanceSpec(
        name=name or instances.free_name(app, command[0]),
        argv=command,
        cwd=os.getcwd(),
        network="slirp4netns" if network == "slirp4netns" else "none",
        ports=ports,
        gpu=gpu or nccl_safe,
        nccl_safe=nccl_safe,
        base=base,
    )
    progress = app.progress(f"run {spec.name}")
    info = client.start(app.repository_path, spec, on_event=progress.event)
    ended = first_moment.ended(app, info, first_moment.RUN_S)

    def show(out: Printer) -> None:
        instances.started(out, info, "ran" if ended else "runs")
        show_ports(out, info, ports)

    return Answer({"instance": instances.instance_json(ended or info)}, show, first_moment.exit_code(ended))


def show_ports(out: Printer, info: InstanceInfo, ports: tuple[int, ...]) -> None:
    """Say where the ports that were asked for are on the host."""
    for port in info.relay:
        if port.inside in ports:
            out.line(f"  port {port.inside} is 127.0.0.1:{port.host} here")


COMMANDS = {"run": run}
