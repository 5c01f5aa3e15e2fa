"""A deployment as a Python object: a server behind a port, which starts with a request and rests without one.

Like a Box it holds no connection: any number of objects stand for one deployment, and dropping one ends nothing.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ijfs.deployments import client
from ijfs.deployments.making import specified
from ijfs.deployments.records import DeploymentInfo, StartMode
from ijfs.live.model.records import Hooks, HostPort
from ijfs.live.uploads.followed import LOCAL
from ijfs.sdk.repository import Repository
from ijfs_engine.errors import IjfsError

if TYPE_CHECKING:
    from ijfs.live.model.records import Network


class NoAnswerError(IjfsError):
    """A deployment answered a request with an error."""


class Deployment:
    """One deployment, by its name; `repo` is the directory of its repository."""

    def __init__(self, repo: Path, name: str) -> None:
        self.repo, self.name = repo, name

    def __repr__(self) -> str:
        return f"Deployment({self.name!r})"

    @property
    def info(self) -> DeploymentInfo:
        """As `ijfs deployments --json` has it; NoDeploymentError."""
        return client.describe(self.repo, self.name)

    @property
    def url(self) -> str:
        """Where it is reached."""
        return self.info.url

    @property
    def state(self) -> str:
        """`running`, `starting`, `parking`, `memory`, `disk` or `gone` (not started)."""
        return self.info.state

    def park(self, *, disk: bool = False) -> None:
        """Let it stand still in memory, or rest on disk, once its requests are done; LockedError if they last long."""
        client.park(self.repo, self.name, "disk" if disk else "memory")

    def wake(self) -> None:
        """Bring it up without a request."""
        client.wake(self.repo, self.name)

    def undeploy(self) -> None:
        """End it and forget it, with its snapshots."""
        client.undeploy(self.repo, self.name)

    def request(self, method: str, path: str, body: Any = None, *, timeout: float | None = None) -> bytes:
        """Ask it: what it answers. `body`: bytes, or what becomes JSON. NoAnswerError for a status of 400 and more;
        OSError."""
        info = self.info
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection(info.address, info.port, timeout=timeout)
        try:
            connection.request(method, path, data, {} if data is None else {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise NoAnswerError(f"{method} {path}: {answer.status} {said[:300].decode(errors='replace').strip()}")
        return said

    def generate(self, prompt: str, *, max_tokens: int = 64, timeout: float | None = None, **parameters: Any) -> str:
        """What its model goes on with after `prompt`, by the completions of OpenAI's API. NoAnswerError."""
        listed = json.loads(self.request("GET", "/v1/models", timeout=timeout))
        body = {"model": listed["data"][0]["id"], "prompt": prompt, "max_tokens": max_tokens, **parameters}
        return str(json.loads(self.request("POST", "/v1/completions", body, timeout=timeout))["choices"][0]["text"])


def deploy(
    what: str | Sequence[str],
    *,
    name: str | None = None,
    engine: Literal["vllm", "sglang"] | None = None,
    arguments: Sequence[str] = (),
    port: int | None = None,
    start_mode: StartMode = "checkpoint",
    checkpoint: Mapping[str, Any] | None = None,
    ready: str | Sequence[str] = (),
    hooks: Hooks | None = None,
    idle: float | None = 300.0,
    disk_after: float | None = 3600.0,
    ttl: float | None = None,
    gpu: int | Sequence[int] | None = None,
    gpu_memory: int = 0,
    memory: int = 0,
    priority: int = 0,
    replicas: int = 1,
    stateless: bool = False,
    verify: str = "",
    env: Mapping[str, str] | None = None,
    network: Network = "none",
    replace: bool = False,
    start: bool = True,
    repository: Repository | None = None,
) -> Deployment:
    """Keep a server behind a port: `what` is its command or, with `engine`, a model; docs/servers.md.

    `port`: the one that it listens on, and where it is reached (an engine's is 8000 inside). `checkpoint`: a mapping
    with `enabled` and `ttl` in place of `start_mode` and `ttl`, and `storage`: a remote that its snapshots go to as
    well, `s3` or `local`. `ready`: hooks, as are those of `hooks`. Returns when it is ready, without `start` at once.
    """
    given = dict(checkpoint or {})
    if given.get("enabled") is False and start_mode == "checkpoint":
        start_mode = "cold"
    command = [what, *arguments] if isinstance(what, str) else [*what, *arguments]
    readiness = (ready,) if isinstance(ready, str) else tuple(ready)
    numbers = () if gpu is None else (gpu,) if isinstance(gpu, int) else tuple(gpu)
    chosen = repository or Repository.open()
    spec = specified(
        name or _sound(command[0]),
        command,
        engine_name=engine,
        port=None if port is None else HostPort(port, port),
        hooks=hooks or (Hooks(ready=readiness) if readiness else None),
        env=env,
        start_mode=start_mode,
        idle_s=idle,
        disk_s=disk_after,
        ttl_s=given.get("ttl", ttl),
        priority=priority,
        memory=memory,
        gpus=tuple(str(number) for number in numbers),
        gpu_memory=gpu_memory,
        replicas=replicas,
        stateless=stateless,
        verify=verify,
        network=network,
        storage=chosen.remote_of(given.get("storage", LOCAL)),
    )
    client.deploy(chosen.path, spec, replace=replace, start=start)
    return Deployment(chosen.path, spec.name)


def _sound(wish: str) -> str:
    """A deployment's name from a model's or a command's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", wish.rsplit("/", 1)[-1]).strip("-._")[:48] or "server"
