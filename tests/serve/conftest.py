"""Fixtures of the tests of `ijfs serve`: a server as a process, and E2B's unmodified clients pointed at it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live.live_env import LiveEnv, open_env, why_not
from waiting import patient

from ijfs.serve.keys import Keys, path_in

COMMAND = [sys.executable, "-P", "-m", "ijfs.cli", "serve"]


class RunningServer:
    """`ijfs serve` at a free port, which is the same after a restart."""

    def __init__(self, repo: Path, home: Path, *options: str) -> None:
        self.repo, self.home, self.port, self._options = repo, home, 0, options
        self.keys = Keys(path_in(repo))
        self.key = self.keys.add("tests")
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        line = [*COMMAND, "--port", str(self.port), "--home", str(self.home), *self._options]
        self.process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = self.process.stderr.readline()
        found = re.fullmatch(r"serving at (https?://127\.0\.0\.1:(\d+))\n", said)
        assert found is not None, said
        self.url, self.port = found[1], int(found[2])

    def end(self, number: int = signal.SIGTERM) -> None:
        """By a signal; what it said to standard error is nothing."""
        self.process.send_signal(number)
        assert self.process.wait(patient(30)) == 0
        assert self.process.stderr is not None
        with self.process.stderr as said:
            assert said.read() == ""


@pytest.fixture(scope="module")
def live_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEnv]:
    """Where the sandboxes of one file live; fails when one of them left something."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with open_env(tmp_path_factory.mktemp("serve")) as opened, pytest.MonkeyPatch.context() as patch:
        patch.setenv("IJFS_REPO", str(opened.repo))
        yield opened


@pytest.fixture(scope="module")
def server(live_env: LiveEnv) -> Iterator[RunningServer]:
    """A server whose address and key E2B's clients take from the environment."""
    running = RunningServer(live_env.repo, live_env.work)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("E2B_")]:
            patch.delenv(name)
        patch.setenv("E2B_API_URL", running.url)
        patch.setenv("E2B_SANDBOX_URL", running.url)
        patch.setenv("E2B_API_KEY", running.key)
        yield running
    running.end()
