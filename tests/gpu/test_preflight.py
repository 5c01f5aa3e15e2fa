"""What preflight refuses, on facts as they were read off an H200 machine; and the reading of them from /proc."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from ijfs.live.gpu.environment import NCCL_SETTINGS, launch_environment
from ijfs.live.gpu.evidence import GpuEvidence, device_holders, read_evidence
from ijfs.live.gpu.nvml import Gpu, Inventory, gpu_map, require_room
from ijfs.live.gpu.preflight import check_program
from ijfs_engine.errors import PreflightError

GIB = 1 << 30
SAFE = {setting.name: setting.value for setting in NCCL_SETTINGS}


def gpu(index: int, uuid: str, *, free: int = 100 * GIB, **changes: object) -> Gpu:
    plain = Gpu(
        index=index, uuid=uuid, name="NVIDIA H200", total_bytes=140 * GIB, free_bytes=free, mig=False,
        compute_mode=0, architecture="9.0", processes={},
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


ONE = Inventory(driver_version="580.159.04", cuda_version="13.0", gpus=(gpu(0, "GPU-a"),))
TWO = msgspec.structs.replace(ONE, gpus=(gpu(0, "GPU-a"), gpu(1, "GPU-b")))


def refused(processes: list[GpuEvidence], inventory: Inventory = ONE) -> set[str]:
    return {verdict.check for verdict in check_program(processes, inventory) if verdict.outcome == "refuse"}


def test_a_plain_torch_process_passes() -> None:
    assert refused([GpuEvidence(pid=1, device_files=("/dev/nvidiactl",))]) == set()


@pytest.mark.parametrize(
    ("evidence", "check"),
    [
        (GpuEvidence(pid=1, managed_bytes=64 << 20), "managed memory"),
        (GpuEvidence(pid=1, ipc_segments=("/dev/shm/cuda.shm.0.2b1.1",)), "cuda ipc"),
        (GpuEvidence(pid=1, io_uring=True), "io_uring"),
        (GpuEvidence(pid=1, is_thread=True), "pid"),
    ],
)
def test_what_the_driver_or_criu_cannot_save_is_refused(evidence: GpuEvidence, check: str) -> None:
    assert refused([evidence]) == {check}
    assert all(verdict.remedy for verdict in check_program([evidence], ONE) if verdict.outcome == "refuse")


def test_two_nccl_ranks_need_the_restorable_settings() -> None:
    ranks = [GpuEvidence(pid=pid, nccl_threads=("pt_nccl_watchdg",)) for pid in (1, 2)]
    assert refused(ranks, TWO) == {"nccl"}
    safe = [msgspec.structs.replace(rank, environ=SAFE) for rank in ranks]
    assert refused(safe, TWO) == set()
    assert refused([safe[0], ranks[1]], TWO) == {"nccl"}


def test_symmetric_memory_between_ranks_is_refused_since_nothing_else_shows_it() -> None:
    environ = {**SAFE, "VLLM_ALLREDUCE_USE_SYMM_MEM": "1"}
    ranks = [GpuEvidence(pid=pid, nccl_threads=("pt_nccl_watchdg",), environ=environ) for pid in (1, 2)]
    [verdict] = [verdict for verdict in check_program(ranks, TWO) if verdict.outcome == "refuse"]
    assert "was started without VLLM_ALLREDUCE_USE_SYMM_MEM=0" in verdict.evidence


def test_the_all_reduce_of_vllm_is_refused_unless_its_server_was_told_to_leave_it(tmp_path: Path) -> None:
    """On two H200s its save took 10 s, the driver refused to restore it, and the server was lost."""
    loaded = "7f00003000-7f00004000 r-xp 00000000 fe:00 1 /opt/lib/vllm/_C.abi3.so\n"
    environ = b"\0".join(f"{name}={value}".encode() for name, value in SAFE.items())
    for pid in (5, 6):
        write_proc(tmp_path, pid, maps=PLAIN_MAPS + loaded, comm="pt_nccl_watchdg", environ=environ)
    write_proc(tmp_path, 4, maps=PLAIN_MAPS)
    (tmp_path / "4/cmdline").write_bytes(b"python3\0-m\0vllm\0--tensor-parallel-size\x002\0")
    [verdict] = [found for found in check_program(_all(tmp_path), TWO) if found.outcome == "refuse"]
    assert "no --disable-custom-all-reduce" in verdict.evidence
    for spelling in (b"--disable-custom-all-reduce", b"--disable_custom_all_reduce"):
        (tmp_path / "4/cmdline").write_bytes(b"python3\0-m\0vllm\0" + spelling + b"\0")
        assert refused(_all(tmp_path), TWO) == set()


def _all(proc: Path) -> list[GpuEvidence]:
    return [read_evidence(pid, proc) for pid in (4, 5, 6)]


def test_an_environment_that_was_written_over_is_refused_as_what_it_is(tmp_path: Path) -> None:
    for pid in (5, 6):
        write_proc(tmp_path, pid, maps=PLAIN_MAPS, comm="pt_nccl_watchdg")
        (tmp_path / str(pid) / "environ").write_bytes(bytes(1500))
    ranks = [read_evidence(pid, tmp_path) for pid in (5, 6)]
    [verdict] = [verdict for verdict in check_program(ranks, TWO) if verdict.outcome == "refuse"]
    assert "process 5 was started with cannot be read" in verdict.evidence
    assert "SPT_NOENV=1" in verdict.evidence


def test_one_rank_alone_has_no_peer_unless_it_spans_gpus() -> None:
    rank = GpuEvidence(pid=1, nccl_threads=("pt_nccl_watchdg",))
    assert refused([rank]) == set()
    spanning = msgspec.structs.replace(
        TWO, gpus=(gpu(0, "GPU-a", processes={1: GIB}), gpu(1, "GPU-b", processes={1: GIB}))
    )
    assert refused([rank], spanning) == {"nccl"}


def test_nccl_without_torch_cannot_be_seen_and_is_refused_in_doubt() -> None:
    ranks = [GpuEvidence(pid=pid, nccl_without_torch=True) for pid in (1, 2)]
    assert refused(ranks, TWO) == {"nccl"}


def test_old_drivers_and_mig_are_refused() -> None:
    process = [GpuEvidence(pid=1)]
    assert refused(process, msgspec.structs.replace(ONE, driver_version="550.54")) == {"driver"}
    assert refused(process, msgspec.structs.replace(ONE, gpus=(gpu(0, "GPU-a", mig=True),))) == {"mig"}


def test_gpu_memory_that_host_memory_cannot_take_is_refused() -> None:
    huge = msgspec.structs.replace(ONE, gpus=(gpu(0, "GPU-a", processes={1: 1 << 60}),))
    assert refused([GpuEvidence(pid=1)], huge) == {"host memory"}


def write_proc(root: Path, pid: int, *, maps: str, comm: str = "python3", environ: bytes = b"A=1\0") -> None:
    base = root / str(pid)
    (base / "task" / str(pid)).mkdir(parents=True)
    (base / "fd").mkdir()
    (base / "task" / str(pid) / "comm").write_text(comm + "\n")
    (base / "maps").write_text(maps)
    (base / "status").write_text(f"Name:\tpython3\nTgid:\t{pid}\nPid:\t{pid}\n")
    (base / "environ").write_bytes(environ)
    os.symlink("anon_inode:[eventpoll]", base / "fd" / "3")


PLAIN_MAPS = """\
200600000-200800000 rw-s 00000000 00:06 7 /dev/nvidia0
200800000-204000000 rw-s 00000000 00:06 8 /dev/nvidiactl
204a00000-204c00000 rw-s 204a00000 00:06 9 /dev/nvidia-uvm
204e00000-205000000 rw-s 204e00000 00:06 9 /dev/nvidia-uvm
7f00000000-7f00001000 r-xp 00000000 fe:00 1 /opt/lib/libtorch_cuda.so
7f00001000-7f00002000 r-xp 00000000 fe:00 1 /opt/lib/libnccl.so.2
7f00002000-7f00003000 rw-p 00000000 00:00 0
"""


def test_a_plain_context_is_recognised(tmp_path: Path) -> None:
    write_proc(tmp_path, 5, maps=PLAIN_MAPS)
    evidence = read_evidence(5, tmp_path)
    held = ("/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidiactl")
    assert evidence == GpuEvidence(pid=5, device_files=held, environ={"A": "1"})


def test_a_process_that_called_cuinit_and_made_no_context_is_found_by_its_open_files(tmp_path: Path) -> None:
    write_proc(tmp_path, 5, maps="7f00001000-7f00002000 r-xp 00000000 fe:00 1 /usr/lib/libcuda.so.1\n")
    for number, name in enumerate(("nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap2"), start=4):
        os.symlink(f"/dev/{name}", tmp_path / "5" / "fd" / str(number))
    write_proc(tmp_path, 6, maps="")
    [found] = device_holders([5, 6, 7], tmp_path)
    assert found.pid == 5
    assert found.device_files == ("/dev/nvidia-caps/nvidia-cap2", "/dev/nvidia-uvm", "/dev/nvidiactl")


def test_who_holds_the_gpus_files_and_is_no_cuda_process_is_refused_with_the_remedy() -> None:
    worker = GpuEvidence(pid=9, device_files=("/dev/nvidia0", "/dev/nvidiactl"))
    for processes in ([], [GpuEvidence(pid=1)]):
        [verdict] = [item for item in check_program(processes, ONE, [worker]) if item.outcome == "refuse"]
        assert verdict.check == "device files"
        assert "process 9 was forked after CUDA was initialised" in verdict.evidence
        assert "(nvidia0, nvidiactl)" in verdict.evidence
        assert "spawn" in verdict.remedy


def test_managed_ipc_and_nccl_marks_are_recognised(tmp_path: Path) -> None:
    more = "7f7d08000000-7f7d0c000000 rw-s 7f7d08000000 00:06 9 /dev/nvidia-uvm\n"
    more += "205400000-205414000 rw-s 00000000 00:18 3 /dev/shm/cuda.shm.0.2b1.1\n"
    write_proc(tmp_path, 5, maps=PLAIN_MAPS + more, comm="pt_nccl_watchdg")
    evidence = read_evidence(5, tmp_path)
    assert evidence.managed_bytes == 64 << 20
    assert evidence.ipc_segments == ("/dev/shm/cuda.shm.0.2b1.1",)
    assert evidence.nccl_threads == ("pt_nccl_watchdg",)


def test_a_process_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ProcessLookupError):
        read_evidence(999, tmp_path)


def test_this_very_process_has_no_context() -> None:
    assert not read_evidence(os.getpid()).device_files


def test_gpus_that_are_the_same_need_no_map() -> None:
    assert gpu_map(TWO, TWO, [], ["GPU-a"]) == {}


def test_every_gpu_is_mapped_once_when_one_moves() -> None:
    assert gpu_map(TWO, TWO, ["1"], ["GPU-a"]) == {"GPU-a": "GPU-b", "GPU-b": "GPU-a"}


def test_another_machine_gets_a_map_by_index() -> None:
    there = msgspec.structs.replace(TWO, gpus=(gpu(0, "GPU-x"), gpu(1, "GPU-y")))
    assert gpu_map(TWO, there, [], ["GPU-a"]) == {"GPU-a": "GPU-x", "GPU-b": "GPU-y"}
    assert gpu_map(TWO, there, ["GPU-y"], ["GPU-a"]) == {"GPU-a": "GPU-y", "GPU-b": "GPU-x"}


@pytest.mark.parametrize("wanted", [["7"], ["0", "0"], ["0", "1"]])
def test_an_impossible_choice_of_gpus_is_refused(wanted: list[str]) -> None:
    with pytest.raises(PreflightError):
        gpu_map(TWO, TWO, wanted, ["GPU-a"])


def test_fewer_gpus_than_the_program_saw_are_refused() -> None:
    with pytest.raises(PreflightError, match="saw 2 GPUs"):
        gpu_map(TWO, ONE, [], ["GPU-a"])


def test_a_restore_that_cannot_fit_is_refused_with_numbers() -> None:
    require_room(ONE, {"GPU-a": 99 * GIB}, {})
    with pytest.raises(PreflightError, match="102400 MiB free, 2 × 61440 MiB"):
        require_room(ONE, {"GPU-a": 60 * GIB}, {}, copies=2)


def test_the_launch_environment_overwrites_nothing() -> None:
    environ = launch_environment({"NCCL_NET": "IB", "HOME": "/root"}, nccl_safe=True)
    assert environ["NCCL_NET"] == "IB"
    assert environ["UV_USE_IO_URING"] == "0"
    assert environ["NCCL_P2P_DISABLE"] == "1"
    assert environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert (environ["SPT_NOENV"], environ["VLLM_ALLREDUCE_USE_SYMM_MEM"]) == ("1", "0")
    assert "VLLM_HOST_IP" not in environ


def test_without_a_network_servers_are_told_to_meet_on_loopback() -> None:
    environ = launch_environment({"VLLM_HOST_IP": "10.0.0.1"}, offline=True)
    assert (environ["VLLM_HOST_IP"], environ["GLOO_SOCKET_IFNAME"]) == ("10.0.0.1", "lo")
