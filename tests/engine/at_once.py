"""Processes that save, tag, remove, prune, collect, check and repair in one repository at the same time.

    at_once.py [--seconds S] [--workers N] [--seed N]

Each worker has a branch of its own, so that it knows what must be there: what it saved and nobody removed has its
bytes, whatever the others do, and every check finds the repository whole. A verb may be refused because another one
runs (LockedError), and for no other reason. test_at_once.py runs it for a moment, `make test-at-once` for minutes.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import sys
import tempfile
import time
import traceback
from multiprocessing import get_context
from pathlib import Path

from storekit import contents, save

from ijfs_engine import LockedError, PrunePolicy, Repository, UnknownNameError

KEPT = 6
"""Snapshots of each branch that `prune` leaves."""


class Worker:
    """One process's branch, and what it knows of it: snapshots, oldest first, with their files."""

    def __init__(self, path: Path, number: int, seed: int) -> None:
        self._path = path
        self._branch = f"worker-{number}"
        self._rng = random.Random(f"{seed} {number}")
        self._line: list[tuple[bytes, dict[str, bytes]]] = []
        self.done: collections.Counter[str] = collections.Counter()

    def step(self) -> None:
        """One verb, drawn at random. AssertionError where a promise is broken."""
        verb = self._rng.choice([self.save] * 5 + [self.look, self.tag, self.remove, self.prune, self.gc, self.check])
        name = verb.__name__
        try:
            with Repository.open(self._path) as repository:
                verb(repository)
        except LockedError:
            name = f"{name}, refused"
        self.done[name] += 1

    def save(self, repository: Repository) -> None:
        """Half of the files are new, the others as in the snapshot before."""
        files = dict(self._line[-1][1]) if self._line else {}
        files.update({f"f{self._rng.randrange(8)}": self._rng.randbytes(self._rng.choice([300, 9000, 70_000]))})
        parents = [self._line[-1][0]] if self._line else []
        made = save(repository, files, parents=parents, branch=self._branch)
        self._line.append((made.id, files))

    def look(self, repository: Repository) -> None:
        """One that must be there, byte for byte."""
        head = self._line[-1][0] if self._line else None
        assert repository.refs.branches().get(self._branch) == head, "the branch is elsewhere"
        listed = {snapshot.id for snapshot in repository.snapshots()}
        assert head is None or head in listed, "what was saved last is not listed"
        self._line = [one for one in self._line if one[0] in listed]  # another worker has pruned
        if self._line:
            ident, files = self._rng.choice(self._line)
            with contextlib.suppress(UnknownNameError):  # another worker prunes it meanwhile
                assert contents(repository, ident) == files, "a snapshot has other bytes"

    def tag(self, repository: Repository) -> None:
        """A tag that moves."""
        if self._line:
            name = f"{self._branch}-tag"
            repository.refs.set_tag(name, self._line[-1][0], expect=repository.refs.tags().get(name))

    def remove(self, repository: Repository) -> None:
        """One in the middle of the line: no branch and no tag is there."""
        if len(self._line) > 2:
            at = self._rng.randrange(len(self._line) - 1)
            if self._line[at][0] not in repository.refs.tags().values():
                ident, _ = self._line.pop(at)
                with contextlib.suppress(UnknownNameError):
                    repository.remove_many([ident])

    def prune(self, repository: Repository) -> None:
        """What is not of the newest few of any branch, others' too."""
        repository.prune(PrunePolicy(last=KEPT))

    def gc(self, repository: Repository) -> None:
        """What nothing needs goes."""
        repository.gc()

    def check(self, repository: Repository) -> None:
        """Nothing is damaged; now and then by a repair, which then has nothing to do."""
        report = repository.fsck(repair=self._rng.random() < 0.3)
        assert report.clean, f"fsck found {report.damage}"
        assert report.repaired == [], report.repaired

    def last_look(self) -> None:
        """What it saved last."""
        with Repository.open(self._path) as repository:
            self.look(repository)
            for ident, files in self._line[-1:]:
                assert contents(repository, ident) == files, "a snapshot has other bytes"


def _work(path: Path, number: int, seed: int, until: float, errors: str) -> None:
    worker = Worker(path, number, seed)
    try:
        while time.monotonic() < until:
            worker.step()
        worker.last_look()
    except BaseException:
        Path(errors, str(number)).write_text(traceback.format_exc())
        os._exit(1)
    Path(errors, f"done-{number}").write_text("\n".join(f"{count} {name}" for name, count in worker.done.items()))


def run(path: Path, *, seconds: float, workers: int, seed: int) -> dict[str, int]:
    """So many workers on a new repository there; how often each verb was done. AssertionError with the first fault."""
    Repository.init(path).close()
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as errors:
        arguments = [(path, number, seed, time.monotonic() + seconds, errors) for number in range(workers)]
        processes = [context.Process(target=_work, args=one) for one in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        told = {file.name: file.read_text() for file in Path(errors).iterdir()}
    for name, text in told.items():
        assert name.startswith("done-"), f"seed {seed}: {text}"
    assert len(told) == workers, f"seed {seed}: a worker was killed: {[process.exitcode for process in processes]}"
    with Repository.open(path) as repository:
        assert repository.fsck().clean
    done: collections.Counter[str] = collections.Counter()
    for text in told.values():
        for line in text.splitlines():
            count, _, name = line.partition(" ")
            done[name] += int(count)
    return dict(done)


def main() -> int:
    """The campaign; one new repository a minute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    total: collections.Counter[str] = collections.Counter()
    left, seed = given.seconds, given.seed
    while left > 0:
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
            total.update(run(Path(folder, "repo"), seconds=min(60.0, left), workers=given.workers, seed=seed))
        left, seed = left - 60.0, seed + 1
    for name, count in sorted(total.items()):
        print(f"{count:8,} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
