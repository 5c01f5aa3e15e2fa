"""`%ijfs` in a real IPython shell; the keeper's answers come from test_guest's server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guest_peer import SAVED, Peer, settles
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
LOG: dict[str, Any] = {
    "snapshots": [
        {"id": C, "parents": [A], "created_ns": 10**18, "message": "other  way"},
        {"id": B, "parents": [A], "created_ns": 10**18, "message": "fitted"},
        {"id": A, "parents": [], "created_ns": 10**18, "message": "loaded"},
    ],
    "branches": {"main": B, "side": C},
    "tags": {"v1": B},
    "here": B,
}


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    config = Config({"HistoryManager": {"enabled": False}, "InteractiveShell": {"colors": "nocolor"}})
    shell = InteractiveShell(config=config)
    shell.run_line_magic("load_ext", "ijfs")
    yield shell
    shell.run_line_magic("unload_ext", "ijfs")


def test_save_takes_a_quoted_or_a_bare_message(shell: Any, keeper: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    keeper.answer = settles(SAVED)
    shell.run_line_magic("ijfs", 'save -m "data loaded"')
    shell.run_line_magic("ijfs", "save -m data loaded")
    shell.run_line_magic("ijfs", "save")
    assert [request["message"] for request in keeper.requests] == ["data loaded", "data loaded", ""]
    assert capsys.readouterr().out.count("saved demo as abababababab") == 3


def test_save_asks_for_a_proof_and_shows_what_came_of_it(
    shell: Any, keeper: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    keeper.answer = settles({"ok": {**SAVED["ok"], "verified": True, "warnings": []}})
    shell.run_line_magic("ijfs", "save --verify -m 'data loaded'")
    assert capsys.readouterr().out == "saved demo as abababababab; it can be restored\n"
    keeper.answer = settles({"ok": {**SAVED["ok"], "verified": False, "warnings": ["it cannot be restored: own0"]}})
    shell.run_line_magic("ijfs", "save")
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["saved demo as abababababab; it cannot be restored", "warning: it cannot be restored: own0"]
    assert [(request["message"], request["verify"]) for request in keeper.requests] == [
        ("data loaded", True),
        ("", False),
    ]


def test_tree_is_the_picture_of_the_command_line_and_marks_where_the_program_is(
    shell: Any, keeper: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    keeper.answer = settles({"ok": LOG})
    shell.run_line_magic("ijfs", "tree")
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if "aaaa" in line or "bbbb" in line or "cccc" in line]
    assert [line.split("  ")[0] for line in shown] == ["● aaaaaaaaaa", "├─● cccccccccc", "@ bbbbbbbbbb"]
    assert shown[2].split("  ")[1:3] == ["fitted", "[main] (v1)"]


def test_a_page_shows_the_tree_in_colours(shell: Any, keeper: Peer) -> None:
    keeper.answer = settles({"ok": {**LOG, "live": [{"name": "main", "snapshot": B}], "repository": "/r"}})
    shown: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", shown.append)
        shell.run_line_magic("ijfs", "tree")
    (drawing,) = shown
    page = drawing._repr_html_()
    assert page.startswith("<pre")
    assert "[main]" in page
    assert "▶" in page
    assert repr(drawing).splitlines()[0] == "/r"


def test_tree_bears_a_history_longer_than_the_recursion_limit(
    shell: Any, keeper: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [f"{n:064x}" for n in range(3000)]
    chain = [{"id": i, "parents": [p], "created_ns": 0, "message": ""} for i, p in zip(ids[1:], ids, strict=False)]
    keeper.answer = settles({"ok": {"snapshots": chain[::-1], "here": None}})
    shell.run_line_magic("ijfs", "tree")
    assert "2997 more snapshots" in capsys.readouterr().out.replace(",", "")


def test_log_and_status(shell: Any, keeper: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    keeper.answer = settles({"ok": LOG})
    shell.run_line_magic("ijfs", "log")
    shown = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in shown] == ["  ccc", "@ bbb", "  aaa"]
    assert shown[1].endswith("fitted  [main] (v1)")
    keeper.answer = settles({"ok": {"instance": "demo", "repository": "/r", "snapshot": None}})
    shell.run_line_magic("ijfs", "status")
    assert capsys.readouterr().out.split() == ["program", "demo", "repository", "/r", "snapshot", "none", "yet"]


def test_auto_tells_the_keeper_of_each_cell_and_shows_what_it_has_to_say(
    shell: Any, keeper: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    keeper.answer = lambda request: {
        "ok": {"note": "not saved: no space" if "In" in request.get("message", "") else None}
    }
    shell.run_line_magic("ijfs", "auto on --every 60 --changed 2.5")
    shell.run_cell("1 + 1")
    shell.run_line_magic("ijfs", "auto off")
    shell.run_cell("3 + 3")
    asked, told = keeper.requests
    assert asked == {"verb": "cell", "dry": True, "every_s": 60.0, "changed": 0.025}
    assert told["message"].startswith("auto: after In [")
    assert (told["every_s"], told["changed"]) == (60.0, 0.025)
    assert "ijfs auto: not saved: no space" in capsys.readouterr().out


def test_a_cell_does_not_wait_for_a_keeper_that_is_silent(shell: Any, keeper: Peer) -> None:
    shell.run_line_magic("ijfs", "auto on")
    keeper.answer = lambda request: None
    assert shell.run_cell("1 + 1").success
    assert len(keeper.requests) == 2


@pytest.mark.parametrize(
    "line",
    ["explode", "save now", "auto", "auto on --every soon", "auto on --every", "auto off 1", "undo now", "restore"],
)
def test_a_wrong_use_is_an_error_that_shows_the_usage(
    shell: Any, keeper: Peer, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    assert not shell.run_cell(f"%ijfs {line}").success
    shown = "".join(capsys.readouterr())
    assert "%ijfs save [-m MESSAGE]" in shown
    assert "Traceback" not in shown
    assert keeper.requests == []


def test_alone_it_shows_the_usage_and_words_that_end_nowhere_are_an_error(
    shell: Any, keeper: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell.run_cell("%ijfs").success
    assert "%ijfs save [-m MESSAGE]" in capsys.readouterr().out
    assert not shell.run_cell("%ijfs save 'unclosed").success
    assert not shell.run_cell("%ijfs stop").success
    assert "a terminal of the machine: `ijfs stop NAME`" in "".join(capsys.readouterr())


def test_a_verb_that_is_handed_on_prints_what_it_printed_outside_and_fails_as_it_did(
    shell: Any, keeper: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    done = {"state": "done", "code": 0, "out": "kept is at abc\n", "err": ""}
    keeper.answer = settles({"ok": {"state": "pending"}}, {"ok": done})
    assert shell.run_cell("%ijfs tag kept latest").success
    assert capsys.readouterr().out == "kept is at abc\n"
    assert [request["words"] for request in keeper.requests] == [["tag", "kept", "latest"]] * 2
    keeper.answer = settles({"ok": {**done, "code": 1, "out": "", "err": "ijfs: no such snapshot\n"}})
    assert not shell.run_cell("%ijfs show nothing").success
    assert "UsageError: no such snapshot" in "".join(capsys.readouterr())


def test_outside_a_sandbox_a_cell_fails_with_one_sentence(
    shell: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("IJFS_GUEST", raising=False)
    result = shell.run_cell("%ijfs save")
    assert not result.success
    shown = "".join(capsys.readouterr())
    assert "does not run in an ijfs sandbox" in shown
    assert "Traceback" not in shown
