"""`ijfs run`."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import first_moment, instances, jobs, starting, sudo
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import elsewhere
from ijfs.cli.verbs import attach

if TYPE_CHECKING:
    from ijfs.deployments.records import DeploymentInfo
    from ijfs.live.client.api import InstanceInfo
    from ijfs.live.model.records import Idle, InstanceSpec, Limits, Terminal

NO_VOLUMES = (
    "a program sees this machine's files at their places; what it writes stays its own, but for folders given by "
    "`--share` or `--bind`"
)


@verb("run", context_settings={"allow_interspersed_args": False})
@click.option("--name", metavar="N", help="Its name (default: the program's).")
@starting.way_out_option
@starting.port_option
@starting.env_options
@starting.gpu_option
@click.option("--nccl-safe", is_flag=True, help="With --gpu: settings under which NCCL ranks can be restored.")
@starting.base_option
@starting.ttl_option
@starting.idle_options
@starting.user_option
@starting.disk_option
@starting.storage_option
@starting.share_option
@starting.bind_option
@starting.secret_options
@starting.limit_options(anew=True)
@jobs.priority_option
@jobs.gpu_memory_option
@starting.privileged_option
@starting.hook_options
@starting.replace_option
@click.option("-t", "--tty", is_flag=True, help="At a terminal, yours: `-it -- bash`. Its exit code is this one's.")
@click.option("-i", "--interactive", is_flag=True, hidden=True)
@click.option("-d", "--detach", is_flag=True, help="With -t: return, `ijfs attach NAME` sits down at it.")
@click.option("--rm", "forget", is_flag=True, help="With -t: forget it when it has ended.")
@starting.detach_keys_option
@elsewhere("--volume", "--mount", said=NO_VOLUMES)
@elsewhere("-w", "--workdir", said="a program begins in the directory in which this is typed")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    app: App,
    name: str | None,
    network: starting.WayOut,
    ports: tuple[starting.GivenPort, ...],
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    gpu: bool,
    nccl_safe: bool,
    base: str,
    ttl: float | None,
    idle: Idle | None,
    user: str,
    replace: bool,
    disk: int,
    storage: str,
    share: tuple[str, ...],
    bind: tuple[str, ...],
    before_save: tuple[str, ...],
    after_save: tuple[str, ...],
    after_restore: tuple[str, ...],
    ready: tuple[str, ...],
    limits: Limits,
    tty: bool,
    interactive: bool,
    detach: bool,
    forget: bool,
    keys: bytes,
    secrets: dict[str, str],
    privileged: bool,
    priority: int | None,
    gpu_memory: int,
    command: tuple[str, ...],
) -> Answer:
    """Start COMMAND in a sandbox of its own and return; `ijfs logs -f` shows what it prints. Exit code 13 when it has
    failed by then.

    Its files are an overlay over this machine's: what it writes belongs to it, rides in its snapshots, and is
    not seen outside, but for folders given by --share and --bind. Write `--` before COMMAND if it has options that
    look like these.

    With -t it has a terminal, which is saved, restored and forked with it; you sit at it until the program ends or you
    leave it by ctrl-p ctrl-q.
    """
    import msgspec

    from ijfs.live.client import api as client

    app.repository_to_start_in()
    if interactive and not tty:
        raise click.UsageError("what is typed goes to a program that has a terminal: -it")
    _check_terminal(app, tty=tty, detach=detach, forget=forget)
    if app.verbose and command[0].startswith("/") and ":" in command[0]:
        raise click.UsageError(f"there is no -v for volumes: {NO_VOLUMES}")
    spec = client.InstanceSpec(
        name="",
        argv=command,
        network=network.network,
        egress=network.egress,
        ports=tuple(dict.fromkeys(port.inside for port in ports)),
        published=starting.published(ports),
        gpu=gpu or nccl_safe,
        nccl_safe=nccl_safe,
        base=base,
        ttl_s=ttl,
        idle=idle or client.Idle(),
        disk=disk,
        storage=starting.storage_of(app, storage),
        share=starting.folders(share),
        bind=starting.folders(bind),
        hooks=starting.hooks(before_save, after_save, after_restore, ready),
        limits=limits,
        terminal=_terminal() if tty else None,
        privileged=privileged,
        **_whose(app, user, env, env_files),
    )
    starting.warn_of_what_cannot_be_saved(app, gpu=spec.gpu, user=spec.user)

    jobs.check(priority, gpu_memory, spec, tty=tty, secrets=bool(secrets), idle=idle is not None)
    if priority is not None:
        return _job(app, name, spec, jobs.Share(priority, gpu_memory), replace=replace)

    def start(chosen: str) -> tuple[InstanceInfo, InstanceInfo | None]:
        progress = app.progress(f"run {chosen}")
        info = client.start(
            app.repository_path,
            msgspec.structs.replace(spec, name=chosen),
            forget=replace,
            secrets=secrets,
            on_event=progress.event,
        )
        return info, None if tty else first_moment.ended(app, info, first_moment.RUN)

    info, ended = instances.named(app, name, command[0], start)
    if tty and not detach:
        return Answer({}, None, _sat_at(app, info.name, keys, forget=forget))

    return _answer(info, ended)


def _answer(info: InstanceInfo, ended: InstanceInfo | None) -> Answer:
    def show(out: Printer) -> None:
        instances.started(out, info, "ran" if ended else "runs")
        starting.show_ports(out, info)
        if not ended:
            starting.show_network(out, info)

    return Answer({"instance": instances.instance_json(ended or info)}, show, first_moment.exit_code(ended))


def _job(app: App, name: str | None, spec: InstanceSpec, share: jobs.Share, *, replace: bool) -> Answer:
    """One that gives way: it runs, or waits for room."""
    import msgspec

    from ijfs.live.client import api as client

    def begin(chosen: str) -> DeploymentInfo:
        return jobs.begun(app, msgspec.structs.replace(spec, name=chosen), share, replace=replace)

    job = instances.named(app, name, spec.argv[0], begin)
    if job.state != "running":
        return Answer({"instance": None}, lambda out: jobs.show_waiting(out, job.name))
    info = msgspec.structs.replace(client.describe(app.repository_path, job.name), phases=job.phases)
    return _answer(info, first_moment.ended(app, info, first_moment.RUN))


def _check_terminal(app: App, *, tty: bool, detach: bool, forget: bool) -> None:
    """A usage error where a terminal is wanted and there is none, or what needs one is wanted without."""
    from ijfs.cli import attached

    if forget and (not tty or detach):
        raise click.UsageError(
            "--rm goes with a terminal (-it); `ijfs stop --rm NAME` forgets a program with its files"
        )
    if tty and not detach:
        if app.json:
            raise click.UsageError("a terminal is no JSON: `-d` leaves it for later")
        attached.require_terminal("standard input and output are no terminal: -t wants one, `-d` leaves it for later")


def _sat_at(app: App, name: str, keys: bytes, *, forget: bool) -> int:
    """At the terminal of what was just started; the exit code."""
    from ijfs.cli import attached
    from ijfs.live.client.api import remove
    from ijfs.live.errors import InstanceExitedError

    try:
        status = attach.sat_at(app, name, keys)
    except InstanceExitedError:
        status = attached.ended_before(app, name)
        attached.tell_why(app, name)
    if forget and status is not attached.LEFT:
        remove(app.repository_path, name)
    return status or 0


def _terminal() -> Terminal:
    """One as large as the window here."""
    from ijfs.cli.attached import window_size
    from ijfs.live.model.records import Terminal

    return Terminal(secrets.token_hex(16), *window_size())


def _whose(app: App, user: str, env: tuple[str, ...], env_files: tuple[Path, ...]) -> dict[str, Any]:
    """Where it begins, with which variables, as which user."""
    if app.caller is not None:
        return app.caller.fields(starting.variables(env, env_files, here=app.caller.env))
    return {"cwd": os.getcwd(), "env": starting.variables(env, env_files), "user": sudo.program_user(user)}


COMMANDS = {"run": run}
