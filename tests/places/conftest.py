"""Fixtures of the tests in containers; `make test-places` runs them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers import Containers, archive, why_not


@pytest.fixture(scope="session")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Podman with the image; nothing of it is left afterwards."""
    if not os.environ.get("IJFS_TEST_PLACES"):
        pytest.skip("`make test-places` runs these: they take minutes")
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = Containers(tmp_path_factory.mktemp("places"))
    try:
        try:
            made.load(archive())
            probe = made.run("true", "--privileged")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no image: {error.stderr[-300:]!r}")
        if probe.code != 0:
            pytest.skip(f"podman runs no container here: {probe.err.strip()[-300:]}")
        yield made
    finally:
        left = made.close()
    assert not left, f"left behind: {left}"


@pytest.fixture
def repo(containers: Containers) -> Iterator[Path]:
    """An empty volume, with a repository in it once a script made one."""
    yield containers.volume / "repo"
    subprocess.run(["rm", "-rf", *containers.volume.iterdir()], check=True)
