"""Much of everything: threads, processes, new files. Saved with a short pause, and all of it comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_env import LiveEnv
from waiting import eventually

from ijfs.live.client import api as client

pytestmark = [pytest.mark.root, pytest.mark.criu]

THREADS = """
import threading, time
threading.stack_size(256 << 10)
turn = threading.Condition(); generation = 0; counts = [0] * 600
def work(number):
    seen = 0
    while True:
        with turn:
            turn.wait_for(lambda: generation != seen)
            seen = generation
        counts[number] += 1
for number in range(600): threading.Thread(target=work, args=(number,), daemon=True).start()
while True:
    time.sleep(0.1)
    with turn:
        generation += 1
        turn.notify_all()
    print(min(counts), flush=True)
"""


def last_number(env: LiveEnv, name: str) -> int:
    """The last line of its log that is a whole number."""
    return int(
        next(
            (
                line
                for line in reversed(Path(client.describe(env.repo, name).log).read_text().splitlines()[:-1])
                if line.isdecimal()
            ),
            "0",
        )
    )


def test_six_hundred_threads_are_saved_and_go_on(live_env: LiveEnv) -> None:
    live_env.python("threads", THREADS)
    assert eventually(lambda: last_number(live_env, "threads") > 0)
    saved = live_env.save("threads")
    assert saved.spilled_bytes == 0
    assert saved.image_bytes < 100 << 20
    live_env.restore(saved.snapshot, "again")
    before = last_number(live_env, "again")
    assert eventually(lambda: last_number(live_env, "again") > before), "every thread took another turn"


def test_hundreds_of_processes_and_thousands_of_files_are_saved_and_come_back(live_env: LiveEnv) -> None:
    made = "mkdir /many; for i in $(seq 5000); do echo $i > /many/$i; done; touch /made"
    live_env.command("many", f"for i in $(seq 200); do sleep 1000 & done; {made}; wait")
    assert eventually(lambda: live_env.exec("many", "test", "-e", "/made") == 0)
    saved = live_env.save("many")
    assert saved.spilled_bytes == 0
    assert live_env.save("many").workspace_bytes == saved.workspace_bytes
    live_env.restore("many", "again")
    assert live_env.exec("again", "sh", "-c", "test $(cat /many/* | wc -l) = 5000") == 0
    assert live_env.exec("again", "sh", "-c", "test $(grep -lx sleep /proc/[0-9]*/comm | wc -l) = 200") == 0
