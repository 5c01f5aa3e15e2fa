"""`ijfs init --encrypt`, `ijfs keyring` and `ijfs copy`, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calls import Ijfs

from ijfs.live.model.records import InstanceSpec
from ijfs.live.sandbox.sandbox import program_environment
from ijfs_engine.storage import key_files, unlocking


@pytest.fixture
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ijfs: Ijfs) -> Path:
    """An encrypted repository with a snapshot, named by IJFS_REPO and opened by IJFS_PASSPHRASE_FILE."""
    monkeypatch.setattr(key_files, "MEMORY_KIB", 64)
    monkeypatch.setenv("IJFS_KEY_TTL_S", "0")
    monkeypatch.setenv("IJFS_REPO", str(tmp_path / "sealed"))
    (tmp_path / "first").write_text("correct horse\n")
    (tmp_path / "second").write_text("battery staple\n")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a").write_text("some text")
    monkeypatch.setenv("IJFS_PASSPHRASE_FILE", str(tmp_path / "first"))
    made = ijfs("--json", "init", "--encrypt")
    assert json.loads(made.out)["encrypted"] is True
    assert ijfs("import", tmp_path / "files", "-m", "hello", "--branch", "main").code == 0
    return tmp_path


def test_keys_are_added_listed_and_removed(sealed: Path, ijfs: Ijfs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ijfs("keyring", "add", "second", "--passphrase-file", sealed / "second").code == 0
    assert ijfs("-q", "keyring", "list").out.split() == ["main", "second"]
    unlocking._rings.clear()
    monkeypatch.setenv("IJFS_PASSPHRASE_FILE", str(sealed / "second"))
    assert "hello" in ijfs("log").out
    assert ijfs("keyring", "remove", "main").code == 0
    refused = ijfs("keyring", "remove", "second")
    assert (refused.code, "the only key" in refused.err) == (1, True)
    rotated = json.loads(ijfs("--json", "keyring", "rotate").out)
    assert (rotated["dropped"], rotated["kept_old"]) == ([], False)
    unlocking._rings.clear()
    assert "hello" in ijfs("log").out
    unlocking._rings.clear()
    monkeypatch.setenv("IJFS_PASSPHRASE_FILE", str(sealed / "first"))
    locked = ijfs("log")
    assert (locked.code, locked.err.count("\n")) == (11, 2)
    assert "does not open" in locked.err


def test_a_plain_repository_has_no_keys(repo: Path, ijfs: Ijfs) -> None:
    refused = ijfs("keyring", "list")
    assert (refused.code, "is not encrypted" in refused.err) == (1, True)
    assert ijfs("init", "--recipient", "age1x", repo / "other").code == 2


def test_a_copy_brings_snapshots_out_and_back(sealed: Path, ijfs: Ijfs) -> None:
    assert ijfs("init", sealed / "plain").code == 0
    there = json.loads(ijfs("--json", "-r", sealed / "plain", "copy", sealed / "sealed").out)
    assert list(there["refs"]) == ["branch/main"]
    assert ijfs("-r", sealed / "plain", "cat", "main", "a").out == "some text"
    again = json.loads(ijfs("--json", "copy", sealed / "plain", "main").out)
    assert (again["refs"], list(again["snapshots"])) == ({}, [there["refs"]["branch/main"]])


def test_no_program_gets_what_opens_the_repository() -> None:
    inherited = dict.fromkeys(unlocking.SECRET_VARIABLES, "secret")
    spec = InstanceSpec(name="lab", kind="program", argv=["true"], cwd="/")
    assert not set(unlocking.SECRET_VARIABLES) & set(program_environment(spec, inherited))
