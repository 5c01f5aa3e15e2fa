"""The real thing: GPU programs saved, killed, restored and forked on a real GPU. `tools/gpu-check` runs these."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import Lab, ask

from ijfs.live.client import api as client
from ijfs.live.gpu.nvml import inventory
from ijfs.live.gpu.program import host_pids
from ijfs.live.model.records import InstanceInfo
from ijfs_engine.errors import IjfsError, PreflightError

PYTHON = os.environ.get("IJFS_TEST_PYTHON", sys.executable)

pytestmark = [pytest.mark.gpu, pytest.mark.root, pytest.mark.criu]


def test_a_cuda_graph_comes_back_with_the_same_bits(lab: Lab) -> None:
    twin = lab.start("graph", name="twin")  # never saved: what the bits have to be
    expected = [ask(twin, "step", "5"), ask(twin, "step", "5")]
    lab.kill(twin)

    program = lab.start("graph")
    assert ask(program, "step", "5") == expected[0]
    snapshot = lab.save(program, "after five steps").snapshot
    assert ask(program, "step", "5") == expected[1], "the original goes on with the same bits"
    lab.kill(program)

    back = client.restore(lab.path, snapshot, "back")
    assert ask(back, "digest") == expected[0]
    assert ask(back, "step", "5") == expected[1]

    forks = client.fork(lab.path, snapshot, ["left", "right"])
    assert [ask(fork, "step", "5") for fork in forks] == [expected[1]] * 2, "two siblings on one GPU, the same bits"
    assert ask(forks[0], "nudge", "1") != ask(forks[1], "digest"), "and they diverge"
    assert ask(back, "digest") == expected[1], "beside the first, which they do not disturb"


def test_a_child_that_owns_the_gpu_is_saved_with_its_parent(lab: Lab) -> None:
    program = lab.start("tree")
    before = ask(program, "step", "3")
    snapshot = lab.save(program).snapshot
    after = ask(program, "step", "3")
    assert after != before
    lab.kill(program)
    forks = client.fork(lab.path, snapshot, ["left", "right"])
    assert [ask(fork, "step", "3") for fork in forks] == [after] * 2


def test_workers_forked_after_cuda_was_initialised_are_saved_with_it(lab: Lab) -> None:
    program = lab.start("workers")
    ask(program, "step", "3")
    snapshot = lab.save(program).snapshot
    after = ask(program, "step", "3")
    lab.kill(program)
    forks = client.fork(lab.path, snapshot, ["left", "right"])
    assert [ask(fork, "step", "3") for fork in forks] == [after] * 2


def test_a_program_that_initialised_cuda_and_holds_no_context_comes_back_and_can_use_the_gpu(lab: Lab) -> None:
    program = lab.start("cuinit")
    saved = lab.save(program)
    assert not saved.warnings
    lab.kill(program)
    back = client.restore(lab.path, saved.snapshot, "back")
    assert ask(back, "ready") == "yes"
    assert ask(back, "sum") == "1048576.0"


@pytest.mark.parametrize(
    ("program", "reason"), [("managed", "managed"), ("ipc", "IPC"), ("orphan", "forked after CUDA was initialised")]
)
def test_memory_that_cannot_come_back_is_refused_before_it_is_touched(lab: Lab, program: str, reason: str) -> None:
    info = lab.start(program)
    before = float(ask(info, "sum"))
    with pytest.raises(PreflightError, match=reason):
        lab.save(info)
    assert float(ask(info, "sum")) >= before, "the program runs on"


def test_a_lock_that_times_out_leaves_the_program_right(lab: Lab) -> None:
    program = lab.start("spinner")
    ask(program, "spin", "6")
    with pytest.raises(IjfsError, match="lock"):
        lab.save(program, gpu_timeout_s=0.5)
    assert ask(program, "sum") == "1048576.0"
    lab.save(program)
    assert ask(program, "sum") == "1048576.0"


def test_a_parked_program_gives_the_gpu_back_and_goes_on_with_the_same_bits(lab: Lab) -> None:
    program = lab.start("big", "4")
    before, free = ask(program, "sum"), inventory().gpus[0].free_bytes
    with client.connect(lab.path, program.name) as keeper:
        assert keeper.park().parked
        assert inventory().gpus[0].free_bytes > free + (4 << 30)
        saved = keeper.save("while it is parked")
        assert keeper.status().parked
        keeper.wake()
    assert ask(program, "sum") == before
    lab.kill(program)
    assert ask(client.restore(lab.path, saved.snapshot, "back"), "sum") == before


HOG = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
block = torch.empty(free - (3 << 30), dtype=torch.uint8, device="cuda")
print("full", flush=True)
sys.stdin.read()
"""


def test_a_restore_that_cannot_fit_is_refused_with_numbers(lab: Lab) -> None:
    program = lab.start("big", "4")
    before = ask(program, "sum")
    snapshot = lab.save(program).snapshot
    lab.kill(program)
    hog = subprocess.Popen([PYTHON, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert hog.stdout is not None
        assert hog.stdout.readline() == b"full\n"
        with pytest.raises(PreflightError, match="MiB free"):
            client.restore(lab.path, snapshot, "back")
    finally:
        hog.communicate()
    assert ask(client.restore(lab.path, snapshot, "back"), "sum") == before


def test_twenty_gigabytes_come_back(lab: Lab) -> None:
    program = lab.start("big", "20")
    before = ask(program, "sum")
    saved = lab.save(program)
    assert saved.image_bytes > 20 << 30
    lab.kill(program)
    assert ask(client.restore(lab.path, saved.snapshot, "back"), "sum") == before


def gpus_held(info: InstanceInfo) -> set[int]:
    """Indices of the GPUs that an instance's processes hold memory on."""
    assert info.pid is not None
    pids = set(host_pids(info.pid).values())
    return {gpu.index for gpu in inventory().gpus if pids & set(gpu.processes)}


@pytest.mark.gpu(count=2)
def test_a_program_moves_to_another_gpu(lab: Lab) -> None:
    program = lab.start("big", "2")
    before, device = ask(program, "sum"), ask(program, "device")
    snapshot = lab.save(program).snapshot
    lab.kill(program)
    moved = client.restore(lab.path, snapshot, "moved", gpus=("1",))
    assert ask(moved, "sum") == before
    assert gpus_held(moved) == {1}, f"it was on {device}"


@pytest.mark.gpu(count=2)
def test_two_nccl_ranks_with_safe_settings_are_saved_and_forked_twice(lab: Lab) -> None:
    program = lab.start("nccl", nccl_safe=True)
    snapshot = lab.save(program).snapshot
    after = ask(program, "reduce")
    lab.kill(program)
    forks = client.fork(lab.path, snapshot, ["left", "right"])
    assert [ask(fork, "reduce") for fork in forks] == [after] * 2


@pytest.mark.gpu(count=2)
def test_nccl_peer_to_peer_is_refused_and_runs_on(lab: Lab) -> None:
    program = lab.start("nccl")
    before = ask(program, "look")
    with pytest.raises(PreflightError, match="NCCL"):
        lab.save(program)
    assert ask(program, "look") == before
    assert ask(program, "reduce") != before
