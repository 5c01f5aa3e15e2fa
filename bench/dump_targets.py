"""How long a program stands still while CRIU dumps it, by where the dump goes: `python -m bench.dump_targets`, as root.

One Python process with `--gib` of random bytes is dumped into each place in turn, `--rounds` times, and runs on in
between. What is measured is CRIU's own frozen time (stats-dump), the stage at which the live layer captures the
workspace (post-dump) included, as an empty one. Prints a table with ratios to a dump into tmpfs of the same run and
writes JSON; docs/benchmarks.md quotes it; a save takes the stream, and docs/decisions.md says why.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench import common
from ijfs.live.criu import command as criu_command
from ijfs.live.criu.action_script import ActionHook
from ijfs.live.criu.dump_stats import frozen_seconds
from ijfs.live.criu.image_stream import StreamCapture
from ijfs_engine import Arena

GIB = 1 << 30
CACHE = Path(__file__).resolve().parents[1] / ".cache"
BASE = "directory on tmpfs"

# A dump is longer than its pages: the other images, and what the interpreter has besides the random bytes.
SLACK = 256 << 20

PROGRAM = """
import os, sys, time
blocks = [os.urandom(1 << 20) for _ in range(int(float(sys.argv[1]) * 1024))]
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""


@contextmanager
def program(gib: float) -> Iterator[int]:
    """The process to dump; its pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(gib)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def dump(pid: int, images: Path, *options: str, while_frozen: Callable[[], None] | None = None) -> float:
    """One `criu dump` that leaves the program running; seconds it was frozen."""
    with tempfile.TemporaryDirectory() as work, ActionHook(Path(work), "post-dump", while_frozen) as hook:
        command = [
            os.fspath(criu_command.find()),
            "dump",
            "-t",
            str(pid),
            "-D",
            os.fspath(images),
            "-W",
            work,
            "-o",
            "log",
        ]
        command += ["--leave-running", "--shell-job", "--action-script", os.fspath(hook.script), *options]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        hook.serve(running, time.monotonic() + 120)
        if running.wait() != 0:
            raise SystemExit((Path(work) / "log").read_text()[-2000:])
        return frozen_seconds(Path(work))


def into_directory(pid: int, arena: Arena, *, where: Path) -> float:
    with tempfile.TemporaryDirectory(dir=where) as images:
        return dump(pid, Path(images))


def into_stream(pid: int, arena: Arena) -> float:
    with tempfile.TemporaryDirectory() as place, StreamCapture(Path(place), arena) as capture:
        frozen = dump(pid, Path(place), "--stream", while_frozen=capture.drain)
        capture.finish()
        return frozen


Way = tuple[Callable[[int, Arena], float], bool]


def ways(disk: Path) -> dict[str, Way]:
    """Each way in, and whether its arena is faulted in first."""
    return {
        BASE: (partial(into_directory, where=Path("/dev/shm")), False),
        f"directory on {common.filesystem(disk)}": (partial(into_directory, where=disk), False),
        "criu --stream, memory faulted in before": (into_stream, True),
        "criu --stream, fresh memory": (into_stream, False),
    }


def measure(pid: int, gib: float, rounds: int, chosen: dict[str, Way]) -> dict[str, list[float]]:
    """Frozen seconds of every round of every way, in turn, so that a slow moment of the machine hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for number in range(rounds):
        for name, (way, prefault) in chosen.items():
            arena = Arena(int(gib * GIB) + SLACK)
            if prefault:
                arena.prefault(int(gib * GIB) + SLACK // 2)
            seconds[name].append(way(pid, arena))
            del arena
            print(f"round {number + 1}/{rounds}  {name}: {seconds[name][-1]:.3f} s", file=sys.stderr, flush=True)
    return seconds


def rows(seconds: dict[str, list[float]]) -> Sequence[Sequence[str]]:
    """The table's lines: the median and the fastest round, each with its ratio to tmpfs.

    The fastest is what a busy machine distorts least.
    """
    base_median, base_fastest = statistics.median(seconds[BASE]), min(seconds[BASE])
    return [
        [
            name,
            f"{statistics.median(values):.2f}",
            f"{statistics.median(values) / base_median:.2f}×",
            f"{min(values):.2f}",
            f"{min(values) / base_fastest:.2f}×",
        ]
        for name, values in seconds.items()
    ]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--gib", type=float, default=1.0, help="memory of the program")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--disk", type=Path, default=CACHE, help="where the dump to a disk goes")
    parser.add_argument("--json", type=Path, default=CACHE / "bench" / "dump_targets.json")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("run it as root: CRIU needs it")
    options.disk.mkdir(exist_ok=True)
    machine = common.machine(options.disk)
    versions = {**common.versions(("ijfs",)), "criu": ".".join(map(str, criu_command.version(criu_command.find())))}
    print(f"{machine}\n{', '.join(f'{name} {version}' for name, version in versions.items())}\n")
    load = [os.getloadavg()[0]]
    with program(options.gib) as pid:
        seconds = measure(pid, options.gib, options.rounds, ways(options.disk))
    head = ["dump into", "frozen s, median", "to tmpfs", "fastest", "to tmpfs"]
    load.append(os.getloadavg()[0])
    print(f"{common.table(head, rows(seconds))}\n\nload average before and after: {load[0]:.1f}, {load[1]:.1f}")
    common.write_json(
        options.json, {"machine": machine, "versions": versions, "gib": options.gib, "load": load, "frozen_s": seconds}
    )


if __name__ == "__main__":
    main()
