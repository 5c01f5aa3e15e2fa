"""Directories whose contents lie apart (sandbox/apart.py): a sandbox's, so that it waits for no numbers of the last."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ijfs.live.sandbox import apart


def test_a_directory_is_made_under_its_name_and_nothing_else_is_left(tmp_path: Path) -> None:
    apart.make_directory(tmp_path / "name" / "box-1")
    apart.make_directory(tmp_path / "name" / "box-2")
    assert sorted(os.listdir(tmp_path / "name")) == ["box-1", "box-2"]
    flags = subprocess.run(["lsattr", "-d", tmp_path / "name"], capture_output=True, text=True, check=False)
    if flags.returncode == 0 and _filesystem(tmp_path) == "ext4":
        assert "T" in flags.stdout.split()[0]


def test_one_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "box-1").mkdir()
    (tmp_path / "box-1" / "kept").touch()
    apart.make_directory(tmp_path / "box-1")
    assert os.listdir(tmp_path) == ["box-1"]
    assert os.listdir(tmp_path / "box-1") == ["kept"]


def test_a_filesystem_without_the_flag_is_no_error() -> None:
    place = Path("/dev/shm") / f"ijfs-apart-{os.getpid()}"
    try:
        apart.make_directory(place / "box-1")
        assert os.listdir(place) == ["box-1"]
    finally:
        (place / "box-1").rmdir()
        place.rmdir()


def _filesystem(path: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True)
    return "ext4" if done.stdout.strip() == "ext2/ext3" else done.stdout.strip()
