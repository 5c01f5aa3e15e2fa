"""CRIUs killed at random moments of a dump, a restore and a restore in place; what became of the program is counted.

    PYTHONPATH=.:tests python tests/live/kill_criu.py [--count 20] [--seed 1]

A program of four threads and 40 MB counts into a file. Each try ends by SIGKILL the CRIU that the keeper has at work.
The command has to end with a sentence; nothing may be left of what was being restored; a program that goes on counting
has to be saved and restored afterwards. (One that a killed dump took along is counted: that can happen.)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from live_env import LiveEnv, open_env, why_not
from waiting import eventually

from ijfs.live.client import api as client
from ijfs.live.model.records import SaveResult
from ijfs.live.process import procfs
from ijfs_engine.errors import IjfsError

PROGRAM = """
import os, threading, time
for _ in range(3): threading.Thread(target=time.sleep, args=(10**6,), daemon=True).start()
noise = os.urandom(40 << 20)
n = 0
while True:
    n += 1
    open("/tmp/count", "w").write(str(n))
    time.sleep(0.01)
"""

LONGEST_S = {"dump": 0.12, "restore": 0.06, "replace": 0.06}
"""How far into CRIU's work it is killed at most: about as long as that takes."""


def main() -> int:
    """Run the campaign; 1 where something was left, or said otherwise than it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(reason)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="kill-criu-") as directory, open_env(Path(directory)) as live_env:
        for verb in LONGEST_S:
            found = Counter(_tried(live_env, verb, random.Random(f"{given.seed} {n}")) for n in range(given.count))
            wrong += sum(count for outcome, count in found.items() if outcome.startswith("WRONG"))
            print(f"{verb}: {dict(found.most_common())}", flush=True)
    return 1 if wrong else 0


def _tried(live_env: LiveEnv, verb: str, chance: random.Random) -> str:
    """One try: what became of it."""
    live_env.python("p", PROGRAM)
    assert eventually((live_env.upper("p") / "tmp/count").exists)
    saved = live_env.save("p").snapshot
    verbs: dict[str, Callable[[], object]] = {
        "dump": lambda: live_env.save("p"),
        "restore": lambda: live_env.restore(saved, "new"),
        "replace": lambda: live_env.restore(saved, "p", replace=True),
    }
    try:
        with _killing("dump" if verb == "dump" else "restore", live_env.repo, chance.uniform(0, LONGEST_S[verb])):
            done = verbs[verb]()
        if isinstance(done, SaveResult) and any("SIGKILL" in warning for warning in done.warnings):
            return _goes_on_from(live_env, done.snapshot)
        return "over before the kill"
    except IjfsError as error:
        return _judged(live_env, error)
    finally:
        _clear(live_env)


def _judged(live_env: LiveEnv, error: IjfsError) -> str:
    if "SIGKILL" not in str(error):
        return f"WRONG: {error}"
    if not eventually(lambda: not _left(live_env.repo / "live"), 5):  # a keeper ends a moment after its answer
        return f"WRONG: left {_left(live_env.repo / 'live')}"
    if not client.is_running(live_env.repo, "p"):
        return "the program ended, and that was said"
    written = live_env.upper("p") / "tmp/count"
    before = written.read_text()
    if not eventually(lambda: written.read_text() not in (before, "")):
        return "WRONG: the program stands still"
    live_env.restore(live_env.save("p").snapshot, "again")
    return "the program runs on, and can be saved"


def _goes_on_from(live_env: LiveEnv, snapshot: str) -> str:
    if not eventually(lambda: not client.is_running(live_env.repo, "p"), 5):
        return "WRONG: the program runs, and was said to have ended"
    live_env.restore(snapshot, "p", replace=True)
    written = live_env.upper("p") / "tmp/count"
    before = written.read_text()
    went_on = eventually(lambda: written.read_text() not in (before, ""))
    return "the program ended, and all of it was saved" if went_on else "WRONG: what was saved stands still"


def _left(live: Path) -> list[int]:
    return [*procfs.processes_on(live / "new"), *procfs.processes_on(live / "p/box-2")]


@contextlib.contextmanager
def _killing(verb: str, repo: Path, after_s: float) -> Iterator[None]:
    """Kill the CRIU that does this for the repository, so long after it is seen."""
    over = threading.Event()

    def kill() -> None:
        while not over.is_set():
            for pid in _criu(verb, repo):
                time.sleep(after_s)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


def _criu(verb: str, repo: Path) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit():
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"criu") and words[1] == verb.encode() and os.fsencode(repo) in b" ".join(words):
                    yield int(entry)


def _clear(live_env: LiveEnv) -> None:
    for info in client.list_instances(live_env.repo):
        with contextlib.suppress(IjfsError), client.connect(live_env.repo, info.name) as keeper:  # one may just end
            keeper.stop(timeout_s=0)
        client.remove(live_env.repo, info.name)


if __name__ == "__main__":
    sys.exit(main())
