"""Fixtures of the SDK's tests: a repository whose programs are all gone at the end, and a kernel in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live.live_env import LiveEnv, open_env, why_not

import ijfs


@pytest.fixture(scope="module")
def live_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEnv]:
    """Where the programs of one file live; fails when one of them left something."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with open_env(tmp_path_factory.mktemp("sdk")) as opened, pytest.MonkeyPatch.context() as patch:
        patch.setenv("IJFS_REPO", str(opened.repo))
        # Each test's own threads and sockets to a kernel are to be closed by what made them, not by this directory.
        for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(opened.work / name.lower()))
        yield opened


@pytest.fixture(scope="module")
def repo(live_env: LiveEnv) -> ijfs.Repository:
    """The repository that `ijfs.kernel()` takes, too."""
    return ijfs.Repository.open()


@pytest.fixture(scope="module")
def box(repo: ijfs.Repository, live_env: LiveEnv) -> Iterator[ijfs.Box]:
    """A kernel for all tests of a file, working in a directory that the host has, too."""
    with repo.kernel(name="shared", cwd=live_env.work) as made:
        yield made
