"""Keeps the device busy: `spin SECONDS` starts a kernel of about that long and returns at once; `sum` waits for it."""

from __future__ import annotations

import torch
from answering import answer_forever

CYCLES_PER_SECOND = 1_900_000_000  # an H200's SM clock under load
tensor = torch.ones(1 << 20, device="cuda")


def spin(seconds: str) -> str:
    torch.cuda._sleep(int(float(seconds) * CYCLES_PER_SECOND))
    return "spinning"


def total() -> float:
    return float(tensor.sum().item())


answer_forever(spin=spin, sum=total)
