"""Fixtures of the live tests: `live_env` for one test, `shared_env` for the tests of one file, `small_disk` to fill."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_env import LiveEnv, open_env, why_not
from waiting import eventually


@pytest.fixture(scope="session")
def live_machine() -> None:
    """Skips where CRIU cannot work."""
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def live_env(live_machine: None, tmp_path: Path) -> Iterator[LiveEnv]:
    """A repository with instances, all gone after the test; fails when something leaked."""
    with open_env(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared_env(live_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEnv]:
    """One environment for a whole file: starting a kernel takes a second."""
    with open_env(tmp_path_factory.mktemp("live")) as opened:
        yield opened


@pytest.fixture
def small_disk(live_machine: None, tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 64 MiB to keep a repository in."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], check=True)
    yield disk
    # The kernel takes a mount namespace apart a little after its last process.
    assert eventually(lambda: subprocess.run(["umount", disk], check=False, stderr=subprocess.DEVNULL).returncode == 0)
