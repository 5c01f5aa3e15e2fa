"""A short campaign of fuzz_store.py: damaged repositories against what the store promises. `make fuzz` is longer."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fuzz_case import Outcome
from fuzz_mutations import Mutation
from fuzz_seeds import Seed
from fuzz_store import broken_promises

SECONDS = 25


def test_no_damage_breaks_a_promise() -> None:
    """In a process of its own, as from the command line: it forks its cases, and may hold no index open then."""
    script = Path(__file__).with_name("fuzz_store.py")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        seed = str(int.from_bytes(os.urandom(4), "little"))
        command = [sys.executable, str(script), "--seconds", str(SECONDS), "--seed", seed, "--folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"--seed {seed}\n{done.stdout}\n{done.stderr}"
    assert "| all |" in done.stdout


SEED = Seed(Path(), ([], [], []), {"aa": {"/f": "line"}}, frozenset({"aa"}))
MUTATION = Mutation("index/data.mdb", "what")
WHOLE = {"damage": [], "repaired": []}
SOUND = {
    "names": [[], [], []], "read": {"aa": {"/f": "line"}}, "fsck": WHOLE, "repair": WHOLE, "names after": [[], [], []],
    "read after": {"aa": {"/f": "line"}}, "fsck after": WHOLE, "save": True, "read at last": {"aa": {"/f": "line"}},
    "at": "end", "memory": 50,
}  # fmt: skip


def broken(steps: dict[str, object], died: str | None = None) -> set[str]:
    return {promise for promise, _ in broken_promises(SEED, MUTATION, Outcome({**SOUND, **steps}, died))}


@pytest.mark.parametrize(
    ("promise", "steps", "died"),
    [
        ("nothing dies", {}, "SIGBUS"),
        ("memory is bounded", {"memory": 2000}, None),
        ("errors are sentences", {"gc": {"internal": "ValueError", "where": []}}, None),
        ("no wrong byte", {"read": {"aa": {"/f": "other"}}}, None),
        ("whole means whole", {"names": [["x"], [], []]}, None),
        ("whole means whole", {"read": {"aa": {}}}, None),
        ("repair loses nothing", {"read after": {"aa": {}}}, None),
        ("repair loses nothing", {"read at last": {"aa": {}}}, None),
        ("packs heal all", {"fsck after": {"damage": ["x"], "repaired": []}}, None),
        ("packs heal all", {"names after": [["x"], [], []]}, None),
        ("a repaired repository can be saved to", {"save": {"error": "x"}}, None),
    ],
)
def test_a_campaign_sees_what_is_broken(promise: str, steps: dict[str, object], died: str | None) -> None:
    assert broken({}) == set()
    assert promise in broken(steps, died)
