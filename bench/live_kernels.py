"""Real kernels for live.py: siblings at once, what an idle keeper costs, a kernel in its sandbox and one outside."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from jupyter_client import BlockingKernelClient
from jupyter_client.connect import write_connection_file

from bench.live_programs import end
from ijfs.live.client import api as client
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import InstanceInfo, InstanceSpec

KERNEL = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")

NUMPY = """
import numpy, time
_m = numpy.random.default_rng(0).random((700, 700))
_began = time.perf_counter()
for _ in range(6): _m @ _m
_x = numpy.arange(4_000_000.0)
for _ in range(6): numpy.sort(_x[::-1] * 1.5).sum()
print(time.perf_counter() - _began)
"""

FILES = """
import os, time
_data = os.urandom(1 << 20)
_began = time.perf_counter()
with open("large", "wb") as _file:
    for _ in range(64): _file.write(_data)
with open("large", "rb") as _file:
    while _file.read(1 << 20): pass
for _at in range(500):
    with open(f"small-{_at}", "w") as _file: _file.write("x" * 100)
for _at in range(500):
    with open(f"small-{_at}") as _file: _file.read()
    os.stat(f"small-{_at}")
for _at in range(500): os.unlink(f"small-{_at}")
os.unlink("large")
print(time.perf_counter() - _began)
"""


class Talk:
    """A client of one kernel."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self.client = BlockingKernelClient()
        self.client.load_connection_info(connection)
        self.client.start_channels()

    def ready(self) -> None:
        """Wait until it answers, longer than jupyter_client does when the machine is busy."""
        deadline = time.monotonic() + 120
        while True:
            try:
                return self.client.wait_for_ready(timeout=60)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise

    def run(self, code: str) -> str:
        """What a cell printed."""
        parts: list[str] = []

        def hook(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                parts.append(message["content"]["text"])

        reply = self.client.execute_interactive(code, timeout=300, output_hook=hook, allow_stdin=False)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(reply["content"].get("evalue"))
        return "".join(parts)

    def round_trip(self, count: int) -> float:
        """Seconds from asking for a cell until the kernel is idle again, median."""
        took = []
        for _ in range(count):
            began = time.perf_counter()
            self.run("1 + 1")
            took.append(time.perf_counter() - began)
        return statistics.median(took)

    def close(self) -> None:
        self.client.stop_channels()


@contextlib.contextmanager
def boxed(repo: Path, name: str, cwd: Path) -> Iterator[Talk]:
    """A kernel as an instance."""
    spec = InstanceSpec(name=name, kind="kernel", argv=KERNEL, kernel_name="python3", cwd=str(cwd))
    info = client.start(repo, spec)
    talk = Talk(info.connection or {})
    try:
        talk.ready()
        yield talk
    finally:
        talk.close()
        with contextlib.suppress(Exception):
            end(repo, name)


@contextlib.contextmanager
def outside(cwd: Path) -> Iterator[Talk]:
    """A kernel as Jupyter starts one."""
    file, _ = write_connection_file(str(cwd / "kernel.json"))
    argv = [word.replace("{connection_file}", file) for word in KERNEL]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(argv, cwd=cwd, **quiet)
    talk = Talk(json.loads(Path(file).read_text()))
    try:
        talk.ready()
        yield talk
    finally:
        talk.close()
        process.kill()
        process.wait()


def sandbox_cost(repo: Path, disk: Path, rounds: int) -> dict[str, dict[str, float]]:
    """For each kind of work: seconds in the sandbox and outside, in turn, medians; `ratio`: the median of each turn's.

    Files get the more rounds: how long ext4 looks for a free inode differs up to threefold from one to the
    next, for both sides alike.
    """
    (disk / "outside").mkdir()
    (disk / "inside").mkdir()
    found: dict[str, dict[str, list[float]]] = {}
    with boxed(repo, "inside", disk / "inside") as one, outside(disk / "outside") as other:
        sides = [("inside", one), ("outside", other)]
        for number in range(4 * rounds + 1):
            for where, talk in sides:
                figures = {"files in its directory": float(talk.run(FILES))}
                if number % 3 == 0:
                    figures |= {"cell round trip": talk.round_trip(50), "numpy work": float(talk.run(NUMPY))}
                for what, seconds in figures.items() if number else ():
                    found.setdefault(what, {}).setdefault(where, []).append(seconds)
            sides.reverse()
    return {what: _compared(both["inside"], both["outside"]) for what, both in found.items()}


def _compared(inside: list[float], outside: list[float]) -> dict[str, float]:
    ratio = statistics.median(one / other for one, other in zip(inside, outside, strict=True))
    return {"inside": statistics.median(inside), "outside": statistics.median(outside), "ratio": ratio}


def prepare_siblings(repo: Path, disk: Path, mebibytes: int) -> str:
    """A kernel with so much memory, saved and stopped; its snapshot."""
    with boxed(repo, "parent", disk) as talk:
        talk.run(f"import numpy, os\ndata = numpy.frombuffer(os.urandom({mebibytes} << 20), 'u1').copy()")
        with client.connect(repo, "parent") as keeper:
            return keeper.save("a kernel with siblings to be").snapshot


def siblings(repo: Path, snapshot: str, count: int) -> tuple[float, float, list[dict[str, float]]]:
    """Siblings at once: seconds until `fork` returned, until each has executed a cell; and what their keepers cost."""
    began = time.monotonic()
    infos = client.fork(repo, snapshot, [f"sibling-{number}" for number in range(count)])
    running = time.monotonic() - began
    with ThreadPoolExecutor(count) as pool:
        talks = list(pool.map(_answers, infos))
    answered = time.monotonic() - began
    try:
        for info in infos:
            with client.connect(repo, info.name) as keeper:
                keeper.wait_memory()
        return running, answered, [keeper_cost(repo, info.name, 0.0) for info in infos]
    finally:
        for talk in talks:
            talk.close()
        for info in infos:
            end(repo, info.name)


def _answers(info: InstanceInfo) -> Talk:
    """Connected, and a cell executed."""
    talk = Talk(info.connection or {})
    talk.ready()
    talk.run("data[0]")
    return talk


def keeper_cost(repo: Path, name: str, seconds: float) -> dict[str, float]:
    """What an instance's keeper takes while nothing happens: CPU in percent of a core, PSS and RSS in bytes."""
    keeper = read_record(InstancePaths.of(repo, name)).keeper
    assert keeper is not None
    before = _cpu_s(keeper.pid)
    time.sleep(seconds)
    busy = (_cpu_s(keeper.pid) - before) / seconds * 100 if seconds else 0.0
    sizes = psutil.Process(keeper.pid).memory_full_info()
    return {"cpu_percent": busy, "pss": float(sizes.pss), "rss": float(sizes.rss)}


def _cpu_s(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return used.user + used.system
