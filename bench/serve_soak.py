"""What a server of sandboxes leaves behind, and how long its calls take: cycles of create, run, fork and kill.

    make soak ARGS="--cycles 1000"

Each cycle makes a sandbox, writes a file, runs a command, forks it, reads the file in the copy, and kills both; every
tenth is a code interpreter that also runs cells, is paused and resumed. All of it goes through E2B's client. In
between, and at the end, what there is of processes, mounts, loop devices, namespaces, the server's descriptors, files
of instances and bytes on disk is counted. It fails where something grew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench import common

MARK = "IJFS_SOAK"
"""Every process that the soak causes inherits it, with a value of this run."""
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts")
SLACK = 1.5
"""So much more of the disk than after the first look may be in use in the end: gc runs now and then, not always."""
CONNECTIONS = 8
"""Of the client's to the server, which it keeps and lets go of as it likes: descriptors of the server's."""
SETTLE_S = 30.0
"""How long what a killed sandbox had gets to be gone."""

T = TypeVar("T")


@dataclass(frozen=True)
class Counts:
    """What there is: of this run, but for loop devices, which are the machine's."""

    processes: int
    mounts: int
    loops: int
    namespaces: int
    descriptors: int
    instances: int
    snapshots: int
    megabytes: float

    def grown(self, first: Counts) -> list[str]:
        """What there is more of than there was."""
        mine, theirs = asdict(self), asdict(first)
        allowed = {**theirs, "descriptors": theirs["descriptors"] + CONNECTIONS, "megabytes": float("inf")}
        found = [f"{name}: {theirs[name]}, now {mine[name]}" for name in mine if mine[name] > allowed[name]]
        if self.megabytes > first.megabytes * SLACK:
            found.append(f"megabytes: {first.megabytes:.1f}, now {self.megabytes:.1f}")
        return found


class Soak:
    """One run: a server at a free port, its repository, and how long each call took."""

    def __init__(self, directory: Path) -> None:
        self.repo, self.mark = directory / "repo", uuid.uuid4().hex
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.failed: list[str] = []
        os.environ[MARK] = self.mark
        ijfs = [sys.executable, "-P", "-m", "ijfs.cli", "-r", str(self.repo)]
        key = json.loads(subprocess.check_output([*ijfs, "key", "add", "soak", "--json"]))["key"]
        home = directory / "home"  # with no start-up files, which every command would run
        home.mkdir()
        line = [*ijfs, "serve", "--port", "0", "--home", str(home)]
        self.server = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        assert self.server.stderr is not None
        url = self.server.stderr.readline().rpartition(" ")[2].strip()
        os.environ.update(E2B_API_URL=url, E2B_SANDBOX_URL=url, E2B_API_KEY=key)

    def timed(self, name: str, call: Callable[[], T]) -> T:
        """What a call returns; how long it took is noted."""
        began = time.monotonic()
        result = call()
        self.seconds[name].append(time.monotonic() - began)
        return result

    def cycle(self, number: int) -> None:
        """One life of a sandbox and its copy. A call that fails is noted, and ends both."""
        from e2b import SandboxException
        from e2b_code_interpreter import Sandbox

        try:
            self._cycle(number)
        except SandboxException as error:
            print(f"cycle {number}: {error}", flush=True)
            self.failed.append(f"cycle {number}: {error}")
            for listed in Sandbox.list().next_items():
                Sandbox.kill(listed.sandbox_id)

    def _cycle(self, number: int) -> None:
        from e2b_code_interpreter import Sandbox

        template = "code-interpreter-v1" if number % 10 == 0 else "base"
        box = self.timed(f"create {template}", lambda: Sandbox.create(template, timeout=600))
        self.timed("files.write", lambda: box.files.write("/tmp/n", str(number)))
        said = self.timed("commands.run", lambda: box.commands.run("echo $((6 * 7))")).stdout
        assert said == "42\n", said
        if template != "base":
            self._cells(box, number)
        (copy,) = self.timed("fork", lambda: box.fork(count=1, timeout=600))
        if isinstance(copy, Exception):
            raise copy
        assert self.timed("files.read", lambda: copy.files.read("/tmp/n")) == str(number)
        for each in (box, copy):
            self.timed("kill", each.kill)

    def _cells(self, box: Any, number: int) -> None:
        self.timed("run_code", lambda: box.run_code(f"n = {number}"))
        self.timed("pause", box.pause)
        self.timed("resume", box.connect)
        found = self.timed("run_code, first after a resume", lambda: box.run_code("n")).text
        assert found == str(number), found

    def counts(self) -> Counts:
        """What there is now."""
        pids = list(self._pids())
        return Counts(
            processes=len(pids),
            mounts=sum(str(self.repo) in line for line in Path("/proc/self/mountinfo").read_text().splitlines()),
            loops=sum(path.is_dir() for path in Path("/sys/block").glob("loop*/loop")),
            namespaces=len(set(_namespaces(pids))),
            descriptors=len(os.listdir(f"/proc/{self.server.pid}/fd")),
            instances=sum(not path.name.startswith(".") for path in (self.repo / "live").iterdir()),
            snapshots=len(list((self.repo / "serve" / "leftovers").glob("*.json"))),
            megabytes=common.disk_size(self.repo).allocated / 1e6,
        )

    def _pids(self) -> Iterator[int]:
        wanted = f"{MARK}={self.mark}".encode()
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with contextlib.suppress(OSError):
                    if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                        yield int(entry)

    def settled(self, like: Counts | None) -> Counts:
        """What there is once what was ended is gone, or time is over."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            found = self.counts()
            if (like is not None and not found.grown(like)) or time.monotonic() > deadline:
                return found
            if like is None and found.instances == 0 and found.snapshots == 0:
                return found
            time.sleep(0.5)

    def close(self) -> list[int]:
        """End the server; the processes of this run that are left then."""
        from ijfs.live.process import fork_request

        self.server.terminate()
        assert self.server.stderr is not None
        with self.server.stderr as said:
            print(said.read(), end="", file=sys.stderr)
        self.server.wait()
        fork_request.dismiss(self.repo)
        deadline = time.monotonic() + SETTLE_S
        while (left := list(self._pids())) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


def _namespaces(pids: list[int]) -> Iterator[str]:
    for pid in pids:
        for kind in NAMESPACES:
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/{pid}/ns/{kind}")


def percentile(values: list[float], share: float) -> float:
    """The value that so many of them are not above."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def rows(seconds: dict[str, list[float]]) -> list[list[str]]:
    """How long each call took."""
    found = []
    for name, values in seconds.items():
        numbers = (percentile(values, 0.5), percentile(values, 0.99), statistics.mean(values))
        found.append([name, str(len(values)), *(f"{number:.3f}" for number in numbers)])
    return found


def main() -> int:
    """The program; 1 where something was left behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no more cycles after so long")
    parser.add_argument("--look", type=int, default=50, help="cycles between two looks at what there is")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ijfs-soak-"))
    soak = Soak(directory)
    first, looks, until = None, [], time.monotonic() + options.seconds
    try:
        for number in range(options.cycles):
            soak.cycle(number)
            over = number + 1 == options.cycles or time.monotonic() > until
            if (number + 1) % options.look == 0 or over:
                looks.append(soak.settled(first))
                first = first or looks[0]
                print(number + 1, asdict(looks[-1]), flush=True)
            if over:
                break
    finally:
        left = soak.close()
        shutil.rmtree(directory, ignore_errors=True)
    print(common.machine(directory.parent))
    print(common.table(["call, seconds", "n", "p50", "p99", "mean"], rows(soak.seconds)))
    grown = looks[-1].grown(looks[0])
    print("left behind:", "; ".join([*grown, *(f"process {pid}" for pid in left)]) or "nothing")
    print("failed calls:", len(soak.failed))
    if options.json is not None:
        common.write_json(options.json, {"looks": looks, "seconds": soak.seconds, "failed": soak.failed})
    return 1 if grown or left or soak.failed else 0


if __name__ == "__main__":
    sys.exit(main())
