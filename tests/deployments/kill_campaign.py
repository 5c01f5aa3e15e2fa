"""The supervisor is killed at a random moment of everything that it does; the next one has to go on, with nothing lost.

    PYTHONPATH=.:tests python tests/deployments/kill_campaign.py [--rounds 100] [--seed 1]

As root. Each round asks for something (a request to a deployment that rests, a park in memory or on disk, a wake,
another version, undeploy and deploy), kills the supervisor some time into it, and then asks the server by the next
supervisor. It counts what it was asked: the count must never be lower than one that was heard before, unless it was
begun anew on purpose. No instance may be there that belongs to nothing. `make test-supervisor-kills`.
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
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from deployments.conftest import Deployments, state
from live.live_env import open_env, why_not
from waiting import eventually, patient

from ijfs.deployments import client
from ijfs.live.client import api
from ijfs_engine.errors import IjfsError

LONGEST_S = 1.0
"""Of what is asked for: most of it takes 0.1 to 0.5 s."""


class Campaign:
    """One run. `wrong` has what went wrong."""

    def __init__(self, deployments: Deployments, choose: random.Random) -> None:
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self._deployments = deployments
        self._repo = deployments.repo
        self._choose = choose
        self._deploy()
        self._least = 0
        """The server's count was that high."""

    def round(self, number: int) -> None:
        """Ask for something, kill in the middle, look."""
        asked_for: Callable[[], None] = self._choose.choice(
            [self._request, self._park_memory, self._park_disk, self._wake, self._replace, self._anew]
        )
        name = asked_for.__name__.strip("_")
        working = threading.Thread(target=self._quietly, args=(asked_for,), daemon=True)
        if asked_for == self._anew:
            self._least = 0
        working.start()
        time.sleep(self._choose.random() * LONGEST_S)
        self._kill()
        working.join(patient(120))
        self.done[name] += 1
        problem = self._look()
        if asked_for == self._replace:
            self._least = 0  # the one or the other
        if problem:
            self.wrong.append(f"round {number}, killed in {name}: {problem}")

    def _kill(self) -> None:
        """Those that are there; who waits for an answer starts another."""
        for pid in self._deployments.supervisors():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _look(self) -> str:
        """What is wrong now; empty where nothing is."""
        try:
            if not client.is_deployed(self._repo, "web"):
                self._deploy()
                self._least = 0
            count = state(self._deployments.info())["asked"]
        except (IjfsError, OSError) as error:
            return f"it does not answer: {error!r}"
        problem = f"it was asked {self._least} times and says {count}" if count < self._least else ""
        self._least = count
        belonging = set(self._deployments.info().instances)
        if not eventually(lambda: {info.name for info in api.list_instances(self._repo)} <= belonging, 30):
            there = {info.name for info in api.list_instances(self._repo)}
            return f"{problem}; there are {sorted(there - belonging)}, which belong to nothing"
        return problem

    @staticmethod
    def _quietly(asked_for: Callable[[], None]) -> None:
        with contextlib.suppress(IjfsError, OSError):  # its supervisor is killed
            asked_for()

    def _deploy(self) -> None:
        self._deployments.deploy()

    def _request(self) -> None:
        url = self._deployments.info().url
        with urllib.request.urlopen(f"{url}/hello", timeout=patient(60)) as answer:
            answer.read()

    def _park_memory(self) -> None:
        client.park(self._repo, "web", "memory")

    def _park_disk(self) -> None:
        client.park(self._repo, "web", "disk")

    def _wake(self) -> None:
        client.wake(self._repo, "web")

    def _replace(self) -> None:
        self._least = 0
        self._deployments.deploy(replace=True, port=self._deployments.info().port)

    def _anew(self) -> None:
        client.undeploy(self._repo, "web")
        self._deploy()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    reason = why_not()
    if reason:
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="ijfs-supervisor-") as directory, open_env(Path(directory)) as opened:
        deployments = Deployments(opened)
        try:
            campaign = Campaign(deployments, random.Random(options.seed))
            for number in range(options.rounds):
                campaign.round(number)
                if number % 10 == 9:
                    print(f"{number + 1} kills: {dict(campaign.done)}, {len(campaign.wrong)} wrong", flush=True)
        finally:
            deployments.close()
    for text in campaign.wrong:
        print(f"WRONG {text}")
    return bool(campaign.wrong)


if __name__ == "__main__":
    sys.exit(main())
