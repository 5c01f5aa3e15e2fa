"""Fixtures of the deployments' tests: a repository whose programs and supervisor are all gone at the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployments.load import SERVER
from live.live_env import LiveEnv, command_line, open_env, why_not
from waiting import eventually, patient

from ijfs.deployments import client, records
from ijfs.deployments.records import DeploymentInfo, DeploymentSpec
from ijfs.live.model.records import Hooks, InstanceSpec
from ijfs_engine.errors import IjfsError

INSIDE = 8000


class Deployments:
    """Deployments of one repository, of a small server each."""

    def __init__(self, live_env: LiveEnv) -> None:
        self.env = live_env
        self.repo = live_env.repo

    def spec(self, name: str = "web", **settings: Any) -> DeploymentSpec:
        program = InstanceSpec(
            name=name,
            argv=(sys.executable, "-c", SERVER, str(INSIDE)),
            cwd="/",
            ports=(INSIDE,),
            hooks=Hooks(ready=(f"http://127.0.0.1:{INSIDE}/ready",), ready_s=patient(60.0)),
        )
        return DeploymentSpec(**{"name": name, "program": program, "inside": INSIDE, "idle_s": None, **settings})

    def deploy(
        self, name: str = "web", *, start: bool = True, replace: bool = False, **settings: Any
    ) -> DeploymentInfo:
        return client.deploy(self.repo, self.spec(name, **settings), replace=replace, start=start)

    def info(self, name: str = "web") -> DeploymentInfo:
        return client.describe(self.repo, name)

    def supervisors(self) -> list[int]:
        """Processes that supervise this repository."""
        return [pid for pid in self.env.processes() if f"ijfs.deployments {self.repo}" in command_line(pid)]

    def kill_supervisor(self, number: int = signal.SIGKILL) -> None:
        """Send its supervisor a signal, and wait for its end."""
        for pid in self.supervisors():
            os.kill(pid, number)
        assert eventually(lambda: not self.supervisors(), 60)

    def close(self) -> None:
        for record in records.all_of(self.repo):
            with contextlib.suppress(IjfsError):
                client.undeploy(self.repo, record.spec.name)
        self.kill_supervisor()


def state(info: DeploymentInfo) -> dict[str, int]:
    """What the server says of itself."""
    with urllib.request.urlopen(f"{info.url}/state", timeout=patient(60.0)) as answer:
        return dict(json.load(answer))


@pytest.fixture
def deployments(tmp_path: Path) -> Iterator[Deployments]:
    """A repository for deployments; fails when something of them is left."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with open_env(tmp_path) as opened:
        made = Deployments(opened)
        try:
            yield made
        finally:
            made.close()
