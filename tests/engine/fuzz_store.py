"""The fuzzing campaign: damages copies of small repositories and holds what the engine does against its promises.

    python tests/engine/fuzz_store.py --seconds 3600 [--seed 1] [--targets index,pack] [--folder /dev/shm]

Prints a table by target, and every broken promise with the seed and number that repeat it; the exit code says whether
there was one. `make fuzz` runs it for an hour, test_fuzz_campaign.py for less.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fuzz_case import Outcome, run_case
from fuzz_mutations import TARGETS, Mutation, mutate
from fuzz_seeds import OLD, Seed, make_seeds

WEIGHTS = {"index": 10, "pack": 10, "journal": 5, "sidecar": 2, "format": 1, "secret": 1, "lock": 1}
VERBS_SHARE, MOUNT_SHARE = 0.1, 0.01
MOST_MB = 900
Step = dict[str, Any]


class Broken(NamedTuple):
    """A promise that was not kept."""

    number: int
    target: str
    mutation: Mutation
    promise: str
    how: str


class Campaign:
    """Cases one after another, from one seed of chance: each is told from its number alone."""

    def __init__(self, folder: Path, seed: int, targets: Sequence[str] = TARGETS, *, mount: bool = False) -> None:
        self._folder = folder
        self._seed = seed
        self._targets = list(targets)
        self._mount = mount
        self.seeds = make_seeds(folder / "seeds")
        self.counts: Counter[tuple[str, str]] = Counter()
        self.broken: list[Broken] = []

    def run_one(self, number: int) -> list[Broken]:
        """One case; the promises that it broke."""
        rng = random.Random(f"{self._seed} {number}")
        target = rng.choices(self._targets, [WEIGHTS[one] for one in self._targets])[0]
        seed = self.seeds[rng.random() < 0.4]
        if target == "sidecar":
            seed = self.seeds[0]
        path = self._folder / "case"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(seed.path, path)
        old = seed.path.parent / OLD / seed.path.name
        mutation = mutate(path, old, target, rng)
        where = self._folder / "mnt" if self._mount and rng.random() < MOUNT_SHARE else None
        if where is not None:
            where.mkdir(exist_ok=True)
        outcome = run_case(seed, path, verbs=rng.random() < VERBS_SHARE, mount=where)
        found = [Broken(number, target, mutation, *one) for one in broken_promises(seed, mutation, outcome)]
        self._count(target, outcome, where is not None, found)
        self.broken += found
        return found

    def _count(self, target: str, outcome: Outcome, mounted: bool, found: list[Broken]) -> None:
        self.counts[target, "cases"] += 1
        self.counts[target, "with verbs"] += "restore" in outcome.steps
        self.counts[target, "mounted"] += mounted
        self.counts[target, "found by fsck"] += not _is_whole(outcome.steps.get("fsck"))
        self.counts[target, "whole after repair"] += _is_whole(outcome.steps.get("fsck after"))
        self.counts[target, "broken"] += bool(found)

    def table(self) -> str:
        """Counts by target, in markdown."""
        heads = ("cases", "with verbs", "mounted", "found by fsck", "whole after repair", "broken")
        rows = [f"| target | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
        for target in [*self._targets, "all"]:
            cells = [
                sum(count for (one, kind), count in self.counts.items() if kind == head and target in (one, "all"))
                for head in heads
            ]
            rows.append(f"| {target} | {' | '.join(f'{cell:,}' for cell in cells)} |")
        return "\n".join(rows)


def broken_promises(seed: Seed, mutation: Mutation, outcome: Outcome) -> Iterator[tuple[str, str]]:
    """(promise, how it was broken)."""
    steps = outcome.steps
    if outcome.died:
        yield "nothing dies", f"{outcome.died} at {steps.get('at')}"
        return
    if steps["memory"] > MOST_MB:
        yield "memory is bounded", f"{steps['memory']} MB"
    for name, step in steps.items():
        if isinstance(step, dict) and "internal" in step:
            yield "errors are sentences", f"{name}: {step['internal']} {step['where']}"
    yield from _wrong_bytes(seed, steps)
    yield from _silent(seed, steps)
    yield from _lost(seed, mutation, steps)


def _wrong_bytes(seed: Seed, steps: Step) -> Iterator[tuple[str, str]]:
    for name in ("read", "read after", "read at last"):
        for ident, files in _found(steps.get(name)).items():
            for path, line in files.items():
                if seed.contents[ident].get(path) != line:
                    yield "no wrong byte", f"{name}: {ident[:8]}{path}: {line}, not {seed.contents[ident].get(path)}"
    for ident, files in _found(steps.get("mount")).items():
        for path, line in files.items():
            # The mount has files of its own, which tell of a snapshot.
            if line not in seed.contents[ident].get(path, line):
                yield "no wrong byte", f"mount: {ident[:8]}{path}"


def _silent(seed: Seed, steps: Step) -> Iterator[tuple[str, str]]:
    if _is_whole(steps.get("fsck")):
        if _plain(steps.get("names")) != _plain(seed.names):
            yield "whole means whole", f"the names are others: {steps.get('names')}"[:300]
        if _found(steps.get("read")) != seed.contents:
            yield "whole means whole", "not everything can be read"
    for before, after in (("read", "fsck"), ("read after", "fsck after")):
        if _is_whole(steps.get(after)) and any(not files for files in _found(steps.get(before)).values()):
            yield "whole means whole", f"{before}: a snapshot cannot be read"


def _lost(seed: Seed, mutation: Mutation, steps: Step) -> Iterator[tuple[str, str]]:
    if mutation.file == "format" and _is_of_another_version(steps.get("repair")):
        return  # what a later program wrote is not touched, and nobody can tell that it was one digit (reliability.md)
    before, after, at_last = (_found(steps.get(name)) for name in ("read", "read after", "read at last"))
    for name, found in (("repair", after), ("save and gc", at_last)):
        lost = [
            f"{ident[:8]}{path}"
            for ident, files in before.items()
            for path in files
            if ident in seed.kept and path not in found.get(ident, {})
        ]
        if lost:
            yield "repair loses nothing", f"{name}: {lost[:3]} and {len(lost) - 1} more; {steps.get('repair')}"[:400]
    if not mutation.file.startswith("packs/"):
        if not _is_whole(steps.get("fsck after")):
            yield "packs heal all", f"{steps.get('repair')} {steps.get('fsck after')}"[:400]
        elif any(after.get(ident) != seed.contents[ident] for ident in seed.kept):
            yield "packs heal all", f"not all can be read: {steps.get('repair')}"[:300]
        elif _plain(steps.get("names after")) != _plain(seed.names):
            yield "packs heal all", f"names: {steps.get('names after')}; {steps.get('repair')}"[:600]
        if steps.get("save") is not True:
            yield "a repaired repository can be saved to", str(steps.get("save"))


def _is_of_another_version(step: Any) -> bool:
    return isinstance(step, dict) and str(step.get("error", "")).startswith("UnknownFormatError")


def _found(step: Any) -> dict[str, dict[str, str]]:
    return step if isinstance(step, dict) and "error" not in step and "internal" not in step else {}


def _is_whole(step: Any) -> bool:
    return isinstance(step, dict) and step.get("damage") == []


def _plain(names: Any) -> Any:
    return json.loads(json.dumps(names))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--count", type=int, default=1 << 30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--keep", action="store_true", help="leave the last case where it is")
    chosen = parser.parse_args()
    import ijfs.cli.main  # before the first fork
    import ijfs.fs.mountpoint  # noqa: F401

    folder = Path(tempfile.mkdtemp(prefix="ijfs-fuzz-", dir=chosen.folder))
    mount = os.geteuid() == 0 and Path("/dev/fuse").exists()
    campaign = Campaign(folder, chosen.seed, chosen.targets.split(","), mount=mount)
    end = time.monotonic() + chosen.seconds
    try:
        for number in range(chosen.first, chosen.first + chosen.count):
            if time.monotonic() > end:
                break
            for one in campaign.run_one(number):
                print(f"{one.number} {one.target} {one.mutation}: {one.promise}: {one.how}", flush=True)
    finally:
        if chosen.keep:
            print(folder)
        else:
            shutil.rmtree(folder)
    print(campaign.table())
    return 1 if campaign.broken else 0


if __name__ == "__main__":
    sys.exit(main())
