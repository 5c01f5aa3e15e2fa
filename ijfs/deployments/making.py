"""From what somebody asks for to a DeploymentSpec. For the command line and the SDK."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import msgspec

from ijfs.deployments.engines import PORT, Engine, cache_folder, engine
from ijfs.deployments.records import DeploymentSpec, Protocol, StartMode
from ijfs.live.errors import CommandError
from ijfs.live.model.environment import is_text
from ijfs.live.model.records import LOOPBACK, Hooks, HostPort, InstanceSpec, Network


def specified(
    name: str,
    command: Sequence[str],
    *,
    engine_name: str | None = None,
    port: HostPort | None = None,
    hooks: Hooks | None = None,
    env: Mapping[str, str] | None = None,
    start_mode: StartMode = "checkpoint",
    protocol: Protocol = "http",
    idle_s: float | None = 300.0,
    disk_s: float | None = 3600.0,
    ttl_s: float | None = None,
    priority: int = 0,
    memory: int = 0,
    gpus: Sequence[str] = (),
    gpu_memory: int = 0,
    nccl_safe: bool = False,
    replicas: int = 1,
    stateless: bool = False,
    watched: Sequence[str] = (),
    verify: str = "",
    network: Network = "none",
    base: str = "",
    storage: str = "",
    share: Sequence[str] = (),
    bind: Sequence[str] = (),
) -> DeploymentSpec:
    """A deployment of `command`, or, with `engine_name`, of the model that it begins with. `port`: the one that the
    server listens on, and where it is reached (`host` 0: at the same number). `env`: over this process's. `share`,
    `bind`, `storage`: as InstanceSpec has them. CommandError, StorageError."""
    known = engine(engine_name, command[0], command[1:]) if engine_name else _NO_ENGINE
    if port is None and not engine_name:
        raise CommandError("nobody said which port the server listens on", hint="`--port 8000`")
    inside = PORT if port is None or engine_name else port.inside
    cached, caches = _caches(engine_name, known)
    variables = {**known.env, **caches, **(env or {})}
    used = tuple(gpus) or (("0",) if engine_name else ())
    needs = {"memory": memory, **{f"gpu:{number}": gpu_memory for number in used}}
    return DeploymentSpec(
        name=name,
        program=InstanceSpec(
            name=name,
            argv=known.argv or tuple(command),
            cwd=os.getcwd(),
            env={**_environment(), **variables},
            inherit_env=False,
            network=network,
            ports=(inside,),
            gpu=bool(used) or nccl_safe,
            nccl_safe=nccl_safe,
            base=base,
            storage=storage,
            share=tuple(share),
            bind=(*bind, *cached),
            hooks=hooks if hooks is not None and hooks != Hooks() else known.hooks,
        ),
        variables=variables,
        start_mode=start_mode,
        address=port.address if port is not None else LOOPBACK,
        port=(port.host or port.inside) if port is not None else 0,
        inside=inside,
        protocol=protocol,
        idle_s=idle_s,
        disk_s=disk_s,
        ttl_s=ttl_s,
        priority=priority,
        needs={budget: size for budget, size in needs.items() if size},
        replicas=replicas,
        stateless=stateless or bool(engine_name),
        watched=tuple(os.path.abspath(path) for path in watched),
        hidden=known.hidden,
        verify=verify or known.verify,
    )


def job(program: InstanceSpec, *, priority: int, needs: Mapping[str, int]) -> DeploymentSpec:
    """A program that takes part in who gives way to whom (job.py). `needs`: bytes of each budget."""
    inherited = _environment() if program.inherit_env else {}
    return DeploymentSpec(
        name=program.name,
        program=msgspec.structs.replace(program, env={**inherited, **program.env}, inherit_env=False),
        start_mode="job",
        inside=0,
        priority=priority,
        needs={budget: size for budget, size in needs.items() if size},
    )


def _caches(engine_name: str | None, known: Engine) -> tuple[tuple[str, ...], dict[str, str]]:
    """The folder that an engine's caches are in, to be bound, and the variables that lead there. StorageError."""
    if engine_name is None or not known.caches:
        return (), {}
    folder = cache_folder(engine_name)
    return (str(folder),), {name: str(folder / below) for name, below in known.caches.items()}


_NO_ENGINE = Engine((), {}, Hooks(), (), "", {})


def _environment() -> dict[str, str]:
    """This process's, for a program that a supervisor starts later; what is no text stays behind."""
    return {name: value for name, value in os.environ.items() if is_text((name, value))}
