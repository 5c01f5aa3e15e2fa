"""A short campaign of fuzz_store.py: damaged repositories against what the store promises. `make fuzz` is longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fuzz_case import Outcome
from fuzz_mutations import Mutation
from fuzz_seeds import Seed
from fuzz_store import broken_promises
from fuzz_worker import DiedError, Note, Worker

SECONDS = 10


def test_no_damage_breaks_a_promise() -> None:
    """In a process of its own, as from the command line: it forks its cases, and may hold no index open then."""
    script = Path(__file__).with_name("fuzz_store.py")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        seed = str(int.from_bytes(os.urandom(4), "little"))
        command = [sys.executable, str(script), "--seconds", str(SECONDS), "--seed", seed, "--folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"--seed {seed}\n{done.stdout}\n{done.stderr}"
    assert "| all |" in done.stdout


FILE = "100644 0 0 5 1 4 hash"
SEED = Seed(Path(), ([], [], []), {"aa": {"/f": "line"}}, frozenset({"aa"}), {"aa": {"/f": FILE, "/g": FILE}})
EXPORT = {"aa": {"paths": {"/f": FILE, "/g": FILE}}}
MUTATION = Mutation("index/data.mdb", "what")
WHOLE = {"damage": [], "repaired": []}
SOUND = {
    "names": [[], [], []], "read": {"aa": {"/f": "line"}}, "fsck": WHOLE, "repair": WHOLE, "names after": [[], [], []],
    "read after": {"aa": {"/f": "line"}}, "fsck after": WHOLE, "save": True, "read at last": {"aa": {"/f": "line"}},
    "export": EXPORT, "export at last": EXPORT, "memory": 50, "left open": 0,
}  # fmt: skip


def broken(steps: dict[str, object], died: str | None = None) -> set[str]:
    return {promise for promise, _ in broken_promises(SEED, MUTATION, Outcome({**SOUND, **steps}, died))}


@pytest.mark.parametrize(
    ("promise", "steps", "died"),
    [
        ("nothing dies", {}, "SIGBUS at case 7: read"),
        ("memory is bounded", {"memory": 2000}, None),
        ("what is opened is closed", {"left open": 1}, None),
        ("errors are sentences", {"gc": {"internal": "ValueError", "where": []}}, None),
        ("no wrong byte", {"read": {"aa": {"/f": "other"}}}, None),
        ("no wrong byte", {"export": {"aa": {"paths": {"/f": FILE, "/g": FILE.replace("hash", "other")}}}}, None),
        ("no wrong byte", {"export": {"aa": {"paths": {"/f": "100640 0 0 5 1 4 hash"}, "error": "x"}}}, None),
        ("no wrong byte", {"export": {"aa": {"paths": {"/.part": FILE}, "error": "x"}}}, None),
        ("an export that ends is whole", {"export": {"aa": {"paths": {"/f": FILE}}}}, None),
        ("repair loses nothing", {"export at last": {"aa": {"paths": {"/f": FILE}, "error": "x"}}}, None),
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


def test_an_export_that_ends_early_may_lack_names_and_what_directories_get_last() -> None:
    linked = FILE.replace(" 1 4", " 2 4")
    seed = SEED._replace(exports={"aa": {"/d": "40755 0 0 9 2", "/f": linked, "/g": linked, "/l": "120777 0 0 5 1 f"}})
    early = {"paths": {"/d": "40700 0 0 1 2", "/f": FILE, "/l": "120777 0 0 5 1 f"}, "error": "CorruptError: x"}
    steps = {**SOUND, "export": {"aa": early}, "export at last": {"aa": early}}
    assert list(broken_promises(seed, MUTATION, Outcome(steps, None))) == []


def test_a_worker_that_dies_says_at_what_and_the_next_case_has_another(tmp_path: Path) -> None:
    def work(number: int, note: Note) -> int:
        note(f"case {number}: to die")
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 3:
            raise ValueError("as it happens")
        return number * 10

    worker = Worker(tmp_path, work)
    try:
        worker.begin(1)
        assert worker.answer() == 10
        worker.begin(2)
        with pytest.raises(DiedError, match="SIGKILL at case 2: to die"):
            worker.answer()
        worker.begin(3)
        with pytest.raises(DiedError, match=r"(?s)exit code 99 at case 3: to die.*as it happens"):
            worker.answer()
        worker.begin(4)
        assert worker.answer() == 40
    finally:
        worker.close()
