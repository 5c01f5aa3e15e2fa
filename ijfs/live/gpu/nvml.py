"""What GPUs there are and who uses them, through NVML (nvidia-ml-py's `pynvml`); recorded in every GPU snapshot.

Called by doctor, by preflight and before a restore, which is refused with numbers when it cannot fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from ijfs_engine.errors import PreflightError


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU; sizes in bytes, `processes` maps host pids to bytes held (-1 where the driver does not tell)."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    mig: bool
    compute_mode: int
    architecture: str
    processes: dict[int, int]


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """The machine's GPUs and its driver; `problem` says why there are none."""

    driver_version: str = ""
    cuda_version: str = ""
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""

    def held_by(self, pids: Sequence[int]) -> dict[str, int]:
        """GPU UUID → bytes that these processes hold on it."""
        held = {gpu.uuid: sum(max(0, gpu.processes.get(pid, 0)) for pid in pids) for gpu in self.gpus}
        return {uuid: size for uuid, size in held.items() if size}

    def find(self, wanted: str) -> Gpu:
        """The GPU with this index or UUID (or UUID prefix). Raises PreflightError where there is none."""
        for gpu in self.gpus:
            if wanted == str(gpu.index) or gpu.uuid == wanted or gpu.uuid.removeprefix("GPU-").startswith(wanted):
                return gpu
        names = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in self.gpus) or "none"
        raise PreflightError(f"no GPU {wanted!r} on this machine", hint=f"there are: {names}")


def inventory() -> Inventory:
    """Ask NVML. Never raises: a machine without NVIDIA driver answers with its `problem`."""
    try:
        import pynvml
    except ImportError as error:
        return Inventory(problem=f"nvidia-ml-py cannot be imported: {error}")
    try:
        with _session(pynvml):
            return Inventory(
                driver_version=pynvml.nvmlSystemGetDriverVersion(),
                cuda_version=_cuda_version(pynvml.nvmlSystemGetCudaDriverVersion()),
                gpus=tuple(_read(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())),
            )
    except pynvml.NVMLError as error:
        return Inventory(problem=f"NVML: {error}")


@contextmanager
def _session(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _read(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        index=index,
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        mig=_mig(nvml, handle),
        compute_mode=int(nvml.nvmlDeviceGetComputeMode(handle)),
        architecture=".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(handle))),
        processes={int(item.pid): _held(item) for item in nvml.nvmlDeviceGetComputeRunningProcesses(handle)},
    )


def _mig(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:
        return False  # a GPU without MIG answers NOT_SUPPORTED


def _held(item: Any) -> int:
    return -1 if item.usedGpuMemory is None else int(item.usedGpuMemory)


def gpu_map(before: Inventory, now: Inventory, wanted: Sequence[str], used: Sequence[str]) -> dict[str, str]:
    """How a program's GPUs map to this machine's for a restore: every GPU seen then, to a different one now.

    `before` and `now` are the inventories at the save and at the restore, `used` the UUIDs on which the program held
    memory, and `wanted` the user's choice (index or UUID) for those, in their order; empty for the same ones.

    The map is empty when nothing has to change. The driver wants every visible GPU named once on each side, so the
    rest is filled up in order of index. PreflightError when there are too few or a wanted one is not there.
    """
    chosen = [now.find(item).uuid for item in wanted]
    if len(chosen) > len(used) or len(set(chosen)) != len(chosen):
        raise PreflightError(f"the program used {len(used)} GPU(s), --gpu names {len(wanted)}")
    mapping = dict(zip(used, chosen, strict=False))
    old = [gpu.uuid for gpu in before.gpus]
    free = [gpu.uuid for gpu in now.gpus if gpu.uuid not in mapping.values()]
    for uuid in sorted((item for item in old if item not in mapping), key=lambda item: item not in free):
        if not free:
            raise PreflightError(f"the program saw {len(old)} GPUs, this machine has {len(now.gpus)}")
        target = uuid if uuid in free else free[0]
        free.remove(target)
        mapping[uuid] = target
    return {} if all(old_uuid == new for old_uuid, new in mapping.items()) else mapping


def require_room(now: Inventory, needed: Mapping[str, int], mapping: Mapping[str, str], *, copies: int = 1) -> None:
    """Refuse, with the numbers, a restore of `copies` programs that cannot fit: running out inside the driver wedges
    the process. `needed` is GPU UUID (at the save) → bytes. Raises PreflightError."""
    by_uuid = {gpu.uuid: gpu for gpu in now.gpus}
    for old, size in needed.items():
        gpu = by_uuid.get(mapping.get(old, old))
        if gpu is None:
            raise PreflightError(
                f"the program held {size >> 20} MiB on {old}, which is not on this machine",
                hint="name another with --gpu",
            )
        if size * copies > gpu.free_bytes:
            raise PreflightError(
                f"GPU {gpu.index} has {gpu.free_bytes >> 20} MiB free, {copies} × {size >> 20} MiB are needed",
                hint="stop another program on it, or name another GPU with --gpu",
            )
