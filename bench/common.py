"""What every benchmark shares: the machine in a sentence, the cost of a command, sizes on disk, caches, tables, JSON.

The programs in bench/ call it; it imports the standard library only, so that the process that measures stays small.
"""

from __future__ import annotations

import compileall
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

_READ = 4 << 20


# --- the machine


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the numbers come from; nothing in it names a host or a path."""

    date: str
    processor: str
    cores: int
    memory_gib: float
    system: str
    kernel: str
    python: str
    filesystem: str

    def __str__(self) -> str:
        return (
            f"{self.date} · {self.cores} cores ({self.processor}), {self.memory_gib:.0f} GiB · {self.system}, "
            f"Linux {self.kernel} · {self.filesystem} · Python {self.python}"
        )


def machine(work: Path) -> Machine:
    """This machine, with the filesystem that `work` is on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=memory / (1 << 30),
        system=platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        kernel=".".join(platform.release().split(".")[:2]),
        python=platform.python_version(),
        filesystem=filesystem(work),
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def filesystem(path: Path) -> str:
    """The type of the filesystem that a path is on, such as `ext4`."""
    best, kind = Path("/"), "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4].encode().decode("unicode_escape"))
        if path.resolve().is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, kind = point, right.split()[0]
    return kind


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of installed Python packages; those that are missing are left out."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str:
    """The checkout's commit, with a `+` where files were changed since; empty where there is no git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=10", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def compile_modules() -> None:
    """As an installed ijfs has them: a checkout may be without, and each start would compile what it loads."""
    for package in ("ijfs", "ijfs_engine"):
        spec = importlib.util.find_spec(package)
        for directory in (spec and spec.submodule_search_locations) or ():
            compileall.compile_dir(directory, quiet=2)


def program_version(command: Sequence[str]) -> str | None:
    """The first line a program says of its version; None where it is not installed."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).splitlines()[0].strip()


# --- the cost of a command


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, where, and with what added to the environment."""

    argv: tuple[str, ...]
    cwd: Path | None = None
    env: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one command, or of several that followed one another.

    `wall_s` until it returned; `sync_s` until after that everything it wrote was on the disk; `cpu_s` user and system
    time of it and its children; `rss_bytes` the most memory that one of its processes had resident; `elsewhere_s` the
    CPU time that the rest of the machine used meanwhile, write-back among it: large where the machine was not quiet.
    """

    wall_s: float = 0.0
    sync_s: float = 0.0
    cpu_s: float = 0.0
    rss_bytes: int = 0
    elsewhere_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Until everything was on the disk."""
        return self.wall_s + self.sync_s

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.wall_s + other.wall_s,
            self.sync_s + other.sync_s,
            self.cpu_s + other.cpu_s,
            max(self.rss_bytes, other.rss_bytes),
            self.elsewhere_s + other.elsewhere_s,
        )


class CommandError(RuntimeError):
    """A command that was measured failed; the message has what it said."""


def measure(command: Command, *, sync: Path | None = None) -> Cost:
    """Run a command to its end; with `sync`, wait until that path's filesystem has everything. CommandError.

    wait4 counts the command and every descendant it waited for. Linux begins a new program's peak RSS at its parent's
    (exec_mmap), hence the process that calls this has to be small.
    """
    with Path(os.devnull).open("rb") as nothing:
        busy, began = _busy_seconds(), time.perf_counter()
        child = subprocess.Popen(
            command.argv,
            cwd=command.cwd,
            env={**os.environ, **(command.env or {})},
            stdin=nothing,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        wall, busy = time.perf_counter() - began, _busy_seconds() - busy
    child.stdout.close()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise CommandError(f"{' '.join(command.argv)}: exit status {child.returncode}\n{said.decode(errors='replace')}")
    synced = _sync(sync) if sync else 0.0
    cpu = usage.ru_utime + usage.ru_stime
    return Cost(wall, synced, cpu, usage.ru_maxrss << 10, max(0.0, busy - cpu))


def _busy_seconds() -> float:
    """CPU time of everything on the machine since it booted, time that a hypervisor gave to others included."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _sync(path: Path) -> float:
    """Seconds that syncfs took."""
    began = time.perf_counter()
    subprocess.run(["sync", "--file-system", str(path)], check=True)
    return time.perf_counter() - began


def median(costs: Sequence[Cost]) -> Cost:
    """The one in the middle by wall time, with the largest RSS of all."""
    middle = sorted(costs, key=lambda cost: cost.total_s)[len(costs) // 2]
    return replace(middle, rss_bytes=max(cost.rss_bytes for cost in costs))


# --- disk and caches


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of all files of a tree: blocks they take, and lengths as `ls -l` shows them."""

    allocated: int
    apparent: int


def disk_size(path: Path) -> Size:
    """Everything below a path, hard links once, directories left out."""
    files = {(info.st_dev, info.st_ino): info for info in (file.lstat() for file in _files(path))}
    return Size(sum(info.st_blocks * 512 for info in files.values()), sum(info.st_size for info in files.values()))


def drop_caches() -> None:
    """Forget every clean page of every file; root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def warm(paths: Sequence[Path]) -> None:
    """Read every file below those paths into the page cache."""
    buffer = bytearray(_READ)
    for file in (file for path in paths for file in _files(path)):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def same_files(left: Path, right: Path) -> bool:
    """Whether two directories hold the same files with the same bytes."""
    names = {file.relative_to(left) for file in _files(left)}
    return names == {file.relative_to(right) for file in _files(right)} and all(
        _same_bytes(left / name, right / name) for name in names
    )


def _same_bytes(left: Path, right: Path) -> bool:
    with left.open("rb", buffering=0) as one, right.open("rb", buffering=0) as other:
        while data := one.read(_READ):
            if data != other.read(len(data)):
                return False
        return not other.read(1)


def _files(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if not file.is_dir() or file.is_symlink())


@contextmanager
def empty_directory(path: Path) -> Iterator[Path]:
    """A directory that is empty at the start and gone at the end."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# --- showing


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up in a terminal; the first column stands left, the others right."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]) + " |"

    rule = "|" + "|".join("-" * (width + 2) if at == 0 else "-" * (width + 1) + ":" for at, width in enumerate(widths))
    return "\n".join([line(head), rule + "|", *map(line, rows)])


def megabytes(size: float) -> str:
    """Bytes as a number of MB (10^6)."""
    return f"{size / 1e6:,.0f}"


def write_json(path: Path, page: Mapping[str, Any]) -> None:
    """Write a page of results; dataclasses in it become objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(page, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else asdict(value)
