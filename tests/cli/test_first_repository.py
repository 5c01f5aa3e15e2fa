"""The first program makes the repository in the home directory, and no other one."""

from __future__ import annotations

from pathlib import Path

import pytest
from calls import Ijfs

from ijfs_engine import Repository


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where data goes of who names no repository."""
    monkeypatch.delenv("IJFS_REPO", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data/ijfs"


@pytest.mark.root
def test_what_starts_a_program_needs_no_init(ijfs: Ijfs, home: Path) -> None:
    begun = ijfs("run", "/no/such/command")
    assert (begun.code, f"made a repository in {home}" in begun.err) == (2, True)
    assert Repository.is_at(home)
    assert "made" not in ijfs("run", "/no/such/command").err


def test_only_what_starts_a_program_makes_one_and_none_that_was_named(
    ijfs: Ijfs, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [ijfs(*argv).code for argv in (["ps"], ["tree"], ["save", "lab"], ["restore", "lab"])] == [10] * 4
    assert ijfs("-r", tmp_path / "typo", "run", "true").code == 10
    monkeypatch.setenv("IJFS_REPO", str(tmp_path / "typo"))
    assert ijfs("run", "true").code == 10
    assert not home.exists()
    assert not (tmp_path / "typo").exists()
