"""The seam to the CUDA driver's process checkpoint API; `checkpoint` and `preflight` know nothing beneath it.

`CudaDriver` is the real thing, through cuda-bindings; it lives in the helper process (`helper`), since
initialising the driver takes seconds and maps gigabytes of address space that a keeper should not carry.
Tests put a fake behind the same protocol to check the order of steps and every failure.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Mapping
from typing import Any, Protocol

from ijfs_engine.errors import IjfsError

GpuMap = Mapping[str, str]
"""UUID a process was checkpointed on → UUID it is restored on, every GPU that the driver sees named."""


class ProcessState(enum.IntEnum):
    """A CUDA process as the driver sees it; the numbers are `CUprocessState`'s."""

    RUNNING = 0
    LOCKED = 1
    CHECKPOINTED = 2
    FAILED = 3
    CHECKPOINTING = 4
    RESTORING = 5


class DriverError(IjfsError):
    """The CUDA driver refused a call; `code` is its own name for the reason (`CUDA_ERROR_…`)."""

    def __init__(self, operation: str, pid: int, code: str, *, hint: str | None = None) -> None:
        super().__init__(f"the CUDA driver answered {code} to {operation} of process {pid}", hint=hint)
        self.operation, self.pid, self.code = operation, pid, code


class DriverUnavailableError(IjfsError):
    """No CUDA driver, no bindings, or a driver without the checkpoint API."""

    default_hint = "a driver of 570 or newer and `pip install ijfs[gpu]` are needed; `ijfs doctor` shows what is there"


class CheckpointDriver(Protocol):
    """What the steps need of a driver. Pids are host pids; every call blocks and may come from any thread."""

    def state(self, pid: int) -> ProcessState | None:
        """The state of a process, or None where it has no CUDA context (it is not disturbed by the question)."""

    def lock(self, pid: int, timeout_ms: int) -> None:
        """Stop further CUDA calls of the process, waiting for those under way; RUNNING again on a time-out."""

    def checkpoint(self, pid: int) -> None:
        """Copy device memory into the process's host memory and release the device. LOCKED → CHECKPOINTED."""

    def restore(self, pid: int, gpu_map: GpuMap | None = None) -> None:
        """Take the device again and copy the memory back. CHECKPOINTED → LOCKED."""

    def unlock(self, pid: int) -> None:
        """Let CUDA calls go on. LOCKED → RUNNING."""


class CudaDriver:
    """The driver itself. Raises DriverUnavailableError at construction where there is none."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise DriverUnavailableError(f"cuda-bindings cannot be imported: {error}") from error
        if not hasattr(driver, "cuCheckpointProcessLock"):
            raise DriverUnavailableError("these cuda-bindings are older than the checkpoint API (12.8)")
        self._cuda: Any = driver
        try:
            (result,) = driver.cuInit(0)
        except RuntimeError as error:
            raise DriverUnavailableError(f"libcuda cannot be used: {error}") from error
        if result != driver.CUresult.CUDA_SUCCESS:
            raise DriverUnavailableError(f"the CUDA driver does not start: {result.name}")

    def state(self, pid: int) -> ProcessState | None:
        result, state = self._cuda.cuCheckpointProcessGetState(pid)
        if result in (
            self._cuda.CUresult.CUDA_ERROR_NOT_INITIALIZED,
            self._cuda.CUresult.CUDA_ERROR_INVALID_VALUE,
        ):
            return None
        self._check("state", pid, result)
        return ProcessState(int(state))

    def lock(self, pid: int, timeout_ms: int) -> None:
        args = self._cuda.CUcheckpointLockArgs()
        args.timeoutMs = timeout_ms
        self._check("lock", pid, self._cuda.cuCheckpointProcessLock(pid, args)[0])

    def checkpoint(self, pid: int) -> None:
        self._check("checkpoint", pid, self._cuda.cuCheckpointProcessCheckpoint(pid, None)[0])

    def restore(self, pid: int, gpu_map: GpuMap | None = None) -> None:
        args = self._restore_args(gpu_map) if gpu_map else None
        self._check("restore", pid, self._cuda.cuCheckpointProcessRestore(pid, args)[0])

    def unlock(self, pid: int) -> None:
        self._check("unlock", pid, self._cuda.cuCheckpointProcessUnlock(pid, None)[0])

    def _restore_args(self, gpu_map: GpuMap) -> Any:
        pairs = []
        for old, new in gpu_map.items():
            pair = self._cuda.CUcheckpointGpuPair()
            pair.oldUuid, pair.newUuid = self._uuid(old), self._uuid(new)
            pairs.append(pair)
        args = self._cuda.CUcheckpointRestoreArgs()
        args.gpuPairs = pairs
        args.gpuPairsCount = len(pairs)
        return args

    def _uuid(self, text: str) -> Any:
        uuid = self._cuda.CUuuid()
        ctypes.memmove(uuid.getPtr(), uuid_bytes(text), 16)  # its `bytes` cannot be assigned in every release
        return uuid

    def _check(self, operation: str, pid: int, result: Any) -> None:
        if result != self._cuda.CUresult.CUDA_SUCCESS:
            raise DriverError(operation, pid, result.name, hint=_HINTS.get((operation, result.name)))


def uuid_bytes(text: str) -> bytes:
    """The 16 bytes of a GPU's UUID as NVML and nvidia-smi write it (`GPU-xxxxxxxx-xxxx-…`)."""
    digits = text.removeprefix("GPU-").replace("-", "")
    raw = bytes.fromhex(digits)
    if len(raw) != 16:
        raise ValueError(f"not a GPU UUID: {text!r}")
    return raw


_HINTS = {
    (
        "lock",
        "CUDA_ERROR_NOT_READY",
    ): "GPU work did not come to rest in time; save between kernels, or raise --gpu-timeout",
    (
        "checkpoint",
        "CUDA_ERROR_NOT_SUPPORTED",
    ): "the program holds managed (UVM) or shared (IPC) GPU memory, which this driver cannot save",
    ("restore", "CUDA_ERROR_OUT_OF_MEMORY"): "free GPU memory, or restore on another GPU with --gpu",
    (
        "restore",
        "CUDA_ERROR_NOT_SUPPORTED",
    ): "memory that GPUs or processes share (NCCL peer-to-peer) cannot come back",
}
