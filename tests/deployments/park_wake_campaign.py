"""A deployment under load that is parked and woken again and again: no request may be lost, or wrong.

    PYTHONPATH=.:tests python tests/deployments/park_wake_campaign.py [--cycles 1000] [--connections 4]

As root. Every tenth park is on disk, the others in memory; after every hundred the supervisor is told to end by SIGTERM
(which saves the deployment), and another goes on. `make test-park-wake`.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from pathlib import Path

from deployments.conftest import Deployments
from deployments.load import Load
from live.live_env import open_env, why_not
from waiting import eventually

from ijfs.deployments import client
from ijfs_engine.errors import LockedError


def campaign(deployments: Deployments, cycles: int, connections: int) -> list[str]:
    """What went wrong."""
    web = deployments.deploy()
    wrong: list[str] = []
    answers, longest_s, done = 0, 0.0, 0
    began = time.monotonic()
    while done < cycles and not wrong:
        with Load(web.port, connections=connections) as load:
            for _ in range(min(100, cycles - done)):
                done += 1
                before = load.answers
                with contextlib.suppress(LockedError):  # requests under way lasted longer than they get
                    client.park(deployments.repo, "web", "disk" if done % 10 == 0 else "memory")
                if not eventually(lambda before=before: load.answers > before or load.wrong):  # type: ignore[misc]
                    wrong.append(f"after cycle {done} nothing was answered any more")
                    break
        wrong += load.wrong
        answers, longest_s = answers + load.answers, max(longest_s, load.longest_s)
        woke = deployments.info().wakes
        print(
            f"{done} cycles, {woke} wakes of this supervisor, {answers} answers, longest {longest_s:.2f} s, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
        deployments.kill_supervisor(signal.SIGTERM)
        deployments.info()  # starts the next one: nobody listens in between
    return wrong


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=4)
    options = parser.parse_args()
    reason = why_not()
    if reason:
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="ijfs-park-wake-") as directory, open_env(Path(directory)) as opened:
        deployments = Deployments(opened)
        try:
            wrong = campaign(deployments, options.cycles, options.connections)
        finally:
            deployments.close()
    for text in wrong[:20]:
        print(f"WRONG {text}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
