"""The same containers under docker: with the least that works, and with less. Where docker is installed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from docker_engine import DockerContainers, why_no_docker
from test_containers import all_ways

from containers import Containers, archive

pytestmark = [pytest.mark.root, pytest.mark.criu, pytest.mark.places, pytest.mark.timeout(600)]

# Beside docker's own defaults, as docs/places.md has it.
ADDED = [f"--cap-add={name}" for name in ("SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_TIME")]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Docker with the image; nothing of it is left afterwards."""
    if not os.environ.get("IJFS_TEST_PLACES"):
        pytest.skip("`make test-places` runs these: they take minutes")
    if (reason := why_no_docker()) is not None:
        pytest.skip(reason)
    made = DockerContainers(tmp_path_factory.mktemp("docker"))
    try:
        if (reason := made.why_not()) is not None:
            pytest.skip(f"dockerd does not start: {reason}")
        made.load(archive())
        yield made
    finally:
        left = made.close()
    assert not left, f"left behind: {left}"


@pytest.fixture(autouse=True)
def _empty_volume(docker: Containers) -> Iterator[None]:
    yield
    subprocess.run(["rm", "-rf", *docker.volume.iterdir()], check=True)


def test_with_the_least_that_works(docker: Containers) -> None:
    all_ways(docker, *ADDED, "--security-opt", "seccomp=unconfined")


def test_without_more_it_is_said_what_is_missing_and_the_option_that_gives_it(docker: Containers) -> None:
    script = "ijfs -q init; ijfs run -- sleep 9; echo run $?"
    plain = docker.run(script)
    assert "run 12" in plain.out, plain.out + plain.err
    assert all(option in plain.err for option in ADDED)
    filtered = docker.run(script, *ADDED)
    assert "run 12" in filtered.out
    assert "--security-opt seccomp=unconfined" in filtered.err
