"""Holds 64 MiB of managed (UVM) memory beside ordinary memory; `sum` checks both."""

from __future__ import annotations

import ctypes

import torch
from answering import answer_forever
from cuda.bindings import driver

ordinary = torch.ones(1 << 20, device="cuda")
result, pointer = driver.cuMemAllocManaged(64 << 20, driver.CUmemAttach_flags.CU_MEM_ATTACH_GLOBAL)
assert result == driver.CUresult.CUDA_SUCCESS, result
driver.cuMemsetD8(pointer, 7, 64 << 20)
driver.cuCtxSynchronize()


def total() -> int:
    return int(ordinary.sum().item()) + sum(ctypes.string_at(int(pointer), 100))


answer_forever(sum=total)
