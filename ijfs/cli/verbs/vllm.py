"""`ijfs vllm serve`: vLLM's own command line, behind a port that rests and wakes (`ijfs deploy --engine vllm`)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from ijfs.cli.app import App, VerbGroup, verb
from ijfs.cli.output import Answer
from ijfs.cli.params import Seconds
from ijfs.cli.verbs.deploy import shown

if TYPE_CHECKING:
    from ijfs.deployments.records import DeploymentSpec


@click.group("vllm", cls=VerbGroup, no_args_is_help=True)
def vllm() -> None:
    """Serve models by vLLM, as `vllm serve` does, with snapshots."""


@verb("vllm serve", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--name", metavar="N", help="What it is called (default: the model's name).")
@click.option("--idle", type=Seconds(), default=300.0, metavar="S", help="Park it in memory S seconds after a request.")
@click.option("--disk-after", type=Seconds(), default=3600.0, metavar="S", help="On disk S seconds after a request.")
@click.option("--ttl", type=Seconds(min_open=True), metavar="S", help="Let its snapshot go S seconds after a request.")
@click.option("--priority", type=int, default=0, metavar="N", help="The higher ones run where not all fit.")
@click.option("--replace", is_flag=True, help="In place of the one of that name, once this one is ready.")
@click.option("--no-start", is_flag=True, help="Let its first request start it.")
@click.argument("model")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve(app: App, replace: bool, no_start: bool, **given: Any) -> Answer:
    """Serve MODEL with vLLM's own ARGUMENTS: `ijfs vllm serve Qwen/Qwen3-0.6B --port 8000 --max-model-len 4096`.

    Options of ijfs come before MODEL. It starts once, is restored from then on, rests without requests, and loses none.
    As many GPUs as its parallel sizes say are given to it; of each it takes --gpu-memory-utilization.
    """
    from ijfs.deployments import client

    if given["model"].startswith("-"):
        raise click.UsageError("MODEL comes first, vLLM's own options after it")
    app.repository_to_start_in()
    info = client.deploy(app.repository_path, _spec(given), replace=replace, start=not no_start)
    return shown(info)


def _spec(given: dict[str, Any]) -> DeploymentSpec:
    from ijfs.deployments import engines
    from ijfs.deployments.making import specified
    from ijfs.live.model.records import LOOPBACK, HostPort

    called = engines.vllm_arguments(given["arguments"])
    return specified(
        given["name"] or _sound(given["model"]),
        [given["model"], *called.others],
        engine_name="vllm",
        port=HostPort(called.port, called.port, called.host or LOOPBACK),
        idle_s=given["idle"],
        disk_s=given["disk_after"],
        ttl_s=given["ttl"],
        priority=given["priority"],
        gpus=[str(number) for number in range(called.gpus)],
        gpu_memory=_gpu_memory(called.utilization),
        nccl_safe=called.gpus > 1,
    )


def _gpu_memory(utilization: float) -> int:
    """Bytes of the smallest GPU that this is; 0, which takes part in no budget, where there is none to be seen."""
    from ijfs.live.gpu.nvml import inventory

    return round(min((gpu.total_bytes for gpu in inventory().gpus), default=0) * utilization)


def _sound(model: str) -> str:
    """A name for a deployment of it: `Qwen/Qwen3-0.6B` is `Qwen3-0.6B`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model.rstrip("/").rpartition("/")[2]).strip("-.") or "vllm"


vllm.add_command(serve, "serve")
COMMANDS = {"vllm": vllm}
