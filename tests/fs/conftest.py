"""What the filesystem's tests share: a mount point that is clean again afterwards."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ijfs.fs import mountinfo


@pytest.fixture
def mountpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory; nothing may be mounted on it when the test is over."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is not there or not ours")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    left = mountinfo.find_mount(path)
    if left is not None:
        subprocess.run(["umount", "-l", path], check=False)
        pytest.fail(f"the test left a mount: {left}")
