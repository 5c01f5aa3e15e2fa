"""`ijfs run --priority`: a program that gives way to what is more important, and comes back (deployments/job.py)."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

import click

from ijfs.cli.output import Printer
from ijfs.cli.params import SIZE

if TYPE_CHECKING:
    from ijfs.cli.app import App
    from ijfs.deployments.records import DeploymentInfo
    from ijfs.live.model.records import InstanceSpec

priority_option = click.option(
    "--priority", type=int, metavar="N", help="Rest while what has a higher one, here or in `ijfs deploy`, needs room."
)
gpu_memory_option = click.option(
    "--gpu-memory", type=SIZE, default=0, metavar="SIZE", help="With --gpu and --priority: what it takes of each GPU."
)


class Share(NamedTuple):
    """How important a program is, and what it takes of each GPU, in bytes."""

    priority: int
    gpu_memory: int


def needs_of(spec: InstanceSpec, gpu_memory: int) -> dict[str, int]:
    """What a program takes of the budgets (deployments/room.py), in bytes: its limit of memory, and so much of each GPU
    that CUDA_VISIBLE_DEVICES leaves it (the first, where that says nothing)."""
    seen = spec.env.get("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", "0"))
    gpus = [number.strip() for number in seen.split(",") if number.strip().isdigit()] if spec.gpu else []
    return {"memory": spec.limits.memory or 0, **{f"gpu:{number}": gpu_memory for number in gpus}}


def check(priority: int | None, gpu_memory: int, spec: InstanceSpec, *, tty: bool, secrets: bool, idle: bool) -> None:
    """Usage errors of what does not go together."""
    if gpu_memory and (priority is None or not spec.gpu):
        raise click.UsageError("--gpu-memory is what a program with --gpu takes of the room that --priority is about")
    if priority is None:
        return
    if idle:
        raise click.UsageError("a program with --priority is parked when others need its room: no --idle")
    if tty or secrets:
        raise click.UsageError("a program with --priority may begin when nobody is there: no terminal, no secrets")
    if not any(needs_of(spec, gpu_memory).values()):
        raise click.UsageError(
            "--priority is about room: say what it takes, by --memory SIZE, or by --gpu --gpu-memory SIZE"
        )


def begun(app: App, spec: InstanceSpec, share: Share, *, replace: bool) -> DeploymentInfo:
    """Hand it to the supervisor, which begins it once there is room. `replace`: an ended program of its name is
    forgotten. IjfsError."""
    from ijfs.deployments import client
    from ijfs.deployments.making import job
    from ijfs.live.client import api
    from ijfs.live.client.forgetting import goes_with_replace
    from ijfs.live.errors import NoInstanceError

    if replace:
        going = goes_with_replace(app.repository_path, spec.name)
        with contextlib.suppress(NoInstanceError):
            api.remove(app.repository_path, spec.name)
        if going is not None:
            app.warn(going)
    needs = needs_of(spec, share.gpu_memory)
    return client.deploy(app.repository_path, job(spec, priority=share.priority, needs=needs))


def show_waiting(out: Printer, name: str) -> None:
    """It is not there yet."""
    out.line((name, "bold green"), " waits for room, and begins by itself when there is some")
    out.line(f"`ijfs deployments` shows it, `ijfs undeploy {name}` lets it go")
