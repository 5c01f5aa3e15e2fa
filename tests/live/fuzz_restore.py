"""Restores from damaged copies of a repository: the program has its memory, or there is a sentence; never other bytes.

    PYTHONPATH=.:tests python tests/live/fuzz_restore.py [--count 100] [--seed 1]

A program that holds some MB of noise and a digest of it is saved once. Each case damages one pack or the index of a
copy and restores the program from that, lazily or eagerly. It then digests its noise again and again. `make fuzz` has
the engine's own reads, exports and mounts; test_fuzz_restore.py does a few of these.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from live_env import LiveEnv, open_env, why_not
from waiting import eventually

from ijfs.live.client import api as client
from ijfs.live.process import fork_request, procfs
from ijfs_engine.errors import IjfsError
from tests.engine.fuzz_mutations import Mutation, mutate

PROGRAM = """
import hashlib, os, time
noise = os.urandom(3_000_000)
told = hashlib.sha256(noise).hexdigest()
turn = 0
while True:
    turn += 1
    right = hashlib.sha256(noise).hexdigest() == told
    with open("/dev/shm/new", "w") as file:
        file.write(f"{turn} {right}")
    os.rename("/dev/shm/new", "/dev/shm/told")
    time.sleep(0.02)
"""


class Restores:
    """A repository with one saved program, and cases that restore it."""

    def __init__(self, env: LiveEnv, folder: Path, seed: int) -> None:
        self._env = env
        self._seed = seed
        self._case = folder / "case"
        self._old = folder / "old"
        os.environ["IJFS_SPARE_S"] = "0"
        env.python("program", PROGRAM)
        pid = client.describe(env.repo, "program").pid
        assert eventually(lambda: told_by(pid) is not None)
        env.save("program")
        earlier = self._old / "1"
        earlier.mkdir(parents=True)
        shutil.copy(env.repo / "index/data.mdb", earlier / "index")
        self.snapshot = env.save("program").snapshot
        env.stop("program", timeout_s=0)

    def case(self, number: int) -> tuple[Mutation, str]:
        """What was damaged, and how the restore ended: refused, right, or died with damage shown. AssertionError."""
        rng = random.Random(f"{self._seed} {number}")
        shutil.copytree(self._env.repo, self._case, ignore=shutil.ignore_patterns("live", "reserve"))
        mutation = mutate(self._case, self._old, rng.choice(("pack", "pack", "pack", "index")), rng)
        return mutation, self.restore(mutation, eager=rng.random() < 0.4)

    def spoilt(self, size: int) -> str:
        """A case of its own: the middle of the largest pack is gone, which is the program's noise."""
        shutil.copytree(self._env.repo, self._case, ignore=shutil.ignore_patterns("live", "reserve"))
        pack = max((self._case / "packs").iterdir(), key=lambda path: path.stat().st_size)
        with pack.open("r+b") as file:
            file.seek(pack.stat().st_size // 2)
            file.write(bytes(size))
        return self.restore(Mutation(pack.name, f"zeroed {size} in the middle"), eager=False)

    def restore(self, mutation: Mutation, *, eager: bool) -> str:
        """How a restore from the damaged copy ended; the copy is gone then."""
        refused: IjfsError | None = None
        pid: int | None = None
        try:
            pid = client.restore(self._case, self.snapshot, "again", eager=eager).pid
        except IjfsError as error:
            refused = error
        try:
            return self._watched(pid, mutation) if refused is None else self._refused(refused, mutation)
        finally:
            self._clear()

    def _refused(self, error: IjfsError, mutation: Mutation) -> str:
        assert "does not know" not in str(error), (mutation, error)
        left = [path.name for path in (self._case / "live").glob("[!.]*")]
        assert not left, (mutation, error, left)
        return "refused"

    def _watched(self, pid: int | None, mutation: Mutation) -> str:
        """Until it has digested its memory three times since, or is gone, or is known to have lost some."""
        before = told_by(pid)
        first = before[0] if before else 0

        def settled() -> bool:
            told = told_by(pid)
            return (told is not None and told[0] > first + 2) or bool(self._damage()) or _is_gone(pid)

        assert eventually(settled, 30), mutation
        told = told_by(pid)
        assert told is None or told[1] == "True", f"{mutation}: other bytes in memory"
        if told is not None and told[0] > first + 2:
            return "right"
        assert eventually(self._damage, 10), f"{mutation}: {client.describe(self._case, 'again')}"
        return "lost some, and says so"

    def _damage(self) -> str:
        with contextlib.suppress(IjfsError):
            return client.describe(self._case, "again").damage
        return ""

    def _clear(self) -> None:
        for info in client.list_instances(self._case):
            with contextlib.suppress(IjfsError), client.connect(self._case, info.name) as keeper:
                keeper.stop(timeout_s=0)
            with contextlib.suppress(IjfsError):
                client.remove(self._case, info.name)
        fork_request.dismiss(self._case)
        assert eventually(lambda: not self._env.processes(), 10), [str(pid) for pid in self._env.processes()]
        shutil.rmtree(self._case)


def told_by(pid: int | None) -> tuple[int, str] | None:
    """The program's last turn, and whether its memory was right then; None before the first, or when it is gone."""
    with contextlib.suppress(OSError, ValueError):
        turn, right = Path(f"/proc/{pid}/root/dev/shm/told").read_text().split()
        return int(turn), right
    return None


def _is_gone(pid: int | None) -> bool:
    return pid is None or not procfs.is_alive(procfs.identify(pid))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    counts: Counter[str] = Counter()
    folder = Path(tempfile.mkdtemp(prefix="ijfs-fuzz-restore-"))
    try:
        with open_env(folder) as env:
            restores = Restores(env, folder, asked.seed)
            for number in range(asked.count):
                counts[restores.case(number)[1]] += 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        print(f"{counts.total()} restores: {dict(counts)}", flush=True)


if __name__ == "__main__":
    main()
