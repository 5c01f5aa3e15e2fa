"""The environment a GPU program is started with so that it can be saved (`ijfs run --gpu`, `--nccl-safe`).

Each setting has its reason; nothing that the user set is overwritten. docs/gpu.md shows the same table.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class Setting(Struct, frozen=True):
    """One environment variable, the value ijfs gives it, and why."""

    name: str
    value: str
    reason: str


GPU_SETTINGS = (
    Setting(
        "UV_USE_IO_URING",
        "0",
        "libuv (uvloop, torch's TCPStore) would open an io_uring, which CRIU cannot dump",
    ),
    Setting(
        "NCCL_CUMEM_HOST_ENABLE",
        "0",
        "NCCL's host buffers from the CUMEM allocator do not come back after a restore",
    ),
    Setting(
        "TORCHINDUCTOR_QUIESCE_ASYNC_COMPILE_POOL",
        "1",
        "torch.compile's worker pool would be dumped and restored with the program",
    ),
    Setting(
        "VLLM_WORKER_MULTIPROC_METHOD",
        "spawn",
        "an engine that is forked inherits files of the GPU, which neither the driver nor CRIU can save",
    ),
    Setting(
        "SPT_NOENV",
        "1",
        "setproctitle (vLLM's workers) would write over the environment in /proc, by which preflight judges NCCL",
    ),
)

OFFLINE_SETTINGS = (
    Setting("VLLM_HOST_IP", "127.0.0.1", "vLLM would look for this machine's address, and there is none but loopback"),
    Setting("GLOO_SOCKET_IFNAME", "lo", "the same for torch's Gloo"),
)

NCCL_SETTINGS = (
    Setting(
        "NCCL_P2P_DISABLE",
        "1",
        "memory mapped from a peer GPU is lost at restore, though checkpoint succeeds",
    ),
    Setting("NCCL_SHM_DISABLE", "1", "shared segments are registered with the driver and are lost at restore"),
    Setting("NCCL_NET", "Socket", "TCP is what CRIU can save and restore"),
    Setting("NCCL_SOCKET_IFNAME", "lo", "a sandbox's ranks meet on its loopback interface"),
    Setting("NCCL_CUMEM_ENABLE", "0", "CUMEM allocations are exported to peers and are lost at restore"),
    Setting("NCCL_CUMEM_HOST_ENABLE", "0", "the same for NCCL's host buffers"),
    Setting("NCCL_NVLS_ENABLE", "0", "NVLink multicast objects cannot be checkpointed"),
    Setting(
        "VLLM_ALLREDUCE_USE_SYMM_MEM",
        "0",
        "torch's symmetric memory is exported to peers as CUMEM allocations are, and leaves no mark either",
    ),
)


def launch_environment(environ: Mapping[str, str], *, nccl_safe: bool = False, offline: bool = False) -> dict[str, str]:
    """`environ` with what ijfs adds (`offline`: for a sandbox without a network); a variable that is already there
    keeps its value."""
    settings = (*GPU_SETTINGS, *(OFFLINE_SETTINGS if offline else ()), *(NCCL_SETTINGS if nccl_safe else ()))
    return {**{setting.name: setting.value for setting in settings}, **environ}


def unsafe_nccl_settings(environ: Mapping[str, str]) -> list[Setting]:
    """The settings of the NCCL profile that a process was not started with."""
    return [setting for setting in NCCL_SETTINGS if environ.get(setting.name) != setting.value]
