"""What is refused before a GPU program is touched, and why: the judgement on `evidence` and `nvml`'s facts.

A good answer from the driver's lock and checkpoint proves nothing: with NCCL peer-to-peer memory both succeed and the
restore fails, so that the program is lost. So whatever is known not to come back is refused here; what cannot be
detected is said to be unknown. Called by doctor and before every save.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ijfs.live.checks.result import CheckResult
from ijfs.live.gpu.environment import unsafe_nccl_settings
from ijfs.live.gpu.evidence import GpuEvidence
from ijfs.live.gpu.nvml import Inventory
from ijfs.live.process import memory

MINIMUM_DRIVER = 570
"""cuCheckpointProcess* came with CUDA 12.8, whose driver branch is 570 (CUDA driver API reference)."""

REMAP_DRIVER = 580
"""First driver branch that can restore on another GPU (`CUcheckpointRestoreArgs.gpuPairs`)."""

HOST_HEADROOM = 2.1
"""Host memory wanted per byte of GPU memory: the driver's copy, and the memory that the dump is written into; the
driver's own buffers on top (1.03–1.07 of the first seen)."""

FORKED_REMEDY = (
    "start worker processes by `spawn` or `forkserver` (a DataLoader's `multiprocessing_context`, vLLM's"
    " VLLM_WORKER_MULTIPROC_METHOD=spawn), or before the first CUDA call; end what watches the GPU"
)
"""What to do about a process that holds the GPU's files without being a CUDA process."""


class _Rule(NamedTuple):
    """One thing that no process may have."""

    check: str
    found: Callable[[GpuEvidence], str]
    """Evidence that this one has it; "" where it has not."""
    remedy: str
    otherwise: str
    """Of a process that has not, with its {pid}."""

    def judge(self, process: GpuEvidence) -> CheckResult:
        """The result for this process."""
        if evidence := self.found(process):
            return CheckResult(check=self.check, outcome="refuse", evidence=evidence, remedy=self.remedy)
        return CheckResult(check=self.check, outcome="ok", evidence=self.otherwise.format(pid=process.pid))


_RULES = (
    _Rule(
        "pid",
        lambda one: f"{one.pid} is a thread: the driver would take it for its process" if one.is_thread else "",
        "give the process id",
        "{pid} is a process",
    ),
    _Rule(
        "managed memory",
        lambda one: (
            f"process {one.pid} maps {one.managed_bytes >> 20} MiB of managed (UVM) memory" if one.managed_bytes else ""
        ),
        "allocate with cudaMalloc, not cudaMallocManaged; the driver refuses to checkpoint managed memory",
        "process {pid} maps none",
    ),
    _Rule(
        "cuda ipc",
        lambda one: (
            f"process {one.pid} shares GPU memory with another by CUDA IPC ({one.ipc_segments[0]})"
            if one.ipc_segments
            else ""
        ),
        "end the sharing process, or pass tensors between processes through host memory"
        " (vLLM with several GPUs: --disable-custom-all-reduce)",
        "process {pid} has no shared segment",
    ),
    _Rule(
        "io_uring",
        lambda one: f"process {one.pid} has an io_uring open, which CRIU cannot dump" if one.io_uring else "",
        "start it with UV_USE_IO_URING=0 (`ijfs run --gpu` does), or set kernel.io_uring_disabled=2",
        "process {pid} has none open",
    ),
)


def check_program(
    processes: Sequence[GpuEvidence], inventory: Inventory, strangers: Sequence[GpuEvidence] = ()
) -> list[CheckResult]:
    """All results on a tree's CUDA processes, and on those that hold the GPU's files though the driver does not know
    them (`strangers`); an empty list when it has neither."""
    if not processes and not strangers:
        return []
    results = [*check_driver(inventory)]
    for process in processes:
        results += [rule.judge(process) for rule in _RULES]
    results += [_stranger(process) for process in strangers]
    results += [_nccl(processes, inventory), _mps(inventory, processes), _host_memory(processes, inventory)]
    return results


def check_driver(inventory: Inventory) -> list[CheckResult]:
    """Driver, MIG and compute mode of the machine."""
    if inventory.problem:
        return [
            CheckResult(
                check="driver", outcome="refuse", evidence=inventory.problem, remedy="install the NVIDIA driver"
            )
        ]
    return [_version(inventory), _mig(inventory), _compute_mode(inventory)]


def _version(inventory: Inventory) -> CheckResult:
    branch = int(inventory.driver_version.split(".")[0])
    evidence = f"driver {inventory.driver_version}, CUDA {inventory.cuda_version}"
    if branch < MINIMUM_DRIVER:
        remedy = f"install driver {MINIMUM_DRIVER} or newer"
        return CheckResult(check="driver", outcome="refuse", evidence=evidence, remedy=remedy)
    if branch < REMAP_DRIVER:
        remedy = f"driver {REMAP_DRIVER} or newer could restore on another GPU"
        return CheckResult(check="driver", outcome="warn", evidence=evidence, remedy=remedy)
    return CheckResult(check="driver", outcome="ok", evidence=evidence)


def _mig(inventory: Inventory) -> CheckResult:
    split = [str(gpu.index) for gpu in inventory.gpus if gpu.mig]
    if split:
        evidence = f"MIG is on for GPU {', '.join(split)}: the driver answers a checkpoint with 'out of memory'"
        return CheckResult(check="mig", outcome="refuse", evidence=evidence, remedy="turn MIG off for this GPU")
    return CheckResult(check="mig", outcome="ok", evidence="MIG is off")


def _compute_mode(inventory: Inventory) -> CheckResult:
    exclusive = [str(gpu.index) for gpu in inventory.gpus if gpu.compute_mode != 0]
    if exclusive:
        evidence = f"GPU {', '.join(exclusive)} takes one process only: a fork beside the original cannot start"
        return CheckResult(check="compute mode", outcome="warn", evidence=evidence, remedy="nvidia-smi -c DEFAULT")
    return CheckResult(check="compute mode", outcome="ok", evidence="every GPU takes several processes")


def _stranger(process: GpuEvidence) -> CheckResult:
    """The driver lets go of a CUDA process's own files; those that a process inherited or NVML opened stay, and CRIU
    can dump none of them."""
    names = ", ".join(name.removeprefix("/dev/") for name in process.device_files)
    evidence = f"process {process.pid} was forked after CUDA was initialised, or uses NVML alone: it holds the GPU's"
    evidence += f" files ({names}), of which the driver frees CUDA processes only"
    return CheckResult(check="device files", outcome="refuse", evidence=evidence, remedy=FORKED_REMEDY)


def _nccl(processes: Sequence[GpuEvidence], inventory: Inventory) -> CheckResult:
    """Ranks in one tree are refused unless each was started with the settings that make NCCL restorable.

    One rank alone on one GPU has no peer to share memory with (a sandbox's network ends at its own namespace). Torch
    always maps libnccl, and shows its communicators by their threads. A process that maps libnccl without torch
    shows nothing: it counts as a rank.
    """
    ranks = [process for process in processes if process.nccl_threads or process.nccl_without_torch]
    suspects = ranks if len(ranks) > 1 or _spans_gpus(ranks, inventory) else []
    unsafe = [process for process in suspects if unsafe_nccl_settings(process.environ)]
    remedy = "start it with `ijfs run --gpu --nccl-safe`; --force saves anyway and may lose the running program"
    if unsafe:
        missing = ", ".join(f"{item.name}={item.value}" for item in unsafe_nccl_settings(unsafe[0].environ))
        evidence = f"{len(ranks)} NCCL rank(s), process {unsafe[0].pid} was started without {missing}: a checkpoint"
        evidence += " would succeed and its restore fail, and the program be lost"
        if not unsafe[0].environ:
            evidence = f"{len(ranks)} NCCL rank(s), and what process {unsafe[0].pid} was started with cannot be read"
            evidence += " (setproctitle writes over it, unless SPT_NOENV=1): with other settings than the restorable"
            evidence += " ones its restore would fail, and the program be lost"
        return CheckResult(check="nccl", outcome="refuse", evidence=evidence, remedy=remedy)
    if suspects and _custom_all_reduce(processes):
        evidence = f"{len(ranks)} NCCL rank(s) of vLLM, and no --disable-custom-all-reduce on a command line: its own"
        evidence += " all-reduce shares GPU memory by CUDA IPC, the restore would fail, and the program be lost"
        remedy = "start vLLM with --disable-custom-all-reduce, too; after `LLM(disable_custom_all_reduce=True)`, which"
        remedy += " cannot be seen from outside, save with --force"
        return CheckResult(check="nccl", outcome="refuse", evidence=evidence, remedy=remedy)
    if suspects:
        return CheckResult(check="nccl", outcome="ok", evidence=f"{len(ranks)} ranks, all with restorable settings")
    evidence = "one rank, without a peer" if ranks else "no communicator seen"
    return CheckResult(check="nccl", outcome="ok", evidence=evidence)


def _custom_all_reduce(processes: Sequence[GpuEvidence]) -> bool:
    """Whether vLLM may use it: its workers show what they have loaded, its server what it was told."""
    told = {argument.replace("_", "-") for process in processes for argument in process.arguments}
    return any(process.vllm for process in processes) and "--disable-custom-all-reduce" not in told


def _spans_gpus(processes: Sequence[GpuEvidence], inventory: Inventory) -> bool:
    return any(len(inventory.held_by([process.pid])) > 1 for process in processes)


def _mps(inventory: Inventory, processes: Sequence[GpuEvidence]) -> CheckResult:
    clients = [process.pid for process in processes if "CUDA_MPS_PIPE_DIRECTORY" in process.environ]
    if clients:
        evidence = f"process {clients[0]} was started with CUDA_MPS_PIPE_DIRECTORY: whether it uses MPS is not visible"
        return CheckResult(
            check="mps", outcome="unknown", evidence=evidence, remedy="an MPS client cannot be checkpointed"
        )
    return CheckResult(check="mps", outcome="ok", evidence="no MPS setting in the environment")


def _host_memory(processes: Sequence[GpuEvidence], inventory: Inventory) -> CheckResult:
    held = sum(inventory.held_by([process.pid for process in processes]).values())
    free = memory.available()
    evidence = f"{held >> 20} MiB of GPU memory go to host memory twice, {free >> 20} MiB are available"
    if held * HOST_HEADROOM > free:
        return CheckResult(
            check="host memory",
            outcome="refuse",
            evidence=evidence,
            remedy="free host memory, add swap, or raise the container's limit",
        )
    return CheckResult(check="host memory", outcome="ok", evidence=evidence)
