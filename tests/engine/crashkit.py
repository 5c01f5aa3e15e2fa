"""Runs one operation on a repository and dies at a chosen step: the child process of test_crash.py.

    crashkit.py REPOSITORY OPERATION STEP

STEP counts the writes, fsyncs, truncates, renames, unlinks and commits that go through `ijfs_engine.disk`; at that one
the process kills itself with SIGKILL, a write half done. STEP 0 runs to the end and prints how many there are. Before
it dies it writes down, in REPOSITORY.unsynced, which files had bytes or names that were not synced.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

from storekit import save

from ijfs_engine import Repository, Snapshot, disk, session

KEEP = {"kept": random.Random(1).randbytes(30_000), "also": random.Random(2).randbytes(5000)}
NEXT = {"kept": KEEP["kept"], "new": random.Random(3).randbytes(60_000)}


class Fuse:
    """Counts steps, remembers what is not durable, and burns through at one of them."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.step = step
        self.count = 0
        self.durable: dict[str, int] = {}
        self.unnamed: set[str] = set()

    def __call__(self, step: disk.Step) -> None:
        self.count += 1
        if self.count == self.step:
            if step.op == "write" and step.data is not None and len(step.data) >= 8192:
                # Half of it: whole blocks, as O_DIRECT wants.
                os.pwrite(step.fd, step.data[: len(step.data) // 2 & ~4095], step.offset)
            self.path.with_suffix(".unsynced").write_text(
                json.dumps({"durable": self.durable, "unnamed": sorted(self.unnamed)})
            )
            os.kill(os.getpid(), signal.SIGKILL)
        match step.op:
            case "create":
                self.durable[step.path] = 0
                self.unnamed.add(step.path)
            case "write":
                self.durable.setdefault(step.path, step.offset)
            case "fsync":
                self.durable[step.path] = os.fstat(step.fd).st_size
            case "fsync_dir":
                self.unnamed = {path for path in self.unnamed if os.path.dirname(path) != step.path}


def prepare(path: Path) -> tuple[Snapshot, Snapshot]:
    """A repository with something to lose: two branches, garbage from a removed snapshot, a sparse pack."""
    with Repository.init(path) as repository:
        first = save(repository, KEEP, branch="main", message="first")
        big = save(repository, {**KEEP, "big": random.Random(4).randbytes(200_000)}, branch="big")
        second = save(repository, {"b": random.Random(5).randbytes(9000)}, parents=[first.id], branch="side")
        repository.remove(big.id)
    return first, second


def operate(repository: Repository, operation: str) -> None:
    """One operation that changes the repository."""
    match operation:
        case "save":
            save(repository, NEXT, parents=[repository.resolve("main")], branch="main", message="next")
        case "rm":
            repository.remove(repository.resolve("side"))
        case "gc":
            repository.gc()
        case "tag":
            repository.refs.set_tag("v1", repository.resolve("main"))
        case "rebuild":
            repository.fsck(repair=True)


def main(path: Path, operation: str, step: int) -> None:
    """See the module."""
    with Repository.open(path, damaged=operation == "rebuild") as repository:
        fuse = Fuse(path, step)
        # A save of this size would put its rows into the index at once.
        session._SLICE = 4
        disk.observer = fuse
        operate(repository, operation)
        disk.observer = None
    print(fuse.count)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
