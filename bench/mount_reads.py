"""How fast a mounted snapshot is read, against the same images on tmpfs: `python -m bench.mount_reads`, as root.

A Python process with `--gib` of memory (half random, half at four bits a byte) is dumped to tmpfs and imported; its
images are then read from there and from a mount of the repository: in a row, again from the page cache, by O_DIRECT in
1 MiB pieces, at random in 4 KiB, and by `criu restore`, which reads all before the program runs. Each round mounts
anew, so that neither the kernel nor the engine has anything of the snapshot in memory; the packs are in the page cache.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bench import common
from bench.dump_targets import CACHE, dump
from ijfs.fs import mountpoint as mounting
from ijfs.live.criu import command as criu_command
from ijfs_engine import Repository

MIB = 1 << 20
RANDOM_READS = 5000
_PR_SET_CHILD_SUBREAPER = 36

PROGRAM = """
import os, sys, time
low = bytes(byte & 15 for byte in range(256))
half = 1 << 19
blocks = [os.urandom(half) + os.urandom(half).translate(low) for _ in range(int(float(sys.argv[1]) * 1024))]
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""


def make_images(gib: float, images: Path) -> None:
    """Dump a process with so much memory, and end it."""
    command = [sys.executable, "-c", PROGRAM, str(gib)]
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        dump(process.pid, images)
    finally:
        process.kill()
        process.communicate()


def import_images(images: Path, repository: Path) -> None:
    """A repository with one snapshot of them."""
    with Repository.init(repository) as opened, opened.begin() as writer:
        writer.add_images("images", {path.name: path for path in images.iterdir()})
        writer.commit(branch="main")


def in_a_row(path: Path) -> float:
    """Bytes a second of reading it all, 1 MiB at a time."""
    return _rate(path, os.O_RDONLY)


def direct(path: Path) -> float:
    """The same past the page cache."""
    return _rate(path, os.O_RDONLY | os.O_DIRECT)


def _rate(path: Path, flags: int) -> float:
    buffer = mmap.mmap(-1, MIB)
    descriptor = os.open(path, flags)
    began = time.perf_counter()
    total = 0
    while length := os.readv(descriptor, [buffer]):
        total += length
    seconds = time.perf_counter() - began
    os.close(descriptor)
    return total / seconds


def at_random(path: Path) -> float:
    """Random 4 KiB reads a second, no two of the same page."""
    pages = random.Random(1).sample(range(path.stat().st_size // 4096), RANDOM_READS)
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    began = time.perf_counter()
    for page in pages:
        os.pread(descriptor, 4096, page * 4096)
    seconds = time.perf_counter() - began
    os.close(descriptor)
    return RANDOM_READS / seconds


def restored_s(images: Path) -> float:
    """Seconds from starting `criu restore` until the program runs."""
    with tempfile.TemporaryDirectory() as work:
        pid_file = Path(work) / "pid"
        command = [os.fspath(criu_command.find()), "restore", "-d", "-D", os.fspath(images), "-W", work, "-o", "log"]
        began = time.perf_counter()
        done = subprocess.run([*command, "--shell-job", "--pidfile", os.fspath(pid_file)], check=False)
        seconds = time.perf_counter() - began
        if done.returncode != 0:
            raise SystemExit((Path(work) / "log").read_text()[-2000:])
        pid = int(pid_file.read_text())
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        return seconds


@contextmanager
def mounted(repository: Path) -> Iterator[Path]:
    """A fresh mount; where the images are in it."""
    with tempfile.TemporaryDirectory() as place:
        mounting.mount(repository, Path(place))
        try:
            yield Path(place) / "branches" / "main" / "images"
        finally:
            mounting.umount(Path(place))


Page = dict[str, dict[str, list[float]]]

MEASURES = ("in a row, MB/s", "again, MB/s", "O_DIRECT, MB/s", "random 4 KiB, 1/s", "criu restore, s")


def measure(images: Path, repository: Path, rounds: int) -> Page:
    """Every round of every measure, by measure and by place; the two places in turn."""
    found: Page = {measure: {"tmpfs": [], "mount": []} for measure in MEASURES}

    def add(what: str, where: str, value: float) -> None:
        found[what][where].append(value)
        print(f"{where}: {what} {value:,.2f}", file=sys.stderr, flush=True)

    for _ in range(rounds):
        _measure_reads(lambda what, value: add(what, "tmpfs", value), lambda: _always(images))
        _measure_reads(lambda what, value: add(what, "mount", value), lambda: mounted(repository))
    return found


@contextmanager
def _always(images: Path) -> Iterator[Path]:
    yield images


def _measure_reads(add: Callable[[str, float], None], place: Callable[[], AbstractContextManager[Path]]) -> None:
    with place() as images:
        pages = images / "pages-1.img"
        add("in a row, MB/s", in_a_row(pages) / 1e6)
        add("again, MB/s", in_a_row(pages) / 1e6)
    with place() as images:
        add("O_DIRECT, MB/s", direct(images / "pages-1.img") / 1e6)
    with place() as images:
        add("random 4 KiB, 1/s", at_random(images / "pages-1.img"))
    with place() as images:
        add("criu restore, s", restored_s(images))


def rows(found: Page) -> list[list[str]]:
    """Medians of both places and their ratio."""
    lines = []
    for what, places in found.items():
        tmpfs, mount = (statistics.median(places[where]) for where in ("tmpfs", "mount"))
        digits = 2 if what.endswith(" s") else 0
        lines.append([what, f"{tmpfs:,.{digits}f}", f"{mount:,.{digits}f}", f"{mount / tmpfs:.3f}×"])
    return lines


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--gib", type=float, default=1.0, help="memory of the program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=CACHE, help="where the repository goes")
    parser.add_argument("--json", type=Path, default=CACHE / "bench" / "mount_reads.json")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("run it as root: CRIU needs it")
    options.work.mkdir(exist_ok=True)
    # What CRIU restores becomes a child of ours, to be waited for.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    machine = common.machine(options.work)
    versions = {
        **common.versions(("ijfs", "trio")),
        "criu": ".".join(map(str, criu_command.version(criu_command.find()))),
    }
    print(f"{machine}\n{', '.join(f'{name} {version}' for name, version in versions.items())}\n")
    load = [os.getloadavg()[0]]
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as images,
        common.empty_directory(options.work / "mount-reads") as work,
    ):
        make_images(options.gib, Path(images))
        import_images(Path(images), work / "repo")
        found = measure(Path(images), work / "repo", options.rounds)
    load.append(os.getloadavg()[0])
    print(common.table(["images of 1 program", "tmpfs", "mount", "ratio"], rows(found)))
    print(f"\nload average before and after: {load[0]:.1f}, {load[1]:.1f}")
    common.write_json(
        options.json, {"machine": machine, "versions": versions, "gib": options.gib, "load": load, "found": found}
    )


if __name__ == "__main__":
    main()
