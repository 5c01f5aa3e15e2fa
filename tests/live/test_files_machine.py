"""Work on files inside against the same outside, with a save and restores between: one way through files_machine.py."""

from __future__ import annotations

import pytest
from live_env import LiveEnv

from tests.live.files_machine import Operation, machine

pytestmark = [pytest.mark.root, pytest.mark.criu]

BEFORE: list[Operation] = [
    ("mkdir", ["d"]),
    ("mkdir", ["e"]),
    ("mkdir", ["e/f"]),
    ("write", ["a", 0, 70_000, 1]),
    ("write", ["d/a", 5_000_000, 100, 2]),
    ("link", ["a", "d/b"]),
    ("symlink", ["a", "e/a"]),
    ("open", [0, "b"]),
    ("go_on", [0, 5000, 3]),
    ("unlink", ["b"]),
    ("open", [1, "d/b"]),
    ("map", [0, "e/f/a"]),
    ("poke", [0, 4097, 7]),
    ("setxattr", ["d/a", 4]),
    ("chmod", ["a", 0o4755]),
    ("utime", ["d/a", 1_000_000_000]),
    ("rename", ["e", "d/a"]),  # ENOTDIR
    ("rmdir", ["e"]),  # ENOTEMPTY
]
AFTER: list[Operation] = [
    ("go_on", [0, 300_000, 5]),
    ("go_on", [1, 1, 6]),
    ("poke", [0, 0, 8]),
    ("truncate", ["d/a", 4095]),
    ("rename", ["d/b", "c"]),
    ("rename", ["e/f", "e/a"]),  # ENOTDIR
    ("unlink", ["e/f/a"]),
    ("rmdir", ["e/f"]),
    ("write", ["e/f", 1, 4096, 9]),
    ("close", [1]),
    ("unmap", [0]),
]


def test_files_in_a_sandbox_are_as_outside_through_a_save_a_copy_and_going_back(live_env: LiveEnv) -> None:
    files = machine(live_env, 0)()
    try:
        files.start()
        files.save(0, BEFORE)
        files.work(0, AFTER)
        files.restore(0, 0, AFTER)
        files.save(1, [("unlink", ["c"])])
        files.go_back(0, 0, AFTER[::-1])
    finally:
        files.teardown()
