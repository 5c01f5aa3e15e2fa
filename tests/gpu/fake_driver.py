"""A CheckpointDriver without a GPU: keeps the driver's state machine, and fails where a test says.

It tests our order of steps and our undoing; that the steps work is shown by tests/gpu/test_on_gpu.py, on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ijfs.live.gpu.driver import DriverError, GpuMap, ProcessState

_MOVES = {
    "lock": (ProcessState.RUNNING, ProcessState.LOCKED),
    "checkpoint": (ProcessState.LOCKED, ProcessState.CHECKPOINTED),
    "restore": (ProcessState.CHECKPOINTED, ProcessState.LOCKED),
    "unlock": (ProcessState.LOCKED, ProcessState.RUNNING),
}


class FakeDriver:
    """`failures` maps (operation, pid) to the code the driver answers with; `calls` is what was asked, in order."""

    def __init__(self, *pids: int, failures: dict[tuple[str, int], str] | None = None) -> None:
        self.states = dict.fromkeys(pids, ProcessState.RUNNING)
        self.failures = failures or {}
        self.calls: list[tuple[str, int]] = []
        self.maps: list[GpuMap | None] = []
        self.on_call: Callable[[], object] = lambda: None
        self._guard = threading.Lock()

    def state(self, pid: int) -> ProcessState | None:
        return self.states.get(pid)

    def lock(self, pid: int, timeout_ms: int) -> None:
        assert timeout_ms > 0, "a lock without a time limit can hang for ever"
        self._move("lock", pid)

    def checkpoint(self, pid: int) -> None:
        self._move("checkpoint", pid)

    def restore(self, pid: int, gpu_map: GpuMap | None = None) -> None:
        self.maps.append(gpu_map)
        self._move("restore", pid)

    def unlock(self, pid: int) -> None:
        self._move("unlock", pid)

    def _move(self, operation: str, pid: int) -> None:
        before, after = _MOVES[operation]
        with self._guard:
            self.calls.append((operation, pid))
            self.on_call()
            if (operation, pid) in self.failures:
                raise DriverError(operation, pid, self.failures[operation, pid])
            if self.states.get(pid) is not before:
                raise DriverError(operation, pid, "CUDA_ERROR_ILLEGAL_STATE")
            self.states[pid] = after
