"""A Python program with so much memory, alone under CRIU (`Plain`) and as an instance (`Boxed`). Called by live.py.

The program notices that it was restored: its own clock has jumped. It writes the time down (when it *answers*), and
where it was asked to, touches 64 MiB in pieces of 64 KiB all over its memory and writes down when it is through. So
nothing has to be sent to it, and both ways are timed by the same clock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ijfs.live.client import api as client
from ijfs.live.criu import command as criu_command
from ijfs.live.criu.dump_stats import frozen_seconds
from ijfs.live.model.records import InstanceInfo, InstanceSpec, SaveResult

PAGE = 4096
JUMP_S = 1.0
"""What the program takes for a restore: standing still for so long."""

PROGRAM = """
import os, sys, time
import numpy
where, mebibytes = sys.argv[1], int(sys.argv[2])
make = numpy.random.default_rng(1)
blocks = []
for at in range(mebibytes // 16):
    if at % 4 == 0: block = make.standard_normal(4 << 20, dtype="f4").cumsum(dtype="f4")
    elif at % 4 == 1:
        block = make.integers(48, 58, 16 << 20, dtype="u1")
        block[::5] = 32
    elif at % 4 == 2: block = make.integers(0, 100, 2 << 20)
    else: block = make.integers(0, 256, 16 << 20, dtype="u1")
    blocks.append(block.view("u1"))
order = [divmod(int(piece), 256) for piece in make.permutation(len(blocks) * 256)[:1024]]
def write(name, value):
    with open(f"{where}/{name}.partial", "w") as file: file.write(repr(value))
    os.rename(f"{where}/{name}.partial", f"{where}/{name}")
write("ready", time.time())
last = time.time()
while True:
    time.sleep(0.002)
    now = time.time()
    if now - last > JUMP:
        write("alive", now)
        if os.path.exists(f"{where}/touch"):
            began = time.time()
            total = sum(int(blocks[b][piece << 16 : (piece + 1) << 16 : 4096].sum()) for b, piece in order)
            write("touched", (began, time.time()))
    last = time.time()
""".replace("JUMP", str(JUMP_S))


@dataclass(slots=True)
class Restored:
    """Seconds since the restore was asked for: until the program answered, until all its memory was in, until its
    pieces were touched. `curve`: (seconds, bytes resident). `phases`: of ijfs, in seconds."""

    answers_s: float
    all_in_s: float
    touched_s: float | None = None
    curve: list[tuple[float, int]] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)


def arguments(where: Path, mebibytes: int) -> tuple[str, ...]:
    return (sys.executable, "-c", PROGRAM, str(where), str(mebibytes))


def wait_for(path: Path, timeout_s: float, later_than: float = 0.0) -> str:
    """The content of a file that the program renames into place, once it is there and new enough."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError):
            if path.stat().st_mtime >= later_than:
                return path.read_text()
        if time.monotonic() > deadline:
            raise TimeoutError(f"the program did not come to {path.name!r}")
        time.sleep(0.002)


def _wait_for_socket(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"criu made no {path.name}")
        time.sleep(0.001)


@contextlib.contextmanager
def resident(pid: int, began: float) -> Iterator[list[tuple[float, int]]]:
    """Sample the memory of a process, or of a child if that has more (in a sandbox the first process is an init), every
    5 ms, in the background; from before it exists."""
    curve: list[tuple[float, int]] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.005):
            with contextlib.suppress(OSError, IndexError):
                family = [str(pid), *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
                pages = [int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in family]
                curve.append((time.time() - began, max(pages) * PAGE))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield curve
    finally:
        ended.set()
        thread.join()


class Plain:
    """The program without ijfs: dumped into a directory on tmpfs by CRIU, restored from there by CRIU."""

    def __init__(self, tmpfs: Path, mebibytes: int) -> None:
        self.where = tmpfs
        self.images = tmpfs / "images"
        self.work = tmpfs / "work"
        self.work.mkdir(parents=True)
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(arguments(tmpfs, mebibytes), start_new_session=True, **quiet)
        self.pid = self._process.pid
        wait_for(tmpfs / "ready", 300)

    def dump(self, *, stop: bool = False) -> float:
        """Dump into an empty directory; how long the program stood still, in seconds."""
        shutil.rmtree(self.images, ignore_errors=True)
        self.images.mkdir()
        leave = [] if stop else ["--leave-running"]
        self._criu("dump", "-t", str(self.pid), "-D", str(self.images), "-W", str(self.work), *leave)
        if stop:
            self._process.wait()
        return frozen_seconds(self.work)

    def restore(
        self, images: Path | None = None, *, lazy: Sequence[str] | None = None, touch: bool = False
    ) -> Restored:
        """Bring it back once and end it; `lazy`: the words that begin CRIU's own pager."""
        (self.where / "touch").touch() if touch else (self.where / "touch").unlink(missing_ok=True)
        time.sleep(JUMP_S + 0.2)
        began = time.time()
        (self.work / "lazy-pages.socket").unlink(missing_ok=True)
        pager = subprocess.Popen([*lazy], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) if lazy else None
        if lazy:
            _wait_for_socket(self.work / "lazy-pages.socket")
        with resident(self.pid, began) as curve:
            words = ["--lazy-pages"] if lazy else []
            self._criu("restore", "-d", *words, "-D", str(images or self.images), "-W", str(self.work))
            try:
                answers = float(wait_for(self.where / "alive", 120, began))
                touched = _touched(self.where, began) if touch else None
                all_in = answers
                if pager is not None:
                    pager.wait(300)
                    all_in = time.time()
            finally:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                if pager is not None:
                    pager.kill()
                    pager.wait()
        return Restored(answers - began, all_in - began, touched, curve)

    def close(self) -> None:
        """End it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @staticmethod
    def _criu(*words: str) -> None:
        done = subprocess.run([str(criu_command.find()), *words, "-v1"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"criu {words[0]}: {done.stdout}{done.stderr}")


class Boxed:
    """The program as an instance of ijfs, through the client API that the command line uses."""

    def __init__(self, repo: Path, name: str, mebibytes: int) -> None:
        self.repo = repo
        self.name = name
        info = client.start(repo, InstanceSpec(name=name, argv=arguments(Path("/tmp"), mebibytes), cwd="/"))
        wait_for(inside(info) / "ready", 300)

    def save(self) -> SaveResult:
        with client.connect(self.repo, self.name) as keeper:
            return keeper.save()

    def ask_to_touch(self) -> None:
        client.exec_command(self.repo, self.name, ["touch", "/tmp/touch"])

    def stop(self) -> None:
        end(self.repo, self.name)


def inside(info: InstanceInfo) -> Path:
    """Where the sandbox's /tmp is seen from outside."""
    return Path(info.log).parents[2] / "tmp"


def end(repo: Path, name: str) -> None:
    """Stop an instance and forget it."""
    with client.connect(repo, name) as keeper:
        keeper.stop(timeout_s=0)
    client.remove(repo, name)


def restore(repo: Path, snapshot: str, *, touch: bool = False, eager: bool = False) -> Restored:
    """Restore a snapshot of the program once, as a user would, until all its memory is in; end it."""
    time.sleep(JUMP_S + 0.2)
    began = time.time()
    info = client.restore(repo, snapshot, "restored", eager=eager)
    try:
        assert info.pid is not None
        with resident(info.pid, began) as curve:
            answers = float(wait_for(inside(info) / "alive", 120, began))
            with client.connect(repo, "restored") as keeper:
                touched = _touched(inside(info), began) if touch else None
                keeper.wait_memory()
                all_in = time.time()
        return Restored(answers - began, all_in - began, touched, curve, info.phases)
    finally:
        end(repo, "restored")


def _touched(where: Path, began: float) -> float:
    """Seconds from the request until the program was through with its pieces."""
    _, through = wait_for(where / "touched", 300, began).strip("()").split(",")
    return float(through) - began
