"""Files of a program in a sandbox: how long a save stands still for many, and what work on them costs inside.

`make bench-files`, as root. A program that sleeps writes so many files of 500 bytes in directories of 100; it is saved,
100 of them are changed, it is saved again, and a copy of it is brought back. Then the same work on files (written one
after the other, at random, with fsync, many small ones, tar, git, pip) is done outside and inside, by turns: without a
disk of its own, with one (`--disk`), and in a shared folder. Each figure is the median of the rounds. Processor time
is that of the keeper, which other programs on the machine hardly change.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import common
from ijfs.live.client import api as client
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import InstanceSpec, SaveResult
from ijfs.live.process import fork_request
from ijfs_engine import Repository

SIZE = 500
IN_DIRECTORY = 100
CHANGED = 100
HEAD = [
    "files",
    "frozen ms, all new",
    f"frozen, {CHANGED} changed",
    "ingest, all new",
    f"ingest, {CHANGED} changed",
    "keeper's processor, the same",
    "a copy runs after",
]
DISK = 4 << 30

MAKE = f"""
import os, sys
where, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    if number % {IN_DIRECTORY} == 0:
        directory = os.path.join(where, str(number // {IN_DIRECTORY}))
        os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, str(number)), "wb") as file:
        file.write(os.urandom({SIZE}))
"""

CHANGE = f"""
import os, sys
where, count = sys.argv[1], int(sys.argv[2])
for turn in range({CHANGED}):
    number = turn * count // {CHANGED}
    with open(os.path.join(where, str(number // {IN_DIRECTORY}), str(number)), "wb") as file:
        file.write(os.urandom({SIZE}))
"""

# Work on files in the directory given; prints its seconds.
WORK = {
    "64 MiB written, 1 MiB each": """
with open("large", "wb") as file:
    for _ in range(64): file.write(block)
""",
    "64 MiB read": """
with open("large", "rb") as file:
    while file.read(1 << 20): pass
""",
    "4,000 writes of 4 KiB at random": """
with open("large", "r+b") as file:
    for turn in range(4000):
        file.seek(turn * 7919 % 16384 * 4096); file.write(page)
""",
    "100 writes with fsync": """
with open("log", "ab") as file:
    for _ in range(100):
        file.write(page); file.flush(); os.fsync(file.fileno())
""",
    "5,000 small files made": """
for number in range(5000):
    if number % 100 == 0: os.makedirs(f"{turn}/d{number // 100}")
    open(f"{turn}/d{number // 100}/{number}", "wb").write(page[:500])
""",
    "5,000 small files looked at": """
for number in range(5000): os.stat(f"{turn}/d{number // 100}/{number}")
""",
    "20,000 files out of an archive": """
subprocess.run(["tar", "-xf", archive, "--one-top-level=tree" + turn], check=True)
""",
    "git status of 20,000 files": """
git("-C", "tree" + turn, "init", "-q")
git("-C", "tree" + turn, "add", ".")
began = time.perf_counter()
git("-C", "tree" + turn, "status", "--porcelain")
""",
    "numpy installed from a wheel": """
pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-cache-dir"]
subprocess.run([*pip, "--target", "installed" + turn, wheel], check=True)
""",
}
# Done once, at the end: ext4 passes over inode numbers that were given back in the last minutes, so that whoever makes
# files after many were removed there measures that.
LAST = {
    "5,000 small files removed": """
for number in range(5000): os.remove(f"{turn}/d{number // 100}/{number}")
""",
}
PRELUDE = """
import os, subprocess, sys, time
block, page = os.urandom(1 << 20), os.urandom(4096)
directory, turn, archive, wheel = sys.argv[1:]
os.chdir(directory)
def git(*arguments):
    subprocess.run(["git", *arguments], check=True, stdout=subprocess.DEVNULL)
"""
BEGIN = """
import os, sys
os.makedirs(sys.argv[1], exist_ok=True)
"""


class Saved:
    """What the saves and the restore of a program with so many files took."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.first: list[SaveResult] = []
        self.again: list[SaveResult] = []
        self.processor: list[float] = []
        self.restores: list[float] = []

    def row(self) -> list[str]:
        """A line of the table."""
        return [
            f"{self.count:,}",
            *(_median(save.frozen_s for save in saves) for saves in (self.first, self.again)),
            *(_median(save.phases.get("ingest", 0.0) for save in saves) for saves in (self.first, self.again)),
            _median(self.processor),
            _median(self.restores),
        ]


def _median(seconds: Iterable[float]) -> str:
    return _ms(statistics.median(seconds))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f}"


def measure_saves(repo: Path, count: int, rounds: int) -> Saved:
    """Save a program with so many files twice, and bring a copy back."""
    found = Saved(count)
    for _ in range(rounds):
        client.start(repo, InstanceSpec(name="writer", argv=("sleep", "3600"), cwd="/"))
        try:
            _inside(repo, "writer", MAKE, "/tmp/files", str(count))
            found.first.append(_save(repo))
            _inside(repo, "writer", CHANGE, "/tmp/files", str(count))
            before = _keeper_seconds(repo)
            found.again.append(_save(repo))
            found.processor.append(_keeper_seconds(repo) - before)
            began = time.perf_counter()
            client.restore(repo, found.again[-1].snapshot, "copy")
            found.restores.append(time.perf_counter() - began)
        finally:
            _end(repo, "writer", "copy")
    return found


def _save(repo: Path) -> SaveResult:
    time.sleep(0.05)  # what was written in this tick of the clock would be read in the freeze
    with client.connect(repo, "writer") as keeper:
        return keeper.save()


def _keeper_seconds(repo: Path) -> float:
    keeper = read_record(InstancePaths.of(repo, "writer")).keeper
    assert keeper is not None
    fields = Path(f"/proc/{keeper.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _inside(repo: Path, name: str, script: str, *arguments: str) -> bytes:
    line = client.exec_line(repo, name, [sys.executable, "-c", script, *arguments])
    return subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout


def _end(repo: Path, *names: str) -> None:
    for info in client.list_instances(repo):
        if info.name in names:
            if info.status == "running":
                with client.connect(repo, info.name) as keeper:
                    keeper.stop(timeout_s=0, force=True)
            client.remove(repo, info.name)


class Work:
    """Work on files outside and in each kind of sandbox, by turns. `outside`: a directory; `wheel`: numpy's."""

    def __init__(self, repo: Path, outside: Path, wheel: Path) -> None:
        self._repo = repo
        self._archive = _archive_in(outside)
        self._wheel = wheel
        shared = outside / "shared"
        shared.mkdir()
        self._places = {"outside": (None, outside / "own"), "inside": ("plain", Path("/var/tmp/work"))}
        self._places |= {"with --disk": ("disk", Path("/var/tmp/work")), "--share": ("plain", shared)}
        self._taken: dict[str, dict[str, list[float]]] = {
            work: {place: [] for place in self._places} for work in (*WORK, *LAST)
        }
        client.start(repo, InstanceSpec(name="plain", argv=("sleep", "3600"), cwd="/", share=(str(shared),)))
        client.start(repo, InstanceSpec(name="disk", argv=("sleep", "3600"), cwd="/", disk=DISK))

    def measure(self, rounds: int) -> dict[str, dict[str, float]]:
        """Seconds of each piece of work by where it is done."""
        try:
            for name, directory in self._places.values():
                _do(self._repo, name, BEGIN, str(directory))
            for turn in range(rounds):
                for work, script in WORK.items():
                    self._do_everywhere(work, script, turn)
            for turn in range(rounds):
                for work, script in LAST.items():
                    self._do_everywhere(work, script, turn)
        finally:
            _end(self._repo, "plain", "disk")
        return {
            work: {place: statistics.median(seconds) for place, seconds in by.items()}
            for work, by in self._taken.items()
        }

    def _do_everywhere(self, work: str, script: str, turn: int) -> None:
        for place, (name, directory) in self._places.items():
            timed = f"{PRELUDE}began = time.perf_counter()\n{script}\nprint(time.perf_counter() - began)"
            arguments = (str(directory), str(turn), str(self._archive), str(self._wheel))
            self._taken[work][place].append(float(_do(self._repo, name, timed, *arguments)))


def _archive_in(directory: Path) -> Path:
    """A tar file of 20,000 files of 500 bytes."""
    path = directory / "files.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(20_000):
            one = tarfile.TarInfo(f"d{number // IN_DIRECTORY}/{number}")
            one.size = SIZE
            archive.addfile(one, io.BytesIO(os.urandom(SIZE)))
    return path


def _wheel_in(directory: Path) -> Path:
    """numpy's wheel, as pip has it."""
    line = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", directory, "numpy"]
    subprocess.run(line, check=True)
    return next(directory.glob("*.whl"))


def _do(repo: Path, name: str | None, script: str, *arguments: str) -> bytes:
    if name is not None:
        return _inside(repo, name, script, *arguments)
    return subprocess.run([sys.executable, "-c", script, *arguments], check=True, stdout=subprocess.PIPE).stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, nargs="*", default=[500, 5_000, 50_000])
    parser.add_argument("--wheel", type=Path, help="numpy's; by default pip downloads it")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ijfs-bench-files-") as scratch:
        print(f"{common.machine(Path(scratch))}; load {os.getloadavg()[0]:.1f}\n")
        repo, outside = Path(scratch) / "repo", Path(scratch) / "outside"
        outside.mkdir()
        Repository.init(repo).close()
        saved = [measure_saves(repo, count, options.rounds) for count in options.files]
        print(common.table(HEAD, [one.row() for one in saved]))
        work = Work(repo, outside, options.wheel or _wheel_in(outside)).measure(options.rounds)
        fork_request.dismiss(repo)  # the spare, for which copies come up as quickly as they do
    places = list(next(iter(work.values())))
    rows = [
        [name, _ms(by["outside"]), *(f"{by[place] / by['outside']:.2f}×" for place in places[1:])]
        for name, by in work.items()
    ]
    print("\n" + common.table(["work", "outside ms", *places[1:]], rows))
    print(f"\nload {os.getloadavg()[0]:.1f} at the end")
    if options.json:
        common.write_json(options.json, {"saves": {one.count: one.row() for one in saved}, "work": work})
    return 0


if __name__ == "__main__":
    sys.exit(main())
