"""The order of the GPU steps and the undoing of each, on a fake driver (its state machine is the real one's)."""

from __future__ import annotations

import pytest
from fake_driver import FakeDriver

from ijfs.live.gpu.checkpoint import GpuLostError, GpuSteps, GpuSuspendError
from ijfs.live.gpu.driver import ProcessState

RUNNING, CHECKPOINTED = ProcessState.RUNNING, ProcessState.CHECKPOINTED


def test_all_are_locked_before_the_first_is_checkpointed() -> None:
    driver = FakeDriver(10, 11, 12)
    GpuSteps(driver).suspend([10, 11, 12])
    assert [operation for operation, _ in driver.calls] == ["lock"] * 3 + ["checkpoint"] * 3
    assert set(driver.states.values()) == {CHECKPOINTED}


def test_none_is_unlocked_before_all_have_their_memory() -> None:
    driver = FakeDriver(10, 11)
    steps = GpuSteps(driver)
    steps.suspend([10, 11])
    driver.calls.clear()
    steps.resume([10, 11])
    assert [operation for operation, _ in driver.calls] == ["restore", "restore", "unlock", "unlock"]
    assert set(driver.states.values()) == {RUNNING}


@pytest.mark.parametrize(
    ("operation", "pid", "code"),
    [
        ("lock", 10, "CUDA_ERROR_NOT_READY"),
        ("lock", 12, "CUDA_ERROR_NOT_READY"),
        ("checkpoint", 10, "CUDA_ERROR_NOT_SUPPORTED"),
        ("checkpoint", 11, "CUDA_ERROR_OUT_OF_MEMORY"),
        ("checkpoint", 12, "NO_ANSWER"),
    ],
)
def test_a_failure_at_any_step_leaves_every_process_running(operation: str, pid: int, code: str) -> None:
    driver = FakeDriver(10, 11, 12, failures={(operation, pid): code})
    with pytest.raises(GpuSuspendError, match=f"{code} to {operation} of process {pid}; the program runs on"):
        GpuSteps(driver).suspend([10, 11, 12])
    assert set(driver.states.values()) == {RUNNING}


def test_a_process_that_is_gone_is_named_and_the_others_run_on() -> None:
    driver = FakeDriver(10, 12)
    with pytest.raises(GpuSuspendError, match="process 11"):
        GpuSteps(driver).suspend([10, 11, 12])
    assert driver.states == {10: RUNNING, 12: RUNNING}


def test_an_undoing_that_fails_names_the_state_of_every_process() -> None:
    failures = {("checkpoint", 11): "CUDA_ERROR_NOT_SUPPORTED", ("restore", 10): "CUDA_ERROR_OUT_OF_MEMORY"}
    with pytest.raises(GpuLostError, match="process 10 is checkpointed, process 11 is running"):
        GpuSteps(FakeDriver(10, 11, failures=failures)).suspend([10, 11])


def test_a_restore_that_fails_says_what_each_is_left_as() -> None:
    driver = FakeDriver(10, 11)
    steps = GpuSteps(driver)
    steps.suspend([10, 11])
    driver.failures["restore", 11] = "CUDA_ERROR_OUT_OF_MEMORY"
    with pytest.raises(GpuLostError, match="process 10 is locked, process 11 is checkpointed"):
        steps.resume([10, 11])


def test_the_body_that_raises_still_gets_the_gpu_back() -> None:
    driver = FakeDriver(10)
    with pytest.raises(RuntimeError, match="dump failed"), GpuSteps(driver).suspended([10]):
        raise RuntimeError("dump failed")
    assert driver.states == {10: RUNNING}


def test_the_map_of_gpus_reaches_every_restore() -> None:
    driver = FakeDriver(10, 11)
    steps = GpuSteps(driver)
    steps.suspend([10, 11])
    steps.resume([10, 11], gpu_map={"a": "b", "b": "a"})
    assert driver.maps == [{"a": "b", "b": "a"}] * 2


def test_each_call_is_timed() -> None:
    ticks = iter(range(100))
    steps = GpuSteps(FakeDriver(10), clock=lambda: float(next(ticks)))
    steps.suspend([10])
    assert [(phase.operation, phase.pid, phase.seconds) for phase in steps.phases] == [
        ("lock", 10, 1.0),
        ("checkpoint", 10, 1.0),
    ]
    assert steps.seconds == {"lock": 3.0, "checkpoint": 3.0}, "the whole set, from before the first to after the last"
