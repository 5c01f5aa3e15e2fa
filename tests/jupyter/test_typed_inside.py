"""`ijfs` typed inside a sandbox, as `!ijfs tree` in a cell: the keeper (a server of the test's) answers, or nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from guest_peer import SAVED, Peer, settles

A, B = "a" * 64, "b" * 64
LOG = {
    "snapshots": [
        {"id": B, "parents": [A], "created_ns": 10**18, "message": "fitted", "program": "demo"},
        {"id": A, "parents": [], "created_ns": 10**18, "message": "loaded", "program": "demo"},
    ],
    "branches": {"demo": B},
    "tags": {},
    "here": B,
    "repository": "/srv/repo",
    "live": [{"name": "demo", "snapshot": B}],
}
STATUS = {"instance": "demo", "repository": "/srv/repo", "snapshot": B}


def answers(request: dict[str, object]) -> dict[str, object]:
    """As a keeper does."""
    return {"ok": LOG if request["verb"] == "log" else STATUS} if request["verb"] != "save" else SAVED


def ijfs(*argv: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with the environment of a sandbox."""
    command = [sys.executable, "-P", "-m", "ijfs.cli", *argv]
    env = {**os.environ, "IJFS_INSTANCE": "demo"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_tree_and_log_are_what_the_keeper_says(keeper: Peer) -> None:
    keeper.answer = answers
    drawn = ijfs("tree")
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.splitlines()[0] == "/srv/repo"
    assert "@ bbbbbbbbbb  fitted  [demo] ▶" in drawn.stdout
    assert "fitted  [demo]" in ijfs("log").stdout
    assert '"branches": ["demo"]' in ijfs("log", "--json").stdout
    assert ijfs("ps").stdout.startswith("this is `demo` of /srv/repo; it stands on bbbbbbbbbb")
    assert ijfs("status").stdout.startswith("this is `demo`")


def test_a_program_saves_itself_and_nothing_else(keeper: Peer) -> None:
    keeper.answer = answers
    assert ijfs("save", "-m", "from inside").stdout == "saved demo as abababababab\n"
    assert [r["message"] for r in keeper.requests if r["verb"] == "save"] == ["from inside"]
    assert ijfs("save", "demo").returncode == 0
    other = ijfs("save", "another")
    assert (other.returncode, "which can save itself and nothing else" in other.stderr) == (12, True)
    assert ijfs("save", "--stop").returncode == 12


@pytest.mark.parametrize("argv", [["restore", "demo"], ["fork", "demo"], ["gc"], ["run", "true"], ["init"]])
def test_what_a_program_cannot_do_to_itself_says_where_it_is_done(keeper: Peer, argv: list[str]) -> None:
    keeper.answer = answers
    result = ijfs(*argv)
    assert result.returncode == 12
    assert f"this is inside the sandbox of `demo`: `ijfs {argv[0]}` works in a terminal of the machine" in result.stderr
    assert result.stdout == ""


def test_what_looks_or_names_is_handed_on_as_it_was_typed(keeper: Peer) -> None:
    keeper.answer = settles({"ok": {"state": "done", "code": 3, "out": "shown\n", "err": "warning: x\n"}})
    result = ijfs("show", "latest", "-v")
    assert (result.returncode, result.stdout, result.stderr) == (3, "shown\n", "warning: x\n")
    assert keeper.requests[0]["words"] == ["show", "latest", "-v"]


def test_another_repository_that_is_named_is_meant(keeper: Peer, tmp_path: Path) -> None:
    keeper.answer = answers
    assert ijfs("-r", str(tmp_path / "own"), "init").returncode == 0
    assert ijfs("-r", str(tmp_path / "own"), "log").stdout.startswith("no snapshots yet")
    assert ijfs("--help").returncode == 0


def test_a_keeper_that_is_gone_is_a_sentence(keeper: Peer) -> None:
    keeper.answer = settles(None)
    result = ijfs("tree")
    assert (result.returncode, "did not answer" in result.stderr) == (1, True)
    assert "Traceback" not in result.stderr
