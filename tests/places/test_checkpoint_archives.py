"""Checkpoints that podman made, through ijfs and back to podman and runc."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import eventually

from containers import CHECKOUT, IMAGE, Containers
from containers import archive as root_archive

pytestmark = [pytest.mark.root, pytest.mark.criu, pytest.mark.places, pytest.mark.timeout(600)]

COUNT = "id=$(cat /proc/sys/kernel/random/uuid); n=0; while :; do n=$((n+1)); echo $id $n; sleep 0.05; done"
"""What it counts it says with a number that another run of it would not have."""

Saved = tuple[Path, tuple[str, int]]


def ijfs(repo: Path, *arguments: str | Path) -> str:
    command = [f"{CHECKOUT}/.venv/bin/ijfs", *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, "IJFS_REPO": str(repo)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def count(containers: Containers, name: str) -> tuple[str, int]:
    """Which run of the program a container has, and how far that has come: the last whole line of its log."""
    lines = containers.podman("logs", "--tail", "2", name).out.splitlines()
    run, number = lines[0].split() if lines else ("", "0")
    return run, int(number)


def goes_on(containers: Containers, saved: tuple[str, int], *how: str) -> bool:
    """Whether what podman restores counts on from where it was saved."""
    name = f"copy-{uuid.uuid4().hex[:8]}"
    ran = containers.podman("container", "restore", "--name", name, *how)
    assert ran.code == 0, ran.err
    return eventually(lambda: count(containers, name) > saved) and count(containers, name)[0] == saved[0]


@pytest.fixture
def archive(containers: Containers, repo: Path, tmp_path: Path) -> Iterator[Saved]:
    """What podman wrote of a container that counts, and how far it was; the container is gone."""
    name, file = f"count-{uuid.uuid4().hex[:8]}", tmp_path / "count.tar.zst"
    ran = containers.podman("run", "-d", "--name", name, "--network=none", IMAGE, "sh", "-c", COUNT)
    assert ran.code == 0, ran.err
    assert eventually(lambda: count(containers, name)[1] > 20)
    ran = containers.podman("container", "checkpoint", "--export", str(file), name)
    assert ran.code == 0, ran.err
    saved = count(containers, name)
    containers.podman("rm", "--force", "--time", "0", name)
    ijfs(repo, "init", "-q")
    yield file, saved
    containers.podman("rm", "--all", "--force", "--time", "0")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
def test_podman_restores_the_archive_that_ijfs_gives_back(
    containers: Containers, repo: Path, archive: Saved, tmp_path: Path, suffix: str
) -> None:
    file, saved = archive
    ijfs(repo, "import", file)
    again = tmp_path / f"again{suffix}"
    ijfs(repo, "export", "main", again, "--for", "podman")
    assert goes_on(containers, saved, "--import", str(again))


def test_podman_restores_the_image_that_ijfs_made(
    containers: Containers, repo: Path, archive: Saved, tmp_path: Path
) -> None:
    file, saved = archive
    ijfs(repo, "import", file)
    ijfs(repo, "export", "main", tmp_path / "image.oci", "--for", "oci")
    loaded = containers.podman("load", "-i", str(tmp_path / "image.oci"))
    assert loaded.code == 0, loaded.err
    assert goes_on(containers, saved, loaded.out.split()[-1])


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    """A bundle of runc's whose program counts in a file; no container of it is left."""
    made = tmp_path / "bundle"
    (made / "rootfs").mkdir(parents=True)
    subprocess.run(["tar", "xf", root_archive(), "-C", made / "rootfs", "--exclude=./dev/*"], check=True)
    subprocess.run(["runc", "spec"], cwd=made, check=True)
    config = json.loads((made / "config.json").read_text())
    count = "n=0; while :; do n=$((n+1)); echo $n >/tmp/new; mv /tmp/new /tmp/count; sleep 0.05; done"
    config["process"] |= {"terminal": False, "args": ["sh", "-c", count], "rlimits": []}
    config["root"]["readonly"] = False
    (made / "config.json").write_text(json.dumps(config))
    yield made
    for name in ("one", "two"):
        runc(made, "delete", "--force", name)


def runc(bundle: Path, *arguments: str | Path) -> int:
    """Its exit status."""
    path = {**os.environ, "PATH": f"{CHECKOUT}/.prefix/bin:{os.environ['PATH']}"}
    command = ["runc", "--root", bundle / "state", *map(str, arguments)]
    null = subprocess.DEVNULL  # a file of the machine would not be found by CRIU
    return subprocess.run(command, cwd=bundle, env=path, stdin=null, stdout=null, stderr=null, check=False).returncode


def test_runc_restores_the_images_that_ijfs_gives_back(repo: Path, bundle: Path, tmp_path: Path) -> None:
    counted = bundle / "rootfs/tmp/count"
    assert runc(bundle, "run", "-d", "one") == 0
    assert eventually(lambda: counted.exists() and int(counted.read_text()) > 5)
    assert runc(bundle, "checkpoint", "--image-path", tmp_path / "images", "one") == 0
    least = int(counted.read_text())
    ijfs(repo, "init", "-q")
    ijfs(repo, "import", tmp_path / "images")
    ijfs(repo, "export", "main", tmp_path / "again", "--for", "runc")
    counted.write_text("0")
    assert runc(bundle, "restore", "-d", "--image-path", tmp_path / "again", "two") == 0
    assert eventually(lambda: int(counted.read_text()) > least)


def test_a_second_checkpoint_shares_its_memory_with_the_first(
    containers: Containers, repo: Path, archive: Saved
) -> None:
    file, _ = archive
    ijfs(repo, "import", file)
    first = pack_bytes(repo)
    ijfs(repo, "import", file, "-m", "again")
    assert pack_bytes(repo) - first < 0.05 * first


def pack_bytes(repo: Path) -> int:
    found = json.loads(ijfs(repo, "stats", "--json"))["pack_bytes"]
    assert isinstance(found, int)
    return found
