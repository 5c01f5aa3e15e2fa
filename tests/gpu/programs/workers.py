"""A DataLoader whose workers are forked after CUDA was initialised: `step N` → the sum of the next N batches."""

from __future__ import annotations

import torch
from answering import answer_forever
from torch.utils.data import DataLoader, Dataset


class Noise(Dataset):
    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randn(256, generator=torch.Generator().manual_seed(index))


weight = torch.ones(256, device="cuda")
loader = DataLoader(Noise(), batch_size=64, num_workers=2, persistent_workers=True, pin_memory=True)
batches = iter(loader)


def step(count: str) -> float:
    return float(sum((next(batches).cuda() @ weight).double().sum() for _ in range(int(count))))


answer_forever(step=step)
