"""The fuzzing campaign: damages copies of small repositories and holds what the engine does against its promises.

    python tests/engine/fuzz_store.py --seconds 3600 [--seed 1] [--workers 2] [--targets index,pack] [--folder /dev/shm]

Prints a table by target, and every broken promise with the seed and number that repeat it; the exit code says whether
there was one. `make fuzz` runs it for an hour, test_fuzz_campaign.py for less.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fuzz_case import Case, Outcome, Ways
from fuzz_mutations import TARGETS, Mutation, mutate
from fuzz_seeds import OLD, Seed, make_seeds
from fuzz_worker import DiedError, Note, Worker

WEIGHTS = {"index": 10, "pack": 10, "journal": 5, "sidecar": 2, "format": 1, "secret": 1, "lock": 1}
VERBS_SHARE, EXPORT_SHARE, MOUNT_SHARE, ALL_AGAIN_SHARE = 0.03, 0.05, 0.005, 0.1
SAVE_SHARE, GC_SHARE = 0.3, 0.5
MOST_MB = 900
_SAY_EVERY_S = 60.0
Step = dict[str, Any]


class Broken(NamedTuple):
    """A promise that was not kept."""

    number: int
    target: str
    mutation: Mutation
    promise: str
    how: str


class Plan(NamedTuple):
    """A case, told from the campaign's seed and its number alone."""

    seed: Seed
    target: str
    mutation: Mutation
    ways: Ways


class Cases:
    """Makes cases in a folder and goes through them. What a worker does, one after another."""

    def __init__(self, folder: Path, seeds: list[Seed], chance: int, targets: Sequence[str], *, mount: bool) -> None:
        self.folder = folder
        self._path = folder / "case"
        self._seeds = seeds
        self._chance = chance
        self._targets = list(targets)
        self._mount = mount

    def make(self, number: int) -> Plan:
        """A damaged copy, and what is to be done with it."""
        rng = random.Random(f"{self._chance} {number}")
        target = rng.choices(self._targets, [WEIGHTS[one] for one in self._targets])[0]
        seed = self._seeds[rng.random() < 0.4]
        if target == "sidecar":
            seed = self._seeds[0]
        shutil.rmtree(self._path, ignore_errors=True)
        shutil.copytree(seed.path, self._path)
        mutation = mutate(self._path, seed.path.parent / OLD / seed.path.name, target, rng)
        mount = self._mount and rng.random() < MOUNT_SHARE
        ways = Ways(
            rng.random() < VERBS_SHARE,
            rng.random() < EXPORT_SHARE,
            self.folder / "mnt" if mount else None,
            # Of an index that fsck takes for whole, the next commit may use what is free.
            save=target == "index" or rng.random() < SAVE_SHARE,
            collect=rng.random() < GC_SHARE,
            all_again=rng.random() < ALL_AGAIN_SHARE,
        )
        return Plan(seed, target, mutation, ways)

    def run(self, number: int, note: Note) -> Any:
        """One case: what to count, and which promises were broken."""
        note(f"case {number}: to make it")
        plan = self.make(number)
        steps = Case(plan.seed, self._path, plan.ways, lambda step: note(f"case {number}: {step}")).run()
        counted = {
            "cases": 1,
            "with verbs": plan.ways.verbs,
            "exported": plan.ways.export,
            "mounted": plan.ways.mount is not None,
            "found by fsck": not _is_whole(steps.get("fsck")),
            "whole after repair": _is_whole(steps.get("fsck after")),
        }
        broken = list(broken_promises(plan.seed, plan.mutation, Outcome(steps, None)))
        return [plan.target, list(plan.mutation), counted, broken]


class Campaign:
    """Many cases by a few workers."""

    def __init__(self, folder: Path, seed: int, targets: Sequence[str] = TARGETS, *, workers: int, mount: bool) -> None:
        self._targets = list(targets)
        seeds = make_seeds(folder / "seeds")
        self._cases = []
        for number in range(workers):
            (folder / str(number)).mkdir()
            self._cases.append(Cases(folder / str(number), seeds, seed, targets, mount=mount))
        self._workers = [Worker(cases.folder, cases.run) for cases in self._cases]
        self.counts: Counter[tuple[str, str]] = Counter()
        self.broken = 0

    def run(self, numbers: Iterator[int], say: Callable[[Broken], None]) -> None:
        """Go through cases until there are none left."""
        busy: dict[Worker, tuple[int, Cases]] = {}
        idle = list(zip(self._workers, self._cases, strict=True))
        try:
            while True:
                while idle and (number := next(numbers, None)) is not None:
                    worker, cases = idle.pop()
                    worker.begin(number)
                    busy[worker] = number, cases
                if not busy:
                    return
                ready = select.select(list(busy), [], [], 1.0)[0]
                for worker in [one for one in busy if one in ready or one.is_late()]:
                    number, cases = busy.pop(worker)
                    self._take(number, worker, cases, say)
                    idle.append((worker, cases))
        finally:
            for worker, cases in zip(self._workers, self._cases, strict=True):
                worker.close()
                _unmount(cases.folder / "mnt")

    def _take(self, number: int, worker: Worker, cases: Cases, say: Callable[[Broken], None]) -> None:
        target, mutation, counted, broken = self._answer(number, worker, cases)
        if broken:
            worker.close()
            worker.begin(number)
            again = self._answer(number, worker, cases)[3]
            worker.close()
            broken = [(promise, how if again else f"{how} (only after other cases)") for promise, how in broken]
        for head, count in counted.items():
            self.counts[target, head] += count
        self.counts[target, "broken"] += bool(broken)
        self.broken += bool(broken)
        for promise, how in broken:
            say(Broken(number, target, mutation, promise, how))

    def _answer(self, number: int, worker: Worker, cases: Cases) -> tuple[str, Mutation, dict[str, int], list[Any]]:
        try:
            target, mutation, counted, broken = worker.answer()
            return target, Mutation(*mutation), counted, broken
        except DiedError as died:
            _unmount(cases.folder / "mnt")
            plan = cases.make(number)
            outcome = Outcome({}, str(died))
            return plan.target, plan.mutation, {"cases": 1}, list(broken_promises(plan.seed, plan.mutation, outcome))

    def table(self) -> str:
        """Counts by target, in markdown."""
        heads = ("cases", "with verbs", "exported", "mounted", "found by fsck", "whole after repair", "broken")
        rows = [f"| target | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
        for target in [*self._targets, "all"]:
            cells = [
                sum(count for (one, kind), count in self.counts.items() if kind == head and target in (one, "all"))
                for head in heads
            ]
            rows.append(f"| {target} | {' | '.join(f'{cell:,}' for cell in cells)} |")
        return "\n".join(rows)


def _unmount(path: Path) -> None:
    """What a worker that was killed left mounted."""
    if path.is_mount():
        subprocess.run(["umount", "-l", str(path)], check=False)


def broken_promises(seed: Seed, mutation: Mutation, outcome: Outcome) -> Iterator[tuple[str, str]]:
    """(promise, how it was broken)."""
    steps = outcome.steps
    if outcome.died:
        yield "nothing dies", outcome.died
        return
    if steps["memory"] > MOST_MB:
        yield "memory is bounded", f"{steps['memory']} MB"
    if steps["left open"] > 0:
        yield "what is opened is closed", f"{steps['left open']} more descriptors"
    for name, step in steps.items():
        if isinstance(step, dict) and "internal" in step:
            yield "errors are sentences", f"{name}: {step['internal']} {step['where']}"
    yield from _wrong_bytes(seed, steps)
    yield from _wrong_exports(seed, steps)
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


def _wrong_exports(seed: Seed, steps: Step) -> Iterator[tuple[str, str]]:
    """What an export leaves is what was saved, also where it ended early; where it did not, all of that is there."""
    for name in ("export", "export at last"):
        for ident, found in _found(steps.get(name)).items():
            wanted, paths, ended = seed.exports[ident], found["paths"], "error" not in found
            for path, line in paths.items():
                if path not in wanted or (_essence(line, ended) != _essence(wanted[path], ended)):
                    yield "no wrong byte", f"{name}: {ident[:8]}{path}: {line}, not {wanted.get(path)}"
            if ended and len(paths) != len(wanted):
                yield "an export that ends is whole", f"{name}: {ident[:8]}: {sorted(set(wanted) - set(paths))[:3]}"
    before, after = (_found(steps.get(name)) for name in ("export", "export at last"))
    for ident in seed.kept & set(before):
        if "error" not in before[ident] and "error" in after.get(ident, {"error": "not read"}):
            yield "repair loses nothing", f"{ident[:8]} could be exported: {after.get(ident, {}).get('error')}"


def _essence(line: str, ended: bool) -> str | list[str]:
    """What holds of a path before the export has ended, too: directories get their metadata last, and other names of a
    file may be missing."""
    mode, *owner, _, size_and_hash = (*line.split(" ", 5), "")[:6]
    if ended:
        return line
    return mode[:2] if mode.startswith("40") else [mode, *owner, size_and_hash]


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
    for name, found in (("repair", after), ("save and gc", at_last if "read at last" in steps else after)):
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
        if steps.get("save", True) is not True:
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
    parser.add_argument("--workers", type=int, default=1, help="processes; each takes less than a core")
    chosen = parser.parse_args()
    import ijfs.cli.main  # before the first fork
    import ijfs.fs.mountpoint  # noqa: F401

    folder = Path(tempfile.mkdtemp(prefix="ijfs-fuzz-", dir=chosen.folder))
    mount = os.geteuid() == 0 and Path("/dev/fuse").exists()
    targets = chosen.targets.split(",")
    try:
        campaign = Campaign(folder, chosen.seed, targets, workers=chosen.workers, mount=mount)
        with contextlib.suppress(KeyboardInterrupt):
            campaign.run(_numbers(chosen, campaign), _say)
    finally:
        shutil.rmtree(folder)
    print(campaign.table())
    return 1 if campaign.broken else 0


def _numbers(chosen: argparse.Namespace, campaign: Campaign) -> Iterator[int]:
    """Cases until the time is over; says now and then how far it is."""
    began = said = time.monotonic()
    for number in range(chosen.first, chosen.first + chosen.count):
        now = time.monotonic()
        if now > began + chosen.seconds:
            return
        if now > said + _SAY_EVERY_S:
            said = now
            print(f"{number - chosen.first:,} cases, {campaign.broken} broke promises", file=sys.stderr, flush=True)
        yield number


def _say(one: Broken) -> None:
    print(f"{one.number} {one.target} {one.mutation}: {one.promise}: {one.how}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
