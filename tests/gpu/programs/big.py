"""Holds as many GiB of GPU memory as it is told: `sum` reads all of it, `device` says on which GPU it is."""

from __future__ import annotations

import sys

import torch
from answering import answer_forever

gib = int(sys.argv[1])
blocks = [torch.full((1 << 28,), float(index + 1), device="cuda") for index in range(gib)]


def total() -> str:
    return " ".join(str(float(block[::4097].double().sum().item())) for block in blocks)


def device() -> str:
    return str(torch.cuda.get_device_properties(0).uuid)


answer_forever(sum=total, device=device)
