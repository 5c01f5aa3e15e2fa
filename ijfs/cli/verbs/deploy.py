"""`ijfs deploy`, `ijfs deployments`, `ijfs park`, `ijfs wake`, `ijfs undeploy`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import starting, text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Column, Printer, Span
from ijfs.cli.params import INSTANCE, SIZE, Seconds

if TYPE_CHECKING:
    from ijfs.deployments.records import DeploymentInfo, DeploymentSpec, Stage

COLUMNS = [
    Column("NAME", style="bold green"),
    Column("STATE", style="yellow"),
    Column("URL"),
    Column("MODE", drop=2),
    Column("PRIORITY", right=True, optional=True),
    Column("REQUESTS", right=True, drop=3),
    Column("USED", right=True, drop=1),
    Column("WOKE IN", right=True, drop=2),
    Column("SNAPSHOT", style="yellow", drop=3),
]

STATES = {"memory": "parked in memory", "disk": "parked on disk", "gone": "not started"}


@verb("deploy", context_settings={"allow_interspersed_args": False})
@click.option("--name", required=True, metavar="N", help="What it is called.")
@starting.port_option
@click.option(
    "--start-mode",
    type=click.Choice(["cold", "warm", "checkpoint"]),
    default="checkpoint",
    help="`cold`: always begun anew; `warm`: stays up; `checkpoint` (the default): begun once, then restored.",
)
@click.option("--idle", type=Seconds(), default=300.0, metavar="S", help="Park it in memory S seconds after a request.")
@click.option("--disk-after", type=Seconds(), default=3600.0, metavar="S", help="On disk S seconds after a request.")
@click.option("--ttl", type=Seconds(min_open=True), metavar="S", help="Let its snapshot go S seconds after a request.")
@starting.storage_option
@starting.hook_options
@click.option("--verify", metavar="REQUEST", default="", help="A request whose answer a restored one must repeat.")
@click.option("--stateless", is_flag=True, help="From disk it comes back as it first was; what it did since is let go.")
@click.option("--tcp", is_flag=True, help="It speaks no HTTP/1.1: pass bytes on as they come.")
@click.option("--replicas", type=click.IntRange(1, 64), default=1, metavar="N", help="Forks behind the one port.")
@click.option("--priority", type=int, default=0, metavar="N", help="The higher ones run where not all fit.")
@click.option("--memory", type=SIZE, default=0, metavar="SIZE", help="What it takes of the budget `memory`.")
@click.option("--gpu", "gpus", multiple=True, metavar="G", help="Give it the machine's GPUs; it uses GPU G (0, 1, …).")
@click.option("--gpu-memory", type=SIZE, default=0, metavar="SIZE", help="What it takes of each GPU that it uses.")
@click.option("--nccl-safe", is_flag=True, help="Settings under which NCCL ranks can be restored.")
@click.option("--watch", multiple=True, metavar="PATH", help="Files whose change makes its snapshot useless.")
@click.option(
    "--engine", type=click.Choice(["vllm", "sglang"]), help="COMMAND is a model, and arguments of the engine."
)
@click.option("--replace", is_flag=True, help="In place of the one of that name, once this one is ready.")
@click.option("--no-start", is_flag=True, help="Let its first request start it.")
@starting.network_option
@starting.env_options
@starting.base_option
@starting.share_option
@starting.bind_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def deploy(app: App, replace: bool, no_start: bool, **given: Any) -> Answer:
    """Keep the server COMMAND behind a port: it starts with a request, rests without one, and loses none.

    `--port 8000` is the port that it listens on, and where it is reached; `--port 9000:8000` chooses another for that.
    `ijfs deployments` lists what is deployed; docs/servers.md begins with an example.
    """
    from ijfs.deployments import client

    app.repository_to_start_in()
    given["storage"] = starting.storage_of(app, given["storage"])
    info = client.deploy(app.repository_path, _spec(given), replace=replace, start=not no_start)
    return shown(info)


def shown(info: DeploymentInfo) -> Answer:
    """What is answered for one that was just deployed."""

    def show(out: Printer) -> None:
        took = f" after {text.seconds(info.wake_s)}" if info.wake_s is not None else ""
        out.line((info.name, "bold green"), f" is {_state(info)}{took}: ", (info.url, "bold"))
        if info.note:
            out.line((info.note, "yellow"))

    return Answer({"deployment": _json(info)}, show)


def _spec(given: dict[str, Any]) -> DeploymentSpec:
    """What the options say. CommandError."""
    from ijfs.deployments.making import specified
    from ijfs.live.model.records import HostPort

    ports: tuple[starting.GivenPort, ...] = given["ports"]
    if len(ports) > 1:
        raise click.UsageError("say with one `--port` which port it listens on")
    return specified(
        given["name"],
        given["command"],
        engine_name=given["engine"],
        port=HostPort(*ports[0]) if ports else None,
        hooks=starting.hooks(given["before_save"], given["after_save"], given["after_restore"], given["ready"]),
        env=starting.variables(given["env"], given["env_files"]),
        start_mode=given["start_mode"],
        protocol="tcp" if given["tcp"] else "http",
        idle_s=given["idle"],
        disk_s=given["disk_after"],
        ttl_s=given["ttl"],
        priority=given["priority"],
        memory=given["memory"],
        gpus=given["gpus"],
        gpu_memory=given["gpu_memory"],
        nccl_safe=given["nccl_safe"],
        replicas=given["replicas"],
        stateless=given["stateless"],
        watched=given["watch"],
        verify=given["verify"],
        network="slirp4netns" if given["network"] == "slirp4netns" else "none",
        base=given["base"],
        storage=given["storage"],
        share=starting.folders(given["share"]),
        bind=starting.folders(given["bind"]),
    )


@verb("deployments")
def deployments(app: App) -> Answer:
    """List what is deployed: where it is reached, whether it runs or rests, and how long it took to come up."""
    from ijfs.deployments import client

    app.repository()
    found = client.deployments(app.repository_path)

    def show(out: Printer) -> None:
        if not found:
            out.line(("nothing is deployed: `ijfs deploy --name N --port P -- COMMAND` begins", "dim"))
            return
        out.table(COLUMNS, [_row(info) for info in found])
        for info in found:
            if info.note:
                out.line((f"{info.name}: {info.note}", "yellow"))

    return Answer({"deployments": [_json(info) for info in found]}, show)


@verb("park")
@click.argument("name", type=INSTANCE)
@click.option("--disk", is_flag=True, help="Save it and end it; a deployment's next request restores it.")
def park(app: App, name: str, disk: bool) -> Answer:
    """Let a deployment, or a live program, stand still in host memory, where it takes no processor and no GPU; or, with
    --disk, take no memory either.

    A deployment goes on with its next request, a live program with `ijfs wake`. `ijfs fork` makes copies of one that
    is parked on disk without starting it.
    """
    from ijfs.deployments import client
    from ijfs.live.client import api

    app.live_programs()
    if client.is_deployed(app.repository_path, name):
        return _one(client.park(app.repository_path, name, _depth(disk)))
    with api.connect(app.repository_path, name, on_event=app.progress(f"park {name}").event) as keeper:
        info = keeper.park(disk=disk)
    where = f" on disk, as {(info.snapshot or '')[: text.SHORT_ID]}" if disk else ""
    return Answer({"parked": name}, lambda out: out.line("parked ", (name, "bold"), where))


@verb("wake")
@starting.secret_options
@click.argument("name", type=INSTANCE)
def wake(app: App, name: str, secrets: dict[str, str]) -> Answer:
    """Let a parked deployment or program go on. One that was parked on disk comes back from its snapshot; its secrets
    are given again."""
    from ijfs.deployments import client
    from ijfs.live.client import api

    app.live_programs()
    if client.is_deployed(app.repository_path, name):
        return _one(client.wake(app.repository_path, name))
    api.wake(app.repository_path, name, secrets=secrets, on_event=app.progress(f"wake {name}").event)
    return Answer({"woken": name}, lambda out: out.line((name, "bold"), " runs"))


@verb("undeploy")
@click.argument("name")
def undeploy(app: App, name: str) -> Answer:
    """End a deployment and forget it, with its snapshots and files."""
    from ijfs.deployments import client

    app.repository()
    client.undeploy(app.repository_path, name)
    return Answer({"undeployed": name}, lambda out: out.line("undeployed ", (name, "bold")))


def _depth(disk: bool) -> Stage:
    return "disk" if disk else "memory"


def _one(info: DeploymentInfo) -> Answer:
    def show(out: Printer) -> None:
        out.line((info.name, "bold"), f" is {_state(info)}")

    return Answer({"deployment": _json(info)}, show)


def _state(info: DeploymentInfo) -> str:
    return STATES.get(info.state, info.state)


def _json(info: DeploymentInfo) -> dict[str, Any]:
    import msgspec

    return dict(msgspec.to_builtins(info))


def _row(info: DeploymentInfo) -> list[Span]:
    return [
        info.name,
        _state(info),
        info.url,
        info.start_mode,
        str(info.priority) if info.priority else "",
        str(info.served),
        f"{info.used_s:.0f} s ago" if info.used_s is not None else "",
        text.seconds(info.wake_s) if info.wake_s is not None else "",
        (info.snapshot or "")[: text.SHORT_ID],
    ]


COMMANDS = {"deploy": deploy, "deployments": deployments, "park": park, "wake": wake, "undeploy": undeploy}
