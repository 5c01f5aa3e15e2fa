"""A snapshot with more paths than anyone waits for: verbs end, and say where they stopped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from calls import Ijfs

from ijfs.cli import bounded
from ijfs_engine import Entry, Repository
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.records import Tree, encode_tree

LEVELS, WIDTH = 9, 20


@pytest.fixture
def endless(repo: Path) -> Path:
    """20^9 empty directories in some kB of trees."""
    with Repository.open(repo) as repository, repository.session() as session:
        cell = session.put_object(FrameKind.TREE, encode_tree(Tree(())))
        for _ in range(LEVELS):
            entries = (Entry(b"%02d" % number, "d", 0o755, 0, 0, 0, content=cell) for number in range(WIDTH))
            cell = session.put_object(FrameKind.TREE, encode_tree(Tree(tuple(entries))))
        session.commit_snapshot(cell, branch="main")
    return repo


def test_show_and_du_count_without_walking(endless: Path, ijfs: Ijfs) -> None:
    assert ijfs("show", "main").code == 0
    assert ijfs("du").code == 0
    assert ijfs("fsck").code == 0


def test_a_list_stops_and_says_where(endless: Path, ijfs: Ijfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MOST", 100)
    answer = ijfs("ls", "-R", "main")
    assert answer.code == 3
    assert len(answer.out.splitlines()) == 100
    last = answer.out.splitlines()[-1].rstrip("/")
    assert f"stopped after 100 entries, at '{last}'" in answer.err
    monkeypatch.setattr(bounded, "MOST_TEXT", 50)
    assert 1 < len(ijfs("ls", "-R", "main").out.splitlines()) < 50
    assert ijfs("ls", "main").code == 0


def test_a_comparison_stops_and_says_where(endless: Path, ijfs: Ijfs, monkeypatch: pytest.MonkeyPatch) -> None:
    with Repository.open(endless) as repository, repository.session() as session:
        empty = session.put_object(FrameKind.TREE, encode_tree(Tree(())))
        session.commit_snapshot(empty, branch="empty")
    monkeypatch.setattr(bounded, "MOST", 100)
    answer = ijfs("diff", "empty", "main")
    assert answer.code == 3
    assert len(answer.out.splitlines()) == 100
    assert "stopped after 100 files" in answer.err
    assert ijfs("diff", "main", "main").code == 0


def test_an_export_of_more_paths_than_a_disk_holds_writes_none(endless: Path, ijfs: Ijfs, tmp_path: Path) -> None:
    if not os.statvfs(tmp_path).f_files:
        pytest.skip("this filesystem does not say how many files it can hold")
    answer = ijfs("export", "main", tmp_path / "out")
    assert answer.code == 1
    assert f"there are {sum(WIDTH**level for level in range(1, LEVELS + 1)):,} files and directories" in answer.err
    assert not list((tmp_path / "out").iterdir())
    answer = ijfs("cp", "main:", tmp_path / "copy")
    assert answer.code == 1
    assert "files and directories" in answer.err
    assert not (tmp_path / "copy").exists()
