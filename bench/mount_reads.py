"""How fast a mounted snapshot is read, beside the same bytes elsewhere: `python -m bench.mount_reads`, as root.

A Python process with `--gib` of memory (half random, half at four bits a byte) is dumped to tmpfs, and 100,000 small
files are made. Both are imported into a repository and put into a squashfs (zstd). The images are then read from tmpfs,
from a mount of the repository and from squashfuse: in a row, again from the page cache, by O_DIRECT in 1 MiB pieces, at
random in 4 KiB all over and in 64 MiB (where chunks repeat), and by `criu restore`, which reads all before the program
runs. The small files are read by `grep -r`, beside an ext4 just mounted. Beside each figure stands the processor time
of whoever serves the mount, which other programs on the machine hardly change. Each round mounts anew, so that neither
the kernel nor the engine has anything of it in memory; packs and squashfs are in the page cache, the ext4 is not.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from bench import common, mount_places
from bench.dump_targets import CACHE, dump
from ijfs.live.criu import command as criu_command

MIB = 1 << 20
RANDOM_READS = 5000
HOT = 64 * MIB
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
    """Random 4 KiB reads a second all over a file, no two of the same page."""
    pages = random.Random(1).sample(range(path.stat().st_size // 4096), RANDOM_READS)
    return _random_rate(path, pages)


def at_random_again(path: Path) -> float:
    """The same in its first 64 MiB, of which each 32 KiB were touched before: chunks repeat, pages do not."""
    size = min(HOT, path.stat().st_size)
    touched = {offset // 4096 for offset in range(0, size, 32 << 10)}
    _random_rate(path, sorted(touched))
    pages = [page for page in range(size // 4096) if page not in touched]
    random.Random(2).shuffle(pages)
    return _random_rate(path, pages)


def _random_rate(path: Path, pages: Sequence[int]) -> float:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    began = time.perf_counter()
    for page in pages:
        os.pread(descriptor, 4096, page * 4096)
    seconds = time.perf_counter() - began
    os.close(descriptor)
    return len(pages) / seconds


def grep_s(tree: Path) -> float:
    """Seconds of `grep -r` that finds nothing."""
    began = time.perf_counter()
    done = subprocess.run(["grep", "-r", "not in any of them", os.fspath(tree)], check=False)
    assert done.returncode == 1
    return time.perf_counter() - began


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


Found = dict[str, dict[str, list[float]]]
"""Every round, by measure and place."""
Place = Callable[[], AbstractContextManager[Path]]

MEASURES: dict[str, Callable[[Path], float]] = {
    "O_DIRECT, MB/s": lambda images: direct(images / "pages-1.img") / 1e6,
    "random 4 KiB, 1/s": lambda images: at_random(images / "pages-1.img"),
    "random 4 KiB in 64 MiB, 1/s": lambda images: at_random_again(images / "pages-1.img"),
    "criu restore, s": restored_s,
}
GREP = "grep -r of small files, s"


def measure(places: dict[str, Place], small: dict[str, Place], rounds: int) -> Found:
    """Every round of every measure; the places in turn. `places` have the images, `small` the small files."""
    found: Found = {}

    def add(what: str, where: str, place: Path, rate: Callable[[Path], float]) -> None:
        before = mount_places.processor_s(place)
        value = rate(place)
        used = mount_places.processor_s(place) - before
        for name, one in ((what, value), (f"{what}: processor s", used)):
            found.setdefault(name, {}).setdefault(where, []).append(one)
        print(f"{where}: {what} {value:,.2f} ({used:.2f} s of processor)", file=sys.stderr, flush=True)

    for _ in range(rounds):
        for where, place in places.items():
            with place() as images:
                for what in ("in a row, MB/s", "again, MB/s"):
                    add(what, where, images, lambda at: in_a_row(at / "pages-1.img") / 1e6)
            for what, rate in MEASURES.items():
                with place() as images:
                    add(what, where, images, rate)
        for where, place in small.items():
            with place() as tree:
                add(GREP, where, tree, grep_s)
    return found


def rows(found: Found, places: Sequence[str]) -> list[list[str]]:
    """Medians of every place."""
    lines = []
    for what, measured in found.items():
        digits = 2 if what.endswith(" s") else 0
        medians = [statistics.median(measured[where]) if where in measured else None for where in places]
        lines.append([what, *("" if value is None else f"{value:,.{digits}f}" for value in medians)])
    return lines


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--gib", type=float, default=1.0, help="memory of the program")
    parser.add_argument("--files", type=int, default=mount_places.SMALL_FILES, help="small files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--realtime", action="store_true", help="measure before all else that runs here")
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
        tree = work / "small"
        make_images(options.gib, Path(images))
        mount_places.make_small_files(tree, options.files)
        places, small = make_places(Path(images), tree, work)
        if options.realtime:  # whoever serves a mount inherits it
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        found = measure(places, small, options.rounds)
    load.append(os.getloadavg()[0])
    heads = ["tmpfs", "mount", "squashfuse", "ext4, cold"]
    print(common.table(["", *heads], rows(found, heads)))
    if why := mount_places.why_no_squashfuse():
        print(why)
    how = ", measured at real-time priority" if options.realtime else ""
    print(f"\nload average before and after: {load[0]:.1f}, {load[1]:.1f}{how}")
    common.write_json(
        options.json, {"machine": machine, "versions": versions, "gib": options.gib, "load": load, "found": found}
    )


def make_places(images: Path, tree: Path, work: Path) -> tuple[dict[str, Place], dict[str, Place]]:
    """Where the images and where the small files are to be read."""
    mount_places.make_repository(work / "repo", images, tree)
    mount_places.make_ext4(work / "ext4", tree)
    places: dict[str, Place] = {
        "tmpfs": lambda: nullcontext(images),
        "mount": lambda: below(mount_places.mounted(work / "repo"), "images"),
    }
    small: dict[str, Place] = {
        "mount": lambda: below(mount_places.mounted(work / "repo"), "files"),
        "ext4, cold": lambda: mount_places.cold_ext4(work / "ext4"),
    }
    if mount_places.why_no_squashfuse() is None:
        mount_places.make_squash(work / "squash", images, tree)
        places["squashfuse"] = lambda: below(mount_places.squashfuse(work / "squash"), images.name)
        small["squashfuse"] = lambda: below(mount_places.squashfuse(work / "squash"), tree.name)
    return places, small


@contextmanager
def below(place: AbstractContextManager[Path], name: str) -> Iterator[Path]:
    """A directory in a mount."""
    with place as path:
        yield path / name


if __name__ == "__main__":
    main()
