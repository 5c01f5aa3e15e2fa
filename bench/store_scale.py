"""How the store grows: `make bench-scale`, or `python -m bench.store_scale`; needs FUSE, for the mount.

For each size it makes a repository of many small chunks (store_scale_build.py: 1 and 10 million, in 1,000 and 10,000
snapshots), runs the verbs that look at all of it, mounts it, takes half of its branches and tags away and lets gc sweep
and repack. Every verb is a process of its own; seconds are wall time, MiB the most that was resident, the mapped index
included. Prints a table and writes JSON. How to read it: bench/README.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import common
from bench.common import Command
from bench.store_scale_build import CHUNKS_PER_PROGRAM, SAVES

CACHE = Path(__file__).resolve().parents[1] / ".cache"
STAGES = ("make", "look", "check", "collect")
PACKAGES = ("ijfs", "lmdb", "blake3")
Figures = dict[str, tuple[float, float]]
"""Seconds and MiB of each step."""


class Steps:
    """What is done with one repository, in order."""

    def __init__(self, repository: Path, mountpoint: Path) -> None:
        self._repository = repository
        self._mountpoint = mountpoint
        self.figures: Figures = {}

    def make(self, programs: int) -> None:
        """The repository, anew."""
        self._make("make it", f"--programs={programs}")

    def look(self) -> None:
        """Whatever changes nothing."""
        self._verbs({"log": "log", "log -n 20": "log -n 20", "tree": "tree", "show": "show", "branch": "branch"})
        self._verbs({"tag": "tag", "stats": "stats", "du": "du", "du of one snapshot": "du program-0003"})
        self._verbs({"export of one snapshot": f"export program-0003 {self._mountpoint.with_name('exported')}"})
        shutil.rmtree(self._mountpoint.with_name("exported"))
        self._verbs({"prune --dry-run": "prune -n --keep-last 5", "gc --dry-run": "gc -n"})
        self._mount()

    def check(self) -> None:
        """Every reference, then every byte."""
        self._verbs({"fsck --quick": "fsck --quick", "fsck": "fsck"})

    def collect(self) -> None:
        """Half of it goes."""
        self._make("take half of the names away", "--halve")
        self._verbs({"gc: half goes": "gc", "gc again": "gc", "du of the rest": "du"})
        self._verbs({"prune --keep-last 5": "prune --keep-last 5", "fsck --quick of the rest": "fsck --quick"})

    def _make(self, name: str, option: str) -> None:
        self._step(name, sys.executable, "-m", "bench.store_scale_build", str(self._repository), option)

    def _verbs(self, verbs: dict[str, str]) -> None:
        for name, words in verbs.items():
            self._step(name, sys.executable, "-m", "ijfs.cli", "-r", str(self._repository), *words.split())

    def _step(self, name: str, *argv: str) -> None:
        cost = common.measure(Command(argv))
        self._note(name, cost.wall_s, cost.rss_bytes / (1 << 20))

    def _mount(self) -> None:
        """What a person sees who looks around: the memory is the daemon's."""
        self._mountpoint.mkdir(exist_ok=True)
        began = time.perf_counter()
        ijfs = (sys.executable, "-m", "ijfs.cli", "-r", str(self._repository))
        subprocess.run([*ijfs, "mount", str(self._mountpoint)], check=True, stdout=subprocess.DEVNULL)
        try:
            self._note("mount", time.perf_counter() - began, self._daemon_mib())
            self._look("mount: list the snapshots", lambda: os.listdir(self._mountpoint / "snapshots"))
            self._look("mount: ls -l of them", lambda: _look_at_all(self._mountpoint / "snapshots"))
            self._look("mount: ls -l of tags", lambda: _look_at_all(self._mountpoint / "tags"))
            self._look("mount: read one snapshot", lambda: _read(self._mountpoint / "branches/program-0001/"))
            self._look("mount: find a file in each", lambda: _find_in_each(self._mountpoint / "snapshots"))
        finally:
            subprocess.run([*ijfs, "umount", str(self._mountpoint)], check=True, stdout=subprocess.DEVNULL)

    def _look(self, name: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        self._note(name, time.perf_counter() - began, self._daemon_mib())

    def _daemon_mib(self) -> float:
        """The most that the mount's process had resident so far."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                if b"ijfs.fs.daemon" in words and os.fsencode(self._mountpoint) in words:
                    line = next(line for line in (process / "status").read_text().splitlines() if "VmHWM" in line)
                    return int(line.split()[1]) / 1024
            except (OSError, StopIteration):
                continue
        return 0.0

    def _note(self, name: str, seconds: float, mib: float) -> None:
        self.figures[name] = (seconds, mib)
        print(f"  {name:30} {seconds:8.2f} s {mib:7.0f} MiB", flush=True)


def _look_at_all(directory: Path) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)


def _read(directory: Path) -> None:
    for file in directory.rglob("*"):
        if file.is_file():
            file.read_bytes()


def _find_in_each(directory: Path) -> None:
    for name in os.listdir(directory):
        os.stat(directory / name / "images/pages-1.img")


def measure(work: Path, programs: int, stages: Sequence[str]) -> Figures:
    """One size. The repository stays for the stages of a later run, unless the last one was done."""
    steps = Steps(work / "repository", work / "mountpoint")
    print(f"{programs * CHUNKS_PER_PROGRAM:,} chunks, {programs * SAVES:,} snapshots", flush=True)
    if "make" in stages:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        steps.make(programs)
    if "look" in stages:
        steps.look()
    if "check" in stages:
        steps.check()
    if "collect" in stages:
        steps.collect()
    print(f"  on disk at the end: {common.megabytes(common.disk_size(work).allocated)} MB\n", flush=True)
    if "collect" in stages:
        shutil.rmtree(work)
    return steps.figures


def show(sizes: Sequence[int], results: Sequence[Figures]) -> str:
    """The table: seconds and MiB of each size, and how many times more seconds the last takes than the first."""
    counts = [f"{programs * CHUNKS_PER_PROGRAM / 1e6:,.1f} M chunks" for programs in sizes]
    head = ["", *(f"{count}, {unit}" for count in counts for unit in ("s", "MiB")), "growth"]
    rows = []
    for name in results[0]:
        cells = [text for figures in results for text in (f"{figures[name][0]:,.2f}", f"{figures[name][1]:,.0f}")]
        rows.append([name, *cells, f"{results[-1][name][0] / max(results[0][name][0], 1e-3):.1f}×"])
    return common.table(head, rows)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, action="append", help="20,038 chunks each (default: 50, then 500)")
    parser.add_argument("--work", type=Path, default=CACHE, help="where the repository is made: 4 GB for 10 million")
    parser.add_argument("--json", type=Path, default=CACHE / "bench-scale.json")
    parser.add_argument(
        "--stage", action="append", choices=STAGES, help="of one size only, to go on later (default: all)"
    )
    options = parser.parse_args()
    sizes = options.programs or [50, 500]
    machine = common.machine(options.work)
    print(f"{machine}\nijfs {common.revision() or 'of no checkout'}\n", flush=True)
    work = options.work.resolve() / "ijfs-bench-scale"
    results = [measure(work, programs, options.stage or STAGES) for programs in sizes]
    print(show(sizes, results))
    page = {"machine": machine, "versions": common.versions(PACKAGES)}
    page |= {"sizes": [programs * CHUNKS_PER_PROGRAM for programs in sizes], "results": results}
    common.write_json(options.json, page)


if __name__ == "__main__":
    main()
