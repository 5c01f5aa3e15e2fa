"""The real driver on plain processes, without sandbox or CRIU: suspend, resume, refuse, time out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from conftest import PORT, PROGRAMS
from waiting import patient

from ijfs.live.checks.result import refused
from ijfs.live.gpu.checkpoint import GpuSteps, GpuSuspendError
from ijfs.live.gpu.driver import ProcessState
from ijfs.live.gpu.evidence import GpuEvidence, device_holders
from ijfs.live.gpu.helper import DriverProcess
from ijfs.live.gpu.nvml import inventory
from ijfs.live.gpu.preflight import check_program

pytestmark = [pytest.mark.gpu, pytest.mark.root]

Ask = Callable[..., str]


@pytest.fixture(scope="module")
def driver() -> Iterator[DriverProcess]:
    found = DriverProcess()
    try:
        found.wait_ready()
        yield found
    finally:
        found.close()


@pytest.fixture
def start() -> Iterator[Callable[[str], tuple[int, Ask]]]:
    """Start one of the programs outside any sandbox; its pid and a way to ask it."""
    processes = []

    def run(program: str) -> tuple[int, Ask]:
        python = os.environ.get("IJFS_TEST_PYTHON", sys.executable)
        process = subprocess.Popen([python, str(PROGRAMS / f"{program}.py")], cwd=PROGRAMS)
        processes.append(process)
        while not ask("hello"):
            assert process.poll() is None, f"{program} ended"
            time.sleep(0.1)
        return process.pid, ask

    yield run
    for process in processes:
        process.kill()
        process.wait()


def ask(*words: str) -> str:
    try:
        with socket.create_connection(("127.0.0.1", PORT), timeout=60) as connection:
            connection.sendall(" ".join(words).encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
    except ConnectionRefusedError:
        return ""


def evidence_of(pid: int) -> list[GpuEvidence]:
    import psutil

    children = [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return device_holders([pid, *children])


def test_a_suspended_program_has_let_go_of_the_device_and_goes_on_after(driver: DriverProcess, start: Callable) -> None:
    pid, ask_it = start("graph")
    expected = ask_it("step", "5")
    evidence = evidence_of(pid)
    assert [item.pid for item in evidence] == [pid]
    assert refused(check_program(evidence, inventory())) == []
    assert inventory().held_by([pid])
    steps = GpuSteps(driver)
    with steps.suspended([pid]):
        assert driver.state(pid) is ProcessState.CHECKPOINTED
        assert not inventory().held_by([pid])
        assert not evidence_of(pid), "no device file is open or mapped any more"
    assert ask_it("digest") == expected
    assert [phase.operation for phase in steps.phases] == ["lock", "checkpoint", "restore", "unlock"]


def test_a_process_without_cuda_is_told_apart(driver: DriverProcess) -> None:
    other = subprocess.Popen(["sleep", "60"])  # not this process: NVML, in use here, counts for the driver
    try:
        assert driver.state(other.pid) is None
        assert device_holders([other.pid]) == []
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize(("program", "check"), [("managed", "managed memory"), ("ipc", "cuda ipc")])
def test_marks_of_memory_that_cannot_come_back(start: Callable, program: str, check: str) -> None:
    pid, _ = start(program)
    found = refused(check_program(evidence_of(pid), inventory()))
    assert {verdict.check for verdict in found} == {check}


def test_what_the_driver_refuses_is_undone(driver: DriverProcess, start: Callable) -> None:
    pid, ask_it = start("managed")
    before = ask_it("sum")
    with pytest.raises(GpuSuspendError, match="CUDA_ERROR_NOT_SUPPORTED"):
        GpuSteps(driver).suspend([pid])
    assert driver.state(pid) is ProcessState.RUNNING
    assert ask_it("sum") == before


def test_a_lock_has_a_time_limit(driver: DriverProcess, start: Callable) -> None:
    pid, ask_it = start("spinner")
    ask_it("spin", "8")
    begin = time.monotonic()
    with pytest.raises(GpuSuspendError, match="lock"):
        GpuSteps(driver).suspend([pid], lock_timeout_ms=500)
    assert time.monotonic() - begin < patient(5)
    assert driver.state(pid) is ProcessState.RUNNING
    assert ask_it("sum") == "1048576.0"


@pytest.mark.gpu(count=2)
def test_a_process_moves_to_the_other_gpu(driver: DriverProcess, start: Callable) -> None:
    pid, ask_it = start("graph")
    expected = ask_it("digest")
    uuids = [gpu.uuid for gpu in inventory().gpus]
    assert list(inventory().held_by([pid])) == uuids[:1]
    steps = GpuSteps(driver)
    steps.suspend([pid])
    steps.resume([pid], gpu_map=dict(zip(uuids, [uuids[1], uuids[0], *uuids[2:]], strict=True)))
    assert list(inventory().held_by([pid])) == uuids[1:2]
    assert ask_it("digest") == expected


@pytest.mark.gpu(count=2)
def test_two_ranks_of_nccl_are_seen(start: Callable) -> None:
    pid, _ = start("nccl")
    found = refused(check_program(evidence_of(pid), inventory()))
    assert {verdict.check for verdict in found} == {"nccl"}
