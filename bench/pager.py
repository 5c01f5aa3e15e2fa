"""How soon a restored program answers, and how soon all its memory is in: `python -m bench.pager`, as root.

One Python process with `--gib` of mixed memory (floats, text, small integers, random bytes) is dumped to tmpfs once and
put into a repository once, then restored `--rounds` times in each way, the ways taking turns: by CRIU alone from tmpfs,
through the pager from the same files, through the pager from the repository's compressed chunks on disk. `--delay` adds
a wait to each fetch and times the touching of a working set of 64 MiB. Prints tables with ratios within the run, writes
JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from bench import common
from ijfs.live.pager.api import Pager, PagerProcess
from ijfs.live.pager.messages import Source
from ijfs_engine import Repository, is_pages

CRIU = Path(__file__).resolve().parents[1] / ".prefix" / "bin" / "criu"
CACHE = Path(__file__).resolve().parents[1] / ".cache"
PACKAGES = ("ijfs", "blake3", "lmdb", "zstandard")
EAGER = "criu, eager, from tmpfs"

PROGRAM = """
import os, sys, time
import numpy
where, gib = sys.argv[1], float(sys.argv[2])
make = numpy.random.default_rng(1)
blocks = []
for at in range(int(gib * 64)):
    kind = at % 4
    if kind == 0: block = make.normal(size=(4 << 20)).astype("f4").cumsum(dtype="f4")
    elif kind == 1:
        text = " ".join(map(str, make.integers(0, 9999, 3_600_000)))
        block = numpy.frombuffer(text.encode()[: 16 << 20], "u1").copy()
    elif kind == 2: block = make.integers(0, 100, 2 << 20)
    else: block = numpy.frombuffer(make.bytes(16 << 20), "u1").copy()
    blocks.append(block.view("u1"))
order = [divmod(int(piece), 256) for piece in make.permutation(len(blocks) * 256)[:1024]]
def write(name, value):
    with open(f"{where}/{name}.partial", "w") as file: file.write(repr(value))
    os.rename(f"{where}/{name}.partial", f"{where}/{name}")
write("ready", os.getpid())
while not os.path.exists(f"{where}/go"): time.sleep(0.001)
write("alive", time.time())
while not os.path.exists(f"{where}/touch"): time.sleep(0.001)
began = time.monotonic()
total = sum(int(blocks[block][piece * 65536 : (piece + 1) * 65536 : 4096].sum()) for block, piece in order)
write("touched", time.monotonic() - began)
time.sleep(1000)
"""


@dataclass(frozen=True)
class Restored:
    """Seconds from the request: until the program ran, until the last page was in, and for touching the pieces."""

    alive_s: float
    all_in_s: float
    touched_s: float | None = None
    faults: int = 0


class Subject:
    """The dumped program: images on tmpfs, the same in a repository on disk."""

    def __init__(self, tmpfs: Path, disk: Path, gib: float) -> None:
        self.where = tmpfs
        self.images = tmpfs / "images"
        self.workdir = tmpfs / "work"
        self.images.mkdir()
        self.workdir.mkdir()
        argv = [sys.executable, "-c", PROGRAM, str(tmpfs), str(gib)]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(argv, start_new_session=True, **quiet)
        self._wait("ready", 300)
        self.pid = process.pid
        subprocess.run([CRIU, "dump", "-v1", "-t", str(self.pid), "-D", self.images], check=True, capture_output=True)
        process.wait()
        self.repository = disk / "repo"
        with Repository.init(self.repository) as repository, repository.begin() as writer:
            writer.add_images("images", {path.name: path for path in self.images.glob("*.img")})
            self.snapshot = writer.commit(message="dumped").id.hex()
        self.bytes = sum(path.stat().st_size for path in self.images.iterdir() if is_pages(path.name))
        self.stored = common.disk_size(self.repository / "packs").apparent

    def restore(self, source: Source | None, *, touch: bool = False) -> Restored:
        """Bring it back once, from `source` through a pager or else by CRIU alone, and end it."""
        for name in ("go", "alive", "touch", "touched"):
            (self.where / name).unlink(missing_ok=True)
        (self.where / "go").touch()
        if touch:
            (self.where / "touch").touch()
        process = PagerProcess.started() if source is not None else None
        time.sleep(0.5)  # a keeper starts its pager's process early: loading it is not part of a restore
        began = time.time()  # not the monotonic clock: CRIU gives the program a time namespace in which that goes on
        pager = Pager(self.workdir, source, process=process) if source is not None else None
        lazy = ["--lazy-pages"] if pager else []
        argv = [CRIU, "restore", "-v1", "-d", *lazy, "-D", self.images, "-W", self.workdir]
        subprocess.run(argv, check=True, capture_output=True)
        try:
            return self._measure(pager, began, touch)
        finally:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            if pager:
                pager.close()

    def _measure(self, pager: Pager | None, began: float, touch: bool) -> Restored:
        alive = float(self._wait("alive", 60))
        status = pager.wait(300) if pager else None
        if status and status.poisoned:
            raise RuntimeError(f"{status.poisoned} pages could not be had")
        touched = float(self._wait("touched", 300)) if touch else None
        # The pager's own clock starts when CRIU reports the restore: the program's first instructions follow at once.
        all_in = alive - began + (status.seconds if status else 0.0)
        return Restored(alive - began, all_in, touched, status.faults if status else 0)

    def _wait(self, name: str, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        while not (self.where / name).exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the program did not come to {name!r}")
            time.sleep(0.002)
        return (self.where / name).read_text()


def middle(rounds: list[Restored], what: Callable[[Restored], float | None]) -> float:
    return statistics.median(value for value in map(what, rounds) if value is not None)


def compare(subject: Subject, rounds: int) -> dict[str, list[Restored]]:
    """Every way in turn, `rounds` times."""
    ways: dict[str, Source | None] = {
        EAGER: None,
        "pager, from tmpfs": Source(images=str(subject.images)),
        "pager, from the repository": Source(repo=str(subject.repository), snapshot=subject.snapshot),
    }
    found: dict[str, list[Restored]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, source in ways.items():
            restored = subject.restore(source)
            if number:  # the first round only warms caches
                found[name].append(restored)
    return found


def slow(subject: Subject, delay_s: float) -> dict[str, Restored]:
    """With a wait before each fetch: touching 64 MiB with no working set known (which keeps one), then with it."""
    order = str(subject.where / "order")
    source = Source(repo=str(subject.repository), snapshot=subject.snapshot)
    delayed = replace(source, delay_s=delay_s)
    unknown = subject.restore(delayed, touch=True)
    subject.restore(replace(source, keep_in=order), touch=True)
    known = subject.restore(replace(delayed, order=order), touch=True)
    return {"order not known": unknown, "order recorded": known}


def show(subject: Subject, found: Mapping[str, list[Restored]], delayed: Mapping[str, Restored], delay_s: float) -> str:
    base = middle(found[EAGER], lambda one: one.all_in_s)
    rows = []
    for name, rounds in found.items():
        alive, all_in = middle(rounds, lambda one: one.alive_s), middle(rounds, lambda one: one.all_in_s)
        rows.append([name, f"{alive:.3f}", f"{alive / base:.2f}×", f"{all_in:.2f}", f"{all_in / base:.2f}×"])
    first = common.table(["restore", "answers after s", "ratio", "all in after s", "ratio"], rows)
    rows = [
        [name, f"{one.alive_s:.3f}", f"{one.touched_s or 0:.2f}", f"{one.all_in_s:.2f}", str(one.faults)]
        for name, one in delayed.items()
    ]
    head = [f"{delay_s * 1000:.0f} ms per fetch", "answers after s", "64 MiB touched in s", "all in after s", "faults"]
    sizes = f"{common.megabytes(subject.bytes)} MB of pages, {common.megabytes(subject.stored)} MB stored"
    return f"{sizes}\n\n{first}\n\n{common.table(head, rows)}"


@contextmanager
def places() -> Iterator[tuple[Path, Path]]:
    """A directory on tmpfs and one on disk, empty, gone afterwards."""
    CACHE.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="ijfs-bench-") as tmpfs,
        tempfile.TemporaryDirectory(dir=CACHE, prefix="pager-") as disk,
    ):
        yield Path(tmpfs), Path(disk)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delay", type=float, default=0.005, help="seconds per fetch in the second table")
    parser.add_argument("--json", type=Path, default=CACHE / "bench-pager.json")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what CRIU restores is ours to wait for
    with places() as (tmpfs, disk):
        subject = Subject(tmpfs, disk, options.gib)
        found = compare(subject, options.rounds)
        delayed = slow(subject, options.delay)
        machine = common.machine(disk)
        print(f"{machine}\n{show(subject, found, delayed, options.delay)}")
        page = {"machine": machine, "versions": common.versions(PACKAGES), "revision": common.revision()}
        common.write_json(options.json, {**page, "gib": options.gib, "restores": found, "delayed": delayed})


if __name__ == "__main__":
    main()
