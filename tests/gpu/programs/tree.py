"""The GPU belongs to a spawned child, as with a server started from a notebook cell: `step N` is asked of the child."""

from __future__ import annotations

import multiprocessing
from typing import Any

from answering import answer_forever


def owner(inbox: Any, outbox: Any) -> None:
    import torch

    state = torch.arange(1 << 20, device="cuda", dtype=torch.float64)
    while True:
        for _ in range(inbox.get()):
            state = state * 1.0000001 + 1
        outbox.put(float(state.sum().item()))


def main() -> None:
    context = multiprocessing.get_context("spawn")
    inbox: Any = context.Queue()
    outbox: Any = context.Queue()
    context.Process(target=owner, args=(inbox, outbox), daemon=True).start()

    def step(count: str) -> float:
        inbox.put(int(count))
        return float(outbox.get(timeout=60))

    step("0")
    answer_forever(step=step)


if __name__ == "__main__":
    main()
