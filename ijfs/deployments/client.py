"""What commands and programs call: blocking verbs on a repository's deployments. Its supervisor is started where it is
not there. Everything raises IjfsError."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from ijfs.deployments import control, golden, records
from ijfs.deployments.control import Answer, Deploy, List, Park, Request, Undeploy, Wake
from ijfs.deployments.records import DeploymentInfo, DeploymentSpec, NoDeploymentError, Stage
from ijfs.live.checks import privilege
from ijfs.live.client.api import RepoPath
from ijfs.live.errors import KeeperError, rebuild
from ijfs.live.model.hooks import check_hooks
from ijfs.live.model.paths import check_name, short_path

STARTING_S = 30.0
"""How long a supervisor may take until it listens."""

_PAUSE_S = 0.05
_TRIES = 5


def deploy(repo: RepoPath, spec: DeploymentSpec, *, replace: bool = False, start: bool = True) -> DeploymentInfo:
    """Keep a server; returns when it is ready (without `start`: at once, and it begins with its first request)."""
    check_name(spec.name)
    check_hooks(spec.program.hooks)
    golden.check(spec.verify)
    privilege.require()
    return _one(_ask(repo, Deploy(spec, replace, start), begin=True))


def deployments(repo: RepoPath) -> list[DeploymentInfo]:
    """All of a repository. Where no supervisor runs and there are some, one is started."""
    if not records.all_of(repo):
        return []
    return list(_ask(repo, List(), begin=True))


def describe(repo: RepoPath, name: str) -> DeploymentInfo:
    """One of them; NoDeploymentError."""
    for info in deployments(repo):
        if info.name == name:
            return info
    raise NoDeploymentError(f"there is no deployment `{name}`")


def is_deployed(repo: RepoPath, name: str) -> bool:
    """Whether there is a deployment of that name."""
    return records.record_path(repo, name).exists()


def park(repo: RepoPath, name: str, depth: Stage = "memory") -> DeploymentInfo:
    """Let it rest, in `memory` or on `disk`, once its requests are done. LockedError where they last too long."""
    return _one(_ask(repo, Park(name, depth), begin=is_deployed(repo, name)))


def wake(repo: RepoPath, name: str) -> DeploymentInfo:
    """Bring it up without a request."""
    return _one(_ask(repo, Wake(name), begin=is_deployed(repo, name)))


def undeploy(repo: RepoPath, name: str) -> DeploymentInfo:
    """End it and forget it, with its snapshots."""
    return _one(_ask(repo, Undeploy(name), begin=is_deployed(repo, name)))


def _one(found: tuple[DeploymentInfo, ...]) -> DeploymentInfo:
    return found[0]


def _ask(repo: RepoPath, request: Request, *, begin: bool) -> tuple[DeploymentInfo, ...]:
    """A supervisor's answer. `begin`: one is started where there is none; else NoDeploymentError. What may be asked
    twice is asked again where one is killed meanwhile: until its process is quite gone, it still lets clients connect.
    """
    data = b""
    for _ in range(1 if isinstance(request, Deploy) else _TRIES):
        with contextlib.suppress(ConnectionError), _connected(Path(repo).resolve(), begin=begin) as sock:
            sock.sendall(msgspec.json.encode(request) + b"\n")
            data = b"".join(iter(lambda: sock.recv(1 << 16), b""))
        if data:
            break
        time.sleep(_PAUSE_S)
    else:
        raise KeeperError("the supervisor broke off", hint=f"its log is {control.log_path(repo)}; try again")
    answer = msgspec.json.decode(data, type=Answer)
    if answer.error is not None:
        raise rebuild(answer.error)
    return answer.ok or ()


def _connected(repo: Path, *, begin: bool) -> socket.socket:
    """A connection to the supervisor."""
    deadline = time.monotonic() + STARTING_S
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_path(control.socket_path(repo)) as path:
                sock.connect(path)
            return sock
        except OSError:
            sock.close()
        if not begin:
            raise NoDeploymentError("there is no deployment of that name")
        if time.monotonic() > deadline:
            raise KeeperError("the supervisor does not answer", hint=f"its log is {control.log_path(repo)}")
        _start(repo)


def _start(repo: Path) -> None:
    """Have a supervisor started; it listens when this returns, unless another one is just starting."""
    control.log_path(repo).parent.mkdir(mode=0o700, exist_ok=True)
    with control.log_path(repo).open("ab") as log:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "ijfs.deployments", os.fspath(repo), "--daemon"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            check=False,
        )
    if done.returncode:
        time.sleep(_PAUSE_S)
