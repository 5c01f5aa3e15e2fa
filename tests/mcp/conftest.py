"""Fixtures of the tests of `ijfs mcp`: a repository whose programs are all gone at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live.live_env import LiveEnv, open_env, why_not


@pytest.fixture(scope="module")
def live_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEnv]:
    """Where the sessions of one file live; fails when one of them left something."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with open_env(tmp_path_factory.mktemp("mcp")) as opened, pytest.MonkeyPatch.context() as patch:
        patch.setenv("IJFS_REPO", str(opened.repo))
        patch.chdir(opened.work)
        yield opened
