"""`ijfs remote`, `push`, `fetch`, `pull`, `clone` as they are typed, with a directory as the store."""

from __future__ import annotations

from pathlib import Path

import pytest
from calls import Ijfs
from json_page import check

pytest.importorskip("obstore")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    (path / "hello.txt").write_text("hello\n")
    return path


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket"


def test_a_tree_goes_to_a_store_and_comes_back(repo: Path, ijfs: Ijfs, work: Path, url: str, tmp_path: Path) -> None:
    snapshot = ijfs("import", work, "-m", "first", "--json").json["snapshot"]
    check(ijfs("remote", "add", "origin", url, "--json").json, "remote add")
    pushed = ijfs("push", "--json").json
    check(pushed, "push")
    assert pushed["snapshots"] == [snapshot]
    assert "has all of it" in ijfs("push", "origin", "main").out
    listed = ijfs("remote", "list", "--json").json
    check(listed, "remote list")
    assert listed["remotes"][0]["refs"] == {"branch/main": snapshot}

    other = tmp_path / "other"
    cloned = ijfs("clone", url, other, "--json").json
    check(cloned, "clone")
    assert "first" in ijfs("-r", other, "log", "origin").out
    assert "no snapshots" in ijfs("-r", other, "log").out
    assert ijfs("-r", other, "cat", "origin/main", "files/hello.txt").out == "hello\n"
    shown = ijfs("-r", other, "show", "origin/main", "--json").json
    check(shown, "show")
    assert (shown["remotes"], shown["usage"]["stored"]) == ({"origin": True}, 0)
    assert "ijfs restore origin/main" not in ijfs("-r", other, "show", "origin/main").out  # no program
    assert "ijfs ls origin/main" in ijfs("-r", other, "show", "origin/main").out
    assert "ijfs pull" in ijfs("-r", other, "tag", "here", "origin/main").err
    (work / "hello.txt").write_text("hello, world\n")
    second = ijfs("import", work, "-m", "second", "--json").json["snapshot"]
    assert ijfs("push").code == 0
    fetched = ijfs("-r", other, "fetch", "--json").json
    check(fetched, "fetch")
    assert fetched["refs"] == {"branch/main": {"was": snapshot, "is": second}}
    assert ijfs("-r", other, "cat", "origin/main~1", "files/hello.txt").out == "hello\n"
    pulled = ijfs("-r", other, "pull", "--json").json
    check(pulled, "pull")
    assert pulled["snapshots"] == [snapshot, second]
    assert ijfs("-r", other, "cat", "main", "files/hello.txt").out == "hello, world\n"
    check(ijfs("-r", other, "remote", "remove", "origin", "--json").json, "remote remove")


def test_what_cannot_be_is_said_in_a_sentence(repo: Path, ijfs: Ijfs, url: str, tmp_path: Path) -> None:
    assert "`ijfs remote add origin URL`" in ijfs("push").err
    assert "no URL" in ijfs("remote", "add", "origin", "somewhere").err
    assert "password" in ijfs("remote", "add", "origin", "s3://key:secret@bucket/x").err
    assert "name of a remote" in ijfs("remote", "add", "branch", url).err
    assert ijfs("remote", "add", "origin", url).code == 0
    assert "already" in ijfs("remote", "add", "origin", url).err
    assert "no tree" in ijfs("fetch").err
    failed = ijfs("clone", f"file://{tmp_path}/nothing", tmp_path / "other")
    assert failed.code == 1
    assert not (tmp_path / "other").exists()
    assert "`ijfs fetch origin`" in ijfs("log", "origin/nothing").err


def test_a_store_is_looked_after(repo: Path, ijfs: Ijfs, work: Path, url: str) -> None:
    first = ijfs("import", work, "--json").json["snapshot"]
    ijfs("remote", "add", "origin", url)
    ijfs("push")
    (work / "hello.txt").write_text("hello, world\n")
    ijfs("import", work)
    ijfs("push")
    operations = ijfs("op", "log", "--json").json
    check(operations, "op log")
    assert len(operations["operations"]) == 2
    undone = ijfs("op", "undo", "--json").json
    check(undone, "op undo")
    assert undone["refs"] == {"branch/main": first}
    assert "undo of" in ijfs("op", "log").out
    found = ijfs("remote", "fsck", "--json").json
    check(found, "remote fsck")
    assert found["clean"]
    check(ijfs("remote", "du", "--json").json, "remote du")
    swept = ijfs("remote", "gc", "--grace", "0s", "--json").json
    check(swept, "remote gc")
    assert swept["packs_marked"] == 2
    assert "freed" in ijfs("remote", "gc", "--grace", "0s").out
    assert "whole" in ijfs("remote", "fsck").out
