"""What the store promises, against what a run measured. Called by store.py; the ratios are within one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bench.common import Cost, Size
from bench.store_memory import Result

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Standing:
    """One contestant's figures: storing the whole tree, what is then on disk, restoring one snapshot."""

    version: str
    store: Cost
    size: Size
    restore: Cost
    restored_bytes: int
    verified: bool


@dataclass(slots=True)
class Results:
    """All figures of a run; contestants and in-memory cases by name."""

    tree_bytes: int
    standings: dict[str, Standing] = field(default_factory=dict)
    memory: dict[str, Result] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    verbs: dict[str, Cost] = field(default_factory=dict)
    whole_tree_verified: bool | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One promise: what, the bound as text, the value, whether it was kept; `note` says what was compared."""

    what: str
    bound: str
    value: float
    unit: str
    met: bool
    note: str = ""

    @property
    def shown(self) -> str:
        """The value with its unit."""
        return f"{self.value:.2f}{self.unit}"


def _at_least(what: str, bound: float, value: float, note: str = "") -> Target:
    return Target(what, f"≥ {bound:g}×", value, "×", value >= bound, note)


def _at_most(what: str, bound: float, value: float, unit: str, note: str = "") -> Target:
    return Target(what, f"≤ {bound:g}{unit}", value, unit, value <= bound, note)


def derive(results: Results) -> list[Target]:
    """Every target that this run has figures for."""
    return [*_storing(results), *_saving(results.memory), *_sizes(results), *_restoring(results), *_memory(results)]


def _quickest(standings: Mapping[str, Standing], *names: str) -> Standing | None:
    """The contestant that stored soonest: the strictest of several that a target might mean."""
    found = [standings[name] for name in names if name in standings]
    return min(found, key=lambda one: one.store.total_s, default=None)


def _storing(results: Results) -> Iterator[Target]:
    standings = results.standings
    ours, alone = standings.get("ijfs"), standings.get("ijfs, no parent named")
    copy, borg = standings.get("cp"), _quickest(standings, "borg, zstd,1", "borg, as it comes (lz4)")
    if ours and copy:
        yield _at_least("whole tree, first ingest, against cp", 3, copy.store.total_s / ours.store.total_s)
    if ours and borg:
        yield _at_least("whole tree, first ingest, against borg default", 4, borg.store.total_s / ours.store.total_s)
    if alone and borg:
        yield _at_least("no parent named, against borg default", 3, borg.store.total_s / alone.store.total_s)


def _saving(memory: Mapping[str, Result]) -> Iterator[Target]:
    near = [(name, one) for name, one in memory.items() if one.same >= 0.9 and name != "unchanged"]
    for name, one in near:
        note = f"{name}, {one.same:.1%} the same, {one.bytes / one.ingest_s / 1e9:.2f} GB/s"
        yield _at_least("sibling ≥ 90% the same, against BLAKE3", 2, one.ratio, note)
    if again := memory.get("unchanged"):
        note = f"{again.same:.2%} the same, {again.bytes / again.ingest_s / 1e9:.2f} GB/s"
        yield _at_least("unchanged re-save, against BLAKE3", 4, again.ratio, note)


def _sizes(results: Results) -> Iterator[Target]:
    standings, ours = results.standings, results.standings.get("ijfs")
    for name, bound in (("borg, zstd,1, tuned chunker", 0.84), ("tar, zstd --long=31", 0.90)):
        if ours and name in standings:
            ratio = ours.size.allocated / standings[name].size.allocated
            yield _at_most(f"stored, against {name}", bound, ratio, "×")
    if results.parts:
        parts = results.parts
        named = parts["objects"] + parts["fingerprints"] + parts["index"]
        note = ", ".join(f"{name} {parts[name] / 1e6:.1f} MB" for name in ("objects", "fingerprints", "index"))
        yield _at_most("metadata of what is stored", 1, 100 * named / parts["all"], "%", note)


def _restoring(results: Results) -> Iterator[Target]:
    standings, ours = results.standings, results.standings.get("ijfs")
    if ours and (borg := _quickest_restore(standings)):
        yield _at_least("export, against borg extract", 4, borg.restore.wall_s / ours.restore.wall_s)
    if ours and (copy := standings.get("cp")):
        yield _at_least("export, against cp of the raw images", 1.5, copy.restore.wall_s / ours.restore.wall_s)


def _quickest_restore(standings: Mapping[str, Standing]) -> Standing | None:
    found = [standing for name, standing in standings.items() if name.startswith("borg")]
    return min(found, key=lambda one: one.restore.wall_s, default=None)


def _memory(results: Results) -> Iterator[Target]:
    ours = [one for name, one in results.standings.items() if name.startswith("ijfs")]
    peaks = {
        "import": max((one.store.rss_bytes for one in ours), default=0),
        "export": max((one.restore.rss_bytes for one in ours), default=0),
        **{verb: cost.rss_bytes for verb, cost in results.verbs.items()},
    }
    if ours:
        note = ", ".join(f"{verb} {peak // MIB}" for verb, peak in peaks.items())
        yield _at_most("peak RSS of any of it", 512, max(peaks.values()) / MIB, " MiB", note)
