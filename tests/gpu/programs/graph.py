"""A CUDA graph replayed on a stream of its own: `step N` → the hash of every bit of its state afterwards."""

from __future__ import annotations

import hashlib

import torch
from answering import answer_forever

torch.manual_seed(7)
state = torch.randn(1024, 1024, device="cuda")
weight = torch.randn(1024, 1024, device="cuda") / 32
stream = torch.cuda.Stream()
stream.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(stream):
    for _ in range(3):
        torch.tanh(state @ weight)
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph, stream=stream):
    state.copy_(torch.tanh(state @ weight) + 0.1 * torch.sin(state))


def digest() -> str:
    torch.cuda.synchronize()
    return hashlib.sha256(state.cpu().numpy().tobytes()).hexdigest()


def step(count: str) -> str:
    with torch.cuda.stream(stream):
        for _ in range(int(count)):
            graph.replay()
    return digest()


def nudge(amount: str) -> str:
    state.add_(float(amount))
    return digest()


answer_forever(step=step, nudge=nudge, digest=digest)
