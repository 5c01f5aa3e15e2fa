"""What /proc says of a process that may use a GPU; the facts that preflight judges. Reads, never touches.

The marks were read off an H200 machine (driver 580.159, torch 2.11), each against a plain torch process:
- who uses the driver holds files `/dev/nvidia*`, open or mapped; the driver's libraries alone do not. A process that
  called cuInit and made no context maps none of them (vLLM's API server: nvidiactl and nvidia-uvm are open), and the
  driver knows it all the same; one forked after cuInit holds what it inherited, open and mapped, and the driver does
  not know it. So who is a CUDA process only the driver can say (`GpuProgram`);
- a plain context maps `/dev/nvidia-uvm` for its semaphore pools, 2 MiB each, at low addresses (0x204a00000); every
  managed allocation adds a mapping of its own size among the libraries' (0x7f…). One that hid at a low address would
  do no harm: the driver answers its checkpoint with NOT_SUPPORTED, which is undone;
- a process that exports *and* one that imports CUDA IPC memory map `/dev/shm/cuda.shm.<uid>.<pid>.<n>`; a handle
  that nobody opened leaves no mark and does no harm;
- vLLM's custom all-reduce opens memory of the other ranks by CUDA IPC and maps no such file: two H200s, vLLM 0.24.0,
  lost at the driver's restore. Only that vLLM's compiled part is mapped, and its command line, can be seen;
- torch's NCCL process groups run threads named `pt_nccl_watchdg` and `pt_nccl_heartbt`. NCCL peer-to-peer over
  the CUMEM allocator leaves nothing else to see.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

UVM_POOLS_END = 1 << 36
"""Below this address the driver maps its own pools, above it the program's managed memory."""

DEVICE_FILES = "/dev/nvidia"
"""Names of the GPU's files begin with it: nvidia0, nvidiactl, nvidia-uvm, nvidia-caps/…"""

NCCL_THREADS = ("pt_nccl_watchdg", "pt_nccl_heartbt", "NCCL ")


class GpuEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one process (host pid)."""

    pid: int
    is_thread: bool = False
    device_files: tuple[str, ...] = ()
    """The GPU's files that it has open or mapped."""
    managed_bytes: int = 0
    ipc_segments: tuple[str, ...] = ()
    nccl_threads: tuple[str, ...] = ()
    nccl_without_torch: bool = False
    vllm: bool = False
    """It has vLLM's compiled operations loaded."""
    arguments: tuple[str, ...] = ()
    """Its command line, as far as it did not write over it."""
    io_uring: bool = False
    environ: dict[str, str] = {}


def read_evidence(pid: int, proc: Path = Path("/proc")) -> GpuEvidence:
    """Collect the facts of `pid`. Raises ProcessLookupError when it is gone."""
    base = proc / str(pid)
    try:
        maps = [(*_range(line), _name(line)) for line in (base / "maps").read_text().splitlines()]
        comms = sorted(_comms(base))
        targets = set(_descriptors(base))
        status = (base / "status").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"process {pid} is gone") from error
    names = {name for _, _, name in maps}
    managed = [end - begin for begin, end, name in maps if name == "/dev/nvidia-uvm" and begin >= UVM_POOLS_END]
    return GpuEvidence(
        pid=pid,
        is_thread=f"\nTgid:\t{pid}\n" not in status,
        device_files=tuple(sorted(name for name in names | targets if name.startswith(DEVICE_FILES))),
        managed_bytes=sum(managed),
        ipc_segments=tuple(sorted(name for name in names if name.startswith("/dev/shm/cuda.shm."))),
        nccl_threads=tuple(comm for comm in comms if comm.startswith(NCCL_THREADS)),
        nccl_without_torch=_maps(names, "/libnccl.so") and not _maps(names, "/libtorch_cuda.so"),
        vllm=_maps(names, "/vllm/_C"),
        arguments=_arguments(base),
        io_uring=any("[io_uring]" in target for target in targets),
        environ=_environ(base),
    )


def _maps(names: set[str], library: str) -> bool:
    return any(library in name for name in names)


def _range(line: str) -> tuple[int, int]:
    begin, end = line.split(" ", 1)[0].split("-")
    return int(begin, 16), int(end, 16)


def _name(line: str) -> str:
    fields = line.split(None, 5)
    return fields[5] if len(fields) == 6 else ""


def _comms(base: Path) -> Iterator[str]:
    for task in (base / "task").iterdir():
        try:
            yield (task / "comm").read_text().rstrip("\n")
        except (FileNotFoundError, ProcessLookupError):
            continue


def _descriptors(base: Path) -> Iterator[str]:
    for entry in (base / "fd").iterdir():
        try:
            yield os.readlink(entry)
        except (FileNotFoundError, ProcessLookupError):
            continue


def _arguments(base: Path) -> tuple[str, ...]:
    try:
        return tuple(map(os.fsdecode, (base / "cmdline").read_bytes().split(b"\0")))
    except OSError:
        return ()


def _environ(base: Path) -> dict[str, str]:
    """The environment the process was started with; what it set later cannot be seen. Nothing if it may not be read."""
    try:
        raw = (base / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in raw.split(b"\0") if b"=" in item)
    return {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}


def device_holders(pids: list[int], proc: Path = Path("/proc")) -> list[GpuEvidence]:
    """Those of `pids` that hold files of the GPU, in the order given; ones that ended meanwhile are left out."""
    found = []
    for pid in pids:
        try:
            evidence = read_evidence(pid, proc)
        except ProcessLookupError:
            continue
        if evidence.device_files:
            found.append(evidence)
    return found
