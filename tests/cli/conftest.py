"""Fixtures of the command line's tests: ijfs in this process, ijfs in a process of its own, a repository."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from calls import COMMAND, Ijfs, Result

from ijfs.cli.main import invoke


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own repository, state or kernel specs, or depends on how pytest is run."""
    for name in ("IJFS_REPO", "IJFS_DEFAULTS", "IJFS_DEBUG", "FORCE_COLOR", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    monkeypatch.setenv("IJFS_SPARE_S", "0")  # nothing may outlive a test


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository, named by IJFS_REPO."""
    path = tmp_path / "repo"
    monkeypatch.setenv("IJFS_REPO", str(path))
    assert invoke(["init", "-q"]) == 0
    return path


@pytest.fixture
def live(repo: Path) -> Iterator[Path]:
    """A repository; whatever lives in it at the end is ended."""
    yield repo
    assert invoke(["stop", "--all", "--rm", "-q"]) == 0


@pytest.fixture
def ijfs(capfd: pytest.CaptureFixture[str]) -> Ijfs:
    """Call the command line in this process, output captured as in a pipe."""

    def call(*argv: str | os.PathLike[str]) -> Result:
        capfd.readouterr()
        code = invoke([os.fspath(a) for a in argv])
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def run_ijfs() -> Ijfs:
    """Call the command line as a process of its own, as a shell does."""

    def call(*argv: str | os.PathLike[str], stdin: bytes | None = None, env: dict[str, str] | None = None) -> Result:
        done = subprocess.run(
            [*COMMAND, *map(os.fspath, argv)],
            input=stdin,
            capture_output=True,
            env={**os.environ, **(env or {})},
            timeout=120,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode())

    return call
