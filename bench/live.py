"""Saving, restoring and forking live programs, against CRIU alone in the same run: `python -m bench.live`, as root.

What is ijfs's goes through its client API, as the command line does; the peers are plain `criu dump`, `criu restore`
and `criu lazy-pages`. Programs of 1 and 4 GiB (`live_programs.py`), kernels (`live_kernels.py`). Prints machine,
figures and targets, met or missed; writes JSON and a plot of memory coming in. `--quick`: 256 MiB and 1 GiB.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import common, live_many
from bench.live_kernels import boxed, keeper_cost, prepare_siblings, sandbox_cost, siblings
from bench.live_programs import Boxed, Plain, Restored, restore
from bench.live_targets import Target, targets
from ijfs.fs import mountpoint
from ijfs.live.criu import command as criu_command
from ijfs.live.process import fork_request
from ijfs_engine import Repository

CACHE = Path(__file__).resolve().parents[1] / ".cache"
PACKAGES = ("ijfs", "blake3", "lmdb", "zstandard", "trio", "ipykernel", "numpy")
DELAY_MS = 5
SIBLINGS = 8


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run is: MiB of the small and the large program and of the kernel, rounds, seconds of idleness."""

    small: int = 1024
    large: int = 4096
    kernel: int = 300
    rounds: int = 5
    idle_s: float = 10.0


QUICK = Size(small=256, large=1024, kernel=300, rounds=2, idle_s=2.0)


@dataclass(slots=True)
class Results:
    """All that was measured; what could not be is missing here and said in `notes`."""

    frozen: dict[str, list[float]] = field(default_factory=dict)
    restores: dict[str, list[Restored]] = field(default_factory=dict)
    save_phases: dict[str, float] = field(default_factory=dict)
    siblings: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    keepers: dict[str, dict[str, float]] = field(default_factory=dict)
    sandbox: dict[str, dict[str, float]] = field(default_factory=dict)
    many: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Run:
    """One run: a repository on disk, directories on tmpfs, what was measured so far."""

    def __init__(self, size: Size, tmpfs: Path, disk: Path) -> None:
        self.size = size
        self.tmpfs = tmpfs
        self.disk = disk
        self.repo = disk / "repo"
        self.found = Results()
        Repository.init(self.repo).close()

    def programs(self) -> None:
        """The small program under CRIU alone and in ijfs: saved, restored, restored from far away."""
        plain = Plain(self.tmpfs / "plain", self.size.small)
        try:
            box = Boxed(self.repo, "small", self.size.small)
            for number in range(self.size.rounds + 1):
                alone, saved = plain.dump(), box.save()
                if number:  # the first round only warms up
                    self.found.frozen.setdefault("criu dump into tmpfs", []).append(alone)
                    self.found.frozen.setdefault("ijfs save", []).append(saved.frozen_s)
            self.found.save_phases = saved.phases
            box.ask_to_touch()
            touching = box.save().snapshot
            box.stop()
            plain.dump(stop=True)
            self._restores(plain, saved.snapshot)
            self._far_away(plain, saved.snapshot, touching)
        finally:
            plain.close()

    def _restores(self, plain: Plain, snapshot: str) -> None:
        for number in range(self.size.rounds + 1):
            self._keep("criu restore from tmpfs", number, plain.restore)
            self._forget_packs()
            self._keep("ijfs, lazy, from disk", number, lambda: restore(self.repo, snapshot))
            self._keep("ijfs, lazy, from the page cache", number, lambda: restore(self.repo, snapshot))
            with setting(fork_request.SETTING, "0"):
                self._keep("ijfs, lazy, from the page cache, no spare", number, lambda: restore(self.repo, snapshot))
        self._keep("ijfs, eager", 1, lambda: restore(self.repo, snapshot, eager=True))

    def _far_away(self, plain: Plain, snapshot: str, touching: str) -> None:
        restore(self.repo, touching, touch=True)  # records what it touches
        with far_away():
            for _ in range(self.size.rounds):
                self._keep(f"ijfs, {DELAY_MS} ms a fetch", 1, lambda: restore(self.repo, snapshot))
                self._keep(f"ijfs, {DELAY_MS} ms, 64 MiB touched", 1, lambda: restore(self.repo, touching, touch=True))
        self._keep("criu lazy-pages on tmpfs, 64 MiB touched", 1, lambda: self._criu_lazy(plain, plain.images))
        with self._on_the_mount(plain) as images:
            name = f"criu lazy-pages on the mount, {DELAY_MS} ms, 64 MiB touched"
            self._keep(name, 1, lambda: self._criu_lazy(plain, images))

    def _criu_lazy(self, plain: Plain, images: Path) -> Restored:
        words = [str(criu_command.find()), "lazy-pages", "-D", str(images), "-W", str(plain.work)]
        return plain.restore(images, lazy=words, touch=True)

    @contextlib.contextmanager
    def _on_the_mount(self, plain: Plain) -> Iterator[Path]:
        """The plain program's images in the repository, seen through a mount that is far away."""
        with Repository.open(self.repo) as repository, repository.begin() as writer:
            writer.add_images("images", {path.name: path for path in plain.images.glob("*.img")})
            ident = writer.commit(message="dumped by criu alone", branch="plain").id.hex()
        where = self.disk / "mnt"
        where.mkdir()
        with far_away():
            mountpoint.mount(self.repo, where)
        try:
            yield where / "snapshots" / ident / "images"
        finally:
            mountpoint.umount(where, lazy=True)

    def large_program(self) -> None:
        """The large program in ijfs alone."""
        box = Boxed(self.repo, "large", self.size.large)
        for _ in range(2):
            saved = box.save()
            self.found.frozen.setdefault(f"ijfs save, {self.size.large} MiB", []).append(saved.frozen_s)
        box.stop()
        for number in range(min(3, self.size.rounds) + 1):
            name = f"ijfs, lazy, {self.size.large} MiB"
            self._keep(name, number, lambda: restore(self.repo, saved.snapshot))

    def kernels(self) -> None:
        """Siblings at once, idle keepers, the sandbox's cost."""
        snapshot = prepare_siblings(self.repo, self.disk, self.size.kernel)
        for number in range(min(3, self.size.rounds) + 1):
            for count in (1, SIBLINGS):
                running, answered, costs = siblings(self.repo, snapshot, count)
                if number:
                    self.found.siblings.setdefault(count, []).append((running, answered))
        self.found.keepers[f"of {SIBLINGS} siblings, each"] = {
            what: statistics.mean(cost[what] for cost in costs) for what in ("pss", "rss")
        }
        with boxed(self.repo, "idle", self.disk):
            time.sleep(1.0)
            self.found.keepers["of one kernel"] = keeper_cost(self.repo, "idle", self.size.idle_s)
        self.found.sandbox = sandbox_cost(self.repo, self.disk, 2 * self.size.rounds)

    def many(self) -> None:
        """Many threads and processes, and forked processes that share their memory."""
        self.found.many = live_many.measure(self.repo, self.size.rounds)

    def _keep(self, name: str, number: int, measure: Callable[[], Restored]) -> None:
        """Measure once; rounds with number 0 only warm up."""
        restored = measure()
        if number:
            self.found.restores.setdefault(name, []).append(restored)

    def _forget_packs(self) -> None:
        """Let the page cache forget the packs: the next restore reads them from the disk."""
        os.sync()
        for path in (self.repo / "packs").iterdir():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def far_away() -> contextlib.AbstractContextManager[None]:
    """Each fetch of every process started meanwhile takes 5 ms longer."""
    return setting("IJFS_FETCH_DELAY_MS", str(DELAY_MS))


@contextlib.contextmanager
def setting(name: str, value: str) -> Iterator[None]:
    """An environment variable, meanwhile."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


# --- showing


def show(found: Results) -> str:
    """All figures as tables."""
    parts = []
    if found.frozen:
        rows = [[name, f"{statistics.median(s):.3f}", f"{min(s):.3f}", str(len(s))] for name, s in found.frozen.items()]
        parts.append(common.table(["frozen", "s, median", "fastest", "rounds"], rows))
    if found.restores:
        rows = [[name, *(_figures(rounds))] for name, rounds in found.restores.items()]
        parts.append(
            common.table(["restore", "answers s", "fastest", "all in s", "fastest", "touched s", "rounds"], rows)
        )
    if found.siblings:
        rows = [
            [str(count), *(f"{statistics.median(one[at] for one in rounds):.2f}" for at in (0, 1))]
            for count, rounds in found.siblings.items()
        ]
        parts.append(common.table(["siblings at once", "running s", "all answered s"], rows))
    if found.keepers:
        rows = [
            [name, *(f"{cost[what] / (1 << 20):.1f}" for what in ("pss", "rss")), _percent(cost)]
            for name, cost in found.keepers.items()
        ]
        parts.append(common.table(["idle keeper", "PSS MiB", "RSS MiB", "CPU"], rows))
    if found.sandbox:
        rows = [
            [
                what,
                f"{one['outside'] * 1000:.2f}",
                f"{one['inside'] * 1000:.2f}",
                f"{one['ratio']:.2f}×",
            ]
            for what, one in found.sandbox.items()
        ]
        parts.append(common.table(["a kernel's", "outside ms", "in its sandbox ms", "ratio"], rows))
    if found.many:
        rows = [[name, f"{statistics.median(one):.2f}", f"{min(one):.2f}"] for name, one in found.many.items()]
        parts.append(common.table(["much of it", "s (or MiB), median", "least"], rows))
    parts.append(phases(found))
    return "\n\n".join(parts)


def _figures(rounds: Sequence[Restored]) -> list[str]:
    cells = []
    for what in ("answers_s", "all_in_s"):
        values = [getattr(one, what) for one in rounds]
        cells += [f"{statistics.median(values):.3f}", f"{min(values):.3f}"]
    touched = [one.touched_s for one in rounds if one.touched_s is not None]
    return [*cells, f"{statistics.median(touched):.2f}" if touched else "", str(len(rounds))]


def _percent(cost: dict[str, float]) -> str:
    return f"{cost['cpu_percent']:.2f}%" if "cpu_percent" in cost else ""


def phases(found: Results) -> str:
    """Where the time of the last save and of the median lazy restore went, in ms."""
    lines = ["save, ms: " + _spelled(found.save_phases)] if found.save_phases else []
    for name, rounds in found.restores.items():
        if rounds[0].phases:
            one = sorted(rounds, key=lambda r: r.answers_s)[len(rounds) // 2]
            lines.append(f"{name}, ms: {_spelled(one.phases)}; the client and its keeper's start are the rest")
    return "\n".join(lines)


def _spelled(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {took * 1000:.0f}" for name, took in seconds.items())


def show_targets(kept: Sequence[Target]) -> str:
    rows = [[one.what, one.bound, one.shown, "met" if one.met else "MISSED", one.note] for one in kept]
    return common.table(["target", "bound", "value", "", "compared"], rows)


@contextlib.contextmanager
def places() -> Iterator[tuple[Path, Path]]:
    """A directory on tmpfs and one on disk, gone afterwards."""
    CACHE.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="ijfs-bench-") as tmpfs,
        tempfile.TemporaryDirectory(dir=CACHE, prefix="live-") as disk,
    ):
        yield Path(tmpfs), Path(disk)


def measure(run: Run, only: Sequence[str]) -> None:
    """Each part in turn; one that fails is said, and the others go on."""
    parts: dict[str, Callable[[], None]] = {
        "programs": run.programs,
        "large": run.large_program,
        "kernels": run.kernels,
        "many": run.many,
    }
    for name, part in parts.items():
        if only and name not in only:
            run.found.notes.append(f"{name}: left out")
            continue
        print(f"… {name}", flush=True)
        try:
            part()
        except (Exception, subprocess.SubprocessError) as error:
            run.found.notes.append(f"{name}: {type(error).__name__}: {error}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=("programs", "large", "kernels", "many"), default=[])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=Path, default=CACHE / "bench-live.json")
    parser.add_argument("--plot", type=Path, default=CACHE / "bench-live.png")
    options = parser.parse_args()
    common.compile_modules()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what CRIU restores is ours to wait for
    size = QUICK if options.quick else Size()
    if options.rounds:
        size = Size(size.small, size.large, size.kernel, options.rounds, size.idle_s)
    load = [os.getloadavg()]
    with places() as (tmpfs, disk):
        run = Run(size, tmpfs, disk)
        measure(run, options.only)
        load.append(os.getloadavg())
        machine = common.machine(disk)
    kept = targets(run.found, size.large)
    print(f"{machine}\nload average {load[0][0]:.1f} before, {load[1][0]:.1f} after; CRIU {criu_version()}")
    print(f"\n{show(run.found)}\n\n{show_targets(kept)}")
    for note in run.found.notes:
        print(f"missing: {note}")
    page: dict[str, Any] = {"machine": machine, "versions": common.versions(PACKAGES), "criu": criu_version()}
    page |= {"revision": common.revision(), "load": load, "size": size, "results": run.found, "targets": kept}
    common.write_json(options.json, page)
    if run.found.restores:
        from bench.live_plot import draw

        draw(run.found.restores, options.plot)


def criu_version() -> str:
    return ".".join(map(str, criu_command.version(criu_command.find())))


if __name__ == "__main__":
    main()
