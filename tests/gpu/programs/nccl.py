"""Two NCCL ranks, one a GPU, in one tree: `reduce` → the sum that an all-reduce gives on rank 0."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

from answering import answer_forever


def rank(number: int, inbox: Any, outbox: Any) -> None:
    import torch
    import torch.distributed as distributed

    torch.cuda.set_device(number)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", USE_LIBUV="0")
    distributed.init_process_group("nccl", rank=number, world_size=2)
    tensor = torch.full((1 << 20,), float(number + 1), device="cuda")
    while True:
        if inbox.get() == "reduce":
            distributed.all_reduce(tensor)
            torch.cuda.synchronize()
        outbox.put((number, float(tensor.sum().item())))


def main() -> None:
    context = multiprocessing.get_context("spawn")
    inboxes: list[Any] = [context.Queue() for _ in range(2)]
    outbox: Any = context.Queue()
    for number in range(2):
        context.Process(target=rank, args=(number, inboxes[number], outbox), daemon=True).start()

    def ask(word: str) -> str:
        for inbox in inboxes:
            inbox.put(word)
        return str(sorted(outbox.get(timeout=60) for _ in range(2)))

    ask("reduce")
    answer_forever(reduce=lambda: ask("reduce"), look=lambda: ask("look"))


if __name__ == "__main__":
    main()
