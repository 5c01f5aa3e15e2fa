"""Directories that root makes in what belongs to another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ijfs_engine import Repository, make_directories


@pytest.mark.root
def test_what_comes_to_be_in_a_home_directory_is_its_owners(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    Repository.init(home / ".local" / "share" / "ijfs").close()
    owners = [(home / path).stat().st_uid for path in (".local", ".local/share", ".local/share/ijfs")]
    assert owners == [65534, 65534, 0], "what a repository holds is for who made it"
    make_directories(home / ".local" / "share" / "other" / "deep")
    assert (home / ".local/share/other/deep").stat().st_uid == 65534
    make_directories(home / ".local")  # it is there


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_directories(tmp_path / "file" / "below")
