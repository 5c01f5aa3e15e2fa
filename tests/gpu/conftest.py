"""GPU tests: programs in sandboxes on a real GPU, asked over their relay port; skipped, with the reason, without."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from waiting import patient

from ijfs.live.client import api as client
from ijfs.live.gpu.nvml import inventory
from ijfs.live.model.records import InstanceInfo, InstanceSpec, SaveResult
from ijfs.live.process import fork_request
from ijfs_engine import Repository

PROGRAMS = Path(__file__).parent / "programs"
PORT = 9000
ANSWER_TIMEOUT_S = patient(120.0)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    machine = inventory()
    for item in wanted:
        count = item.get_closest_marker("gpu").kwargs.get("count", 1)  # type: ignore[union-attr]
        if len(machine.gpus) < count:
            reason = machine.problem or f"{len(machine.gpus)} GPU(s) here"
            item.add_marker(pytest.mark.skip(reason=f"needs {count} GPU(s): {reason}"))


class Lab:
    """A repository and the GPU programs that a test starts in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        Repository.init(path).close()

    def start(self, program: str, *arguments: str, nccl_safe: bool = False, name: str = "program") -> InstanceInfo:
        """Start tests/gpu/programs/<program>.py and wait until it answers."""
        python = os.environ.get("IJFS_TEST_PYTHON", sys.executable)
        spec = InstanceSpec(
            name=name,
            argv=(python, str(PROGRAMS / f"{program}.py"), *arguments),
            env={"PYTHONPATH": str(PROGRAMS)},
            nccl_safe=nccl_safe,
            gpu=True,
            ports=(PORT,),
        )
        info = client.start(self.path, spec)
        self.wait(info)
        return info

    def wait(self, info: InstanceInfo) -> None:
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while time.monotonic() < deadline:
            if "error" in ask(info, "hello", quiet=True):  # an unknown verb: the program is up
                return
            assert client.is_running(self.path, info.name), Path(info.log).read_text()
            time.sleep(0.1)
        raise AssertionError(f"{info.name} does not answer: {Path(info.log).read_text()}")

    def save(self, info: InstanceInfo, message: str = "", **options: object) -> SaveResult:
        with client.connect(self.path, info.name) as keeper:
            return keeper.save(message, **options)  # type: ignore[arg-type]

    def kill(self, info: InstanceInfo) -> None:
        with client.connect(self.path, info.name) as keeper:
            keeper.stop(timeout_s=0.1)

    def logs(self, name: str) -> list[str]:
        """The last lines of what the keeper, CRIU and the pager of an instance wrote."""
        found = sorted((self.path / "live" / name).rglob("*.log"))
        return [f"{log.name}: {line}" for log in found for line in log.read_text(errors="replace").splitlines()[-15:]]

    def close(self) -> None:
        for info in client.list_instances(self.path):
            print(f"--- {info.name}: {info.status}", *self.logs(info.name), sep="\n")  # pytest shows it on failure
            if info.status == "running":
                self.kill(info)
        fork_request.dismiss(self.path)


def ask(info: InstanceInfo, *words: str, quiet: bool = False) -> str:
    """One question to a program's relay port. `quiet`: an answer that does not come is the empty string."""
    port = next(port.host for port in info.relay if port.inside == PORT)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT_S) as connection:
            connection.sendall(" ".join(words).encode() + b"\n")
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
    except OSError:
        if quiet:
            return ""
        raise
    assert answer or quiet, f"{info.name} closed the connection without an answer"
    return answer


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A repository on a disk (overlays stand on it), emptied of every program afterwards."""
    path = Path(tempfile.mkdtemp(prefix="ijfs-gpu-"))
    found = Lab(path / "repo")
    try:
        yield found
    finally:
        found.close()
        shutil.rmtree(path, ignore_errors=True)
