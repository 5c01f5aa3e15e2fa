"""A remote in a mount: its names are links, and its bytes come when they are read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ijfs.fs import mountpoint as mounting
from ijfs_engine import Repository, import_directory

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A mount of a repository that has nothing but a remote with one branch and one tag."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "data").write_bytes(os.urandom(3_000_000))
    url = f"file://{tmp_path}/bucket"
    with Repository.init(tmp_path / "there") as there:
        saved = import_directory(there, files, branch="main").id
        there.remotes.add("origin", url)
        there.remotes.push("origin", {"branch/main": saved, "tag/v1": saved})
    with Repository.init(tmp_path / "here") as here:
        here.remotes.add("origin", url)
        here.remotes.fetch("origin")
    point = tmp_path / "mount"
    point.mkdir()
    mounting.mount(tmp_path / "here", point)
    yield point
    mounting.umount(point, lazy=True)


def test_a_remote_is_read_through_a_mount(mounted: Path, tmp_path: Path) -> None:
    assert sorted(os.listdir(mounted)) == ["branches", "live", "remotes", "snapshots", "tags"]
    assert os.listdir(mounted / "remotes") == ["origin"]
    assert os.listdir(mounted / "remotes/origin/branches") == ["main"]
    assert os.listdir(mounted / "snapshots") == []
    for name in ("branches/main", "tags/v1"):
        read = (mounted / "remotes/origin" / name / "files/data").read_bytes()
        assert read == (tmp_path / "files/data").read_bytes()
    assert not (mounted / "remotes/origin/branches/other").exists()
