"""A program's GPU side over its whole life, on a fake driver and this machine's own processes as its tree."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from fake_driver import FakeDriver
from test_preflight import ONE

from ijfs.live.gpu.checkpoint import GpuLostError, GpuSuspendError
from ijfs.live.gpu.driver import ProcessState
from ijfs.live.gpu.evidence import GpuEvidence
from ijfs.live.gpu.huge_pages import HugePages
from ijfs.live.gpu.program import GpuProgram, GpuRecord, host_pids, inner_pid
from ijfs_engine.errors import PreflightError

ME = os.getpid()


def program(driver: FakeDriver, *processes: GpuEvidence) -> GpuProgram:
    nowhere = Path("/nonexistent")  # no test changes the machine's setting
    return GpuProgram(
        driver,
        take_inventory=lambda: ONE,
        find=lambda _root: list(processes),
        huge_pages=HugePages(nowhere, nowhere),
    )


def test_a_program_without_cuda_is_left_alone() -> None:
    driver = FakeDriver()
    assert program(driver).suspend(ME) is None
    assert driver.calls == []


def test_suspend_and_resume_leave_it_running_and_the_record_survives_json() -> None:
    driver = FakeDriver(ME)
    gpu = program(driver, GpuEvidence(pid=ME))
    record = gpu.suspend(ME)
    assert driver.states == {ME: ProcessState.CHECKPOINTED}
    assert msgspec.json.decode(msgspec.json.encode(record), type=GpuRecord) == record
    gpu.resume()
    assert driver.states == {ME: ProcessState.RUNNING}
    gpu.resume()
    assert list(gpu.phases) == ["gpu_lock", "gpu_checkpoint", "gpu_restore", "gpu_unlock"]


def test_what_preflight_refuses_is_not_touched_unless_forced() -> None:
    driver = FakeDriver(ME)
    gpu = program(driver, GpuEvidence(pid=ME, managed_bytes=1 << 20))
    with pytest.raises(PreflightError, match="managed memory"):
        gpu.suspend(ME)
    assert driver.calls == []
    assert gpu.suspend(ME, force=True) is not None


HELD = ("/dev/nvidia0", "/dev/nvidiactl")


def test_a_process_that_the_driver_does_not_know_is_refused_before_anything_is_touched() -> None:
    driver = FakeDriver(ME)
    gpu = program(driver, GpuEvidence(pid=ME), GpuEvidence(pid=os.getppid(), device_files=HELD))
    with pytest.raises(PreflightError, match=f"device files: process {os.getppid()} was forked after CUDA"):
        gpu.suspend(ME)
    assert driver.calls == []
    record = gpu.suspend(ME, force=True)
    assert record is not None
    assert [process.inner_pid for process in record.processes] == [inner_pid(ME)]


def test_a_tree_of_such_processes_alone_is_refused_too() -> None:
    driver = FakeDriver()
    gpu = program(driver, GpuEvidence(pid=ME, device_files=HELD))
    with pytest.raises(PreflightError, match="device files"):
        gpu.suspend(ME)
    assert gpu.suspend(ME, force=True) is None
    assert [verdict.check for verdict in gpu.check(ME) if verdict.outcome == "refuse"] == ["device files"]


def test_inherited_files_that_the_driver_leaves_open_undo_the_suspend_and_are_named() -> None:
    driver = FakeDriver(ME)
    gpu = program(driver, GpuEvidence(pid=ME, device_files=HELD))
    with pytest.raises(GpuSuspendError, match=f"process {ME} holds /dev/nvidia0, /dev/nvidiactl still") as caught:
        gpu.suspend(ME)
    assert "spawn" in str(caught.value.hint)
    assert driver.states == {ME: ProcessState.RUNNING}
    assert gpu.suspend(ME, force=True) is not None, "--force leaves it to CRIU"


def test_huge_pages_are_wanted_while_the_driver_copies_and_at_no_other_time(tmp_path: Path) -> None:
    driver = FakeDriver(ME)
    setting = tmp_path / "enabled"
    for name in ("enabled", "defrag"):
        (tmp_path / name).write_text("always [madvise] never")
    gpu = GpuProgram(
        driver,
        take_inventory=lambda: ONE,
        find=lambda _root: [GpuEvidence(pid=ME)],
        huge_pages=HugePages(tmp_path, tmp_path / "state"),
    )
    seen: list[str] = []
    driver.on_call = lambda: seen.append(setting.read_text())
    gpu.suspend(ME)
    assert setting.read_text() == "madvise"
    gpu.resume()
    assert seen == ["always"] * 4
    assert setting.read_text() == "madvise"
    driver.failures["checkpoint", ME] = "CUDA_ERROR_NOT_SUPPORTED"
    with pytest.raises(GpuSuspendError):
        gpu.suspend(ME)
    assert setting.read_text() == "madvise"


def test_a_new_keepers_gpu_side_puts_back_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/before.json").write_text('{"enabled": "madvise", "defrag": "defer"}')
    for name in ("enabled", "defrag"):
        (tmp_path / name).write_text("[always] madvise never")
    GpuProgram(FakeDriver(), huge_pages=HugePages(tmp_path, tmp_path / "state"))
    assert [(tmp_path / name).read_text() for name in ("enabled", "defrag")] == ["madvise", "defer"]


def test_a_failed_suspend_has_nothing_to_resume() -> None:
    driver = FakeDriver(ME, failures={("lock", ME): "CUDA_ERROR_NOT_READY"})
    gpu = program(driver, GpuEvidence(pid=ME))
    with pytest.raises(GpuSuspendError):
        gpu.suspend(ME)
    gpu.resume()
    assert driver.states == {ME: ProcessState.RUNNING}


def test_a_restored_tree_gets_its_gpu_by_the_pids_inside() -> None:
    driver = FakeDriver(ME)
    gpu = program(driver, GpuEvidence(pid=ME))
    record = gpu.suspend(ME)
    assert record is not None
    assert record.processes[0].inner_pid == inner_pid(ME)
    gpu.restore(ME, record)
    assert driver.states == {ME: ProcessState.RUNNING}


def test_a_restored_process_without_gpu_state_is_an_error_that_names_it() -> None:
    driver = FakeDriver(ME)
    gpu = program(driver, GpuEvidence(pid=ME))
    record = gpu.suspend(ME)
    gpu.resume()
    assert record is not None
    with pytest.raises(GpuLostError, match=f"process {ME} is running"):
        gpu.restore(ME, record)


def test_host_pids_finds_this_process() -> None:
    assert host_pids(ME)[inner_pid(ME)] == ME
