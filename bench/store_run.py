"""One run of the store benchmark: every contestant in turn, the same for each. Called by store.py.

A contestant stores the whole tree, one command a snapshot; its cost lasts until the disk has everything (syncfs). Then
it restores one snapshot into memory, and every byte is compared. Before either, the page cache is emptied and what is
about to be read is read once (unless the run is cold), so that nobody profits from who ran before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import common, store_contestants, store_tree
from bench.common import Cost
from bench.store_contestants import Contestant, Ijfs
from bench.store_memory import Result
from bench.store_targets import Results, Standing
from bench.store_tree import Snapshot
from ijfs.live.sandbox import namespaces as ns

RESTORES = 3
RESTORED_BYTES = 800_000_000  # the snapshot nearest to this size is the one that is restored
SIBLINGS = ("02-rows-changed", "05-left", "06-right")
MEMORY = "memory"


def run(work: Path, tree: Path, only: Sequence[str], *, cold: bool) -> Results:
    """Measure the contestants whose names begin with one of `only` (none: all), and the engine in memory."""
    snapshots = store_tree.snapshots(tree)
    results = Results(sum(one.bytes for one in snapshots))
    print(f"{len(snapshots)} snapshots, {common.megabytes(results.tree_bytes)} MB\n", flush=True)
    if not only or MEMORY in only:
        _measure_memory(work / "alone", tree, snapshots, results)
    names = [name for name in only if name != MEMORY]
    for contestant in store_contestants.choose(names, work) if names or not only else []:
        _compete(contestant, snapshots, work, results, cold=cold)
        store_contestants.remove(contestant)
    return results


def _compete(
    contestant: Contestant, snapshots: Sequence[Snapshot], work: Path, results: Results, *, cold: bool
) -> None:
    """Let one store everything and restore one snapshot."""
    version = contestant.version()
    if version is None:
        print(f"{contestant.name}: not installed, skipped (tools/setup-bench installs it)", flush=True)
        return
    for command in contestant.prepare():
        common.measure(command)
    _ready([one.images for one in snapshots], cold=cold)
    stored = Cost()
    for command in contestant.store(snapshots):
        stored += common.measure(command, sync=work)
    size = common.disk_size(contestant.repository)
    one = min(snapshots, key=lambda snapshot: abs(snapshot.bytes - RESTORED_BYTES))
    restored, verified = _restore(contestant, one, work / "memory", cold=cold)
    results.standings[contestant.name] = Standing(version, stored, size, restored, one.bytes, verified)
    speed = results.tree_bytes / stored.total_s / 1e6
    print(f"{contestant.name:28} {common.megabytes(size.allocated):>7} MB stored at {speed:5.0f} MB/s", flush=True)
    if type(contestant) is Ijfs:
        _look_inside(contestant, snapshots, work / "memory", results)


def _ready(paths: Sequence[Path], *, cold: bool) -> None:
    """The same page cache for every contestant: empty, and then (unless `cold`) holding what will be read."""
    common.drop_caches()
    if not cold:
        common.warm(paths)


def _restore(contestant: Contestant, snapshot: Snapshot, memory: Path, *, cold: bool) -> tuple[Cost, bool]:
    """The median of several restores into memory, and whether every byte of each was right."""
    costs, verified = [], True
    _fault_in(memory, 2 * snapshot.bytes)
    for _ in range(RESTORES):
        _ready([contestant.repository], cold=cold)
        with _in_memory(memory) as target:
            costs.append(common.measure(contestant.restore(snapshot, target)))
            verified &= common.same_files(snapshot.images, target)
    return common.median(costs), verified


@contextmanager
def _in_memory(path: Path) -> Iterator[Path]:
    """An empty tmpfs."""
    path.mkdir(exist_ok=True)
    ns.mount("bench", path, "tmpfs")
    try:
        yield path
    finally:
        ns.umount(path)


def _fault_in(path: Path, size: int) -> None:
    """Have a virtual machine's memory backed by its host before somebody is timed writing to it."""
    with _in_memory(path) as target, (target / "filler").open("wb") as file:
        for _ in range(0, size, 1 << 20):
            file.write(bytes(1 << 20))


def _look_inside(ours: Ijfs, snapshots: Sequence[Snapshot], memory: Path, results: Results) -> None:
    """What only our repository is asked: every snapshot's bytes, its parts, the cost of du, gc and fsck."""
    results.whole_tree_verified = all(_is_whole(ours, one, memory) for one in snapshots)
    results.parts = _ask("--repository", str(ours.repository))
    results.verbs = {verb: common.measure(command) for verb, command in ours.verbs().items()}


def _is_whole(ours: Ijfs, snapshot: Snapshot, memory: Path) -> bool:
    with _in_memory(memory) as target:
        common.measure(ours.restore(snapshot, target))
        return common.same_files(snapshot.images, target)


def _measure_memory(work: Path, tree: Path, snapshots: Sequence[Snapshot], results: Results) -> None:
    by_name = {one.name: one for one in (*snapshots, store_tree.unchanged(tree))}
    for name in ("unchanged", *SIBLINGS):
        child = by_name[name]
        assert child.parent is not None
        found = _ask(str(work), str(by_name[child.parent].images), str(child.images))
        results.memory[name] = one = Result(**found)
        print(
            f"in memory: {name:16} {one.same:7.2%} the same: {one.bytes / one.ingest_s / 1e9:5.2f} GB/s, BLAKE3 "
            f"{one.bytes / one.blake3_s / 1e9:5.2f}; its parent, first: {one.parent_bytes / one.first_s / 1e9:5.2f}",
            flush=True,
        )
    print(flush=True)


def _ask(*argv: str) -> Any:
    """What a process of its own finds out; its complaints go to the terminal."""
    command = [sys.executable, "-m", "bench.store_memory", *argv]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
