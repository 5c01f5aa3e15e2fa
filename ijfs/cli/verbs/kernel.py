"""`ijfs kernel`: start one from the shell, or make Jupyter start sandboxed ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ijfs import settings
from ijfs.cli import instances, starting, text
from ijfs.cli.app import App, VerbGroup, verb
from ijfs.cli.output import Answer, Column, Printer
from ijfs.cli.params import INSTANCE, SNAPSHOT

if TYPE_CHECKING:
    from ijfs.jupyter.kernelspec import InstalledSpec
    from ijfs.live.client.api import InstanceInfo
    from ijfs.live.model.records import Idle, Limits


@click.group("kernel", cls=VerbGroup, no_args_is_help=False)
def kernel() -> None:
    """Start a Jupyter kernel in a sandbox, or make Jupyter's front ends do it."""


@verb("kernel start")
@click.option("--name", metavar="N", help="Its name (default: the kernel spec's).")
@click.option("--kernel", "spec_name", default="python3", metavar="SPEC", help="Which kernel spec (default: python3).")
@starting.way_out_option
@starting.port_option
@starting.env_options
@starting.gpu_option
@starting.base_option
@starting.ttl_option
@starting.idle_options
@starting.disk_option
@starting.storage_option
@starting.share_option
@starting.bind_option
@starting.secret_options
@starting.limit_options(anew=True)
@starting.privileged_option
@starting.replace_option
def start(
    app: App,
    name: str | None,
    spec_name: str,
    network: starting.WayOut,
    ports: tuple[starting.GivenPort, ...],
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    gpu: bool,
    base: str,
    ttl: float | None,
    idle: Idle | None,
    disk: int,
    storage: str,
    share: tuple[str, ...],
    bind: tuple[str, ...],
    replace: bool,
    limits: Limits,
    secrets: dict[str, str],
    privileged: bool,
) -> Answer:
    """Start a kernel in the current directory and return when it answers."""
    from ijfs.jupyter.starting import kernel_spec
    from ijfs.live.client import api as client
    from ijfs.sdk.box import Box
    from ijfs.sdk.repository import READY_S

    app.repository_to_start_in()
    to_remote = starting.storage_of(app, storage)

    def ready(chosen: str) -> InstanceInfo:
        progress = app.progress(f"start {chosen}")
        spec = kernel_spec(
            chosen,
            spec_name,
            env=starting.variables(env, env_files),
            cwd=os.getcwd(),
            network=network.network,
            egress=network.egress,
            ports=tuple(dict.fromkeys(port.inside for port in ports)),
            published=starting.published(ports),
            gpu=gpu,
            base=base,
            ttl_s=ttl,
            idle=idle or client.Idle(),
            disk=disk,
            storage=to_remote,
            share=starting.folders(share),
            bind=starting.folders(bind),
            limits=limits,
            privileged=privileged,
        )
        info = client.start(app.repository_path, spec, forget=replace, secrets=secrets, on_event=progress.event)
        progress("waiting for the kernel", 0, 0)
        Box(app.repository_path, chosen).run("", timeout=READY_S)
        return info

    starting.warn_of_what_cannot_be_saved(app, gpu=gpu)
    info = instances.named(app, name, "kernel" if spec_name == "python3" else spec_name, ready)

    def show(out: Printer) -> None:
        instances.started(out, info, "runs")
        starting.show_ports(out, info)
        starting.show_network(out, info)
        out.line((f"  ijfs exec {info.name} -c 'print(1)'", "dim"))
        starting.show_console(out, info)

    return Answer({"instance": instances.instance_json(info)}, show)


def _repository_of_the_shell() -> Path | None:
    """$IJFS_REPO, as it is here: the server that reads the spec later may have another, or none."""
    named = os.environ.get("IJFS_REPO")
    return Path(named).expanduser() if named else None


@verb("kernel install")
@click.option("--from", "base", default="python3", metavar="SPEC", help="The kernel spec to make it from.")
@click.option(
    "--name", metavar="N", help="The new spec's name (default: ijfs-SPEC, or ijfs- and the snapshot or program)."
)
@click.option("--display-name", metavar="TEXT", help="What a launcher shows.")
@click.option("--network", type=starting.NETWORKS, help=starting.NETWORK_HELP)
@click.option("--gpu", is_flag=True, help="New kernels get the machine's GPUs.")
@click.option("--base", "base_name", metavar="NAME", help=starting.BASE_HELP)
@click.option("--snapshot", type=SNAPSHOT, help="New kernels begin as copies of this snapshot.")
@click.option("--attach", type=INSTANCE, metavar="NAME", help="New kernels are this live program.")
@starting.disk_option
@click.option(
    "--share",
    "share",
    multiple=True,
    default=lambda: settings.folders(settings.value("share")) or ["."],
    metavar="DIR",
    help="A folder that new kernels share with this machine (default: `.`, their notebook's); `none` for none.",
)
@click.option("--auto", metavar="OPTIONS", help="New kernels are saved after cells: 'on', or 'on --every 60' and more.")
@click.option("--sys-prefix", is_flag=True, help="Into this Python environment (default: for the user).")
def install(
    app: App,
    base: str,
    name: str | None,
    display_name: str | None,
    network: str | None,
    gpu: bool,
    base_name: str | None,
    snapshot: str | None,
    attach: str | None,
    disk: int,
    share: tuple[str, ...],
    auto: str | None,
    sys_prefix: bool,
) -> Answer:
    """Add a kernel spec whose kernels run in sandboxes: JupyterLab, console and nbconvert then use it."""
    from ijfs.jupyter import kernelspec

    before = {spec.name for spec in kernelspec.installed()}
    made = kernelspec.install(
        base,
        name=name,
        display_name=display_name,
        repo=app.repo or _repository_of_the_shell(),
        network=network,
        gpu=gpu,
        base_image=base_name,
        snapshot=snapshot,
        attach=attach,
        auto=auto,
        disk=disk,
        share=() if settings.NO_FOLDERS in share else share,
        sys_prefix=sys_prefix,
    )

    def show(out: Printer) -> None:
        again = "installed again " if made.name in before else "installed "
        out.line(again, (made.name, "bold green"), f' ("{made.display_name}") in {made.directory}')
        if not (snapshot or attach):
            out.line((f"  {_where_files_go(made)}", "dim"))
        out.line((f"  jupyter console --kernel {made.name}", "dim"))

    return Answer({"spec": _spec_json(made)}, show)


@verb("kernel list")
def list_(app: App) -> Answer:
    """List the kernel specs that ijfs installed and, where there is a repository, live kernels."""
    from ijfs.jupyter import kernelspec
    from ijfs.live.client.api import list_instances

    specs = kernelspec.installed()
    live = [i for i in list_instances(app.repository_path) if i.kind == "kernel" and i.status != "exited"]

    def show(out: Printer) -> None:
        if specs:
            columns = [Column("KERNEL SPEC", style="bold"), Column("SHOWN AS"), Column("DIRECTORY", flex=True)]
            out.table(columns, ([s.name, s.display_name, str(s.directory)] for s in specs))
        else:
            out.line(("no kernel spec of ijfs's: `ijfs kernel install` adds one", "dim"))
        if live:
            out.line()
            instances.table(out, live)

    data = {"specs": [_spec_json(s) for s in specs], "instances": [instances.instance_json(i) for i in live]}
    return Answer(data, show)


@verb("kernel remove")
@click.argument("name")
def remove(app: App, name: str) -> Answer:
    """Remove a kernel spec that ijfs installed; snapshots and live kernels stay."""
    from ijfs.jupyter import kernelspec

    directory = kernelspec.remove(name)
    return Answer({"name": name, "directory": str(directory)}, lambda out: out.line("removed ", str(directory)))


def _where_files_go(spec: InstalledSpec) -> str:
    folders = ["the notebook's folder" if path == "." else path for path in spec.config.get("share", ())]
    if not folders:
        return "what kernels write stays their own: `--share .` lets them write in the notebook's folder"
    return f"kernels write in {text.listing(folders)} itself, and each save keeps its state; all else is their own"


def _spec_json(spec: InstalledSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "display_name": spec.display_name,
        "language": spec.language,
        "directory": str(spec.directory),
        "config": spec.config,
    }


for command in (start, install, list_, remove):
    kernel.add_command(command)

COMMANDS = {"kernel": kernel}
