"""What saves, restores and forks promise, against what a run measured. Called by live.py; ratios are within one run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bench.store_targets import Target

if TYPE_CHECKING:
    from bench.live import Results

EAGER = "criu restore from tmpfs"
LAZY = "ijfs, lazy, from disk"


def targets(found: Results, large: int) -> list[Target]:
    """Every promise that this run has the figures for."""
    return [*_saves(found), *_restores(found, large), *_kernels(found), *_many(found)]


def _at_most(what: str, bound: float, value: float, unit: str, note: str = "") -> Target:
    return Target(what, f"≤ {bound:g}{unit}", value, unit, value <= bound, note)


def _saves(found: Results) -> Iterator[Target]:
    ours, theirs = found.frozen.get("ijfs save"), found.frozen.get("criu dump into tmpfs")
    if ours and theirs:
        ratio = statistics.median(ours) / statistics.median(theirs)
        yield _at_most("frozen", 0.6, ratio, "×", "criu dump into a tmpfs directory")


def _restores(found: Results, large: int) -> Iterator[Target]:
    def figure(name: str, what: str) -> float | None:
        values = [value for one in found.restores.get(name, ()) if (value := getattr(one, what)) is not None]
        return statistics.median(values) if values else None

    eager = figure(EAGER, "answers_s")
    answers, all_in = figure(LAZY, "answers_s"), figure(LAZY, "all_in_s")
    if eager and answers and all_in:
        yield _at_most("lazy: until it answers", 0.15, answers / eager, "×", "eager CRIU restore from tmpfs")
        yield _at_most("lazy: all memory in", 1.2, all_in / eager, "×", "the same; ours from compressed chunks on disk")
    larger = figure(f"ijfs, lazy, {large} MiB", "answers_s")
    if larger and answers:
        yield _at_most("four times the memory: until it answers", 1.5, larger / answers, "×", "itself at a quarter")
    far, touched = figure("ijfs, 5 ms a fetch", "answers_s"), figure("ijfs, 5 ms, 64 MiB touched", "touched_s")
    if far:
        yield _at_most("5 ms a fetch: until it answers", 0.3, far, " s")
    if touched:
        theirs = figure("criu lazy-pages on the mount, 5 ms, 64 MiB touched", "touched_s")
        note = f"criu lazy-pages on the mount: {theirs:.1f} s" if theirs else ""
        yield _at_most("5 ms a fetch: recorded 64 MiB touched", 1.0, touched, " s", note)


def _kernels(found: Results) -> Iterator[Target]:
    if len(found.siblings) == 2:
        few, many = (found.siblings[count] for count in sorted(found.siblings))
        ratio = statistics.median(one[1] for one in many) / statistics.median(one[1] for one in few)
        yield _at_most("8 siblings at once, all answer", 3.0, ratio, "×", "one")
    for name, cost in found.keepers.items():
        yield _at_most(f"idle keeper {name}, PSS", 30.0, cost["pss"] / (1 << 20), " MiB")
    for what, one in found.sandbox.items():
        yield _at_most(f"in its sandbox: {what}", 1.1, one["ratio"], "×", "a kernel outside")


def _many(found: Results) -> Iterator[Target]:
    for name, bound, unit in (
        ("600 threads, frozen", 0.5, " s"),
        ("200 processes, restored eagerly", 10.0, " s"),
        ("its memory, MiB, restored lazily", 450.0, " MiB"),
    ):
        if name in found.many:
            yield _at_most(name.replace(", MiB", ""), bound, statistics.median(found.many[name]), unit)
