"""A tensor that a spawned child maps by CUDA IPC; `sum` adds one in the child, `end` ends the child."""

from __future__ import annotations

from typing import Any

import torch
import torch.multiprocessing as processes
from answering import answer_forever


def child(inbox: Any, outbox: Any) -> None:
    tensor = inbox.get()
    while inbox.get() == "add":
        tensor += 1
        torch.cuda.synchronize()
        outbox.put("done")
    del tensor
    outbox.put("ended")


def main() -> None:
    processes.set_start_method("spawn")
    inbox: Any = processes.Queue()
    outbox: Any = processes.Queue()
    tensor = torch.ones(1 << 20, device="cuda")
    worker = processes.Process(target=child, args=(inbox, outbox), daemon=True)
    worker.start()
    inbox.put(tensor)

    def add() -> float:
        inbox.put("add")
        outbox.get(timeout=20)
        return float(tensor.sum().item())

    answer_forever(sum=add)


if __name__ == "__main__":
    main()
