"""A repository whose path a shell would read as something else: everything works, and no shell ever reads it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from live_env import eventually, open_env

COUNTING = "i=0; while :; do i=$((i+1)); echo at $i; sleep 0.05; done"


@pytest.mark.parametrize(
    "name", ["it's", 'a "b" c', "$(touch ran)", "`touch ran`;touch ran", "two\nlines", "'\"$(touch ran)\n "]
)
def test_a_program_is_saved_and_restored_in_a_repository_with_an_odd_path(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as parent:  # short: CRIU's socket lies in the repository
        monkeypatch.chdir(parent)
        directory = Path(parent, name)
        directory.mkdir()
        with open_env(directory) as live_env:
            info = live_env.command("odd", COUNTING)
            log = Path(info.log)
            assert eventually(lambda: "at 3" in log.read_text())
            snapshot = live_env.save("odd").snapshot
            said = len(log.read_text())
            assert eventually(lambda: len(log.read_text()) > said)
            again = live_env.restore(snapshot, "again")
            assert eventually(lambda: "at " in Path(again.log).read_text())
            assert not list(Path(parent).rglob("ran"))
