"""Many futures of one live kernel: how soon they answer, and what memory they take.

    make bench-fork                      # 8 and 32 copies of a 300 MB kernel, 100 of a bare one; as root
    make bench-fork ARGS="--rounds 1 --only 8"

A kernel with 300 MB of pandas frames is forked as it lives: how long the call took, and how long until a cell had run
in every copy. Then all their memory is waited for, unless they have it on demand, and what the machine has less of, and
what /proc says of programs, keepers and pagers, is shared out among the copies. The last line does the same with copies
of a kernel that has imported nothing. Times are medians of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import common
from ijfs.live.client import api as client
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.process import procfs, usage
from ijfs.sdk.box import Box
from ijfs.sdk.repository import Repository

PANDAS = """
import numpy, pandas
frame = pandas.DataFrame(numpy.random.default_rng(0).random((1_000_000, 30)))
groups = frame.groupby(frame[0].round(2)).mean()
"""
TOUCH = "float(frame[3].iloc[:1000].sum())"
BARE = "1 + 1"
WAIT_S = 300.0
MIB = 1 << 20


@dataclass(frozen=True)
class Fork:
    """One fork of so many copies. Seconds; bytes for each copy."""

    copies: int
    returned: float
    answered: float
    taken: int
    """What the machine had less of when all memory was in."""
    program: int
    """PSS of the copy's processes."""
    keeper: int
    """PSS of its keeper, and of its pager where there is one."""


def forked(source: Box, copies: int, cell: str, *, on_demand: bool) -> Fork:
    """Fork, let all answer, wait for their memory where it all comes, end them."""
    before = _available()
    began = time.monotonic()
    boxes = source.fork(copies, timeout=WAIT_S, on_demand=on_demand)
    returned = time.monotonic() - began
    try:
        with ThreadPoolExecutor(copies) as pool:
            answers = list(pool.map(lambda box: box.run(cell, timeout=WAIT_S).text, boxes))
        answered = time.monotonic() - began
        if len(answers) != copies or len(set(answers)) != 1:
            raise RuntimeError(f"the copies answered {sorted(set(answers))}")
        for box in boxes if not on_demand else ():
            with client.connect(box.repo, box.name) as keeper:
                keeper.wait_memory()
        taken = before - _available()
        return Fork(copies, returned, answered, taken // copies, *(n // copies for n in _by_proc(boxes)))
    finally:
        for box in boxes:
            box.discard()


def _by_proc(boxes: Sequence[Box]) -> tuple[int, int]:
    """PSS of the programs, and of what serves them, together."""
    first = {box.name: pid for box in boxes if (pid := box.info.pid)}
    records = [read_record(InstancePaths.of(box.repo, box.name)) for box in boxes]
    serving = [process.pid for record in records for process in (record.keeper, record.pager) if process]
    workers = [pid for one in serving for pid in procfs.descendants(one) if procfs.name_of(pid) == "ijfs-pager"]
    pss = [procfs.memory_in_smaps(pid).get("Pss", 0) for pid in {*serving, *workers}]
    return sum(used.memory for used in usage.of_programs(first).values()), sum(pss)


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/meminfo says nothing of what is available")


@contextlib.contextmanager
def kernel(repo: Repository, name: str, setup: str) -> Iterator[Box]:
    """A kernel that ran a cell and was saved once."""
    box = repo.kernel(name=name, timeout=WAIT_S)
    try:
        if setup and (error := box.run(setup, timeout=WAIT_S).error):
            raise RuntimeError(f"the kernel could not be set up: {error}")
        box.save("ready")
        yield box
    finally:
        box.discard()


def measure(folder: Path, sizes: Sequence[int], bare: int, rounds: int) -> dict[str, list[Fork]]:
    """By what was forked, the rounds."""
    repo = Repository.open(folder / "repo", create=True)
    found: dict[str, list[Fork]] = {}
    if sizes:
        with kernel(repo, "pandas", PANDAS) as source:
            for copies in sizes:
                for how, on_demand in (("", False), (", on demand", True)):
                    each = [forked(source, copies, TOUCH, on_demand=on_demand) for _ in range(rounds)]
                    found[f"{copies} of a 300 MB kernel{how}"] = each
    if bare:
        with kernel(repo, "bare", "") as source:
            found[f"{bare} of a bare kernel, on demand"] = [forked(source, bare, BARE, on_demand=True)]
    return found


def table(found: dict[str, list[Fork]]) -> str:
    """As docs/benchmarks.md has it."""
    head = [
        "copies",
        "`fork` returned, s",
        "all had run a cell, s",
        "MiB each",
        "PSS of the program",
        "of keeper and pager",
    ]
    rows = [
        [
            what,
            *(
                f"{statistics.median(values):.2f}"
                for values in ([f.returned for f in each], [f.answered for f in each])
            ),
            *(
                f"{statistics.median(values) / MIB:.1f}"
                for values in ([f.taken for f in each], [f.program for f in each], [f.keeper for f in each])
            ),
        ]
        for what, each in found.items()
    ]
    return common.table(head, rows)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench-fork", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=int, action="append", help="so many copies of the large kernel, nothing else")
    parser.add_argument("--bare", type=int, default=100, help="copies of the bare kernel")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ijfs-bench-", dir="/var/tmp") as folder:
        machine = common.machine(Path(folder))
        if not given.json:
            print(f"{machine}; load {os.getloadavg()[0]:.1f}\n", flush=True)
        found = measure(Path(folder), given.only or (8, 32), 0 if given.only else given.bare, given.rounds)
    if given.json:
        forks = {what: [asdict(one) for one in each] for what, each in found.items()}
        print(json.dumps({"machine": asdict(machine), "forks": forks}))
    else:
        print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
