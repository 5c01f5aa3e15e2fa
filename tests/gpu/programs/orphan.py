"""A child forked after CUDA was initialised behind Python's back: it holds the GPU's files and no hook closes them."""

from __future__ import annotations

import ctypes
import time

import torch
from answering import answer_forever

block = torch.ones(1 << 20, device="cuda")
torch.cuda.synchronize()
if ctypes.PyDLL(None).fork() == 0:
    while True:
        time.sleep(1)
answer_forever(sum=lambda: float(block.sum()))
