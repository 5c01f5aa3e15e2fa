"""ipykernel with torch in a sandbox on a GPU: cells before, save, fork, cells after, by a real client."""

from __future__ import annotations

import os
import sys

import pytest
from conftest import Lab

from ijfs.jupyter.cells import run_cell
from ijfs.live.client import api as client
from ijfs.live.model.records import InstanceInfo, InstanceSpec

pytestmark = [pytest.mark.gpu, pytest.mark.root, pytest.mark.criu]

BEFORE = """
import torch
weight = torch.arange(1 << 20, device="cuda", dtype=torch.float32)
total = lambda: float(weight.double().sum())
total()
"""


def cell(info: InstanceInfo, code: str) -> str:
    assert info.connection_file is not None
    result = run_cell(info.connection_file, code, 120)
    assert result.status == "ok", result.error
    return result.result_text


def test_cells_go_on_in_a_kernel_and_in_two_forks_of_it(lab: Lab) -> None:
    python = os.environ.get("IJFS_TEST_PYTHON", sys.executable)
    spec = InstanceSpec(
        name="notebook",
        kind="kernel",
        argv=(python, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        gpu=True,
    )
    kernel = client.start(lab.path, spec)
    before = cell(kernel, BEFORE)
    forks = client.fork(lab.path, "notebook", ["left", "right"])
    assert [cell(info, "total()") for info in (kernel, *forks)] == [before] * 3
    values = [cell(info, f"weight.mul_({factor}); total()") for factor, info in enumerate((kernel, *forks), start=2)]
    assert values == [str(float(before) * factor) for factor in (2, 3, 4)]
