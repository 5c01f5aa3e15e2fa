"""Verbs of several processes at once, for a moment; at_once.py says what must hold."""

from __future__ import annotations

from pathlib import Path

import at_once


def test_verbs_of_several_processes_at_once_break_no_promise(tmp_path: Path) -> None:
    done = at_once.run(tmp_path / "repo", seconds=3.0, workers=3, seed=1)
    assert done.get("save", 0) > 0
