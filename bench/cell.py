"""A cell's round trip: a kernel in its sandbox against one outside, a cell each by turns in one run.

    python -m bench.cell [--cells N]

Between a client and a kernel in a sandbox stand the relay and what reads along there, both in the keeper. Prints the
median of the round trips, of each pair's ratio, and the processor time of a cell (kernel and keeper), which a shared
machine changes less; writes JSON where `--json FILE` says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.common import machine
from bench.live_kernels import Talk, boxed, outside
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs_engine import Repository

WARM_UP = 20
MOST = 1.1
"""What a round trip may take of a plain kernel's."""


def timed(talk: Talk) -> float:
    """Seconds of one cell, from asking until the kernel is idle again."""
    began = time.perf_counter()
    talk.run("1 + 1")
    return time.perf_counter() - began


def processor_s(processes: Sequence[psutil.Process]) -> float:
    """Seconds that they have worked so far."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def worked(talk: Talk, processes: Sequence[psutil.Process], cells: int) -> float:
    """Processor seconds of a cell."""
    before = processor_s(processes)
    for _ in range(cells):
        talk.run("1 + 1")
    return (processor_s(processes) - before) / cells


def inside_of(repo: Path, name: str) -> list[psutil.Process]:
    """A sandboxed program's processes, and its keeper."""
    record = read_record(InstancePaths.of(repo, name))
    if record.program is None or record.keeper is None:
        raise RuntimeError(f"{name} does not run")
    first = psutil.Process(record.program.pid)
    return [first, *first.children(recursive=True), psutil.Process(record.keeper.pid)]


def measured(work: Path, cells: int) -> dict[str, Any]:
    """Both kinds of kernel, a cell each by turns."""
    repo = work / "repo"
    Repository.init(repo).close()
    for name in ("plain", "boxed"):
        (work / name).mkdir()
    with outside(work / "plain") as plain, boxed(repo, "kernel", work / "boxed") as box:
        ours = [child for child in psutil.Process().children() if "ipykernel_launcher" in child.cmdline()]
        for talk in (plain, box) * WARM_UP:
            timed(talk)
        pairs = [(timed(plain), timed(box)) for _ in range(cells)]
        work_s = [
            (worked(plain, ours, 50), worked(box, inside_of(repo, "kernel"), 50)) for _ in range(max(cells // 100, 3))
        ]
    return {
        "cells": cells,
        "plain_s": statistics.median(pair[0] for pair in pairs),
        "boxed_s": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
        "plain_processor_s": statistics.median(pair[0] for pair in work_s),
        "boxed_processor_s": statistics.median(pair[1] for pair in work_s),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ijfs-cell-", dir="/var/tmp") as directory:
        found = measured(Path(directory), given.cells)
        print(machine(Path(directory)))
    print(f"{found['cells']} cells each, by turns, load {found['load']:.1f}")
    print(f"round trip   plain {found['plain_s'] * 1e3:.2f} ms   sandbox {found['boxed_s'] * 1e3:.2f} ms")
    print(f"ratio        {found['ratio']:.3f} (may be {MOST})")
    plain, box = found["plain_processor_s"], found["boxed_processor_s"]
    print(f"processor    plain {plain * 1e3:.2f} ms   sandbox {box * 1e3:.2f} ms")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
